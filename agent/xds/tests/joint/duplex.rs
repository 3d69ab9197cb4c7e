//! The client against the operator's real server, over in-memory pipes.

use crate::support::{Memory, MemorySink, Mesh, remove, upsert};
use ResourceType::{Cluster, Endpoints, Listener, Route, Settings};
use slotmesh_ads::Subscription;
use slotmesh_serve::Store;
use slotmesh_xds::{AgentReport, Fingerprint, Resource, ResourceType, Sketch, Version};

fn has(ty: ResourceType, name: &'static str, content: &'static str) -> impl Fn(&Memory) -> bool {
    move |memory| memory.held.get(&(ty, name.into())).is_some_and(|held| held.content == content)
}

fn lacks(ty: ResourceType, name: &'static str) -> impl Fn(&Memory) -> bool {
    move |memory| !memory.held.contains_key(&(ty, name.into()))
}

fn store(changes: Vec<slotmesh_xds::Change>) -> Store {
    let store = Store::new();
    store.apply(changes);
    store
}

#[tokio::test(start_paused = true)]
async fn everything_arrives_in_order_and_then_the_client_is_in_sync() {
    let mesh = Mesh::start(store(vec![
        upsert(ResourceType::Workload, "w", "1"),
        upsert(Listener, "l", "1"),
        upsert(Route, "r", "1"),
        upsert(Endpoints, "c", "1"),
        upsert(Cluster, "c", "1"),
        upsert(Settings, "s", "1"),
    ]));
    mesh.sink.until("synced", |memory| memory.synced == 1).await;
    assert_eq!(
        mesh.sink.take_log(),
        ["settings +s", "cluster +c", "endpoints +c", "route +r", "listener +l", "workload +w"]
    );
    mesh.settled().await;
    let agents = mesh.store.agents();
    assert_eq!(agents[0].node.as_str(), "node-a");
    assert!(agents[0].types.iter().all(|(_, ty)| ty.held == 1 && ty.subscribed));
    assert!(mesh.handle.stats().connected());
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_empty_mesh_is_in_sync_too_but_only_once_the_store_knows_that_it_is_empty() {
    let mesh = Mesh::start(Store::new());
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(mesh.sink.memory.lock().unwrap().synced, 0);
    mesh.store.apply(vec![]);
    mesh.sink.until("synced", |memory| memory.synced == 1).await;
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_route_moves_to_a_new_cluster_without_a_gap() {
    let mesh = Mesh::start(store(vec![
        upsert(Cluster, "a", "1"),
        upsert(Endpoints, "a", "1"),
        upsert(Route, "r", "to a"),
        upsert(Listener, "l", "1"),
    ]));
    mesh.settled().await;
    mesh.sink.take_log();
    mesh.store.apply(vec![
        remove(Endpoints, "a"),
        remove(Cluster, "a"),
        upsert(Route, "r", "to b"),
        upsert(Endpoints, "b", "1"),
        upsert(Cluster, "b", "1"),
    ]);
    mesh.sink.until("a is gone", lacks(Cluster, "a")).await;
    assert_eq!(
        mesh.sink.take_log(),
        ["cluster +b", "endpoints +b", "route +r", "endpoints -a", "cluster -a"]
    );
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn bad_resources_are_refused_by_name_and_the_good_ones_are_in_force() {
    let mesh = Mesh::start(store(vec![
        upsert(Cluster, "good", "1"),
        upsert(Cluster, "one", "bad 1"),
        upsert(Cluster, "two", "bad 2"),
    ]));
    mesh.settled().await;
    assert_eq!(mesh.sink.names(Cluster), ["good"]);
    let status = &mesh.store.agents()[0].types[Cluster];
    let mut rejected: Vec<_> = status.rejected.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [("one", "bad content"), ("two", "bad content")]);
    assert_eq!(mesh.handle.stats().nacks(Cluster), 1);
    assert_eq!(mesh.handle.stats().rejected(Cluster), 2);
    // Repaired; and a bad update leaves the old content in force.
    mesh.store.apply(vec![upsert(Cluster, "one", "2"), upsert(Cluster, "good", "bad")]);
    mesh.sink.until("repaired", has(Cluster, "one", "2")).await;
    mesh.settled().await;
    assert_eq!(mesh.sink.content(Cluster, "good").as_deref(), Some("1"));
    let held = &mesh.store.agents()[0].types[Cluster].sketch;
    let one = Fingerprint::of(Cluster, &"one".into(), Version::of(b"2"));
    assert!(held.difference(&Sketch::default()).unwrap().first.contains(&one));
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_reconnect_brings_only_the_difference() {
    let store = store(vec![
        upsert(Cluster, "same", "1"),
        upsert(Cluster, "changes", "1"),
        upsert(Cluster, "goes", "1"),
        upsert(Route, "r", "1"),
        upsert(Route, "refused", "bad"),
    ]);
    let mesh = Mesh::start(store);
    mesh.settled().await;
    mesh.wires.cut();
    mesh.sink.take_log();
    mesh.store.apply(vec![
        upsert(Cluster, "changes", "2"),
        upsert(Cluster, "comes", "1"),
        remove(Cluster, "goes"),
    ]);
    mesh.sink.until("brought up to date", lacks(Cluster, "goes")).await;
    mesh.settled().await;
    let log = mesh.sink.take_log();
    // What was refused isn't held, so another replica, or this one, tries it again: once.
    assert_eq!(log, ["cluster +changes +comes", "route +refused", "cluster -goes"]);
    assert!(mesh.handle.stats().reconnects() >= 1);
    assert_eq!(mesh.sink.memory.lock().unwrap().synced, 1, "once in the client's life");
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_names_what_it_recovered() {
    let sink = MemorySink::default();
    for (name, content) in [("same", "1"), ("gone", "1")] {
        let resource = Resource {
            ty: Cluster,
            name: name.into(),
            version: Version::of(content.as_bytes()),
            content: content.into(),
        };
        sink.memory.lock().unwrap().held.insert((Cluster, name.into()), resource);
    }
    let store = store(vec![upsert(Cluster, "same", "1"), upsert(Cluster, "new", "1")]);
    let mesh = Mesh::with(store, sink, |handle| {
        for ty in ResourceType::ALL {
            handle.set(ty, Subscription::Wildcard);
        }
    });
    mesh.sink.until("recovered", lacks(Cluster, "gone")).await;
    assert_eq!(mesh.sink.take_log(), ["cluster +new", "cluster -gone"]);
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn subscriptions_change_while_running() {
    let store = store(vec![upsert(Cluster, "a", "1"), upsert(Cluster, "b", "1"), upsert(Cluster, "c", "1")]);
    let mesh = Mesh::with(store, MemorySink::default(), |handle| {
        handle.set(Cluster, ["a", "missing"].into_iter().collect());
    });
    mesh.sink.until("a", has(Cluster, "a", "1")).await;
    mesh.sink.until("synced", |memory| memory.synced == 1).await;
    assert_eq!(mesh.sink.take_log(), ["cluster +a -missing"]);

    mesh.handle.set(Cluster, ["a", "b", "missing"].into_iter().collect());
    mesh.sink.until("b", has(Cluster, "b", "1")).await;
    assert_eq!(mesh.sink.names(Cluster), ["a", "b"]);

    mesh.handle.set(Cluster, ["b", "missing"].into_iter().collect());
    mesh.sink.until("a left", lacks(Cluster, "a")).await;
    mesh.store.apply(vec![
        upsert(Cluster, "a", "2"),
        upsert(Cluster, "b", "2"),
        upsert(Cluster, "missing", "1"),
    ]);
    mesh.sink.until("b changed", has(Cluster, "b", "2")).await;
    mesh.sink.until("missing came", has(Cluster, "missing", "1")).await;
    assert_eq!(mesh.sink.names(Cluster), ["b", "missing"]);

    mesh.handle.set(Cluster, Subscription::Wildcard);
    mesh.sink.until("wildcard", has(Cluster, "c", "1")).await;
    mesh.sink.until("wildcard", has(Cluster, "a", "2")).await;

    mesh.handle.set(Cluster, ["c"].into_iter().collect());
    mesh.sink.until("narrowed", |memory| memory.held.len() == 1).await;
    mesh.settled().await;
    assert_eq!(mesh.sink.names(Cluster), ["c"]);
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn five_thousand_resources_come_in_parts_and_sync_waits_for_the_last() {
    let filler = "x".repeat(1_000);
    let changes =
        (0..5_000).map(|n| upsert(Listener, &format!("listener-{n}"), &format!("{n} {filler}"))).collect();
    let mesh = Mesh::start(store(changes));
    mesh.sink.until("synced", |memory| memory.synced == 1).await;
    assert_eq!(mesh.sink.names(Listener).len(), 5_000);
    let updates = mesh.sink.take_log().len();
    assert!(updates > 1, "{updates} updates");
    mesh.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_server_may_be_away_for_any_time() {
    let mesh = Mesh::start(store(vec![upsert(Cluster, "a", "1")]));
    mesh.settled().await;
    mesh.stop.cancel();
    let Mesh { sink, client, server, .. } = mesh;
    client.await.unwrap();
    server.await.unwrap();
    assert_eq!(sink.names(Cluster), ["a"], "a shutdown changes nothing that is in force");
}

#[tokio::test(start_paused = true)]
async fn what_the_agent_tells_of_itself_reaches_the_operator_on_each_stream() {
    let mesh = Mesh::start(store(vec![upsert(Cluster, "c", "1")]));
    let told = async |version: &str| {
        let mut changes = mesh.store.status_changes();
        let is = |agent: &slotmesh_serve::AgentStatus| {
            agent.report.as_ref().is_some_and(|report| report.version == version)
        };
        while !mesh.store.agents().iter().any(is) {
            changes.changed().await.unwrap();
        }
    };
    mesh.settled().await;
    let report = |version: &str| AgentReport { version: version.into(), ..AgentReport::default() };
    mesh.reports.send_replace(Some(report("1")));
    told("1").await;
    assert_eq!(mesh.sink.take_log(), ["cluster +c"], "it asks for nothing");
    // Another replica is told again, without anything having changed.
    mesh.wires.cut();
    mesh.settled().await;
    told("1").await;
    mesh.reports.send_replace(Some(report("2")));
    told("2").await;
    mesh.end().await;
}
