//! The same over real sockets: TCP on loopback.

use slotmesh_ads::{Client, Connector, Subscription, Tcp};
use slotmesh_serve::Store;
use slotmesh_xds::ResourceType;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use crate::support::{MemorySink, config, remove, upsert};

/// Plays an update over a connector; the server runs until the token is cancelled.
async fn play(store: &Store, connector: impl Connector, stop: CancellationToken) {
    let sink = MemorySink::default();
    let (client, handle) = Client::new(config(), connector, sink.clone());
    for ty in ResourceType::ALL {
        handle.set(ty, Subscription::Wildcard);
    }
    let client = tokio::spawn(client.run(stop.child_token()));
    sink.until("synced", |memory| memory.synced == 1 && memory.held.len() == 2_000).await;
    store.apply(vec![remove(ResourceType::Cluster, "c-0"), upsert(ResourceType::Cluster, "c-1", "changed")]);
    sink.until("updated", |memory| memory.held.len() == 1_999).await;
    assert_eq!(sink.content(ResourceType::Cluster, "c-1").as_deref(), Some("changed"));
    stop.cancel();
    client.await.unwrap();
    assert_eq!(handle.stats().reconnects(), 0);
}

fn store() -> Store {
    let store = Store::new();
    let content = "x".repeat(3_000);
    store.apply((0..2_000).map(|n| upsert(ResourceType::Cluster, &format!("c-{n}"), &content)).collect());
    store
}

#[tokio::test]
async fn over_tcp() {
    let (store, stop) = (store(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpListenerStream::new(listener);
    let server =
        tokio::spawn(slotmesh_serve::serve(store.clone(), Default::default(), incoming, stop.clone()));
    play(&store, Tcp::new(&format!("http://{address}")).unwrap(), stop).await;
    server.await.unwrap().unwrap();
}
