//! How the client reaches a control plane: TCP, or any stream of bytes.

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

/// A connection that is silent for this long is probed: a node that lost its network, or a control
/// plane that lost power, sends no FIN.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long the answer to a probe may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
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
pub struct Tcp(Endpoint);

impl Tcp {
    /// Connects to a URL.
    pub fn new(url: &str) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::from_shared(url.to_owned());
        endpoint.map(Self::with).map_err(|_invalid| ConnectError::Address(url.to_owned()))
    }

    /// Connects to an endpoint with settings of its own; keepalive and windows are set here.
    pub fn with(endpoint: Endpoint) -> Self {
        Self(tuned(endpoint).tcp_nodelay(true).tcp_keepalive(Some(KEEPALIVE)))
    }
}

impl Connector for Tcp {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        Ok(self.0.connect().await?)
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

    #[tokio::test]
    async fn an_address_that_is_none_is_named() {
        let error = Tcp::new("not a url").unwrap_err();
        assert!(error.to_string().contains("not a url"), "{error}");
    }
}
