//! Losing the server: backoff, and nothing in force is touched. Time is virtual.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use slotmesh_ads::{Backoff, Client, Config, FromStreams, Subscription};
use slotmesh_serve::Store;
use slotmesh_xds::ResourceType;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::support::{MemorySink, upsert};

#[tokio::test(start_paused = true)]
async fn attempts_become_rare_and_never_end() {
    let attempts = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&attempts);
    let connector = FromStreams::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        std::future::ready(Err::<DuplexStream, _>(io::Error::from(io::ErrorKind::ConnectionRefused)))
    });
    let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) };
    let sink = MemorySink::default();
    let (client, handle) = Client::new(Config { backoff, ..Config::new("node-a") }, connector, sink.clone());
    let stop = CancellationToken::new();
    let client = tokio::spawn(client.run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
    // With full jitter the mean delay is half the bound: 2,880 attempts a day.
    let made = attempts.load(Ordering::Relaxed);
    assert!((1_440..=5_760).contains(&made), "{made} attempts in a day");
    assert_eq!(handle.stats().failures() / 10, made / 10);
    assert!(!handle.stats().connected());
    stop.cancel();
    client.await.unwrap();
    assert!(sink.memory.lock().unwrap().log.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_comes_back_after_a_day_finds_the_agent_as_it_was() {
    let store = Store::new();
    store.apply(vec![upsert(ResourceType::Cluster, "a", "1")]);
    let up = Arc::new(AtomicBool::new(true));
    let (connections, incoming) = mpsc::unbounded_channel();
    // Each server's life ends with its token; the connections of the next go to the next.
    let target = Arc::new(std::sync::Mutex::new(connections));
    let (switch, to) = (Arc::clone(&up), Arc::clone(&target));
    let connector = FromStreams::new(move || {
        let (near, far) = tokio::io::duplex(1 << 16);
        let taken = switch.load(Ordering::Relaxed) && to.lock().unwrap().send(Ok(far)).is_ok();
        std::future::ready(taken.then_some(near).ok_or_else(|| io::ErrorKind::ConnectionRefused.into()))
    });
    let serve = |incoming: mpsc::UnboundedReceiver<io::Result<DuplexStream>>, stop: &CancellationToken| {
        let incoming = UnboundedReceiverStream::new(incoming);
        tokio::spawn(slotmesh_serve::serve(store.clone(), Default::default(), incoming, stop.clone()))
    };
    let first_life = CancellationToken::new();
    let server = serve(incoming, &first_life);

    let (sink, stop) = (MemorySink::default(), CancellationToken::new());
    let (client, handle) = Client::new(Config::new("node-a"), connector, sink.clone());
    handle.set(ResourceType::Cluster, Subscription::Wildcard);
    let client = tokio::spawn(client.run(stop.clone()));
    sink.until("synced", |memory| memory.synced == 1).await;

    up.store(false, Ordering::Relaxed);
    first_life.cancel();
    server.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
    assert!(!handle.stats().connected());
    assert_eq!(sink.names(ResourceType::Cluster), ["a"]);
    // Given up while nobody serves: taken out of force at once.
    handle.set(ResourceType::Cluster, ["b"].into_iter().collect());
    sink.until("narrowed", |memory| memory.held.is_empty()).await;

    store.apply(vec![upsert(ResourceType::Cluster, "b", "1")]);
    let (connections, incoming) = mpsc::unbounded_channel();
    *target.lock().unwrap() = connections;
    let second_life = CancellationToken::new();
    let server = serve(incoming, &second_life);
    up.store(true, Ordering::Relaxed);
    sink.until("back", |memory| memory.held.len() == 1).await;
    assert_eq!(sink.names(ResourceType::Cluster), ["b"]);
    stop.cancel();
    client.await.unwrap();
    second_life.cancel();
    server.await.unwrap().unwrap();
}
