//! The cost of an agent in sync at the server: agents that hold 30,000 resources each, over TLS, from another process, so
//! that only the server's part is in this one.
//!
//! `SLOTMESH_WEIGH_AGENTS` says how many there are.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use slotmesh_serve::{AdsServerConfig, Store, tls_connections};
use slotmesh_xds::{Change, Resource, ResourceType, Version, more_follows};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};

const TYPES: [ResourceType; 3] = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener];
const SERVICES: usize = 10_000;
/// Kilobytes of an agent in sync. Where a stream keeps each name, or only the room for it, these are thousands.
const MOST: usize = 150;
/// Where the process of the agents finds the server.
const SERVER: &str = "SLOTMESH_WEIGH_SERVER";
/// The server's certificate, in hexadecimal digits.
const ROOT: &str = "SLOTMESH_WEIGH_ROOT";
const HOST: &str = "operator.test";
/// The line that it prints when an agent is in sync.
const SYNCED: &str = "an agent is in sync";

fn agents() -> usize {
    env::var("SLOTMESH_WEIGH_AGENTS").map_or(100, |many| many.parse().expect("a number"))
}

fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn resources() -> Vec<Change> {
    let of = |ty: ResourceType| {
        (0..SERVICES).map(move |n| {
            let name = format!("outbound|80||service-{n}.some-namespace.svc.cluster.local");
            let content = format!("{ty} {name} {}", "x".repeat(100)).into_bytes();
            Change::Upsert(Resource {
                ty,
                name: name.into(),
                version: Version::of(&content),
                content: content.into(),
            })
        })
    };
    TYPES.into_iter().flat_map(of).collect()
}

/// Connects, and answers whatever comes; says when all has come, and then goes on.
async fn agent(server: SocketAddr, tls: TlsConnector, node: String, synced: mpsc::Sender<()>) {
    let (requests, outgoing) = mpsc::channel(16);
    for ty in TYPES {
        let node = Some(Node { id: node.clone(), ..Node::default() });
        let type_url = ty.type_url().to_owned();
        requests.send(DeltaDiscoveryRequest { node, type_url, ..Default::default() }).await.unwrap();
    }
    let connector = tower::service_fn(move |_: Uri| {
        let tls = tls.clone();
        async move {
            let tcp = TcpStream::connect(server).await?;
            Ok::<_, io::Error>(TokioIo::new(tls.connect(HOST.try_into().unwrap(), tcp).await?))
        }
    });
    let endpoint = Endpoint::from_static("http://operator.test");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let stream = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
    let (mut responses, mut came) = (stream.into_inner(), 0);
    while let Ok(Some(response)) = responses.message().await {
        came += response.resources.len();
        let last = !more_follows(&response.system_version_info);
        let (type_url, response_nonce) = (response.type_url, response.nonce);
        requests
            .send(DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() })
            .await
            .unwrap();
        if last && came >= TYPES.len() * SERVICES {
            synced.send(()).await.unwrap();
        }
    }
}

/// A server that shows this certificate, and the certificate.
fn identity() -> (ServerConfig, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![HOST.to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let root = certificate.der().clone();
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![root.clone()], key);
    (server.unwrap(), root)
}

/// Trusts the certificate that stands in the environment.
fn trusting() -> TlsConnector {
    let digits = env::var(ROOT).expect("the certificate");
    let bytes = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(bytes.collect::<Vec<u8>>())).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

/// The process of the agents.
async fn connect(server: SocketAddr) {
    let tls = trusting();
    let (sender, mut synced) = mpsc::channel(1);
    let mut all = JoinSet::new();
    for number in 0..agents() {
        all.spawn(agent(server, tls.clone(), format!("n{number}"), sender.clone()));
        synced.recv().await.expect("it gets in sync");
        println!("{SYNCED}");
    }
    all.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_sync_costs_little_however_much_it_holds() {
    const NAME: &str = "an_agent_in_sync_costs_little_however_much_it_holds";
    if let Ok(server) = env::var(SERVER) {
        return connect(server.parse().unwrap()).await;
    }
    let (store, stop) = (Store::new(), CancellationToken::new());
    store.apply(resources());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tls, root) = identity();
    let config = AdsServerConfig::default();
    let incoming = tls_connections(listener, tls, &config.gate);
    let server = tokio::spawn(slotmesh_serve::serve(store.clone(), config, incoming, stop.clone()));
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(SERVER, address.to_string())
        .env(ROOT, root.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.stdout.take().unwrap();
    let counting = tokio::task::spawn_blocking(move || {
        let (mut lines, mut before) = (BufReader::new(output).lines().map_while(Result::ok), 0);
        for number in 0..agents() {
            lines.find(|line| line.ends_with(SYNCED)).expect("an agent gets in sync");
            if number == agents() / 10 {
                // What only the first ones need.
                before = resident();
            }
        }
        before
    });
    let before = counting.await.unwrap();
    let each = resident().saturating_sub(before) / (agents() - agents() / 10 - 1);
    println!("{each} kB an agent, of {}", agents());
    let held =
        || -> usize { store.agents().iter().flat_map(|agent| TYPES.map(|ty| agent.types[ty].held)).sum() };
    // The last acknowledgement is still on its way.
    let all_held = async {
        while held() != agents() * TYPES.len() * SERVICES {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), all_held).await.expect("all resources are held");
    assert!(each <= MOST, "{each} kB an agent; {MOST} may be");
    stop.cancel();
    server.await.unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}
