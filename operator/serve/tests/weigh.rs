//! What an agent in sync costs the server: agents over in-memory pipes that hold 30,000 resources each.
//!
//! Both ends are in this process, so the server's part is less than what is measured.

use std::{fs, io};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use slotmesh_serve::{Config, Store};
use slotmesh_xds::{Change, Resource, ResourceType, Version, more_follows};
use tokio::{io::DuplexStream, sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Uri};

const TYPES: [ResourceType; 3] = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener];
const SERVICES: usize = 10_000;
const AGENTS: usize = 40;
/// Kilobytes of an agent in sync, of both ends, with room for what the allocator keeps. Where a stream keeps each
/// name, or only the room for it, these are thousands.
const MOST: usize = 900;

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

/// Connects, and answers whatever comes; returns when all has come, and then goes on.
async fn agent(near: DuplexStream, node: String, synced: mpsc::Sender<usize>) {
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_: Uri| {
        std::future::ready(near.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
    });
    let channel =
        Endpoint::from_static("http://server.test").connect_with_connector(connector).await.unwrap();
    let (requests, outgoing) = mpsc::channel(16);
    for ty in TYPES {
        let node = Some(Node { id: node.clone(), ..Node::default() });
        let type_url = ty.type_url().to_owned();
        requests.send(DeltaDiscoveryRequest { node, type_url, ..Default::default() }).await.unwrap();
    }
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
            synced.send(came).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_sync_costs_little_however_much_it_holds() {
    let (store, stop) = (Store::new(), CancellationToken::new());
    store.apply(resources());
    let (connections, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
    let incoming = UnboundedReceiverStream::new(incoming);
    let server =
        tokio::spawn(slotmesh_serve::serve(store.clone(), Config::default(), incoming, stop.clone()));
    let (sender, mut synced) = mpsc::channel(1);
    let mut agents = JoinSet::new();
    let mut before = 0;
    for number in 0..AGENTS {
        let (near, far) = tokio::io::duplex(1 << 14);
        connections.send(Ok(far)).unwrap();
        agents.spawn(agent(near, format!("n{number}"), sender.clone()));
        assert_eq!(synced.recv().await, Some(TYPES.len() * SERVICES));
        if number == 0 {
            // What only the first one needs.
            before = resident();
        }
    }
    let each = resident().saturating_sub(before) / (AGENTS - 1);
    println!("{each} kB an agent");
    assert!(each <= MOST, "{each} kB an agent");
    let held: usize = store.agents().iter().flat_map(|agent| TYPES.map(|ty| agent.types[ty].held)).sum();
    assert_eq!(held, AGENTS * TYPES.len() * SERVICES);
    stop.cancel();
    server.await.unwrap().unwrap();
    while agents.join_next().await.is_some() {}
}
