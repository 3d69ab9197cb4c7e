//! The server of the admin interfaces: of `slotmesh up`, the agent and the operator.
//!
//! It asks nobody who they are. So whoever doesn't come from this machine's loopback gets metrics and probes only, and
//! no client can take more than its share:
//!
//! - at most [`CONNECTIONS`] at a time: one more takes the place of the oldest that has asked for nothing yet;
//! - one request a connection, whose head has to come within [`HEAD`], and which is over within [`WHOLE`].

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, response::IntoResponse as _, routing::get};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::{process::GRACE, text_format};

/// The most connections at a time.
const CONNECTIONS: usize = 64;
/// How long a client may take to say what it wants.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may last, its answer included.
const WHOLE: Duration = Duration::from_secs(30);
/// The pause when the kernel has no connection for us, though there is one.
const PAUSE: Duration = Duration::from_millis(50);

/// What is served, and to whom.
#[derive(Clone)]
pub struct Site {
    /// To clients on this machine's loopback.
    local: Router,
    /// To all others.
    remote: Router,
}

impl Site {
    /// `open` is for everybody, `local` for clients on loopback only. `pages` is what `/` tells of: path and content.
    pub fn new(open: Router, local: Router, pages: &[(&str, &str)]) -> Self {
        let open = open.layer(axum::middleware::from_fn(text_format::negotiate));
        let width = pages.iter().map(|(path, _)| path.len()).max().unwrap_or_default();
        let index: String =
            pages.iter().map(|(path, content)| format!("{path:width$}  {content}\n")).collect();
        let index: Arc<str> = index.into();
        let unknown = {
            let index = index.clone();
            move || std::future::ready((StatusCode::NOT_FOUND, format!("no such page; there are\n{index}")))
        };
        let local = open
            .clone()
            .merge(local)
            .route("/", get(move || std::future::ready(index.to_string())))
            .fallback(unknown);
        let remote = open.fallback(|| async {
            let text = "only /metrics, /readyz and /livez are answered on this address; the rest on loopback, \
                        where `kubectl port-forward` leads\n";
            (StatusCode::FORBIDDEN, text).into_response()
        });
        Self { local, remote }
    }

    fn of(&self, stream: &TcpStream, peer: SocketAddr) -> Router {
        let is_loopback = |address: SocketAddr| address.ip().to_canonical().is_loopback();
        let local = is_loopback(peer) && stream.local_addr().is_ok_and(is_loopback);
        if local { self.local.clone() } else { self.remote.clone() }
    }
}

/// A connection that is open.
struct Open {
    task: AbortHandle,
    /// It has asked for something, and waits for the answer or reads it.
    asked: Arc<AtomicBool>,
}

/// The connections that are open, oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: VecDeque<Open>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, router: Router) {
        self.open.retain(|open| !open.task.is_finished());
        while self.open.len() >= CONNECTIONS {
            self.shed();
        }
        let asked = Arc::new(AtomicBool::new(false));
        let task = self.tasks.spawn(answer(stream, router, asked.clone()));
        self.open.push_back(Open { task, asked });
    }

    /// Ends the oldest that has asked for nothing; where all have, the oldest.
    fn shed(&mut self) {
        let idle = self.open.iter().position(|open| !open.asked.load(Ordering::Relaxed));
        if let Some(open) = self.open.remove(idle.unwrap_or_default()) {
            open.task.abort();
        }
    }

    /// Lets those finish that have asked for something.
    async fn end(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        for open in self.open.iter().filter(|open| !open.asked.load(Ordering::Relaxed)) {
            open.task.abort();
        }
        while let Ok(Some(_)) = timeout_at(deadline, self.tasks.join_next()).await {}
    }
}

