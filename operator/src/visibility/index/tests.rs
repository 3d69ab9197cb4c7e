//! Resources that nodes are sent of objects that not everybody sees, against plain readings of the same; and how many.

use std::{collections::BTreeMap, time::Instant};

use proptest::prelude::*;
use slotmesh_builders::{rule, service, service_entry, sidecar, slice, to, virtual_service, workload};
use slotmesh_compile::{Compiler, Object};
use slotmesh_serve::{Scope as _, SourceVersions};

use super::*;
use crate::{Publish as _, visibility::Scoped};

/// A cluster, what is published of it, and the visibility of each resource on each node.
#[derive(Default)]
struct Mesh {
    compiler: Compiler,
    scoped: Scoped,
    published: BTreeMap<Referrer, Resource>,
    seen: BTreeMap<(NodeName, Referrer), Visibility>,
}

/// The nodes of random stories.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
const NAMESPACES: [&str; 4] = ["a", "b", "c", "d"];

fn pod(node: &str, uid: &str, namespace: &str) -> Workload {
    Workload {
        node: node.to_owned(),
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        ..Workload::default()
    }
}

fn joins(workload: &Workload) -> Change {
    Change::Upsert(Resource::encode(ResourceType::Workload, workload.resource_name(), workload))
}

impl Mesh {
    /// Compiles and publishes; returns what is told that nodes may see otherwise.
    fn publish(&mut self, workloads: Vec<Change>) -> Rescoped {
        let output = self.compiler.flush();
        let changes: Vec<Change> = output.changes.into_iter().chain(workloads).collect();
        for change in &changes {
            match change {
                Change::Upsert(one) => {
                    self.published.insert((one.ty, one.name.clone()), one.clone());
                }
                Change::Remove(ty, name) => _ = self.published.remove(&(*ty, name.clone())),
            }
        }
        self.scoped.audiences(output.audiences);
        let rescoped = self.scoped.rescope(&changes);
        // The rest of it, with nothing more to tell.
        self.scoped.publish(changes, Instant::now(), &SourceVersions::default());
        rescoped
    }

    fn visibility(&self, node: &str, of: &Referrer) -> Visibility {
        self.scoped.scope.visibility(&node.into(), of.0, &of.1)
    }

    /// The names of what a node is sent, but for its workloads, and how many bytes it has.
    fn sent(&self, node: &str) -> (BTreeSet<&str>, usize) {
        let sent = self.published.iter().filter(|(of, _)| {
            of.0 != ResourceType::Workload && self.visibility(node, of) == Visibility::Seen
        });
        let mut bytes = 0;
        let names = sent.map(|((_, name), resource)| {
            bytes += resource.content.len();
            name.as_str()
        });
        (names.collect(), bytes)
    }
}

fn private(namespace: &str, ip: &str) -> Object {
    let entry = service_entry("db", &format!("db.{namespace}.example.com")).namespace(namespace).ip(ip);
    let entry = entry.port("tcp", 5432, 5432).endpoint(workload("10.9.0.1", "v1"));
    entry.set(|spec| spec.export_to = vec![".".to_owned()]).build()
}

