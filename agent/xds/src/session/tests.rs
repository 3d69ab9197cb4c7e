//! The state machine against scripted responses, without sockets.

use ResourceType::{Cluster, Endpoints, Listener, Route, Settings, Workload};
use envoy_types::pb::google::protobuf::{Any, Duration};
use slotmesh_xds::{rejections_from_status, system_version_info};

use super::*;

fn session(types: &[ResourceType]) -> (Session, Vec<DeltaDiscoveryRequest>) {
    let mut session = Session::new(Node { id: "node-a".into(), ..Node::default() });
    let mut wanted = Subscriptions::default();
    for ty in types {
        wanted[*ty] = Subscription::Wildcard;
    }
    let requests = session.subscribe(&wanted, &HeldVersions::default());
    (session, requests)
}

fn wire(name: &str, type_url: &str, content: &str) -> WireResource {
    WireResource {
        name: name.into(),
        version: "7".into(),
        resource: Some(Any { type_url: type_url.into(), value: content.into() }),
        ..WireResource::default()
    }
}

fn response(ty: ResourceType, resources: Vec<WireResource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: ty.type_url().into(),
        nonce: "n".into(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).into()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn names(update: &Update) -> Vec<&str> {
    let mut names: Vec<_> = update.upserts.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[test]
fn types_are_requested_in_make_before_break_order_and_the_node_once() {
    let (_, requests) = session(&[Workload, Listener, Route, Endpoints, Cluster, Settings]);
    let urls: Vec<_> = requests.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(urls, ResourceType::ALL.map(ResourceType::type_url));
    let nodes: Vec<_> = requests.iter().map(|request| request.node.is_some()).collect();
    assert_eq!(nodes, [true, false, false, false, false, false]);
}

#[test]
fn a_type_without_names_is_not_requested() {
    // An empty first request would be the legacy wildcard.
    let (_, requests) = session(&[]);
    assert!(requests.is_empty());
}

#[test]
fn held_versions_go_with_the_first_request_of_a_type_only_and_cover_the_subscription() {
    let version = Version::of(b"1");
    let held = [("a", Cluster), ("b", Cluster), ("a", Route)];
    let held = held.map(|(name, ty)| (ty, ResourceName::from(name), version)).to_vec();
    let held = HeldVersions::new(held, &Foreign::default());
    let mut session = Session::new(Node::default());
    let mut wanted = Subscriptions::default();
    wanted[Cluster] = ["a", "c"].into_iter().collect();
    let requests = session.subscribe(&wanted, &held);
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].initial_resource_versions, [("a".to_owned(), version.to_string())].into());
    wanted[Cluster] = ["a", "b"].into_iter().collect();
    let requests = session.subscribe(&wanted, &held);
    assert!(requests[0].initial_resource_versions.is_empty());
    assert_eq!(requests[0].resource_names_subscribe, ["b"]);
    assert_eq!(requests[0].resource_names_unsubscribe, ["c"]);
    assert!(session.subscribe(&wanted, &held).is_empty());
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_others_pass() {
    let (mut session, _) = session(&[Cluster]);
    let url = Cluster.type_url();
    let resources = vec![
        wire("good", url, "1"),
        wire("mismatched", Route.type_url(), "1"),
        wire("", url, "1"),
        WireResource { name: "empty".into(), ..WireResource::default() },
        wire("twice", url, "1"),
        wire("twice", url, "2"),
        wire("twice", url, "3"),
        wire("contradiction", url, "1"),
        WireResource {
            name: "heartbeat".into(),
            ttl: Some(Duration { seconds: 1, nanos: 0 }),
            ..WireResource::default()
        },
    ];
    let (update, unanswered) =
        session.on_response(response(Cluster, resources, &["gone", "contradiction"])).unwrap();
    assert_eq!(names(&update), ["good"]);
    assert_eq!(update.removed, ["gone".into()]);
    let refused = vec![Rejection { name: "good".into(), reason: "no slots".into() }];
    let (request, _) = session.answer(unanswered, refused, &mut Foreign::default());
    assert_eq!(request.response_nonce, "n");
    let rejections = rejections_from_status(&request.error_detail.unwrap());
    let mut named: Vec<_> = rejections.iter().map(|rejection| rejection.name.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["", "contradiction", "empty", "good", "mismatched", "twice"]);
}

#[test]
fn an_accepted_response_is_acknowledged_without_error() {
    let (mut session, _) = session(&[Cluster]);
    let resources = vec![wire("a", Cluster.type_url(), "1")];
    let (_, unanswered) = session.on_response(response(Cluster, resources, &[])).unwrap();
    let (request, rejections) = session.answer(unanswered, vec![], &mut Foreign::default());
    assert!(request.error_detail.is_none() && rejections.is_empty());
    assert!(request.initial_resource_versions.is_empty() && request.resource_names_subscribe.is_empty());
}

#[test]
fn an_unknown_type_is_ignored_without_acknowledgement() {
    let (mut session, _) = session(&[Cluster]);
    for n in 0..100 {
        let type_url = format!("unknown.{n}{}", "é".repeat(1_000));
        let response = DeltaDiscoveryResponse { type_url, ..response(Cluster, vec![], &[]) };
        assert!(session.on_response(response).is_none());
    }
    assert_eq!(session.strangers.len(), MAX_STRANGERS);
}

#[test]
fn what_nobody_asked_for_is_not_applied() {
    let mut session = Session::new(Node::default());
    let mut wanted = Subscriptions::default();
    wanted[Cluster] = ["a"].into_iter().collect();
    session.subscribe(&wanted, &HeldVersions::default());
    let resources = vec![wire("a", Cluster.type_url(), "1"), wire("b", Cluster.type_url(), "1")];
    let (update, _) = session.on_response(response(Cluster, resources, &[])).unwrap();
    assert_eq!(names(&update), ["a"]);
}

#[test]
fn versions_are_content_hashes_and_foreign_names_are_kept_for_what_is_in_force() {
    let (mut session, _) = session(&[Cluster]);
    let resources = vec![wire("good", Cluster.type_url(), "1"), wire("bad", Cluster.type_url(), "1")];
    let (update, unanswered) = session.on_response(response(Cluster, resources, &[])).unwrap();
    let version = Version::of(b"1");
    assert!(update.upserts.iter().all(|resource| resource.version == version));
    let mut foreign = Foreign::default();
    let refused = vec![Rejection { name: "bad".into(), reason: "bad".into() }];
    session.answer(unanswered, refused, &mut foreign);
    assert_eq!(foreign.name(Cluster, &"good".into(), version), "7");
    assert_eq!(foreign.name(Cluster, &"bad".into(), version), version.to_string());
    let (_, unanswered) = session.on_response(response(Cluster, vec![], &["good"])).unwrap();
    session.answer(unanswered, vec![], &mut foreign);
    assert_eq!(foreign.name(Cluster, &"good".into(), version), version.to_string());
}

#[test]
fn in_sync_when_the_last_part_of_every_type_is_applied() {
    let (mut session, _) = session(&[Cluster, Route]);
    let mut foreign = Foreign::default();
    let mut apply = |session: &mut Session, ty, more| {
        let info = system_version_info(1, "", more);
        let response = DeltaDiscoveryResponse { system_version_info: info, ..response(ty, vec![], &[]) };
        let (_, unanswered) = session.on_response(response).unwrap();
        session.answer(unanswered, vec![], &mut foreign);
        session.in_sync()
    };
    assert!(!session.in_sync());
    assert!(!apply(&mut session, Route, false));
    assert!(!apply(&mut session, Cluster, true));
    assert!(apply(&mut session, Cluster, false));
    assert!(!Session::new(Node::default()).in_sync(), "nothing asked, nothing in sync");
}

#[test]
fn a_control_plane_that_does_not_know_settings_is_in_sync_without_them() {
    let (mut session, requests) = session(&[Settings, Cluster]);
    assert_eq!(requests[0].type_url, Settings.type_url());
    let (_, unanswered) = session.on_response(response(Cluster, vec![], &[])).unwrap();
    session.answer(unanswered, vec![], &mut Foreign::default());
    assert!(session.in_sync());
    // One that answers to everything, with nothing, is heard as well.
    let (update, unanswered) = session.on_response(response(Settings, vec![], &[])).unwrap();
    assert!(update.upserts.is_empty());
    assert!(session.answer(unanswered, vec![], &mut Foreign::default()).0.error_detail.is_none());
    assert!(session.in_sync());
}

#[test]
fn a_report_asks_for_nothing_and_comes_after_something_was_asked_for() {
    let report = AgentReport { version: "1".into(), ..AgentReport::default() };
    let node = Node { id: "n".into(), ..Node::default() };
    assert_eq!(Session::new(node.clone()).report(&node, &report), None);
    let (session, _) = session(&[Cluster]);
    let request = session.report(&node, &report).unwrap();
    let metadata = request.node.as_ref().and_then(|node| node.metadata.as_ref()).unwrap();
    assert_eq!(AgentReport::from_metadata(metadata), Some(report));
    let nothing = DeltaDiscoveryRequest {
        type_url: Cluster.type_url().into(),
        node: request.node.clone(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(request, nothing, "no names and no nonce");
}
