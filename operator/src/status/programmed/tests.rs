//! Objects, nodes and what is served, without an API server.

use k8s_openapi::jiff::Timestamp;
use slotmesh_compile::{ObjectName, ResourceVersion};
use slotmesh_xds::{Change, Resource, ResourceName, Sketch};

use super::*;
use crate::Due;

/// The served resources: by name and content; each node sees all.
#[derive(Clone, Default)]
struct Served(BTreeMap<(ResourceType, &'static str), &'static [u8]>);

fn print(ty: ResourceType, name: &str, content: &[u8]) -> Fingerprint {
    Fingerprint::of(ty, &ResourceName::from(name), Version::of(content))
}

impl Served {
    fn with(mut self, ty: ResourceType, name: &'static str, content: &'static [u8]) -> Self {
        self.0.insert((ty, name), content);
        self
    }

    fn clusters(names: &[(&'static str, &'static [u8])]) -> Self {
        names
            .iter()
            .fold(Self::default(), |all, (name, content)| all.with(ResourceType::Cluster, name, content))
    }

    /// The part of that which is due to these nodes, which take part.
    fn due<'a>(&self, nodes: impl IntoIterator<Item = &'a str>) -> Snapshot {
        let due = Due::default();
        let upsert = |((ty, name), content): (&(ResourceType, &'static str), &&'static [u8])| {
            let (name, version) = (ResourceName::from(*name), Version::of(content));
            Change::Upsert(Resource { ty: *ty, name, version, content: (*content).into() })
        };
        due.apply(&self.0.iter().map(upsert).collect::<Vec<_>>(), |_, _| None);
        nodes.into_iter().for_each(|node| due.takes_part(&node.into(), true));
        due.now()
    }

    fn sketch(&self, node: &NodeName) -> Sketch {
        let mut sketch = Sketch::default();
        for ((ty, name), content) in &self.0 {
            if *ty != ResourceType::Settings || *name == node.as_str() {
                sketch.add(print(*ty, name, content));
            }
        }
        sketch
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, name: ObjectName::new(if kind.is_namespaced() { "shop" } else { "" }, name) }
}

/// An object that compiled to these resources.
fn object(key: &ObjectKey, accepted: bool, resources: &[(ResourceType, &str, &[u8])]) -> Option<Conditions> {
    let version = |(ty, name, content): &(ResourceType, &str, &[u8])| ResourceVersion {
        ty: *ty,
        name: ResourceName::from(*name),
        version: Version::of(content).get(),
    };
    let condition = Condition::new(ConditionType::Accepted, accepted, "Because", String::new());
    let ancestor = Ancestor {
        at: None,
        conditions: vec![condition],
        resources: resources.iter().map(version).collect(),
    };
    Some(Conditions { object: key.clone(), generation: Some(1), ancestors: vec![ancestor] })
}

struct Scene {
    programmed: ProgrammedIndex,
    served: Served,
    nodes: BTreeSet<&'static str>,
    now: Instant,
}

impl Scene {
    /// Nothing was served before.
    fn new(nodes: &[&'static str], served: Served) -> Self {
        let (nodes, now) = (nodes.iter().copied().collect(), Instant::now());
        let mut scene =
            Self { programmed: ProgrammedIndex::default(), served: Served::default(), nodes, now };
        scene.serves(served);
        scene
    }

    fn object(&mut self, key: &ObjectKey, resources: &[(ResourceType, &str, &[u8])]) {
        self.programmed.object(key, object(key, true, resources));
    }

    fn observed(&mut self, node: &str, observed: ObservedNode) {
        self.programmed.node(&node.into(), Some(observed), self.now);
    }

    /// The node has acknowledged all of this.
    fn acknowledges(&mut self, node: &str, held: &Served) {
        let acknowledged = Some(held.sketch(&node.into()));
        self.observed(node, ObservedNode { acknowledged, ..ObservedNode::default() });
    }

    /// As an agent that has just begun.
    fn begins(&mut self, node: &str, held: &Served) {
        let acknowledged = Some(held.sketch(&node.into()));
        let not_ready = Some(("Syncing".to_owned(), Timestamp::UNIX_EPOCH));
        self.observed(node, ObservedNode { acknowledged, not_ready, ..ObservedNode::default() });
    }

    fn serves(&mut self, served: Served) {
        self.served = served;
        let due = self.served.due(self.nodes.iter().copied());
        self.programmed.served(due, self.now);
    }

    /// A node gets its first pod, or loses its last.
    fn takes_part(&mut self, node: &'static str, does: bool) {
        if does {
            self.nodes.insert(node)
        } else {
            self.nodes.remove(node)
        };
        self.serves(self.served.clone());
    }

    fn programmed(&self, key: &ObjectKey) -> (ConditionStatus, &'static str, String) {
        self.programmed_when(key, false)
    }

    fn programmed_when(&self, key: &ObjectKey, late: bool) -> (ConditionStatus, &'static str, String) {
        let verdict = self.programmed.evaluate(key, late).unwrap();
        let said = verdict.ancestors[0].conditions.last().unwrap();
        assert_eq!(said.ty, ConditionType::Programmed);
        (said.status, said.reason, said.message.clone())
    }

    fn dirty(&mut self) -> Vec<String> {
        self.programmed.take_dirty().into_iter().map(|key| key.name.name.to_string()).collect()
    }
}

const CLUSTER: ResourceType = ResourceType::Cluster;

#[test]
fn programmed_once_every_node_has_acknowledged_this_very_content() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1", "n2"], Served::clusters(&[("web", b"1"), ("api", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    scene.acknowledges("n1", &Served::default());
    let waits = (ConditionStatus::False, "Pending", "nodes are about to acknowledge it".to_owned());
    assert_eq!(scene.programmed(&policy), waits);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    // What others lack of other objects doesn't matter, nor what the node has besides.
    scene.acknowledges("n2", &Served::clusters(&[("web", b"1"), ("old", b"9")]));
    assert_eq!(scene.programmed(&policy).0, ConditionStatus::True);

    // The content changes: what was acknowledged before counts no more.
    scene.serves(Served::clusters(&[("web", b"2"), ("api", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    assert_eq!(scene.programmed(&policy), waits);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    // That changes as nodes acknowledge it, one after the other; so it isn't said before it lasts.
    assert_eq!(scene.programmed(&policy), waits);
    assert_eq!(scene.programmed_when(&policy, true).2, "not acknowledged by n2 (pending)");
    scene.acknowledges("n2", &all);
    let (status, reason, message) = scene.programmed(&policy);
    assert_eq!(
        (status, reason, message.as_str()),
        (ConditionStatus::True, "Programmed", "every node that it is for has acknowledged it")
    );
}

#[test]
fn a_stopped_agent_is_named_and_what_it_has_acknowledged_before_still_counts() {
    let (old, new) = (key(Kind::TrafficPolicy, "old"), key(Kind::TrafficPolicy, "new"));
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("old", b"1"), ("new", b"1")]));
    scene.object(&old, &[(CLUSTER, "old", b"1")]);
    scene.object(&new, &[(CLUSTER, "new", b"1")]);
    let acknowledged = Some(Served::clusters(&[("old", b"1")]).sketch(&"n1".into()));
    let not_ready = Some(("AgentStopped".to_owned(), Timestamp::UNIX_EPOCH));
    scene.observed("n1", ObservedNode { acknowledged, not_ready, ..ObservedNode::default() });
    assert_eq!(scene.programmed(&old).0, ConditionStatus::True);
    let (status, _, message) = scene.programmed(&new);
    assert_eq!(status, ConditionStatus::False);
    assert!(message.contains("n1 (not ready since 1970-01-01T00:00:00Z: AgentStopped)"), "{message}");
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("web", b"2")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    let acknowledged = Some(Served::clusters(&[("web", b"1")]).sketch(&"n1".into()));
    let refused = BTreeMap::from([("cluster/web".to_owned(), "no room".to_owned())]);
    scene.observed("n1", ObservedNode { acknowledged, refused, ..ObservedNode::default() });
    let (status, reason, message) = scene.programmed(&policy);
    assert_eq!((status, reason), (ConditionStatus::False, "Refused"));
    assert!(message.ends_with("n1 (refuses cluster/web: no room)"), "{message}");
}

#[test]
fn only_the_objects_of_what_differs_are_looked_at() {
    let (web, api) = (key(Kind::TrafficPolicy, "web"), key(Kind::TrafficPolicy, "api"));
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("web", b"1"), ("api", b"1")]));
    scene.object(&web, &[(CLUSTER, "web", b"1")]);
    scene.object(&api, &[(CLUSTER, "api", b"1")]);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    scene.dirty();
    scene.acknowledges("n1", &all);
    assert!(scene.dirty().is_empty(), "nothing new");
    scene.serves(Served::clusters(&[("web", b"2"), ("api", b"1")]));
    assert!(scene.dirty().is_empty(), "nobody owns the new version yet");
    scene.object(&web, &[(CLUSTER, "web", b"2")]);
    assert_eq!(scene.dirty(), ["web"]);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    assert_eq!(scene.dirty(), ["web"]);
    assert_eq!(
        (scene.programmed(&web).0, scene.programmed(&api).0),
        (ConditionStatus::True, ConditionStatus::True)
    );
}