#[test]
fn a_node_holds_what_its_namespaces_see() {
    const ALL: usize = 1_000;
    const NODES: usize = 100;
    let mut mesh = Mesh::default();
    for i in 0..ALL {
        let ip = format!("240.0.{}.{}", i / 250, i % 250 + 1);
        mesh.compiler.apply(&private(&format!("namespace-{i}"), &ip), None);
    }
    mesh.compiler.apply(&service("web").ip("10.0.0.1").port(80).build(), None);
    let pods = (0..ALL)
        .map(|i| joins(&pod(&format!("node-{}", i % NODES), &format!("uid-{i}"), &format!("namespace-{i}"))));
    mesh.publish(pods.collect());
    let records = mesh.published.iter().filter(|((ty, _), _)| *ty != ResourceType::Workload);
    let (count, bytes) = records.fold((0, 0), |(n, bytes), (_, one)| (n + 1, bytes + one.content.len()));
    let (names, held) = mesh.sent("node-7");
    println!(
        "{ALL} namespaces with exportTo \".\", {NODES} nodes with pods of {} each: a node holds {} of {count} resources, \
         {held} of {bytes} bytes",
        ALL / NODES,
        names.len(),
    );
    assert_eq!(names.len(), names_of(ALL / NODES));
    assert!(held * 50 < bytes, "{held} of {bytes} bytes");
    // One namespace more on a node is one more of each, and nothing else is looked at.
    let rescoped = mesh.publish(vec![joins(&pod("node-7", "new", "namespace-8"))]);
    assert!(rescoped.nodes.is_empty() && rescoped.resources.is_empty());
    assert!(rescoped.of_node[&"node-7".into()].len() <= 7, "{rescoped:?}");
    assert_eq!(mesh.sent("node-7").0.len(), names_of(ALL / NODES + 1));
    // A second pod of the namespace is nothing new.
    assert!(mesh.publish(vec![joins(&pod("node-7", "newer", "namespace-8"))]).of_node.is_empty());
}

/// How many names a node with pods of so many namespaces is sent: a listener and a cluster of each (endpoints are called
/// as their cluster), those of the Service that all see, and the cluster that leaves connections alone.
const fn names_of(namespaces: usize) -> usize {
    2 * namespaces + 2 + 1
}

#[test]
fn what_the_sidecars_of_all_pods_of_a_node_leave_out_is_not_sent() {
    let mut mesh = Mesh::default();
    for (name, ip) in [("web", "10.0.0.1"), ("other", "10.0.0.2")] {
        mesh.compiler.apply(&service(name).ip(ip).port(80).build(), None);
        mesh.compiler.apply(&slice(name, name).port(80).endpoint("10.1.0.1").build(), None);
    }
    mesh.compiler
        .apply(&sidecar("s", &["default/web.default.svc.cluster.local"]).namespace("a").build(), None);
    mesh.publish(vec![joins(&pod("n1", "1", "a")), joins(&pod("n2", "2", "a")), joins(&pod("n2", "3", "b"))]);
    let other = ["10.0.0.2_80", "outbound|80||other.default.svc.cluster.local"];
    let web = ["10.0.0.1_80", "outbound|80||web.default.svc.cluster.local"];
    assert_eq!(mesh.sent("n1").0, web.into());
    assert_eq!(mesh.sent("n2").0, web.into_iter().chain(other).collect());
    let spared = mesh.visibility("n1", &(ResourceType::Listener, other[0].into()));
    assert_eq!(spared, Visibility::Spared);
    // Whoever comes needs it, though nothing of it has changed.
    let rescoped = mesh.publish(vec![joins(&pod("n1", "4", "b"))]);
    assert!(rescoped.of_node[&"n1".into()].contains(&(ResourceType::Endpoints, other[1].into())));
    assert_eq!(mesh.sent("n1").0.len(), 4);
    // A node without workloads is sent nothing, and owes nothing.
    assert_eq!(mesh.visibility("n3", &(ResourceType::Cluster, web[1].into())), Visibility::Foreign);
    // Where they are to be refused, the listener has to say so.
    mesh.publish(vec![Change::Remove(ResourceType::Workload, "n1/4".into())]);
    assert_eq!(mesh.sent("n1").0, web.into());
    let strict = sidecar("s", &["default/web.default.svc.cluster.local"]).namespace("a").registry_only();
    mesh.compiler.apply(&strict.build(), None);
    mesh.publish(Vec::new());
    assert_eq!(mesh.sent("n1").0, web.into_iter().chain(["10.0.0.2_80", "BlackHoleCluster"]).collect());
}

