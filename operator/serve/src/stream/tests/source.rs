//! An agent that comes from a replica that knew more isn't taken back.

use envoy_types::pb::google::protobuf::Struct;
use slotmesh_xds::{give_source_back, source_of};

use super::*;
use crate::SourceVersions;

/// The first request of an agent that was elsewhere.
fn returning(source: &str) -> DeltaDiscoveryRequest {
    let mut first = subscribe(Cluster, &["*"]);
    let mut metadata = Struct::default();
    give_source_back(&mut metadata, source);
    first.node.as_mut().unwrap().metadata = Some(metadata);
    first
}

/// A replica that has listed Pods as of 7, the last of which changed at 5.
fn scene() -> Scene {
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "old")]);
    scene.reach(|reached| {
        reached.listing("Pod", 5);
        reached.listed("Pod", 7);
    });
    scene
}

impl Scene {
    fn reach(&mut self, more: impl FnOnce(&mut SourceVersions)) {
        let mut reached = self.resources.reached().clone();
        more(&mut reached);
        self.resources.reach(&reached);
    }

    fn is_stale(&self) -> bool {
        self.stream.is_stale(&self.resources)
    }
}

fn source(response: &DeltaDiscoveryResponse) -> Option<&str> {
    source_of(&response.system_version_info)
}

#[test]
fn nothing_is_sent_before_the_replica_knows_as_much() {
    let mut scene = scene();
    scene.send(returning("Pod=9,Service=3"));
    assert!(scene.is_stale());
    assert_eq!(scene.next(), None);
    assert!(!scene.stream.status(StreamId(1)).unwrap().up_to_date);
    // Something happened, but not all.
    scene.apply(vec![upsert(Cluster, "a", "older")]);
    scene.reach(|reached| reached.changed("Pod", 8));
    assert_eq!(scene.next(), None);
    scene.apply(vec![upsert(Cluster, "a", "new")]);
    scene.reach(|reached| reached.changed("Pod", 9));
    let response = scene.next().expect("it has caught up");
    assert_eq!(response.resources[0].version, resource(Cluster, "a", "new").version.to_string());
    assert!(!scene.is_stale());
    // Whoever is next has to know what the one before did, too.
    assert_eq!(source(&response), Some("Pod=9,Service=3"));
    scene.ack(&response);
    // From now on the stream is like any other.
    scene.apply(vec![upsert(Cluster, "a", "newest")]);
    scene.reach(|reached| reached.changed("Pod", 12));
    assert_eq!(source(&scene.next().unwrap()), Some("Pod=12,Service=3"));
}

#[test]
fn a_replica_that_has_seen_all_keeps_nobody_waiting_however_long_ago_that_was() {
    for known in ["Pod=5", "Pod=7", "Service=99"] {
        let mut scene = scene();
        scene.send(returning(known));
        assert!(!scene.is_stale() && scene.next().is_some(), "{known}");
    }
    let mut scene = scene();
    scene.send(returning("Pod=9"));
    scene.reach(|reached| reached.quiet("Pod", 20));
    assert!(scene.next().is_some(), "nothing happened to Pods up to 20");
}

#[test]
fn an_agent_that_is_new_is_told_of_events_only() {
    let mut scene = scene();
    scene.send(subscribe(Cluster, &["*"]));
    assert_eq!(source(&scene.next().unwrap()), Some("Pod=5"));
    // A source without versions, such as a directory.
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(returning("Pod=9"));
    let response = scene.next().expect("nothing is known of Pods");
    assert_eq!(source(&response), Some("Pod=9"));
    let mut scene = Scene::new(vec![upsert(Cluster, "a", "1")]);
    scene.send(subscribe(Cluster, &["*"]));
    assert_eq!(source(&scene.next().unwrap()), None);
}

#[test]
fn what_was_waited_for_in_vain_is_forgotten() {
    let mut scene = scene();
    scene.send(returning("Pod=1000"));
    assert_eq!(scene.next(), None);
    scene.stream.stop_waiting();
    let response = scene.next().expect("it goes on");
    assert_eq!(source(&response), Some("Pod=5"));
    // Only the first request counts: the agent has what this replica sent.
    scene.ack(&response);
    scene.send(returning("Pod=1000"));
    assert!(!scene.is_stale());
}

#[test]
fn before_the_first_sync_nobody_lags() {
    let mut scene = scene();
    scene.resources = Resources::default();
    scene.send(returning("Pod=9"));
    assert!(!scene.is_stale());
    assert_eq!(scene.next(), None);
}
