//! Which pods take part, and what their nodes are sent.
//!
//! A pod takes part when its namespace has the label `slotmesh.dev/mesh=enabled`, unless the pod itself
//! has the label or annotation `slotmesh.dev/mesh=disabled`, shares its node's network, or has ended.
//! For each there is one [`Workload`] resource, for its own node. A node on which no pod takes part is
//! sent nothing else.
//!
//! Invariant: after `flush`, the published workloads are exactly those of the pods that take part. One
//! pod costs one look-up; a namespace costs its pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName};
use slotmesh_serve::{NodeName, Reached, Scope, Store};
use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Workload};

use crate::{
    Due,
    pipeline::Publish,
    watch::{Sourced, Step},
};

/// The label of namespaces that take part, and of pods that don't.
pub const MESH: &str = "slotmesh.dev/mesh";
const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";
/// A static pod's cgroup is named after this, not after the uid of its mirror in the API.
pub(crate) const STATIC_POD: &str = "kubernetes.io/config.hash";

/// Follows namespaces and pods.
#[derive(Debug, Default)]
pub(crate) struct Enrolment {
    /// Namespaces that take part.
    namespaces: HashSet<Arc<str>>,
    /// Pods that would take part if their namespace does, by namespace and name.
    willing: BTreeMap<ObjectName, Arc<Workload>>,
    published: HashMap<ObjectName, Arc<Workload>>,
    dirty: BTreeSet<ObjectName>,
}

impl Enrolment {
    /// Takes notice of a step that came from the source.
    pub(crate) fn observe(&mut self, step: &Step) {
        match step {
            Step::Apply(Sourced { object: Object::Namespace(namespace), .. }) => {
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                self.namespace(name, takes_part(namespace));
            }
            Step::Apply(Sourced { object: object @ Object::Pod(pod), .. }) => {
                self.pod(object.key().name, willing(pod));
            }
            Step::Delete(ObjectKey { kind: Kind::Namespace, name }) => self.namespace(&name.name, false),
            Step::Delete(ObjectKey { kind: Kind::Pod, name }) => self.pod(name.clone(), None),
            Step::Apply(_) | Step::Delete(_) => {}
        }
    }

    fn namespace(&mut self, name: &str, takes_part: bool) {
        let changed =
            if takes_part { self.namespaces.insert(name.into()) } else { self.namespaces.remove(name) };
        if changed {
            let first = ObjectName::new(name, "");
            let pods = self.willing.range(first..).map(|(pod, _)| pod);
            self.dirty.extend(pods.take_while(|pod| &*pod.namespace == name).cloned());
        }
    }

    fn pod(&mut self, name: ObjectName, workload: Option<Workload>) {
        match workload {
            Some(workload) => {
                if self.willing.get(&name).is_some_and(|known| **known == workload) {
                    return;
                }
                self.willing.insert(name.clone(), Arc::new(workload));
            }
            None if self.willing.remove(&name).is_none() => return,
            None => {}
        }
        self.dirty.insert(name);
    }

    /// What changed since the last call: first who joins, then who leaves.
    pub(crate) fn flush(&mut self) -> Vec<Change> {
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        for pod in std::mem::take(&mut self.dirty) {
            let now = self.willing.get(&pod).filter(|_| self.namespaces.contains(&pod.namespace)).cloned();
            let before = match &now {
                Some(now) => self.published.insert(pod, now.clone()),
                None => self.published.remove(&pod),
            };
            if before == now {
                continue;
            }
            let name = now.as_ref().map(|workload| workload.resource_name());
            if let Some(before) = before.map(|workload| workload.resource_name())
                && Some(&before) != name.as_ref()
            {
                leaves.push(Change::Remove(ResourceType::Workload, before));
            }
            if let (Some(workload), Some(name)) = (now, name) {
                let resource = Resource::encode(ResourceType::Workload, name, &*workload);
                joins.push(Change::Upsert(resource));
            }
        }
        joins.append(&mut leaves);
        joins
    }
}

fn takes_part(namespace: &Namespace) -> bool {
    let labels = namespace.metadata.labels.as_ref();
    // One that is being deleted takes its pods with it, one by one.
    labels.and_then(|labels| labels.get(MESH)).is_some_and(|value| value == ENABLED)
}