/// Something happens.
#[derive(Clone, Debug)]
enum Event {
    Join(usize, u8, usize),
    Leave(usize, u8),
    /// A ServiceEntry for some namespaces.
    Entry(usize, Vec<usize>),
    NoEntry(usize),
    /// A VirtualService of a namespace for a Service, which some see, to another Service.
    Route(usize, usize, usize, Vec<usize>),
    NoRoute(usize),
    /// A Sidecar of a namespace, with what it sees, and whether others are refused.
    Sidecar(usize, usize, bool),
    NoSidecar(usize),
    /// A DestinationRule for callers of a namespace.
    Rule(usize, usize),
    NoRule(usize, usize),
}

fn event() -> impl Strategy<Value = Event> {
    let (node, namespace, service) = (0..NODES.len(), 0..NAMESPACES.len(), 0..3_usize);
    let some = || prop::collection::vec(0..NAMESPACES.len(), 0..3);
    prop_oneof![
        4 => (node.clone(), 0..4_u8, namespace.clone()).prop_map(|(n, u, s)| Event::Join(n, u, s)),
        2 => (node, 0..4_u8).prop_map(|(n, u)| Event::Leave(n, u)),
        2 => (namespace.clone(), some()).prop_map(|(n, s)| Event::Entry(n, s)),
        1 => namespace.clone().prop_map(Event::NoEntry),
        2 => (namespace.clone(), service.clone(), service.clone(), some())
            .prop_map(|(n, from, to, s)| Event::Route(n, from, to, s)),
        1 => namespace.clone().prop_map(Event::NoRoute),
        2 => (namespace.clone(), service.clone(), any::<bool>()).prop_map(|(n, s, r)| Event::Sidecar(n, s, r)),
        1 => namespace.clone().prop_map(Event::NoSidecar),
        1 => (namespace.clone(), service.clone()).prop_map(|(n, s)| Event::Rule(n, s)),
        1 => (namespace, service).prop_map(|(n, s)| Event::NoRule(n, s)),
    ]
}

fn named(namespaces: &[usize]) -> Vec<String> {
    namespaces.iter().map(|n| NAMESPACES[*n].to_owned()).collect()
}

impl Mesh {
    fn happens(&mut self, event: &Event) -> Vec<Change> {
        let host = |service: usize| format!("s{service}.default.svc.cluster.local");
        let route = |n: usize, from: usize, goes: usize| {
            let built = virtual_service("vs", &host(from)).namespace(NAMESPACES[n]);
            built.http([to(&host(goes), 1)])
        };
        let rule_of = |n: usize, service: usize| {
            let mut built = rule("r", &host(service)).namespace(NAMESPACES[n]).balance("ROUND_ROBIN");
            built.0.metadata.name = Some(format!("r{service}"));
            built
        };
        let seen = |n: usize, service: usize| {
            sidecar("s", &[&format!("default/{}", host(service))]).namespace(NAMESPACES[n])
        };
        match event {
            Event::Join(n, uid, namespace) => {
                return vec![joins(&pod(NODES[*n], &uid.to_string(), NAMESPACES[*namespace]))];
            }
            Event::Leave(n, uid) => {
                let name = pod(NODES[*n], &uid.to_string(), "").resource_name();
                return vec![Change::Remove(ResourceType::Workload, name)];
            }
            Event::Entry(n, to) => {
                let mut entry = service_entry("e", &format!("e{n}.example.com")).namespace(NAMESPACES[*n]);
                entry = entry.ip(&format!("240.0.0.{}", n + 1)).port("tcp", 80, 80);
                entry = entry.endpoint(workload("10.9.0.1", "v1"));
                self.compiler.apply(&entry.set(|spec| spec.export_to = named(to)).build(), None);
            }
            Event::NoEntry(n) => {
                let entry = service_entry("e", "e.example.com").namespace(NAMESPACES[*n]).build();
                self.compiler.delete(&entry.key());
            }
            Event::Route(n, from, goes, to) => {
                let mut built = route(*n, *from, *goes);
                built.0.spec.export_to = named(to);
                self.compiler.apply(&built.build(), None);
            }
            Event::NoRoute(n) => self.compiler.delete(&route(*n, 0, 0).build().key()),
            Event::Sidecar(n, service, refuses) => {
                let built = seen(*n, *service);
                let built = if *refuses { built.registry_only() } else { built };
                self.compiler.apply(&built.build(), None);
            }
            Event::NoSidecar(n) => self.compiler.delete(&seen(*n, 0).build().key()),
            Event::Rule(n, service) => self.compiler.apply(&rule_of(*n, *service).build(), None),
            Event::NoRule(n, service) => self.compiler.delete(&rule_of(*n, *service).build().key()),
        }
        Vec::new()
    }

