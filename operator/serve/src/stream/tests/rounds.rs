//! The order in which things are sent, and how much at once.

use super::*;

fn prost_len(response: &DeltaDiscoveryResponse) -> usize {
    Resource::encode(Cluster, "", response).content.len()
}

#[test]
fn nobody_is_answered_before_the_first_batch() {
    let mut scene = Scene { resources: Resources::default(), stream: Stream::new(StreamId(1), LIMIT) };
    let initial_resource_versions = [("a".to_owned(), Version::of(b"1").to_string())].into();
    scene.send(DeltaDiscoveryRequest { initial_resource_versions, ..subscribe(Cluster, &["*"]) });
    assert_eq!(scene.next(), None);
    scene.apply(vec![upsert(Cluster, "a", "1")]);
    assert_eq!(scene.settle(), ["cluster"]);
}

#[test]
fn a_move_makes_before_it_breaks() {
    let mut scene = Scene::settled(vec![
        upsert(Cluster, "a", "1"),
        upsert(Endpoints, "a", "1"),
        upsert(Route, "r", "to a"),
        upsert(Listener, "l", "1"),
        upsert(Listener, "old", "1"),
    ]);
    scene.apply(vec![
        remove(Cluster, "a"),
        remove(Endpoints, "a"),
        remove(Listener, "old"),
        upsert(Route, "r", "to b"),
        upsert(Listener, "l", "2"),
        upsert(Endpoints, "b", "1"),
        upsert(Cluster, "b", "1"),
    ]);
    for expected in [
        "cluster +b",
        "endpoints +b",
        "route +r",
        "listener +l",
        "listener -old",
        "endpoints -a",
        "cluster -a",
    ] {
        let response = scene.next().unwrap();
        assert_eq!(summary(&response), expected);
        assert_eq!(scene.next(), None, "nothing more before {expected} is acknowledged");
        scene.ack(&response);
    }
    assert_eq!(scene.next(), None);
}

#[test]
fn a_change_in_mid_round_waits_for_what_it_needs() {
    let mut scene = Scene::settled(vec![
        upsert(Cluster, "a", "1"),
        upsert(Endpoints, "a", "1"),
        upsert(Route, "r", "to a"),
        upsert(Route, "s", "1"),
    ]);
    scene.apply(vec![upsert(Endpoints, "a", "2"), upsert(Route, "s", "2")]);
    let endpoints = scene.next().unwrap();
    assert_eq!(summary(&endpoints), "endpoints +a");
    // The route now needs a cluster whose stage has passed.
    scene.apply(vec![
        upsert(Cluster, "b", "1"),
        upsert(Route, "r", "to b"),
        remove(Cluster, "a"),
        remove(Endpoints, "a"),
    ]);
    scene.ack(&endpoints);
    assert_eq!(
        scene.settle(),
        ["route +s", "cluster +b", "route +r", "endpoints -a", "cluster -a"],
        "the next round brings the cluster before the route"
    );
}

#[test]
fn a_reconnecting_agent_keeps_what_its_old_routes_need_until_they_are_updated() {
    let version = |content: &str| Version::of(content.as_bytes()).to_string();
    let mut scene = Scene::new(vec![upsert(Cluster, "b", "1"), upsert(Route, "r", "to b")]);
    let held = |ty, name: &str, content: &str| DeltaDiscoveryRequest {
        initial_resource_versions: [(name.to_owned(), version(content))].into(),
        ..subscribe(ty, &["*"])
    };
    // The server answers the first type before it has heard of the others.
    scene.send(held(Cluster, "a", "1"));
    let clusters = scene.next().unwrap();
    assert_eq!(summary(&clusters), "cluster +b");
    scene.send(held(Endpoints, "a", "1"));
    scene.send(held(Route, "r", "to a"));
    scene.send(subscribe(Listener, &["*"]));
    scene.ack(&clusters);
    assert_eq!(scene.settle(), ["endpoints", "route +r", "listener", "endpoints -a", "cluster -a"]);
}

