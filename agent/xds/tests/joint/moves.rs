//! Moving from replica to replica, of which some lag behind. Time is virtual.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use slotmesh_ads::{Client, FromStreams, Subscription};
use slotmesh_serve::{AdsServerConfig, HeldBack, Rescoped, SourceVersions, Store};
use slotmesh_xds::ResourceType::Cluster;
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::support::{MemorySink, config, upsert};

/// A replica whose source is at some version, in which the cluster `a` has some content.
struct Replica {
    store: Store,
    held_back: Arc<HeldBack>,
    connections: mpsc::UnboundedSender<io::Result<DuplexStream>>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Replica {
    fn start(version: u64, content: &str) -> Self {
        let (store, stop) = (Store::new(), CancellationToken::new());
        let (connections, incoming) = mpsc::unbounded_channel();
        let config = AdsServerConfig::default();
        let held_back = Arc::clone(&config.held_back);
        let incoming = UnboundedReceiverStream::new(incoming);
        let task = tokio::spawn(slotmesh_serve::serve(store.clone(), config, incoming, stop.clone()));
        let replica = Self { store, held_back, connections, stop, task };
        replica.reach(version, content);
        replica
    }

    fn reach(&self, version: u64, content: &str) {
        let mut reached = SourceVersions::default();
        reached.changed("Pod", version);
        self.store.apply_for(vec![upsert(Cluster, "a", content)], &Rescoped::default(), None, &reached);
    }

    async fn end(self) -> Arc<HeldBack> {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        self.held_back
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_not_taken_back_and_not_kept_waiting_for_ever() {
    let mut replicas = vec![Replica::start(9, "new"), Replica::start(7, "old"), Replica::start(7, "old")];
    let doors: Vec<_> = replicas.iter().map(|replica| replica.connections.clone()).collect();
    let (at, doors) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(doors)));
    let (door, ways) = (Arc::clone(&at), Arc::clone(&doors));
    let connector = FromStreams::new(move || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let sent = ways.lock().unwrap()[door.load(Ordering::Relaxed)].send(Ok(far));
        std::future::ready(sent.map(|()| near).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
    });
    let (sink, stop) = (MemorySink::default(), CancellationToken::new());
    let (client, handle) = Client::new(config(), connector, sink.clone());
    handle.set(Cluster, Subscription::Wildcard);
    let client = tokio::spawn(client.run(stop.clone()));
    let content = |wanted: &'static str| {
        let sink = sink.clone();
        async move {
            let is = |resource: &slotmesh_xds::Resource| *resource.content == *wanted.as_bytes();
            sink.until(wanted, |memory| memory.held.values().any(is)).await;
        }
    };
    content("new").await;
    assert_eq!(sink.take_log(), ["cluster +a"]);

    // The next one lags behind for a while.
    at.store(1, Ordering::Relaxed);
    let first = replicas.remove(0);
    assert_eq!(first.end().await.begun(), 0);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((replicas[0].held_back.begun(), sink.take_log()), (1, Vec::new()));
    replicas[0].reach(10, "newest");
    content("newest").await;
    assert_eq!(sink.take_log(), ["cluster +a"]);

    // The last one does for ever, as after a restore: what it has counts at last.
    at.store(2, Ordering::Relaxed);
    assert_eq!(replicas.remove(0).end().await.given_up(), 0);
    content("old").await;
    let last = &replicas[0];
    assert_eq!((last.held_back.begun(), last.held_back.given_up()), (1, 1));
    // And it is what the agent gives back from then on.
    let again = Replica::start(7, "older");
    doors.lock().unwrap()[2] = again.connections.clone();
    replicas.remove(0).end().await;
    content("older").await;
    assert_eq!(again.held_back.begun(), 0);
    stop.cancel();
    client.await.unwrap();
    again.end().await;
}