#[test]
fn a_node_of_which_too_much_is_new_to_be_told_lacks_what_is_new() {
    let (web, one) = (key(Kind::TrafficPolicy, "web"), key(Kind::TrafficPolicy, "one"));
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("web", b"1"), ("one", b"1")]));
    scene.object(&web, &[(CLUSTER, "web", b"1")]);
    scene.object(&one, &[(CLUSTER, "one", b"1")]);
    let before = scene.served.clone();
    scene.acknowledges("n1", &before);
    // 500 resources come at once, and one of those that were there changes.
    let many = (0..500)
        .map(|n| &*n.to_string().leak())
        .fold(Served::clusters(&[("web", b"1"), ("one", b"2")]), |all, name| all.with(CLUSTER, name, b"1"));
    scene.dirty();
    scene.serves(many.clone());
    scene.object(&one, &[(CLUSTER, "one", b"2")]);
    assert_eq!(scene.dirty(), ["one"], "nothing is to be said of what didn't change");
    assert_eq!(
        (scene.programmed(&web).0, scene.programmed(&one).0),
        (ConditionStatus::True, ConditionStatus::False)
    );
    scene.acknowledges("n1", &many);
    assert_eq!(scene.dirty(), ["one"]);
    assert_eq!(scene.programmed(&one).0, ConditionStatus::True);
    // A sketch that can't be read tells nothing: what it had, it still has.
    scene.observed("n1", ObservedNode::default());
    assert_eq!((scene.dirty(), scene.programmed(&web).0), (Vec::new(), ConditionStatus::True));
}

