//! Which names an agent asks for, and what it is told of them.

use super::*;

#[test]
fn the_first_request_has_to_name_its_node() {
    let mut scene = Scene::new(vec![]);
    for node in [None, Some(Node::default())] {
        let request = DeltaDiscoveryRequest { node, ..request(Cluster) };
        assert_eq!(scene.stream.on_request(request, &scene.resources), Err(StreamError::NoNode));
    }
    scene.send(request(Cluster));
    scene.send(DeltaDiscoveryRequest { node: None, ..request(Cluster) });
    assert_eq!(scene.stream.node().unwrap().as_str(), "node-a");
}

#[test]
fn only_those_who_asked_are_sent_what_they_asked_for() {
    let mut scene =
        Scene::new(vec![upsert(Cluster, "a", "1"), upsert(Cluster, "b", "1"), upsert(Route, "r", "1")]);
    scene.send(subscribe(Cluster, &["a", "missing"]));
    assert_eq!(scene.settle(), ["cluster +a -missing"]);
    scene.apply(vec![upsert(Cluster, "b", "2"), upsert(Route, "r", "2")]);
    assert_eq!(scene.next(), None);
    scene.apply(vec![upsert(Cluster, "missing", "1")]);
    assert_eq!(scene.settle(), ["cluster +missing"]);
}

#[test]
fn every_type_is_answered_once_even_without_content() {
    let mut scene = Scene::new(vec![]);
    for ty in ResourceType::ALL {
        scene.send(request(ty));
    }
    assert_eq!(scene.settle(), ["settings", "cluster", "endpoints", "route", "listener", "workload"]);
    assert_eq!(scene.next(), None);
}

#[test]
fn leaving_the_wildcard_keeps_the_names() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1"), upsert(Cluster, "b", "1")]);
    scene.send(subscribe(Cluster, &["*", "a"]));
    scene.settle();
    scene.send(unsubscribe(Cluster, &["*"]));
    assert_eq!(scene.held(Cluster), ["a"]);
    scene.apply(vec![upsert(Cluster, "a", "2"), upsert(Cluster, "b", "2")]);
    assert_eq!(scene.settle(), ["cluster +a"]);
    scene.send(subscribe(Cluster, &["*"]));
    assert_eq!(scene.settle(), ["cluster +b"]);
}

#[test]
fn leaving_a_name_under_the_wildcard_tells_its_state() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(subscribe(Cluster, &["*", "a", "gone"]));
    scene.settle();
    scene.send(unsubscribe(Cluster, &["a", "gone"]));
    assert_eq!(scene.settle(), ["cluster +a -gone"]);
}

#[test]
fn subscribing_again_sends_again_what_is_already_held() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(subscribe(Cluster, &["a"]));
    scene.settle();
    scene.send(subscribe(Cluster, &["a"]));
    assert_eq!(scene.settle(), ["cluster +a"]);
    scene.send(unsubscribe(Cluster, &["a"]));
    assert_eq!(scene.settle(), [""; 0]);
    scene.apply(vec![upsert(Cluster, "a", "2")]);
    assert_eq!(scene.next(), None);
    scene.send(subscribe(Cluster, &["a"]));
    assert_eq!(scene.settle(), ["cluster +a"]);
}

#[test]
fn an_unsubscribed_name_is_not_sent_by_the_round_under_way() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1"), upsert(Endpoints, "a", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    scene.send(subscribe(Endpoints, &["a"]));
    let clusters = scene.next().unwrap();
    scene.send(unsubscribe(Endpoints, &["a"]));
    scene.ack(&clusters);
    assert_eq!(scene.settle(), ["endpoints"]);
    assert!(scene.held(Endpoints).is_empty());
}

#[test]
fn a_reconnecting_agent_gets_the_difference_and_hears_what_is_gone() {
    let same = Version::of(b"1").to_string();
    let mut scene = Scene::new(vec![
        upsert(Cluster, "same", "1"),
        upsert(Cluster, "old", "2"),
        upsert(Cluster, "new", "1"),
    ]);
    let initial_resource_versions = [
        ("same".to_owned(), same.clone()),
        ("old".to_owned(), same.clone()),
        ("gone".to_owned(), same),
        ("foreign".to_owned(), "istiod/7".to_owned()),
    ]
    .into();
    scene.send(DeltaDiscoveryRequest { initial_resource_versions, ..subscribe(Cluster, &["*"]) });
    let made = scene.next().unwrap();
    assert_eq!(summary(&made), "cluster +new +old");
    scene.ack(&made);
    let gone = scene.next().unwrap();
    assert!(gone.resources.is_empty());
    assert_eq!(gone.removed_resources.iter().collect::<HashSet<_>>().len(), 2);
    scene.ack(&gone);
    assert_eq!(scene.held(Cluster), ["new", "old", "same"]);
}

#[test]
fn initial_versions_of_names_are_compared_too_and_later_ones_ignored() {
    let same = Version::of(b"1").to_string();
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1"), upsert(Cluster, "b", "1")]);
    let versions: HashMap<_, _> = [("a".to_owned(), same)].into();
    scene.send(DeltaDiscoveryRequest {
        initial_resource_versions: versions.clone(),
        ..subscribe(Cluster, &["a", "b"])
    });
    assert_eq!(scene.settle(), ["cluster +b"]);
    scene.apply(vec![upsert(Cluster, "a", "2")]);
    scene.settle();
    scene.send(DeltaDiscoveryRequest { initial_resource_versions: versions, ..request(Cluster) });
    assert_eq!(scene.next(), None);
}

#[test]
fn garbage_is_ignored() {
    let mut scene = Scene::settled(vec![upsert(Cluster, "a", "1")]);
    for n in 0..100 {
        scene.send(DeltaDiscoveryRequest {
            type_url: format!("type.googleapis.com/unknown.{n}"),
            response_nonce: "1-1".into(),
            ..subscribe(Cluster, &["*", ""])
        });
    }
    assert_eq!(scene.stream.unknown_types.len(), MAX_UNKNOWN_TYPES);
    scene.send(unsubscribe(Cluster, &["", "never", "\u{0}"]));
    scene.send(subscribe(Cluster, &["", "*"]));
    assert_eq!(scene.settle(), ["cluster -"]);
}
