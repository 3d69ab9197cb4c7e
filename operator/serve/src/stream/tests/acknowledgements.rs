//! Changes that follow from an agent's answer.

use super::*;

#[test]
fn a_stale_nonce_acknowledges_nothing() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    let response = scene.next().unwrap();
    for (ty, nonce) in [(Cluster, "0-1"), (Cluster, "1-99"), (Route, response.nonce.as_str()), (Cluster, "é")]
    {
        scene.send(DeltaDiscoveryRequest { response_nonce: nonce.to_owned(), ..request(ty) });
        assert!(scene.stream.awaiting().is_some(), "{ty} {nonce}");
        assert!(scene.held(Cluster).is_empty());
    }
    scene.ack(&response);
    assert_eq!(scene.held(Cluster), ["a"]);
    scene.nack(&response, &[("a", "too late")]);
    assert_eq!(scene.held(Cluster), ["a"]);
}

#[test]
fn a_nack_names_what_is_not_held_and_the_rest_is() {
    let mut scene = Scene::new(vec![
        upsert(Cluster, "good", "1"),
        upsert(Cluster, "bad", "1"),
        upsert(Cluster, "worse", "1"),
    ]);
    scene.send(subscribe(Cluster, &["*"]));
    let response = scene.next().unwrap();
    scene.nack(&response, &[("bad", "no endpoints"), ("worse", "no name"), ("unheard of", "?")]);
    assert_eq!(scene.held(Cluster), ["good"]);
    let status = scene.stream.status(StreamId(1)).unwrap();
    let mut rejected: Vec<_> =
        status.types[Cluster].rejected.iter().map(|r| (r.name.as_str(), r.reason.as_str())).collect();
    rejected.sort_unstable();
    assert_eq!(rejected, [("bad", "no endpoints"), ("worse", "no name")]);
    // Not in a loop, and not for another resource's change.
    scene.apply(vec![upsert(Cluster, "good", "2"), upsert(Cluster, "bad", "1")]);
    assert_eq!(scene.settle(), ["cluster +good"]);
    // But when the content changes.
    scene.apply(vec![upsert(Cluster, "bad", "2")]);
    assert_eq!(scene.settle(), ["cluster +bad"]);
    assert_eq!((scene.version("bad"), scene.refused()), (Some(Version::of(b"2")), vec!["worse".to_owned()]));
}

#[test]
fn going_back_to_what_the_agent_still_holds_clears_the_rejection() {
    let mut scene = Scene::settled(vec![upsert(Cluster, "a", "1")]);
    scene.apply(vec![upsert(Cluster, "a", "2")]);
    let response = scene.next().unwrap();
    scene.nack(&response, &[("a", "bad")]);
    assert_eq!(scene.refused(), ["a"]);
    scene.apply(vec![upsert(Cluster, "a", "1")]);
    assert_eq!(scene.next(), None);
    assert_eq!((scene.version("a"), scene.refused()), (Some(Version::of(b"1")), Vec::new()));
}

#[test]
fn a_nack_without_names_refuses_the_whole_response() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1"), upsert(Cluster, "b", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    let response = scene.next().unwrap();
    let error = RpcStatus { code: 3, message: "x".repeat(1 << 20), details: vec![] };
    scene.send(DeltaDiscoveryRequest {
        response_nonce: response.nonce.clone(),
        error_detail: Some(error),
        ..request(Cluster)
    });
    assert!(scene.held(Cluster).is_empty());
    let rejected = &scene.stream.status(StreamId(1)).unwrap().types[Cluster].rejected;
    assert!(rejected.len() == 2 && rejected.iter().all(|r| r.reason.len() < 2 * MAX_REASON));
    assert_eq!(scene.next(), None);
}

#[test]
fn a_refused_removal_leaves_the_resource_held() {
    let mut scene = Scene::settled(vec![upsert(Cluster, "a", "1")]);
    scene.apply(vec![remove(Cluster, "a")]);
    let response = scene.next().unwrap();
    scene.nack(&response, &[("a", "still referred to")]);
    assert_eq!(scene.held(Cluster), ["a"]);
    assert_eq!(scene.next(), None);
    scene.apply(vec![upsert(Cluster, "a", "1")]);
    assert_eq!(scene.next(), None);
    assert_eq!((scene.version("a"), scene.refused()), (Some(Version::of(b"1")), Vec::new()));
}

#[test]
fn what_an_agent_tells_of_itself_changes_nothing_but_its_status() {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    let response = scene.next().unwrap();
    let plane = response.control_plane.as_ref().map(|plane| plane.identifier.as_str());
    assert_eq!(plane, Some(CONTROL_PLANE), "the first response says who sends it");
    scene.ack(&response);
    scene.settle();
    let report = AgentReport { version: "1".into(), ..AgentReport::default() };
    let before = scene.stream.status(StreamId(1)).unwrap();
    assert_eq!(before.report, None);
    let node = Node { id: "node-a".into(), metadata: Some(report.metadata()), ..Node::default() };
    scene.send(DeltaDiscoveryRequest { node: Some(node), ..request(Cluster) });
    assert_eq!(scene.settle(), Vec::<String>::new());
    let after = scene.stream.status(StreamId(1)).unwrap();
    assert_eq!(after.report, Some(report));
    assert_eq!((after.requests, &after.types), (before.requests + 1, &before.types));
    // Only the first.
    scene.apply(vec![upsert(Cluster, "b", "1")]);
    assert_eq!(scene.next().unwrap().control_plane, None);
}

#[test]
fn a_round_counts_from_the_first_event_that_led_to_it() {
    let mut scene = Scene::settled(vec![upsert(Cluster, "a", "1")]);
    assert_eq!(scene.stream.take_answered(), None, "a start is no change");
    let [first, second, third] = [1, 2, 3].map(|s| Some(Instant::now() + Duration::from_secs(s)));
    scene.apply_seen(vec![upsert(Cluster, "a", "2")], first);
    let response = scene.next().unwrap();
    scene.apply_seen(vec![upsert(Cluster, "a", "3")], second);
    scene.apply_seen(vec![upsert(Cluster, "a", "4")], third);
    assert_eq!((scene.next(), scene.stream.take_answered()), (None, None), "not answered yet");
    scene.ack(&response);
    let response = scene.next().unwrap();
    assert_eq!(scene.stream.take_answered(), first);
    scene.nack(&response, &[("a", "no")]);
    assert_eq!((scene.next(), scene.stream.take_answered()), (None, second));
    // Nothing of this concerns the agent.
    scene.send(unsubscribe(Route, &["*"]));
    scene.settle();
    scene.apply_seen(vec![upsert(Route, "r", "1")], first);
    assert_eq!((scene.next(), scene.stream.take_answered()), (None, None));
    scene.apply_seen(vec![upsert(Cluster, "b", "1")], second);
    assert_eq!(scene.settle(), ["cluster +b"]);
    assert_eq!(scene.stream.take_answered(), second);
}