    /// Checks the visibility of all: what has changed was told, what leads somewhere leads to what is sent.
    fn check(&mut self, changed: &HashSet<Referrer>, rescoped: &Rescoped) {
        let mut seen = BTreeMap::new();
        for node in NODES {
            let name = NodeName::from(node);
            for of in self.published.keys() {
                let visibility = self.visibility(node, of);
                let before = self.seen.get(&(name.clone(), of.clone()));
                let is_told = changed.contains(of)
                    || rescoped.nodes.contains(&name)
                    || rescoped.resources.contains(of)
                    || rescoped.of_node.get(&name).is_some_and(|some| some.contains(of));
                assert!(
                    before == Some(&visibility) || is_told,
                    "{node}: {of:?} was {before:?}, is {visibility:?}"
                );
                seen.insert((name.clone(), of.clone()), visibility);
            }
        }
        self.seen = seen;
        for node in NODES {
            let classes: BTreeSet<String> = self
                .published
                .iter()
                .filter(|((ty, name), _)| {
                    *ty == ResourceType::Workload && Workload::node_of(name) == Some(node)
                })
                .filter_map(|(_, one)| Workload::class_of(one))
                .collect();
            let mut needed = BTreeSet::new();
            for (of, resource) in &self.published {
                if of.0 != ResourceType::Listener || self.visibility(node, of) != Visibility::Seen {
                    continue;
                }
                let ways = Ways::of_listener(&resource.content);
                needed.insert(of.clone());
                for target in classes.iter().flat_map(|class| ways.of(class)) {
                    needed.insert(target.clone());
                    let clusters = match target.0 {
                        ResourceType::Route => clusters_of_route(&self.published[target].content),
                        _ => BTreeSet::from([target.1.clone()]),
                    };
                    for cluster in clusters {
                        let cluster = (ResourceType::Cluster, cluster);
                        let assignment = assignment_of_cluster(&self.published[&cluster].content);
                        needed.extend(assignment.map(|name| (ResourceType::Endpoints, name)));
                        needed.insert(cluster);
                    }
                }
            }
            let records = |of: &&Referrer| of.0 != ResourceType::Workload;
            let sent: BTreeSet<Referrer> = self
                .published
                .keys()
                .filter(records)
                .filter(|of| self.visibility(node, of) == Visibility::Seen)
                .cloned()
                .collect();
            assert_eq!(sent, needed, "{node} with {classes:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn nodes_are_sent_what_is_needed_and_told_of_what_that_changes(events in prop::collection::vec(event(), 1..24)) {
        let mut mesh = Mesh::default();
        for i in 0..3 {
            let name = format!("s{i}");
            mesh.compiler.apply(&service(&name).ip(&format!("10.0.0.{}", i + 1)).port(80).build(), None);
            mesh.compiler.apply(&slice(&name, &name).port(80).endpoint("10.1.0.1").build(), None);
        }
        let rescoped = mesh.publish(Vec::new());
        mesh.check(&mesh.published.keys().cloned().collect(), &rescoped);
        for event in &events {
            let before = mesh.published.clone();
            let workloads = mesh.happens(event);
            let rescoped = mesh.publish(workloads);
            let changed: HashSet<Referrer> = mesh
                .published
                .iter()
                .filter(|(of, one)| before.get(*of).map(|old| old.version) != Some(one.version))
                .map(|(of, _)| of.clone())
                .collect();
            mesh.check(&changed, &rescoped);
        }
    }
}