#[test]
fn continuous_changes_starve_no_stage() {
    let mut scene = Scene::settled(vec![]);
    scene.apply(vec![upsert(Cluster, "c", "0"), upsert(Route, "r", "0"), upsert(Listener, "l", "0")]);
    let mut listeners = 0;
    for n in 1..=400 {
        scene.apply(vec![
            upsert(Cluster, "c", &n.to_string()),
            upsert(Endpoints, "c", &n.to_string()),
            upsert(Listener, "l", &n.to_string()),
        ]);
        let response = scene.next().unwrap();
        listeners += usize::from(type_of(&response) == Listener);
        scene.ack(&response);
    }
    assert!(listeners >= 100, "{listeners} listener updates in 400 responses");
}

#[test]
fn a_slow_agent_gets_only_the_latest_content_and_costs_no_more() {
    let mut scene = Scene::settled(vec![]);
    scene.apply(vec![upsert(Cluster, "a", "first")]);
    let unread = scene.next().unwrap();
    for n in 0..10_000 {
        let pod = format!("pod-{n}");
        scene.apply(vec![upsert(Cluster, "a", &n.to_string()), upsert(Endpoints, &pod, "1")]);
        scene.apply(vec![remove(Endpoints, &pod)]);
    }
    assert!(scene.stream.remembered() <= 3, "{} names remembered", scene.stream.remembered());
    assert_eq!(scene.next(), None, "nothing before the acknowledgement");
    scene.ack(&unread);
    let latest = scene.next().unwrap();
    assert_eq!(latest.resources[0].resource.as_ref().unwrap().value, b"9999");
    scene.ack(&latest);
    assert_eq!(scene.next(), None);
}

#[test]
fn a_resource_that_comes_and_goes_in_mid_round_ends_as_it_is() {
    let mut scene = Scene::settled(vec![]);
    scene.apply(vec![upsert(Cluster, "a", "1")]);
    let made = scene.next().unwrap();
    scene.apply(vec![remove(Cluster, "a")]);
    scene.ack(&made);
    assert_eq!(scene.settle(), ["cluster -a"]);
    assert_eq!(scene.stream.remembered(), 0);
}

#[test]
fn a_large_answer_is_split_and_the_next_stage_waits_for_all_parts() {
    let content = "x".repeat(1_000);
    let changes = (0..5_000).map(|n| upsert(Cluster, &format!("cluster-{n}"), &format!("{n}{content}")));
    let mut scene = Scene::new(changes.collect());
    scene.send(subscribe(Cluster, &["*"]));
    scene.send(subscribe(Endpoints, &["*"]));
    let mut parts = Vec::new();
    while let Some(part) = scene.next() {
        assert!(prost_len(&part) <= LIMIT, "{} bytes", prost_len(&part));
        parts.push(part);
    }
    assert!(parts.len() > 4, "{} parts", parts.len());
    let (last, before) = parts.split_last().unwrap();
    assert!(before.iter().all(|part| more_follows(&part.system_version_info)));
    assert!(!more_follows(&last.system_version_info));
    let all: HashSet<_> = parts.iter().flat_map(names).collect();
    assert_eq!(all.len(), 5_000);
    // In any order.
    for part in parts.iter().rev() {
        assert_eq!(scene.next(), None);
        scene.ack(part);
    }
    assert_eq!(scene.settle(), ["endpoints"]);
}

#[test]
fn one_resource_above_the_limit_is_sent_alone() {
    let mut scene =
        Scene::new(vec![upsert(Cluster, "huge", &"x".repeat(2 * LIMIT)), upsert(Cluster, "small", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    let parts: Vec<_> = std::iter::from_fn(|| scene.next()).collect();
    assert_eq!(parts.len(), 2);
    assert!(parts.iter().all(|part| part.resources.len() == 1));
}