/// The workload of a pod that takes part if its namespace does.
fn willing(pod: &Pod) -> Option<Workload> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let says_no = |map: Option<&BTreeMap<String, String>>| {
        map.and_then(|map| map.get(MESH)).is_some_and(|value| value == DISABLED)
    };
    let ended = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed"));
    if says_no(meta.labels.as_ref())
        || says_no(meta.annotations.as_ref())
        || spec.host_network == Some(true)
        || ended
    {
        return None;
    }
    let static_pod = meta.annotations.as_ref().and_then(|annotations| annotations.get(STATIC_POD));
    Some(Workload {
        uid: static_pod.or(meta.uid.as_ref())?.clone(),
        namespace: meta.namespace.clone()?,
        name: meta.name.clone()?,
        service_account: spec.service_account_name.clone().unwrap_or_default(),
        node: spec.node_name.clone().filter(|node| !node.is_empty())?,
    })
}

/// Lets a node see its own workloads and settings, and the rest only while it has workloads.
#[derive(Debug, Default)]
struct ByWorkloads(RwLock<HashMap<NodeName, usize>>);

impl ByWorkloads {
    /// Whether the node has workloads.
    fn has(&self, node: &NodeName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(node)
    }
}

impl Scope for ByWorkloads {
    fn sees(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> bool {
        match ty {
            ResourceType::Workload => return Workload::node_of(name) == Some(node.as_str()),
            ResourceType::Settings => return name.as_str() == node.as_str(),
            _ => {}
        }
        self.has(node)
    }
}

/// A store for a cluster: of what is published, each node sees what is meant for it.
#[derive(Debug)]
pub struct Scoped {
    store: Store,
    workloads: HashSet<ResourceName>,
    scope: Arc<ByWorkloads>,
    due: Due,
}

impl Default for Scoped {
    fn default() -> Self {
        let scope = Arc::<ByWorkloads>::default();
        Self {
            store: Store::with_scope(scope.clone()),
            workloads: HashSet::new(),
            scope,
            due: Due::default(),
        }
    }
}

impl Scoped {
    /// The store, to be served.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// What each node has to have in force.
    pub fn due(&self) -> Due {
        self.due.clone()
    }

    /// Counts the workloads of each node; returns the nodes that got their first or lost their last.
    fn count(&mut self, changes: &[Change]) -> HashSet<NodeName> {
        let mut nodes = self.scope.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = HashMap::new();
        for change in changes {
            let (name, joins) = match change {
                Change::Upsert(resource) if resource.ty == ResourceType::Workload => (&resource.name, true),
                Change::Remove(ResourceType::Workload, name) => (name, false),
                Change::Upsert(_) | Change::Remove(..) => continue,
            };
            let Some(node) = Workload::node_of(name).map(NodeName::from) else { continue };
            let changed =
                if joins { self.workloads.insert(name.clone()) } else { self.workloads.remove(name) };
            if !changed {
                continue;
            }
            before.entry(node.clone()).or_insert_with(|| nodes.contains_key(&node));
            let count = nodes.entry(node.clone()).or_default();
            *count = if joins { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                nodes.remove(&node);
            }
        }
        before
            .into_iter()
            .filter(|(node, had)| nodes.contains_key(node) != *had)
            .map(|(node, _)| node)
            .collect()
    }
}

impl Publish for Scoped {
    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &Reached) {
        let rescoped = self.count(&changes);
        self.due.apply(&changes, |ty, name| self.store.get(ty, name).map(|resource| resource.version));
        for node in &rescoped {
            self.due.takes_part(node, self.scope.has(node));
        }
        self.store.apply_for(changes, &rescoped, Some(seen), reached);
    }