/// Serves until `stop`; then those that have asked for something have [`GRACE`] left.
///
/// # Errors
/// Never yet: a socket that yields no connection is tried again.
pub async fn serve(listener: TcpListener, site: Site, stop: CancellationToken) -> anyhow::Result<()> {
    let mut connections = Connections::default();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let router = site.of(&stream, peer);
                    connections.add(stream, router);
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "the admin interface gets no connection");
                    connections.shed();
                    sleep(PAUSE).await;
                }
            }
        }
    }
    drop(listener);
    connections.end(GRACE).await;
    Ok(())
}

/// A connection that was gone before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

async fn answer(stream: TcpStream, router: Router, asked: Arc<AtomicBool>) {
    let service = service_fn(move |request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(WHOLE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a client of the admin interface"),
        Err(_elapsed) => tracing::debug!("a client of the admin interface was too slow"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn site() -> Site {
        let open = Router::new().route("/livez", get(|| async { "live\n" }));
        let local = Router::new()
            .route("/secret", get(|| async { "routes\n" }))
            .route("/slow", get(|| async { std::future::pending::<&str>().await }));
        Site::new(open, local, &[("/livez", "alive")])
    }

    /// A server on an address of this machine.
    async fn start(ip: &str) -> (SocketAddr, CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>) {
        let listener = TcpListener::bind((ip, 0)).await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve(listener, site(), stop.clone()));
        (address, stop, serving)
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: slotmesh\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_crowd_of_silent_clients_keeps_nobody_from_an_answer() {
        let (address, stop, serving) = start("127.0.0.1").await;
        let mut silent = Vec::new();
        for i in 0..1_100 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            if i % 2 == 0 {
                // Half a request is no better than none.
                stream.write_all(b"GET /livez HTTP/1.1\r\nhost: slot").await.unwrap();
            }
            silent.push(stream);
        }
        for _ in 0..10 {
            let answer = ask(address, "/livez").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("live\n"), "{answer}");
        }
        // The oldest have gone, at most 64 are left.
        let mut open = 0;
        for stream in &mut silent {
            let mut byte = [0];
            match stream.try_read(&mut byte) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => open += 1,
                _ => {}
            }
        }
        assert!(open <= CONNECTIONS, "{open} are open");
        stop.cancel();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_end_waits_for_no_client() {
        let (address, stop, serving) = start("127.0.0.1").await;
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut waits = TcpStream::connect(address).await.unwrap();
        waits.write_all(b"GET /slow HTTP/1.1\r\nhost: slotmesh\r\n\r\n").await.unwrap();
        // It is accepted after the others.
        assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
        stop.cancel();
        serving.await.unwrap().unwrap();
        for mut stream in [half, waits] {
            assert_eq!(stream.read(&mut [0]).await.unwrap_or_default(), 0, "it is closed without an answer");
        }
    }

    #[tokio::test]
    async fn only_loopback_is_told_more_than_metrics_and_probes() {
        let (local, ..) = start("127.0.0.1").await;
        assert!(ask(local, "/secret").await.ends_with("routes\n"));
        let index = ask(local, "/").await;
        assert!(index.contains("/livez  alive\n"), "{index}");
        let unknown = ask(local, "/nothing").await;
        assert!(unknown.starts_with("HTTP/1.1 404") && unknown.contains("/livez"), "{unknown}");
        // An address of this machine that isn't loopback; a machine without one has nobody to tell.
        let (remote, ..) = start("0.0.0.0").await;
        let site = site();
        let other = site.remote.oneshot(request("/secret")).await.unwrap();
        assert_eq!(other.status(), StatusCode::FORBIDDEN);
        let other = site.local.oneshot(request("/secret")).await.unwrap();
        assert_eq!(other.status(), StatusCode::OK);
        let through_all = SocketAddr::from(([127, 0, 0, 1], remote.port()));
        assert!(ask(through_all, "/secret").await.ends_with("routes\n"));
    }

    fn request(path: &str) -> Request<axum::body::Body> {
        Request::builder().uri(path).body(axum::body::Body::empty()).unwrap()
    }
}
