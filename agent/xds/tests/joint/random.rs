//! Random histories: whatever changes, breaks and is refused, the client ends with what the store
//! has, and nothing that it holds ever refers to what it has not got.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::support::{Memory, MemorySink, Mesh, remove, upsert};
use proptest::prelude::*;
use slotmesh_ads::{Handle, Subscription};
use slotmesh_serve::Store;
use slotmesh_xds::{Change, Fingerprint, ResourceType, Sketch};

#[derive(Clone, Debug)]
enum Event {
    /// Of (type, name, content): nothing removes, content that begins with "bad" is refused.
    Batch(Vec<(ResourceType, u8, Option<String>)>),
    Cut,
    /// Lets the two sides run for this many milliseconds of virtual time.
    Pause(u64),
    Settle,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let content = prop_oneof![
        1 => Just(None),
        3 => (0..4_u8).prop_map(|n| Some(format!("good {n}"))),
        1 => (0..3_u8).prop_map(|n| Some(format!("bad {n}"))),
    ];
    let change = (prop::sample::select(ResourceType::ALL.to_vec()), 0..6_u8, content);
    let event = prop_oneof![
        6 => prop::collection::vec(change, 0..8).prop_map(Event::Batch),
        1 => Just(Event::Cut),
        3 => (0..3_u64).prop_map(Event::Pause),
        1 => Just(Event::Settle),
    ];
    prop::collection::vec(event, 1..40)
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test)
}

fn everything(handle: &Handle) {
    for ty in ResourceType::ALL {
        handle.set(ty, Subscription::Wildcard);
    }
}

async fn final_state(events: Vec<Event>) {
    let store = Store::new();
    store.apply(vec![]);
    let mesh = Mesh::start(store.clone());
    let mut model = BTreeMap::new();
    for event in events {
        match event {
            Event::Batch(changes) => {
                let changes = changes.into_iter().map(|(ty, name, content)| {
                    let name = format!("n{name}");
                    let change = match &content {
                        Some(content) => upsert(ty, &name, content),
                        None => remove(ty, &name),
                    };
                    match content {
                        Some(content) => model.insert((ty, name), content),
                        None => model.remove(&(ty, name)),
                    };
                    change
                });
                store.apply(changes.collect());
            }
            Event::Cut => mesh.wires.cut(),
            Event::Pause(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
            Event::Settle => mesh.settled().await,
        }
    }
    let agrees = |memory: &Memory| {
        let good = model.iter().filter(|(_, content)| content.starts_with("good"));
        let all_good = good.into_iter().all(|((ty, name), content)| {
            let held = memory.held.get(&(*ty, name.as_str().into()));
            held.is_some_and(|held| held.content == content.as_bytes())
        });
        all_good && memory.held.keys().all(|(ty, name)| model.contains_key(&(*ty, name.to_string())))
    };
    mesh.sink.until("the client has what the store has", agrees).await;
    mesh.settled().await;
    assert!(agrees(&mesh.sink.memory.lock().unwrap()));
    // What the server believes is what the agent has, and what it refused is known by name.
    let agents = mesh.store.agents();
    for ty in ResourceType::ALL {
        let memory = mesh.sink.memory.lock().unwrap();
        let (mut held, mut sketch) = (0, Sketch::default());
        for ((_, name), resource) in memory.held.iter().filter(|((held, _), _)| *held == ty) {
            held += 1;
            sketch.add(Fingerprint::of(ty, name, resource.version));
        }
        let believed = &agents[0].types[ty];
        assert_eq!((believed.held, &believed.sketch), (held, &sketch), "{ty}");
        let bad: BTreeSet<_> = model
            .iter()
            .filter(|((bad, _), content)| *bad == ty && content.starts_with("bad"))
            .map(|((_, name), _)| name.clone())
            .collect();
        let rejected: BTreeSet<_> = agents[0].types[ty].rejected.iter().map(|r| r.name.to_string()).collect();
        assert_eq!(rejected, bad, "{ty}");
    }
    mesh.end().await;
}

/// Listener `l` refers to route `r`, which refers to cluster `c`, which has endpoints of its name.
#[derive(Clone, Debug)]
enum Move {
    /// The listener gets a route of this number that goes to a cluster of this number.
    Route {
        listener: u8,
        route: u8,
        cluster: u8,
    },
    Drop {
        listener: u8,
    },
    Cut,
    Pause(u64),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let step = prop_oneof![
        8 => (0..3_u8, 0..4_u8, 0..4_u8)
            .prop_map(|(listener, route, cluster)| Move::Route { listener, route, cluster }),
        2 => (0..3_u8).prop_map(|listener| Move::Drop { listener }),
        1 => Just(Move::Cut),
        3 => (0..3_u64).prop_map(Move::Pause),
    ];
    prop::collection::vec(step, 1..60)
}

/// The whole configuration that follows from where each listener goes.
fn compiled(
    listeners: &BTreeMap<u8, u8>,
    routes: &BTreeMap<u8, u8>,
) -> BTreeMap<(ResourceType, String), String> {
    let mut all = BTreeMap::new();
    for (listener, route) in listeners {
        let cluster = routes[route];
        all.insert((ResourceType::Workload, format!("w{listener}")), format!("l{listener}"));
        all.insert((ResourceType::Listener, format!("l{listener}")), format!("r{route}"));
        all.insert((ResourceType::Route, format!("r{route}")), format!("c{cluster}"));
        all.insert((ResourceType::Cluster, format!("c{cluster}")), "cluster".to_owned());
        all.insert((ResourceType::Endpoints, format!("c{cluster}")), "endpoints".to_owned());
    }
    all
}

fn difference(
    before: &BTreeMap<(ResourceType, String), String>,
    after: &BTreeMap<(ResourceType, String), String>,
) -> Vec<Change> {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|(ty, name)| remove(*ty, name));
    let changed = after.iter().filter(|(key, content)| before.get(*key) != Some(content));
    gone.chain(changed.map(|((ty, name), content)| upsert(*ty, name, content))).collect()
}

