//! TLS and tokens, over real sockets: who is let in, what is seen, and what may be replaced meanwhile.

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use slotmesh_ads::{Client, Handle, Subscription, Tls};
use slotmesh_serve::{
    AdsServerConfig, AuthError, AuthResult, Authenticated, Authenticator, NodeName, Origin, RefusalReason,
    RefusedStreams, Scope, Store, Token, Visibility, tls_connections,
};
use slotmesh_xds::{ResourceName, ResourceType};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::{MemorySink, config, upsert};

/// Lets in whoever has a token of the form `node:<name>`, for that node.
#[derive(Debug)]
struct ByName {
    lasts: Option<Duration>,
}

impl Authenticator for ByName {
    fn authenticate(&self, token: Token, _: Option<Origin>) -> AuthResult<'_> {
        Box::pin(async move {
            let node =
                token.reveal().strip_prefix("node:").ok_or(AuthError::Invalid("unknown".to_owned()))?;
            Ok(Authenticated { node: node.into(), lasts: self.lasts })
        })
    }
}

/// Each node sees what begins with its name.
#[derive(Debug)]
struct ByPrefix;

impl Scope for ByPrefix {
    fn visibility(&self, node: &NodeName, _: ResourceType, name: &ResourceName) -> Visibility {
        if name.as_str().starts_with(node.as_str()) { Visibility::Seen } else { Visibility::Foreign }
    }
}

/// A certificate authority, and what it has signed for the server.
#[derive(Clone, Debug, Default)]
struct Certificate(Arc<Mutex<Option<Arc<CertifiedKey>>>>);

impl Certificate {
    /// A new authority signs a new certificate; returns the authority's own.
    fn renew(&self, name: &str) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["operator.test".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
        *self.0.lock().unwrap() = Some(Arc::new(certified));
        authority.pem()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.lock().unwrap().clone()
    }
}

