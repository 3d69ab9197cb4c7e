//! Control planes that keep silent, and agents that want what they have no room for. Time is virtual.

use std::{
    collections::HashSet,
    future::pending,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::ControlPlane,
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
};
use futures::{Stream, StreamExt as _};
use slotmesh_ads::{AskAgain, Client, Config, FromStreams, Handle, Sink, Subscription, Update};
use slotmesh_serve::Store;
use slotmesh_xds::{CONTROL_PLANE, Rejection, ResourceName, ResourceType, Version};
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::support::{MemorySink, upsert};

type Pipes = mpsc::UnboundedSender<io::Result<DuplexStream>>;
type Incoming = UnboundedReceiverStream<io::Result<DuplexStream>>;

fn pipes() -> (Pipes, Incoming) {
    let (pipes, incoming) = mpsc::unbounded_channel();
    (pipes, UnboundedReceiverStream::new(incoming))
}

/// A client that goes from one replica to the next with each connection, and how often it has connected.
fn client(
    sink: MemorySink,
    replicas: Vec<Pipes>,
    stop: &CancellationToken,
) -> (JoinHandle<()>, Handle, Arc<AtomicUsize>) {
    let connects = Arc::new(AtomicUsize::new(0));
    let count = connects.clone();
    let connector = FromStreams::new(move || {
        let turn = count.fetch_add(1, Ordering::Relaxed) % replicas.len();
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = replicas[turn].send(Ok(far));
        std::future::ready(sent.map(|()| near).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
    });
    let (client, handle) = Client::new(Config::new("node-a"), connector, sink);
    for ty in ResourceType::ALL {
        handle.set(ty, Subscription::Wildcard);
    }
    handle.set(ResourceType::Settings, ["node-a"].into_iter().collect());
    (tokio::spawn(client.run(stop.clone())), handle, connects)
}

fn serve(store: Store, incoming: Incoming, stop: &CancellationToken) {
    drop(tokio::spawn(slotmesh_serve::serve(store, Default::default(), incoming, stop.clone())));
}

fn one_cluster() -> Store {
    let store = Store::new();
    store.apply(vec![upsert(ResourceType::Cluster, "c", "1")]);
    store
}

/// Answers every first request with nothing, or not even with headers; and pings, as HTTP/2 does.
struct Silent {
    answers_first: bool,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Silent {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if !self.answers_first {
            pending::<()>().await;
        }
        let mut requests = request.into_inner();
        let (responses, stream) = mpsc::channel(16);
        tokio::spawn(async move {
            let mut answered = HashSet::new();
            while let Ok(Some(request)) = requests.message().await {
                if answered.insert(request.type_url.clone()) {
                    let control_plane = Some(ControlPlane { identifier: CONTROL_PLANE.to_owned() });
                    let response = DeltaDiscoveryResponse {
                        type_url: request.type_url,
                        nonce: "1".to_owned(),
                        control_plane,
                        ..Default::default()
                    };
                    drop(responses.send(Ok(response)).await);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

fn keep_silent(answers_first: bool, incoming: Incoming) {
    let service = AggregatedDiscoveryServiceServer::new(Silent { answers_first });
    drop(tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming)));
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_even_open_the_stream_is_left_for_another() {
    let (stop, sink) = (CancellationToken::new(), MemorySink::default());
    let ((mute, unheard), (good, incoming)) = (pipes(), pipes());
    keep_silent(false, unheard);
    serve(one_cluster(), incoming, &stop);
    let (client, _handle, connects) = client(sink.clone(), vec![mute, good], &stop);
    sink.until("synced by the other replica", |memory| memory.synced == 1).await;
    assert_eq!(
        (sink.names(ResourceType::Cluster), connects.load(Ordering::Relaxed)),
        (vec!["c".to_owned()], 2)
    );
    stop.cancel();
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_owes_the_first_answers_is_left_for_another() {
    let (stop, sink) = (CancellationToken::new(), MemorySink::default());
    let ((mute, unheard), (good, incoming)) = (pipes(), pipes());
    // It doesn't know yet what it serves, and never will.
    serve(Store::new(), unheard, &stop);
    serve(one_cluster(), incoming, &stop);
    let (client, handle, connects) = client(sink.clone(), vec![mute, good], &stop);
    sink.until("synced by the other replica", |memory| memory.synced == 1).await;
    assert_eq!((handle.stats().connects(), connects.load(Ordering::Relaxed)), (2, 2));
    stop.cancel();
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_falls_silent_later_is_left_for_another() {
    let (stop, sink) = (CancellationToken::new(), MemorySink::default());
    let ((mute, unheard), (good, incoming)) = (pipes(), pipes());
    keep_silent(true, unheard);
    serve(one_cluster(), incoming, &stop);
    let (client, _handle, _) = client(sink.clone(), vec![mute, good], &stop);
    sink.until("synced, with nothing", |memory| memory.synced == 1).await;
    sink.until("synced by the other replica", |memory| memory.held.len() == 1).await;
    stop.cancel();
    client.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_has_nothing_new_for_a_week_is_kept() {
    let (stop, sink) = (CancellationToken::new(), MemorySink::default());
    let (good, incoming) = pipes();
    serve(one_cluster(), incoming, &stop);
    let (client, handle, connects) = client(sink.clone(), vec![good], &stop);
    sink.until("synced", |memory| memory.synced == 1).await;
    tokio::time::sleep(Duration::from_secs(7 * 24 * 3_600)).await;
    assert_eq!(connects.load(Ordering::Relaxed), 1);
    assert!(handle.stats().in_sync());
    stop.cancel();
    client.await.unwrap();
}

/// Never has room for one resource, and says all the time that it might.
#[derive(Clone, Default)]
struct Crammed {
    refused: Arc<Mutex<HashSet<ResourceName>>>,
    applied: Arc<AtomicUsize>,
    /// There is room now: to be told once.
    raised: Arc<AtomicBool>,
}

impl Sink for Crammed {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        Vec::new()
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let big = update.upserts.into_iter().filter(|resource| resource.name.as_str() == "big");
        let reject = |resource: slotmesh_xds::Resource| {
            self.applied.fetch_add(1, Ordering::Relaxed);
            self.refused.lock().unwrap().insert(resource.name.clone());
            Rejection { name: resource.name, reason: "no room".to_owned() }
        };
        big.map(reject).collect()
    }

    fn synced(&self) {}

    async fn retries(&self) -> AskAgain {
        loop {
            let refused: Vec<_> = self.refused.lock().unwrap().drain().collect();
            if !refused.is_empty() {
                let names = refused.into_iter().map(|name| (ResourceType::Cluster, name)).collect();
                return AskAgain { names, soon: false };
            }
            if self.raised.swap(false, Ordering::Relaxed) {
                return AskAgain { names: vec![(ResourceType::Cluster, "big".into())], soon: true };
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_agents_without_room_for_a_resource_stay_connected_and_ask_ever_more_rarely() {
    const AGENTS: usize = 1_000;
    let store = Store::new();
    store.apply(vec![upsert(ResourceType::Cluster, "big", "1"), upsert(ResourceType::Cluster, "small", "1")]);
    let stop = CancellationToken::new();
    let (replica, incoming) = pipes();
    serve(store, incoming, &stop);
    let (sink, connects) = (Crammed::default(), Arc::new(AtomicUsize::new(0)));
    let (mut agents, mut raised) = (Vec::new(), Vec::new());
    for agent in 0..AGENTS {
        let (count, replica) = (connects.clone(), replica.clone());
        let connector = FromStreams::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let (near, far) = tokio::io::duplex(1 << 12);
            let sent = replica.send(Ok(far));
            std::future::ready(sent.map(|()| near).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
        });
        let sink = Crammed { applied: sink.applied.clone(), ..Crammed::default() };
        raised.push(sink.raised.clone());
        let (client, handle) = Client::new(Config::new(format!("node-{agent}")), connector, sink);
        handle.set(ResourceType::Cluster, Subscription::Wildcard);
        agents.push((tokio::spawn(client.run(stop.clone())), handle));
    }
    // Until the bounds have grown.
    tokio::time::sleep(Duration::from_secs(1_200)).await;
    let before = sink.applied.load(Ordering::Relaxed);
    assert!(before > 2 * AGENTS, "it is asked for again: {before}");
    const WHILE: u64 = 600;
    tokio::time::sleep(Duration::from_secs(WHILE)).await;
    let asked = sink.applied.load(Ordering::Relaxed) - before;
    assert!(asked > 0 && asked <= 10 * WHILE as usize, "{asked} in {WHILE} s");
    assert_eq!(connects.load(Ordering::Relaxed), AGENTS, "nobody has connected anew");
    // However long they have waited: where a cap is raised, it isn't for them to wait.
    raised.iter().for_each(|raised| raised.store(true, Ordering::Relaxed));
    let before = sink.applied.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(sink.applied.load(Ordering::Relaxed) >= before + AGENTS, "each asks within a second");
    stop.cancel();
    for (client, _handle) in agents {
        client.await.unwrap();
    }
}