    fn reach(&mut self, reached: &Reached) {
        self.store.reach(reached);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn apply<T: Into<Object> + serde::de::DeserializeOwned>(value: serde_json::Value) -> Step {
        let object = serde_json::from_value::<T>(value).unwrap().into();
        Step::Apply(Sourced { object, source: None })
    }

    fn namespace(name: &str, label: &str) -> Step {
        apply::<Namespace>(json!({"metadata": {"name": name, "labels": {MESH: label}}}))
    }

    fn pod(name: &str, node: &str, more: serde_json::Value) -> Step {
        let mut value = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"nodeName": node, "serviceAccountName": "web", "containers": []},
        });
        for (at, more) in more.as_object().into_iter().flatten() {
            *value.pointer_mut(at.rsplit_once('/').unwrap().0).unwrap() = {
                let (parent, key) = at.rsplit_once('/').unwrap();
                let mut object = value.pointer(parent).unwrap().clone();
                object[key] = more.clone();
                object
            };
        }
        apply::<Pod>(value)
    }

    fn said(changes: &[Change]) -> Vec<String> {
        let one = |change: &Change| match change {
            Change::Upsert(resource) => format!("+{}", resource.name),
            Change::Remove(_, name) => format!("-{name}"),
        };
        changes.iter().map(one).collect()
    }

    fn step(enrolment: &mut Enrolment, step: Step) -> Vec<String> {
        enrolment.observe(&step);
        said(&enrolment.flush())
    }

    #[test]
    fn pods_join_with_their_namespace_and_leave_with_it() {
        let mut enrolment = Enrolment::default();
        assert!(step(&mut enrolment, pod("a", "n1", json!({}))).is_empty());
        assert_eq!(step(&mut enrolment, namespace("shop", "enabled")), ["+n1/uid-a"]);
        assert_eq!(step(&mut enrolment, pod("b", "n2", json!({}))), ["+n2/uid-b"]);
        assert!(step(&mut enrolment, pod("b", "n2", json!({}))).is_empty(), "nothing new");
        assert!(step(&mut enrolment, namespace("other", "enabled")).is_empty());
        assert_eq!(step(&mut enrolment, namespace("shop", "no")), ["-n1/uid-a", "-n2/uid-b"]);
    }

    #[test]
    fn some_pods_do_not_take_part() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        for out in [
            json!({"/metadata/labels": {MESH: "disabled"}}),
            json!({"/metadata/annotations": {MESH: "disabled"}}),
            json!({"/spec/hostNetwork": true}),
            json!({"/status": {"phase": "Succeeded"}}),
            json!({"/spec/nodeName": ""}),
        ] {
            assert_eq!(step(&mut enrolment, pod("a", "n1", json!({}))), ["+n1/uid-a"]);
            assert_eq!(step(&mut enrolment, pod("a", "n1", out.clone())), ["-n1/uid-a"], "{out}");
        }
        let static_pod = json!({"/metadata/annotations": {STATIC_POD: "hash"}});
        assert_eq!(step(&mut enrolment, pod("s", "n1", static_pod)), ["+n1/hash"]);
    }

    #[test]
    fn a_pod_that_is_made_again_under_its_name_is_another_workload() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        step(&mut enrolment, pod("web-0", "n1", json!({})));
        let again = pod("web-0", "n2", json!({"/metadata/uid": "new"}));
        assert_eq!(step(&mut enrolment, again), ["+n2/new", "-n1/uid-web-0"]);
    }

    #[test]
    fn a_node_sees_the_rest_only_while_it_has_workloads() {
        let mut enrolment = Enrolment::default();
        let mut scoped = Scoped::default();
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        let mut go = |steps: Vec<Step>| {
            steps.iter().for_each(|step| enrolment.observe(step));
            let changes = enrolment.flush();
            let flipped = scoped.count(&changes);
            let sees = |node: &NodeName| scoped.scope.sees(node, ResourceType::Cluster, &"c".into());
            (flipped, sees(&n1), sees(&n2))
        };
        let one = HashSet::from([n1.clone()]);
        assert_eq!(
            go(vec![namespace("shop", "enabled"), pod("a", "n1", json!({}))]),
            (one.clone(), true, false)
        );
        assert_eq!(go(vec![pod("b", "n1", json!({}))]), (HashSet::new(), true, false));
        let gone = json!({"/status": {"phase": "Failed"}});
        assert_eq!(go(vec![pod("a", "n1", gone.clone())]), (HashSet::new(), true, false));
        assert_eq!(go(vec![pod("b", "n1", gone)]), (one, false, false));
        let own = |name: &str, node| scoped.scope.sees(node, ResourceType::Workload, &name.into());
        assert!(own("n1/u", &n1) && !own("n1/u", &n2));
    }
}
