//! Objects, nodes and what is served, without an API server.

use slotmesh_compile::{Condition, ObjectName, ResourceVersion};
use slotmesh_xds::{Change, Resource, ResourceName};

use super::*;
use crate::Due;

/// What is served: by name and content; each node sees all.
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

    /// What that is due to these nodes, which take part.
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
    let condition =
        Condition { ty: ConditionType::Accepted, holds: accepted, reason: "Because", message: String::new() };
    let ancestor = Ancestor {
        at: None,
        conditions: vec![condition],
        resources: resources.iter().map(version).collect(),
    };
    Some(Conditions { object: key.clone(), generation: Some(1), ancestors: vec![ancestor] })
}

struct Scene {
    verdicts: Verdicts,
    served: Served,
}

impl Scene {
    fn new(nodes: &[&str], served: Served) -> Self {
        let mut verdicts = Verdicts::default();
        verdicts.served(served.due(nodes.iter().copied()));
        Self { verdicts, served }
    }

    fn object(&mut self, key: &ObjectKey, resources: &[(ResourceType, &str, &[u8])]) {
        self.verdicts.object(key, object(key, true, resources));
    }

    fn told(&mut self, node: &str, told: Told) {
        self.verdicts.node(&node.into(), Some(told));
    }

    /// The node has acknowledged all of this.
    fn acknowledges(&mut self, node: &str, held: &Served) {
        let acknowledged = Some(held.sketch(&node.into()));
        self.told(node, Told { acknowledged, ..Told::default() });
    }

    fn serves(&mut self, served: Served) {
        self.served = served;
        let due = self.served.due(self.verdicts.due.nodes().iter().map(NodeName::as_str));
        self.verdicts.served(due);
    }

    fn programmed(&self, key: &ObjectKey) -> (Truth, &'static str, String) {
        let verdict = self.verdicts.judge(key).unwrap();
        let said = verdict.places[0].conditions.last().unwrap();
        assert_eq!(said.ty, "Programmed");
        (said.truth, said.reason, said.message.clone())
    }

    fn dirty(&mut self) -> Vec<String> {
        self.verdicts.take_dirty().into_iter().map(|key| key.name.name.to_string()).collect()
    }
}

const CLUSTER: ResourceType = ResourceType::Cluster;

#[test]
fn programmed_once_every_node_has_acknowledged_this_very_content() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1", "n2"], Served::clusters(&[("web", b"1"), ("api", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    let (truth, reason, message) = scene.programmed(&policy);
    assert_eq!((truth, reason), (Truth::False, "Pending"));
    assert_eq!(
        message,
        "2 of 2 nodes have not acknowledged it: n1 (no agent has connected), n2 (no agent has connected)"
    );

    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    // What others lack of other objects doesn't matter, nor what the node has besides.
    scene.acknowledges("n2", &Served::clusters(&[("web", b"1"), ("old", b"9")]));
    assert_eq!(scene.programmed(&policy).0, Truth::True);

    // The content changes: what was acknowledged before counts no more.
    scene.serves(Served::clusters(&[("web", b"2"), ("api", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    assert_eq!(scene.programmed(&policy).0, Truth::False);
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    let (truth, _, message) = scene.programmed(&policy);
    assert_eq!(
        (truth, message.as_str()),
        (Truth::False, "1 of 2 nodes has not acknowledged it: n2 (pending)")
    );
    scene.acknowledges("n2", &all);
    let (truth, reason, message) = scene.programmed(&policy);
    assert_eq!(
        (truth, reason, message.as_str()),
        (Truth::True, "Programmed", "all 2 nodes have acknowledged it")
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
    scene.told("n1", Told { acknowledged, not_ready, ..Told::default() });
    assert_eq!(scene.programmed(&old).0, Truth::True);
    let (truth, _, message) = scene.programmed(&new);
    assert_eq!(truth, Truth::False);
    assert!(message.contains("n1 (not ready since 1970-01-01T00:00:00Z: AgentStopped)"), "{message}");
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&["n1"], Served::clusters(&[("web", b"2")]));
    scene.object(&policy, &[(CLUSTER, "web", b"2")]);
    let acknowledged = Some(Served::clusters(&[("web", b"1")]).sketch(&"n1".into()));
    let refused = BTreeMap::from([("cluster/web".to_owned(), "no room".to_owned())]);
    scene.told("n1", Told { acknowledged, refused, ..Told::default() });
    let (truth, reason, message) = scene.programmed(&policy);
    assert_eq!((truth, reason), (Truth::False, "Refused"));
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
    assert_eq!((scene.programmed(&web).0, scene.programmed(&api).0), (Truth::True, Truth::True));
}

#[test]
fn a_node_that_lacks_more_than_can_be_told_lacks_everything() {
    let policy = key(Kind::TrafficPolicy, "web");
    let many: Vec<&'static str> = (0..500).map(|n| &*n.to_string().leak()).collect();
    let served =
        many.iter().fold(Served::clusters(&[("web", b"1")]), |all, name| all.with(CLUSTER, name, b"1"));
    let mut scene = Scene::new(&["n1"], served);
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    scene.acknowledges("n1", &Served::clusters(&[("web", b"1")]));
    assert_eq!(scene.programmed(&policy).0, Truth::False, "nobody can tell");
    let all = scene.served.clone();
    scene.acknowledges("n1", &all);
    assert_eq!(scene.programmed(&policy).0, Truth::True);
    assert_eq!(scene.dirty(), ["web"]);
    // A sketch that can't be read tells nothing either.
    scene.told("n1", Told::default());
    assert_eq!(scene.programmed(&policy).0, Truth::False);
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
    let verdict = scene.verdicts.judge(&profile).unwrap();
    assert_eq!(verdict.nodes, Count { due: 2, have: 1 });
    scene.acknowledges("n2", &all);
    assert_eq!(scene.programmed(&profile).0, Truth::True);
}

#[test]
fn nodes_come_and_go() {
    let policy = key(Kind::TrafficPolicy, "web");
    let mut scene = Scene::new(&[], Served::clusters(&[("web", b"1")]));
    scene.object(&policy, &[(CLUSTER, "web", b"1")]);
    assert_eq!((scene.programmed(&policy).0, scene.programmed(&policy).1), (Truth::Unknown, "NoNodes"));
    scene.dirty();
    let served = scene.served.clone();
    scene.verdicts.served(served.due(["n1"]));
    assert_eq!(scene.dirty(), ["web"]);
    scene.acknowledges("n1", &served);
    assert_eq!(scene.programmed(&policy).0, Truth::True);
    scene.dirty();
    scene.verdicts.node(&"n1".into(), None);
    assert_eq!(scene.dirty(), ["web"]);
    assert_eq!(scene.programmed(&policy).0, Truth::False);
}

#[test]
fn what_is_not_accepted_or_leads_nowhere_is_not_programmed() {
    let (refused, nothing) = (key(Kind::TrafficPolicy, "refused"), key(Kind::HttpRoute, "nothing"));
    let mut scene = Scene::new(&["n1"], Served::default());
    scene.acknowledges("n1", &Served::default());
    scene.verdicts.object(&refused, object(&refused, false, &[]));
    scene.object(&nothing, &[]);
    assert_eq!((scene.programmed(&refused).0, scene.programmed(&refused).1), (Truth::False, "NotAccepted"));
    assert_eq!(
        (scene.programmed(&nothing).0, scene.programmed(&nothing).1),
        (Truth::Unknown, "NothingToProgram")
    );
    scene.verdicts.object(&refused, None);
    assert_eq!(scene.verdicts.judge(&refused), None);
}
