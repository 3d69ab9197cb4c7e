//! The real server over in-memory pipes, against peers that don't behave.

use std::{io, time::Duration};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use slotmesh_serve::{AdsServerConfig, Store};
use slotmesh_xds::{Change, Fingerprint, Resource, ResourceType, Sketch, Version};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint, Uri},
};

const CLUSTER: ResourceType = ResourceType::Cluster;

fn upsert(name: &str, content: &str) -> Change {
    let content = content.as_bytes();
    Change::Upsert(Resource {
        ty: CLUSTER,
        name: name.into(),
        version: Version::of(content),
        content: content.to_vec().into(),
    })
}

struct Server {
    store: Store,
    connections: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Server {
    fn start() -> Self {
        let (store, stop) = (Store::new(), CancellationToken::new());
        store.apply(vec![upsert("a", "1")]);
        let (connections, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming);
        let task = tokio::spawn(slotmesh_serve::serve(
            store.clone(),
            AdsServerConfig::default(),
            incoming,
            stop.clone(),
        ));
        Self { store, connections, stop, task }
    }

    fn plug(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        self.connections.send(Ok(far)).unwrap();
        near
    }

    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let mut stream = Some(self.plug());
        let connector = tower::service_fn(move |_uri: Uri| {
            let stream = stream
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused));
            std::future::ready(stream)
        });
        let endpoint = Endpoint::from_static("http://server.test");
        AggregatedDiscoveryServiceClient::new(endpoint.connect_with_connector(connector).await.unwrap())
    }

    /// A peer that asks for all clusters; the test plays the rest.
    async fn peer(&self, node: &str) -> Peer {
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(wildcard(node)).await.unwrap();
        let opened = self.client().await.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
        Peer { requests, responses: opened.unwrap().into_inner() }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        assert!(self.store.agents().is_empty());
    }
}

struct Peer {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Peer {
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.responses.message().await.unwrap().unwrap()
    }

    async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        let response_nonce = response.nonce.clone();
        let type_url = response.type_url.clone();
        let ack = DeltaDiscoveryRequest { response_nonce, type_url, ..DeltaDiscoveryRequest::default() };
        self.requests.send(ack).await.unwrap();
    }
}

fn wildcard(node: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: node.into(), ..Node::default() }),
        type_url: CLUSTER.type_url().into(),
        resource_names_subscribe: vec!["*".into()],
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_a_node_is_refused_with_the_reason() {
    let server = Server::start();
    for node in [None, Some(Node::default())] {
        let request = DeltaDiscoveryRequest { node, ..wildcard("") };
        let requests = tokio_stream::iter([request]);
        let opened = server.client().await.delta_aggregated_resources(requests).await.unwrap();
        let status = opened.into_inner().message().await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("node.id"), "{status}");
    }
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_state_of_the_world_method_says_what_to_use_instead() {
    let server = Server::start();
    let requests = tokio_stream::iter([DiscoveryRequest::default()]);
    let status = server.client().await.stream_aggregated_resources(requests).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("DeltaAggregatedResources"), "{status}");
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_acknowledges_gets_one_answer_and_holds_up_nobody() {
    let server = Server::start();
    let mut silent = server.peer("silent").await;
    let mut good = server.peer("good").await;
    let first = silent.next().await;
    for n in 0..1_000 {
        let seen = good.next().await;
        good.ack(&seen).await;
        server.store.apply(vec![upsert("a", &format!("change {n}"))]);
    }
    // Long enough for the report in the log.
    tokio::time::sleep(Duration::from_secs(120)).await;
    let agents = server.store.agents();
    let silent_status = agents.iter().find(|agent| agent.node.as_str() == "silent").unwrap();
    assert_eq!(silent_status.types[CLUSTER].unacknowledged, 1);
    assert!(silent_status.types[CLUSTER].pending <= 1 && !silent_status.up_to_date);
    // When it wakes up, it gets the latest content and nothing in between.
    silent.ack(&first).await;
    let latest = silent.next().await;
    assert_eq!(latest.resources[0].resource.as_ref().unwrap().value, b"change 999");
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_reads_holds_up_nobody() {
    let server = Server::start();
    let mut changes = Vec::new();
    for n in 0..200 {
        changes.push(upsert(&format!("large-{n}"), &"x".repeat(100_000)));
    }
    server.store.apply(changes);
    let deaf = server.peer("deaf").await;
    let mut good = server.peer("good").await;
    let mut names = 0;
    while names < 201 {
        let part = good.next().await;
        names += part.resources.len();
        good.ack(&part).await;
    }
    drop(deaf);
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_are_seen_by_those_who_watch() {
    let server = Server::start();
    let mut status = server.store.status_changes();
    let mut peer = server.peer("node-a").await;
    let response = peer.next().await;
    peer.ack(&response).await;
    let mut held = Sketch::default();
    held.add(Fingerprint::of(CLUSTER, &"a".into(), Version::of(b"1")));
    while !server.store.agents().iter().any(|agent| agent.types[CLUSTER].sketch == held) {
        status.changed().await.unwrap();
    }
    while !server.store.agents()[0].up_to_date {
        status.changed().await.unwrap();
    }
    drop(peer);
    while !server.store.agents().is_empty() {
        status.changed().await.unwrap();
    }
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_protocol_at_all_disturb_nobody() {
    let server = Server::start();
    let mut good = server.peer("good").await;
    let mut garbage = server.plug();
    _ = garbage.write_all(&[0xa5; 4_096]).await;
    _ = garbage.read_to_end(&mut Vec::new()).await;
    let response = good.next().await;
    good.ack(&response).await;
    server.store.apply(vec![upsert("b", "1")]);
    assert_eq!(good.next().await.resources[0].name, "b");
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_tells_the_agents_and_ends() {
    let server = Server::start();
    let mut peer = server.peer("node-a").await;
    peer.next().await;
    server.stop.cancel();
    let status = peer.responses.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    drop(peer);
    server.end().await;
}