#[test]
fn a_node_that_was_never_known_and_lacks_too_much_lacks_everything() {
    let policy = key(Kind::TrafficPolicy, "web");
    let many = (0..500)
        .map(|n| &*n.to_string().leak())
        .fold(Served::clusters(&[("web", b"1")]), |all, name| all.with(CLUSTER, name, b"1"));
    let mut scene = Scene::new(&["n1"], many);
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    scene.acknowledges("n1", &Served::clusters(&[("web", b"1")]));
    assert_eq!(scene.programmed(&policy).0, ConditionStatus::False, "nobody can tell");
}

#[test]
fn a_profile_is_for_the_nodes_that_it_has_and_no_others() {
    let profile = key(Kind::SlotProfile, "edge");
    let settings = ResourceType::Settings;
    let served = Served::default().with(settings, "n1", b"s").with(settings, "n2", b"s");
    // No node takes part in the mesh: a profile acts all the same.
    let mut scene = Scene::new(&[], served);
    scene.object(&profile, &[(settings, "n1", b"s"), (settings, "n2", b"s")]);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    scene.acknowledges("n3", &Served::default());
    let verdict = scene.programmed.evaluate(&profile, false).unwrap();
    assert_eq!(verdict.nodes, Count { due: 2, have: 1 });
    scene.acknowledges("n2", &all);
    assert_eq!(scene.programmed(&profile).0, ConditionStatus::True);
}

