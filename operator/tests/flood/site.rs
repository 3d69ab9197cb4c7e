//! An operator's port, the API server behind it, and whoever connects.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use serde_json::{Value, json};
use slotmesh_operator::Tokens;
use slotmesh_serve::{AdsServerConfig, Gate, Store, tls_connections};
use slotmesh_xds::ResourceType;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Endpoint, Uri};

const HOST: &str = "operator.test";
const ACCOUNT: &str = "system:serviceaccount:slotmesh-system:slotmesh-agent";

/// How many tokens the API server was asked about.
#[derive(Debug, Default)]
pub struct Reviews {
    good: AtomicU32,
    bad: AtomicU32,
}

impl Reviews {
    pub fn good(&self) -> u32 {
        self.good.load(Ordering::Relaxed)
    }

    pub fn bad(&self) -> u32 {
        self.bad.load(Ordering::Relaxed)
    }

    /// `good-<node>` is the token of that node's agent.
    fn judge(&self, review: &Value) -> Value {
        let token = review["spec"]["token"].as_str().unwrap_or_default();
        let Some(node) = token.strip_prefix("good-") else {
            self.bad.fetch_add(1, Ordering::Relaxed);
            return json!({"authenticated": false});
        };
        self.good.fetch_add(1, Ordering::Relaxed);
        json!({
            "authenticated": true, "audiences": ["agents"],
            "user": {"username": ACCOUNT, "extra": {"authentication.kubernetes.io/node-name": [node]}},
        })
    }
}

/// The client of an API server that takes some milliseconds for each review.
fn api_server(reviews: Arc<Reviews>) -> kube::Client {
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let reviews = Arc::clone(&reviews);
        async move {
            tokio::time::sleep(Duration::from_millis(3)).await;
            let mut review: Value = serde_json::from_slice(&request.into_body().collect_bytes().await?)?;
            review["status"] = reviews.judge(&review);
            let answer =
                http::Response::builder().status(201).body(Body::from(serde_json::to_vec(&review)?))?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(answer)
        }
    });
    kube::Client::new(service, "default")
}

/// Clones are handles of the same.
#[derive(Clone)]
pub struct Site {
    address: SocketAddr,
    tls: TlsConnector,
    pub gate: Gate,
    pub reviews: Arc<Reviews>,
    _stop: Arc<DropGuard>,
}

impl Site {
    pub async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let server = ServerConfig::builder().with_no_client_auth();
        let server = server.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];

        let reviews = Arc::<Reviews>::default();
        let tokens =
            Tokens::new(api_server(Arc::clone(&reviews)), "agents", "slotmesh-system", "slotmesh-agent");
        let config = AdsServerConfig { authenticator: Some(Arc::new(tokens)), ..AdsServerConfig::default() };
        let (gate, store, stop) = (config.gate.clone(), Store::new(), CancellationToken::new());
        store.apply(Vec::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = tls_connections(listener, server, &gate);
        tokio::spawn(slotmesh_serve::serve(store, config, connections, stop.clone()));
        let stop = Arc::new(stop.drop_guard());
        Self { address, tls: TlsConnector::from(Arc::new(client)), gate, reviews, _stop: stop }
    }

    pub async fn tcp(&self, from: Ipv4Addr) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((from, 0)))?;
        socket.connect(self.address).await
    }

    pub async fn tls(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.tls.connect(HOST.try_into().unwrap(), tcp).await
    }

    /// Opens a stream and waits for the first answer.
    pub async fn stream(&self, from: Ipv4Addr, node: &str, token: &str) -> Result<(), String> {
        let site = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let site = site.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(site.tls(site.tcp(from).await?).await?)) }
        });
        let endpoint = Endpoint::from_static("http://operator.test");
        let channel =
            endpoint.connect_with_connector(connector).await.map_err(|error| format!("{error:?}"))?;
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: node.to_owned(), ..Node::default() }),
            type_url: ResourceType::Cluster.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        sender.send(first).await.map_err(|error| error.to_string())?;
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        let bearer = format!("Bearer {token}").parse().map_err(|_| "no token".to_owned())?;
        request.metadata_mut().insert("authorization", bearer);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let answers =
            client.delta_aggregated_resources(request).await.map_err(|status| status.to_string())?;
        let answer = answers.into_inner().message().await.map_err(|status| status.to_string())?;
        answer.map(drop).ok_or_else(|| "the stream ended".to_owned())
    }
}

/// Says nothing, until the other side has enough.
pub async fn read_to_end(mut stream: impl AsyncRead + Unpin) {
    let mut buffer = [0; 256];
    while let Ok(1..) = stream.read(&mut buffer).await {}
}

/// What this process takes.
pub fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.to_owned()
}