/// An operator and the files of its agents.
struct Operator {
    store: Store,
    address: SocketAddr,
    certificate: Certificate,
    refusals: Arc<RefusedStreams>,
    files: TempDir,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Operator {
    async fn start(lasts: Option<Duration>) -> Self {
        let store = Store::with_scope(Arc::new(ByPrefix));
        store.apply(vec![
            upsert(ResourceType::Cluster, "node-a/1", "x"),
            upsert(ResourceType::Cluster, "node-b/1", "x"),
        ]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (certificate, files, stop) =
            (Certificate::default(), tempfile::tempdir().unwrap(), CancellationToken::new());
        fs::write(files.path().join("ca.crt"), certificate.renew("first")).unwrap();
        let tls =
            ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(certificate.clone()));
        let refusals = Arc::<RefusedStreams>::default();
        let config = AdsServerConfig {
            authenticator: Some(Arc::new(ByName { lasts })),
            refusals: Arc::clone(&refusals),
            ..AdsServerConfig::default()
        };
        let connections = tls_connections(listener, tls, &config.gate);
        let serving = slotmesh_serve::serve(store.clone(), config, connections, stop.clone());
        let server = tokio::spawn(serving);
        Self { store, address, certificate, refusals, files, stop, server }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The agent of node-a, with this token.
    fn agent(&self, token: &str) -> (MemorySink, Handle, JoinHandle<()>) {
        fs::write(self.file("token"), token).unwrap();
        let tls = Tls::new(&format!("https://{}", self.address), self.file("ca.crt")).unwrap();
        let tls = tls.with_token(self.file("token")).with_server_name("operator.test");
        let sink = MemorySink::default();
        let (client, handle) = Client::new(config(), tls, sink.clone());
        for ty in ResourceType::ALL {
            handle.set(ty, Subscription::Wildcard);
        }
        (sink, handle, tokio::spawn(client.run(self.stop.child_token())))
    }

    async fn refuses(&self, reason: RefusalReason) {
        until(|| self.refusals.count(reason) > 0).await;
    }

    async fn end(self, client: JoinHandle<()>) {
        self.stop.cancel();
        client.await.unwrap();
        self.server.await.unwrap().unwrap();
    }
}

async fn until(happened: impl Fn() -> bool) {
    let wait = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it happens");
}

#[tokio::test]
async fn an_agent_sees_what_is_for_its_node() {
    let operator = Operator::start(None).await;
    let (sink, _, client) = operator.agent("node:node-a");
    sink.until("synced", |memory| memory.synced == 1).await;
    operator.store.apply(vec![
        upsert(ResourceType::Cluster, "node-b/2", "x"),
        upsert(ResourceType::Cluster, "node-a/2", "x"),
    ]);
    sink.until("the second", |memory| memory.held.len() == 2).await;
    assert_eq!(sink.names(ResourceType::Cluster), ["node-a/1", "node-a/2"]);
    operator.end(client).await;
}

#[tokio::test]
async fn a_wrong_token_gets_nothing_until_there_is_a_good_one() {
    let operator = Operator::start(None).await;
    let (sink, handle, client) = operator.agent("stolen");
    operator.refuses(RefusalReason::BadToken).await;
    fs::write(operator.file("token"), "node:node-b").unwrap();
    operator.refuses(RefusalReason::OtherNode).await;
    assert!(operator.store.agents().is_empty());
    assert!(sink.names(ResourceType::Cluster).is_empty() && !handle.stats().in_sync());
    fs::write(operator.file("token"), "node:node-a").unwrap();
    sink.until("synced", |memory| memory.synced == 1).await;
    assert_eq!(sink.names(ResourceType::Cluster), ["node-a/1"]);
    operator.end(client).await;
}

#[tokio::test]
async fn a_new_certificate_of_a_new_authority_ends_no_stream_and_is_taken_at_the_next() {
    let operator = Operator::start(None).await;
    let (sink, handle, client) = operator.agent("node:node-a");
    sink.until("synced", |memory| memory.synced == 1).await;
    let new = operator.certificate.renew("second");
    operator.store.apply(vec![upsert(ResourceType::Cluster, "node-a/2", "x")]);
    sink.until("the second", |memory| memory.held.len() == 2).await;
    assert_eq!(handle.stats().reconnects(), 0);

    // Another agent, which knows the old authority only, and then both.
    let (other, other_handle, other_client) = operator.agent("node:node-a");
    until(|| other_handle.stats().failures() > 0).await;
    let old = fs::read_to_string(operator.file("ca.crt")).unwrap();
    fs::write(operator.file("ca.crt"), old + &new).unwrap();
    other.until("synced", |memory| memory.synced == 1).await;
    assert_eq!(handle.stats().reconnects(), 0);
    other_client.abort();
    operator.end(client).await;
}

#[tokio::test]
async fn when_a_token_expires_the_agent_comes_back_with_a_new_one_and_misses_nothing() {
    let operator = Operator::start(Some(Duration::from_millis(200))).await;
    let (sink, handle, client) = operator.agent("node:node-a");
    sink.until("synced", |memory| memory.synced == 1).await;
    sink.take_log();
    until(|| handle.stats().reconnects() >= 2 && handle.stats().in_sync()).await;
    let applied = sink.take_log();
    assert!(applied.iter().all(|line| !line.contains('+') && !line.contains('-')), "{applied:?}");
    operator.store.apply(vec![upsert(ResourceType::Cluster, "node-a/2", "x")]);
    sink.until("the second", |memory| memory.held.len() == 2).await;
    operator.end(client).await;
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_holds_up_nobody() {
    let operator = Operator::start(None).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(operator.address).await.unwrap());
    }
    let garbage = tokio::net::TcpStream::connect(operator.address).await.unwrap();
    garbage.writable().await.unwrap();
    assert!(garbage.try_write(b"GET / HTTP/1.1\r\n\r\n").map_err(|e: io::Error| e.kind()).is_ok());
    let (sink, _, client) = operator.agent("node:node-a");
    sink.until("synced", |memory| memory.synced == 1).await;
    drop((silent, garbage));
    operator.end(client).await;
}