fn nothing_dangles(memory: &Memory) {
    for ((ty, name), resource) in &memory.held {
        let target = String::from_utf8_lossy(&resource.content).into_owned();
        let needs: &[ResourceType] = match ty {
            ResourceType::Workload => &[ResourceType::Listener],
            ResourceType::Listener => &[ResourceType::Route],
            ResourceType::Route => &[ResourceType::Cluster, ResourceType::Endpoints],
            ResourceType::Settings | ResourceType::Cluster | ResourceType::Endpoints => &[],
        };
        for needed in needs {
            assert!(
                memory.held.contains_key(&(*needed, target.as_str().into())),
                "{ty} {name} refers to {needed} {target}, which is not there: {:?}",
                memory.log
            );
        }
    }
}

async fn references(moves: Vec<Move>) {
    let store = Store::new();
    store.apply(vec![]);
    let sink = MemorySink { check: Some(Arc::new(nothing_dangles)), ..MemorySink::default() };
    let mesh = Mesh::with(store.clone(), sink, everything);
    let (mut listeners, mut routes, mut current) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for step in moves {
        match step {
            Move::Route { listener, route, cluster } => {
                listeners.insert(listener, route);
                routes.insert(route, cluster);
            }
            Move::Drop { listener } => _ = listeners.remove(&listener),
            Move::Cut => mesh.wires.cut(),
            Move::Pause(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
        let after = compiled(&listeners, &routes);
        store.apply(difference(&current, &after));
        current = after;
        // A few turns of the executor: changes fall into every stage of a round.
        for _ in 0..7 {
            tokio::task::yield_now().await;
        }
    }
    let agrees = |memory: &Memory| {
        memory.held.len() == current.len()
            && current.iter().all(|((ty, name), content)| {
                let held = memory.held.get(&(*ty, name.as_str().into()));
                held.is_some_and(|held| held.content == content.as_bytes())
            })
    };
    mesh.sink.until("the client has what the store has", agrees).await;
    mesh.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_client_ends_with_what_the_store_has_minus_what_it_refused(events in events()) {
        run(final_state(events));
    }

    #[test]
    fn nothing_held_ever_refers_to_what_is_not_held(moves in moves()) {
        run(references(moves));
    }
}