#[test]
fn nodes_come_and_go_and_nothing_is_to_be_said_of_what_the_others_have() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1", "no-agent"], Served::clusters(&[("web", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    assert_eq!(
        (scene.programmed(&policy).0, scene.programmed(&policy).1),
        (ConditionStatus::Unknown, "NoNodes")
    );
    scene.dirty();
    let served = scene.served.clone();
    scene.acknowledges("n1", &served);
    assert_eq!(scene.dirty(), ["web"], "the first node");
    assert_eq!(
        scene.programmed(&policy).0,
        ConditionStatus::True,
        "one that never had an agent isn't waited for"
    );

    // A node joins: its MeshNode is made, its agent begins, it gets pods, it catches up.
    scene.observed("n2", ObservedNode::default());
    scene.begins("n2", &Served::default());
    scene.acknowledges("n2", &Served::default());
    scene.takes_part("n2", true);
    assert_eq!((scene.dirty(), scene.programmed(&policy).0), (Vec::new(), ConditionStatus::True));
    scene.acknowledges("n2", &served);
    assert!(scene.dirty().is_empty());
    // It reboots.
    scene.begins("n2", &Served::default());
    assert!(scene.dirty().is_empty());
    scene.acknowledges("n2", &served);
    // From now on it counts.
    scene.serves(Served::clusters(&[("web", b"2")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    let served = scene.served.clone();
    scene.acknowledges("n1", &served);
    assert_eq!(
        (scene.dirty(), scene.programmed(&policy).0),
        (vec!["web".to_owned()], ConditionStatus::False)
    );
    scene.acknowledges("n2", &served);
    scene.dirty();
    // It leaves: its pods go, its MeshNode goes.
    scene.takes_part("n2", false);
    scene.programmed.node(&"n2".into(), None, scene.now);
    assert_eq!((scene.dirty(), scene.programmed(&policy).0), (Vec::new(), ConditionStatus::True));
    scene.programmed.node(&"n1".into(), None, scene.now);
    assert_eq!(scene.dirty(), ["web"], "the last node");
    assert_eq!(scene.programmed(&policy).1, "NoNodes");
}

#[test]
fn a_node_that_joins_for_too_long_counts() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1", "n2"], Served::clusters(&[("web", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    let served = scene.served.clone();
    scene.acknowledges("n1", &served);
    scene.begins("n2", &Served::default());
    scene.dirty();
    let until = scene.programmed.overdue(scene.now).unwrap();
    assert!(scene.dirty().is_empty());
    assert_eq!(scene.programmed.overdue(until), None);
    assert_eq!(scene.dirty(), ["web"]);
    let (status, _, message) = scene.programmed(&policy);
    assert_eq!(status, ConditionStatus::False);
    assert!(message.contains("n2 (not ready since 1970-01-01T00:00:00Z: Syncing)"), "{message}");
}

#[test]
fn a_refusal_that_is_long_is_shortened() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("web", b"2")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    let refused = BTreeMap::from([("cluster/web".to_owned(), "x".repeat(100_000))]);
    let acknowledged = Some(Sketch::default());
    scene.observed(
        "n1",
        ObservedNode { acknowledged, refused, refused_resources: 1, ..ObservedNode::default() },
    );
    let (_, reason, message) = scene.programmed(&policy);
    assert!(reason == "Refused" && message.len() < 400, "{}", message.len());
}

#[test]
fn what_is_not_accepted_or_leads_nowhere_is_not_programmed() {
    let (refused, nothing) = (key(Kind::TrafficPolicy, "refused"), key(Kind::HttpRoute, "nothing"));
    let mut scene = Scene::new(&["n1"], Served::default());
    scene.acknowledges("n1", &Served::default());
    scene.programmed.object(&refused, object(&refused, false, &[]));
    scene.object(&nothing, &[]);
    assert_eq!(
        (scene.programmed(&refused).0, scene.programmed(&refused).1),
        (ConditionStatus::False, "NotAccepted")
    );
    assert_eq!(
        (scene.programmed(&nothing).0, scene.programmed(&nothing).1),
        (ConditionStatus::Unknown, "NothingToProgram")
    );
    scene.programmed.object(&refused, None);
    assert_eq!(scene.programmed.evaluate(&refused, false), None);
}
