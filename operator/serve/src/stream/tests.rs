//! The state machine against scripted agents, without sockets.

use std::time::{Duration, Instant};

use ResourceType::{Cluster, Endpoints, Listener, Route};
use envoy_types::pb::envoy::config::core::v3::Node;
use slotmesh_xds::{Change, Rejection, Resource, more_follows, status_from_rejections};

use super::*;

mod random;
mod source;

const LIMIT: usize = 1 << 20;

/// A store and one stream; the test plays the agent.
struct Scene {
    resources: Resources,
    stream: Stream,
}

fn resource(ty: ResourceType, name: &str, content: &str) -> Resource {
    let content = content.as_bytes();
    Resource { ty, name: name.into(), version: Version::of(content), content: content.to_vec().into() }
}

fn upsert(ty: ResourceType, name: &str, content: &str) -> Change {
    Change::Upsert(resource(ty, name, content))
}

fn remove(ty: ResourceType, name: &str) -> Change {
    Change::Remove(ty, name.into())
}

fn request(ty: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "node-a".into(), ..Node::default() }),
        type_url: ty.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn subscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    let names = names.iter().map(|name| (*name).into()).collect();
    DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ty) }
}

fn unsubscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    let names = names.iter().map(|name| (*name).into()).collect();
    DeltaDiscoveryRequest { resource_names_unsubscribe: names, ..request(ty) }
}

fn type_of(response: &DeltaDiscoveryResponse) -> ResourceType {
    response.type_url.parse().unwrap()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// The effect of a response, in one line: `cluster +a +b -c`.
fn summary(response: &DeltaDiscoveryResponse) -> String {
    let mut text = type_of(response).to_string();
    for name in names(response) {
        text += &format!(" +{name}");
    }
    for name in &response.removed_resources {
        text += &format!(" -{name}");
    }
    text
}

impl Scene {
    fn new(changes: Vec<Change>) -> Self {
        let mut resources = Resources::default();
        resources.apply(changes);
        Self { resources, stream: Stream::new(StreamId(1), LIMIT) }
    }

    /// A scene whose agent is subscribed to everything of all types and has acknowledged it.
    fn settled(changes: Vec<Change>) -> Self {
        let mut scene = Self::new(changes);
        for ty in ResourceType::ALL {
            scene.send(subscribe(ty, &["*"]));
        }
        scene.settle();
        scene
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.apply_seen(changes, None);
    }

    fn apply_seen(&mut self, changes: Vec<Change>, seen: Option<Instant>) {
        let dirty = self.resources.apply(changes);
        self.stream.absorb(dirty, seen, &self.resources);
    }

    /// What the node may see of these has changed.
    fn look_at(&mut self, names: &HashSet<(ResourceType, ResourceName)>) {
        let mut dirty = Dirty::default();
        self.resources.look_at(names, &mut dirty);
        self.stream.absorb(dirty, None, &self.resources);
    }

    fn send(&mut self, request: DeltaDiscoveryRequest) {
        self.stream.on_request(request, &self.resources).unwrap();
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        loop {
            if let Some(response) = self.stream.next_response() {
                return Some(response);
            }
            if !self.stream.begin_round(&self.resources) {
                return None;
            }
        }
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        let nonce = response.nonce.clone();
        self.send(DeltaDiscoveryRequest { response_nonce: nonce, ..request(type_of(response)) });
    }

    fn nack(&mut self, response: &DeltaDiscoveryResponse, refused: &[(&str, &str)]) {
        let rejections: Vec<_> = refused
            .iter()
            .map(|(name, reason)| Rejection { name: (*name).into(), reason: (*reason).into() })
            .collect();
        self.send(DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: Some(status_from_rejections(&rejections)),
            ..request(type_of(response))
        });
    }

    /// Acknowledges all until nothing more comes; returns what came.
    fn settle(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(response) = self.next() {
            seen.push(summary(&response));
            self.ack(&response);
        }
        seen
    }

    fn thinks(&self, name: &str) -> Acknowledgement {
        self.stream.acknowledgement(Cluster, &name.into(), &self.resources)
    }

    fn held(&self, ty: ResourceType) -> Vec<String> {
        let mut names: Vec<_> =
            self.stream.held(ty, &self.resources).into_iter().map(|(name, _)| name.to_string()).collect();
        names.sort_unstable();
        names
    }
}

#[test]
fn the_first_request_has_to_name_its_node() {
    let mut scene = Scene::new(vec![]);
    for node in [None, Some(Node::default())] {
        let request = DeltaDiscoveryRequest { node, ..request(Cluster) };
        assert_eq!(scene.stream.on_request(request, &scene.resources), Err(Refused::NoNode));
    }
    scene.send(request(Cluster));
    scene.send(DeltaDiscoveryRequest { node: None, ..request(Cluster) });
    assert_eq!(scene.stream.node().unwrap().as_str(), "node-a");
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
    let version = Version::of(b"2");
    assert_eq!(scene.thinks("bad"), Acknowledgement::Held(version));
}

#[test]
fn going_back_to_what_the_agent_still_holds_clears_the_rejection() {
    let mut scene = Scene::settled(vec![upsert(Cluster, "a", "1")]);
    scene.apply(vec![upsert(Cluster, "a", "2")]);
    let response = scene.next().unwrap();
    scene.nack(&response, &[("a", "bad")]);
    assert!(matches!(scene.thinks("a"), Acknowledgement::Rejected(_)));
    scene.apply(vec![upsert(Cluster, "a", "1")]);
    assert_eq!(scene.next(), None);
    let version = Version::of(b"1");
    assert_eq!(scene.thinks("a"), Acknowledgement::Held(version));
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
    assert!(matches!(scene.thinks("a"), Acknowledgement::Held(_)));
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
    assert_eq!(scene.stream.strangers.len(), MAX_STRANGERS);
    scene.send(unsubscribe(Cluster, &["", "never", "\u{0}"]));
    scene.send(subscribe(Cluster, &["", "*"]));
    assert_eq!(scene.settle(), ["cluster -"]);
}

fn prost_len(response: &DeltaDiscoveryResponse) -> usize {
    Resource::encode(Cluster, "", response).content.len()
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
