//! How the client reaches a control plane: TCP, or any stream of bytes.

use std::{
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rand::{Rng, seq::SliceRandom as _};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

/// A connection that is silent for this long is probed: a node that lost its network, or a control
/// plane that lost power, sends no FIN.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long the answer to a probe may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one of several addresses may take to accept.
const ACCEPT: Duration = Duration::from_secs(3);
/// HTTP/2's default of 64 KiB stalls a first sync, and every large message, dozens of times.
const WINDOW: u32 = 4 << 20;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address isn't one.
    #[error(
        "{0:?} is not the address of a control plane: use a URL such as https://host:15010 (http:// without TLS)"
    )]
    Address(String),
    /// The transport failed.
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    /// A file that is needed to connect can't be read, or isn't what it should be.
    #[error("{what} {path}: {reason}; {remedy}")]
    File {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Yields a new connection at each attempt.
pub trait Connector: Send + Sync + 'static {
    /// Connects once.
    fn connect(&self) -> impl Future<Output = Result<Channel, ConnectError>> + Send;

    /// The token with which to open a stream, read anew for each.
    ///
    /// # Errors
    /// Where there should be one and isn't.
    fn token(&self) -> Result<Option<BearerToken>, ConnectError> {
        Ok(None)
    }
}

/// A token as it goes into the headers of a stream. It is marked as sensitive, so that nothing logs it.
pub type BearerToken = MetadataValue<Ascii>;

/// Connects by TCP, or as the given endpoint says (TLS).
#[derive(Clone, Debug)]
pub struct Tcp {
    endpoint: Endpoint,
    turns: Turns,
}

impl Tcp {
    /// Connects to a URL.
    pub fn new(url: &str) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::from_shared(url.to_owned());
        endpoint.map(Self::with).map_err(|_invalid| ConnectError::Address(url.to_owned()))
    }

    /// Connects to an endpoint with settings of its own; keepalive and windows are set here.
    pub fn with(endpoint: Endpoint) -> Self {
        Self::taking_turns(endpoint, Turns::default())
    }

    /// As [`with`](Self::with), going on from where others were that took the same turns.
    pub(crate) fn taking_turns(endpoint: Endpoint, turns: Turns) -> Self {
        Self { endpoint: tuned(endpoint), turns }
    }
}

impl Connector for Tcp {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        let turns = self.turns.clone();
        let connector = tower::service_fn(move |uri: Uri| {
            let turns = turns.clone();
            async move { turns.dial(&uri).await.map(TokioIo::new) }
        });
        Ok(self.endpoint.connect_with_connector(connector).await?)
    }
}

/// Which of a host's addresses are tried first: at random, and the one that was connected to last comes last. It may be
/// the one that keeps silent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<Option<SocketAddr>>>);

impl Turns {
    async fn dial(&self, uri: &Uri) -> io::Result<TcpStream> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut addresses: Vec<SocketAddr> = lookup_host((host, port)).await?.collect();
        self.order(&mut addresses, &mut rand::rng());
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for address in addresses {
            let connected = timeout(ACCEPT, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
                    return Ok(stream);
                }
                Err(error) => failed = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(failed)
    }

    fn order(&self, addresses: &mut [SocketAddr], rng: &mut impl Rng) {
        addresses.shuffle(rng);
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| Some(*address) == last);
    }
}

/// Connects by whatever streams of bytes a function yields, such as in-memory pipes.
pub struct FromStreams<F>(Arc<F>);

impl<F> FromStreams<F> {
    /// Calls `open` for each connection.
    pub fn new(open: F) -> Self {
        Self(Arc::new(open))
    }
}

impl<F> fmt::Debug for FromStreams<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FromStreams").finish_non_exhaustive()
    }
}

impl<F, O, C> Connector for FromStreams<F>
where
    F: Fn() -> O + Send + Sync + 'static,
    O: Future<Output = io::Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn connect(&self) -> Result<Channel, ConnectError> {
        let open = Arc::clone(&self.0);
        over(move || open()).await
    }
}

async fn over<O, C>(open: impl Fn() -> O + Send + 'static) -> Result<Channel, ConnectError>
where
    O: Future<Output = io::Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Only the authority of the requests; nothing resolves it.
    let endpoint = tuned(Endpoint::from_static("http://slotmesh.local"));
    let connector = tower::service_fn(move |_uri: Uri| {
        let stream = open();
        async move { stream.await.map(TokioIo::new) }
    });
    Ok(endpoint.connect_with_connector(connector).await?)
}

fn tuned(endpoint: Endpoint) -> Endpoint {
    endpoint
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_connection_window_size(WINDOW)
        .initial_stream_window_size(WINDOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_replica_is_tried_before_the_one_that_was_left() {
        use rand::{SeedableRng as _, rngs::StdRng};

        let addresses: Vec<SocketAddr> =
            (1..=4).map(|host| SocketAddr::from(([10, 0, 0, host], 15010))).collect();
        let mut rng = StdRng::seed_from_u64(1);
        let mut firsts = std::collections::HashSet::new();
        for last in [None, Some(addresses[2])] {
            let turns = Turns(Arc::new(Mutex::new(last)));
            for _ in 0..100 {
                let mut order = addresses.clone();
                turns.order(&mut order, &mut rng);
                firsts.insert((last, order[0]));
                assert!(last.is_none() || order[3] == addresses[2]);
            }
        }
        assert_eq!(firsts.len(), 4 + 3, "agents are spread over all others");
    }

    #[tokio::test]
    async fn what_keeps_an_address_from_being_reached_is_said_with_it() {
        let error = Tcp::new("http://127.0.0.1:1").unwrap().connect().await.unwrap_err();
        let text = format!("{:?}", std::error::Error::source(&error));
        assert!(text.contains("127.0.0.1:1"), "{text}");
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_named() {
        let error = Tcp::new("not a url").unwrap_err();
        assert!(error.to_string().contains("not a url"), "{error}");
    }
}
