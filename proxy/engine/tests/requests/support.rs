//! An engine on loopback, clients that write raw bytes, and endpoints that do as a test says.

use std::{
    convert::Infallible,
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use slotmesh_proxy::{DialOrigin, EngineOptions, ProxyEngine, ProxyLimits, ProxyMetrics, bootstrap};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Time for everything that happens soon, on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Waits for something that happens soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Options of an engine whose sockets are handed over.
pub fn options() -> EngineOptions {
    EngineOptions { http1: crate::HTTP1, bind: false, ..EngineOptions::default() }
}

/// An engine with one listener, `web`.
pub struct Proxy {
    pub engine: Option<ProxyEngine>,
    pub address: SocketAddr,
    metrics: ProxyMetrics,
}

impl Proxy {
    pub async fn start(file: &str) -> Self {
        Self::with_limits(file, ProxyLimits::default()).await
    }

    pub async fn with_limits(file: &str, limits: ProxyLimits) -> Self {
        // One worker: a test that counts connections knows who has them.
        Self::with(file, EngineOptions { workers: 1, limits, ..options() }).await
    }

    pub async fn with(file: &str, options: EngineOptions) -> Self {
        let engine = ProxyEngine::start(options).expect("threads");
        for resource in bootstrap::parse(file).unwrap_or_else(|error| panic!("{error}\n{file}")) {
            let faults = engine.apply(&resource).expect("a resource that can be served");
            assert!(faults.is_empty(), "{faults:?}");
        }
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = socket.local_addr().expect("it is bound");
        engine.listen("web", DialOrigin::default(), &socket).expect("a socket");
        engine.settled().await;
        let metrics = engine.metrics();
        Self { engine: Some(engine), address, metrics }
    }

    pub fn engine(&self) -> &ProxyEngine {
        self.engine.as_ref().expect("it runs")
    }

    pub async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// One request on a connection of its own; the whole answer.
    pub async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.connect().await;
        client.send(request).await;
        client.rest().await
    }

    /// Value of a metric's line, by its beginning.
    pub fn metric(&self, line: &str) -> u64 {
        let text = self.metrics.render();
        let found =
            text.lines().find(|found| found.strip_prefix(line).is_some_and(|rest| rest.starts_with(' ')));
        let value = found.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
        value.parse().unwrap_or_else(|_| panic!("{line}: {value}"))
    }

    /// Ends the engine.
    pub async fn drain(mut self, grace: Duration) {
        let engine = self.engine.take().expect("it runs");
        soon("the engine's end", async {
            tokio::task::spawn_blocking(move || engine.drain(grace)).await.expect("no panic");
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.take() {
            engine.drain(Duration::ZERO);
        }
    }
}

/// A connection that is written to byte by byte.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.expect("it listens"))
    }

    pub const fn new(stream: TcpStream) -> Self {
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon("a write", self.stream.write_all(bytes.as_ref())).await.expect("the other end reads");
    }

    /// Bytes that were read beyond those that were asked for.
    pub fn take_read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.read)
    }

    /// All that comes until the other end closes.
    pub async fn rest(&mut self) -> String {
        soon("the end of the connection", async {
            // A reset ends it, too.
            while let Ok(1..) = self.stream.read_buf(&mut self.read).await {}
        })
        .await;
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    /// All that comes up to this text, and it.
    pub async fn until(&mut self, end: &str) -> String {
        soon(end, async {
            loop {
                let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
                if let Some(found) = found {
                    let taken: Vec<u8> = self.read.drain(..found + end.len()).collect();
                    return String::from_utf8_lossy(&taken).into_owned();
                }
                let some = self.stream.read_buf(&mut self.read).await.unwrap_or_default();
                assert!(some > 0, "{end:?} isn't in {:?}", String::from_utf8_lossy(&self.read));
            }
        })
        .await
    }

    /// So many bytes.
    pub async fn exactly(&mut self, count: usize) -> String {
        soon("bytes", async {
            while self.read.len() < count {
                let some = self.stream.read_buf(&mut self.read).await.expect("bytes");
                assert!(some > 0, "{count} bytes don't come");
            }
        })
        .await;
        String::from_utf8_lossy(&self.read.drain(..count).collect::<Vec<u8>>()).into_owned()
    }

    /// The next answer: its head, and the body that its `content-length` says.
    pub async fn answer(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().expect("a number"));
        (head, self.exactly(length).await)
    }
}

/// An endpoint on loopback. Its tasks end with the test's runtime.
pub struct Endpoint {
    pub address: SocketAddr,
    /// Connections that it has accepted.
    pub accepted: Arc<AtomicUsize>,
}

impl Endpoint {
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn connections(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    /// Does with each connection as it is told; it is given the connection's number.
    pub async fn raw<F>(serve: impl Fn(Client, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, SeqCst);
                tokio::spawn(serve(Client::new(stream), number));
            }
        });
        Self { address, accepted }
    }

    /// Answers each request of HTTP/1 or, as `http2` says, HTTP/2.
    pub async fn http<F>(
        http2: bool,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        Self::raw(move |client, _| {
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            async move {
                let io = TokioIo::new(client.stream);
                if http2 {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(io, service).await);
                } else {
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
                }
            }
        })
        .await
    }

    /// Answers with what it was asked: the line, the fields in their order, the body.
    pub async fn echo() -> Self {
        Self::http(false, echo).await
    }
}

/// The request as text.
pub async fn echo(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    let Ok(body) = body.collect().await else {
        let mut response = Response::new(Full::new("the body is broken".into()));
        *response.status_mut() = http::StatusCode::BAD_REQUEST;
        return response;
    };
    if let Some(trailers) = body.trailers() {
        text += &format!("trailers {trailers:?}\n");
    }
    text += "\n";
    text += &String::from_utf8_lossy(&body.to_bytes());
    Response::new(Full::new(text.into()))
}

/// A file with listener `web` and cluster `web`, and what is put into its parts.
pub struct File {
    pub manager: String,
    pub routes: String,
    pub cluster: String,
    pub listener: String,
}

impl Default for File {
    fn default() -> Self {
        Self {
            manager: String::new(),
            routes: "- {match: {prefix: /}, route: {cluster: web}}".into(),
            cluster: String::new(),
            listener: String::new(),
        }
    }
}

impl File {
    pub fn text(&self, ports: &[u16]) -> String {
        let Self { manager, routes, cluster, listener } = self;
        let endpoints: Vec<String> = ports
            .iter()
            .map(|port| {
                format!("{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
            })
            .collect();
        let endpoints = endpoints.join(", ");
        let indent = |text: &str, by: usize| {
            text.lines().map(|line| format!("{:by$}{line}\n", "")).collect::<String>()
        };
        format!(
            r#"
static_resources:
  listeners:
  - name: web
    address: {{socket_address: {{address: 127.0.0.1, port_value: 1}}}}
{listener}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
{manager}
          route_config:
            name: web
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
{routes}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: web
    type: STATIC
    load_assignment: {{cluster_name: web, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}
{cluster}
"#,
            listener = indent(listener, 4),
            manager = indent(manager, 10),
            routes = indent(routes, 14),
            cluster = indent(cluster, 4),
        )
    }
}

/// A file that sends all to endpoints of these ports.
pub fn file(ports: &[u16]) -> String {
    File::default().text(ports)
}

/// Says that endpoints speak HTTP/2.
pub const HTTP2_CLUSTER: &str = r#"typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}"#;
