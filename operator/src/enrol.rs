//! Which pods take part, and what their nodes are sent.
//!
//! A pod takes part when its namespace has the label `slotmesh.dev/mesh=enabled`, unless the pod itself
//! has the label or annotation `slotmesh.dev/mesh=disabled`, shares its node's network, has ended, or is
//! [left alone](LeftAlone). For each there is one [`Workload`] resource, for its own node. A node on which no pod
//! takes part is sent nothing else. Another value than these two changes nothing, and is told.
//!
//! Invariants: after `flush`, the published workloads are exactly those of the pods that take part, and no two pods
//! have one resource. One pod costs one look-up; a namespace costs its pods.

mod candidate;
mod scoped;
mod sight;
#[cfg(test)]
mod trials;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use slotmesh_compile::{Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity};
use slotmesh_xds::{Change, Resource, ResourceName, ResourceType, Workload};

pub(crate) use self::candidate::{ANNOTATIONS, is_sidecar};
use self::candidate::{Candidate, DISABLED, ENABLED, mesh_value, mesh_values};
pub use self::{
    candidate::{LeftAlone, MESH},
    scoped::Scoped,
};
use crate::watch::{ReportChanges, Sourced, Step};

/// Follows namespaces and pods.
#[derive(Debug, Default)]
pub(crate) struct Enrolment {
    /// Namespaces that take part.
    namespaces: HashSet<Arc<str>>,
    /// Pods that take part if their namespace does, and nothing stands against it; by namespace and name.
    candidates: BTreeMap<ObjectName, Arc<Candidate>>,
    /// The static pods that say to be one resource, since when; the oldest is it.
    claims: HashMap<ResourceName, BTreeSet<(i64, ObjectName)>>,
    published: HashMap<ObjectName, Arc<Workload>>,
    dirty: BTreeSet<ObjectName>,
    left_alone: HashMap<ObjectName, LeftAlone>,
    /// How many of them, by reason.
    count: BTreeMap<LeftAlone, usize>,
    /// What is said of each object's label.
    odd: HashMap<ObjectKey, Vec<Report>>,
    reports: ReportChanges,
}

impl Enrolment {
    /// Takes notice of a step that came from the source.
    pub(crate) fn observe(&mut self, step: &Step) {
        match step {
            Step::Apply(Sourced { object: object @ Object::Namespace(namespace), .. }) => {
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                self.namespace(name, mesh_value(namespace) == Some(ENABLED));
                self.odd(object.key(), odd_namespace(&object.key(), namespace));
            }
            Step::Apply(Sourced { object: object @ Object::Pod(pod), .. }) => {
                self.pod(object.key().name, Candidate::of(pod));
                self.odd(object.key(), odd_pod(&object.key(), pod));
            }
            Step::Delete(key @ ObjectKey { kind: Kind::Namespace, name }) => {
                self.namespace(&name.name, false);
                self.odd(key.clone(), Vec::new());
            }
            Step::Delete(key @ ObjectKey { kind: Kind::Pod, name }) => {
                self.pod(name.clone(), None);
                self.odd(key.clone(), Vec::new());
            }
            Step::Apply(_) | Step::Delete(_) => {}
        }
    }

    fn odd(&mut self, key: ObjectKey, now: Vec<Report>) {
        let now_too = now.clone();
        let before = if now.is_empty() { self.odd.remove(&key) } else { self.odd.insert(key, now) }
            .unwrap_or_default();
        if before != now_too {
            self.reports.replace(before, now_too);
        }
    }

    fn namespace(&mut self, name: &str, takes_part: bool) {
        let changed =
            if takes_part { self.namespaces.insert(name.into()) } else { self.namespaces.remove(name) };
        if changed {
            let first = ObjectName::new(name, "");
            let pods = self.candidates.range(first..).map(|(pod, _)| pod);
            self.dirty.extend(pods.take_while(|pod| &*pod.namespace == name).cloned());
        }
    }

    fn pod(&mut self, name: ObjectName, candidate: Option<Candidate>) {
        let before = self.candidates.get(&name);
        if before.map(|before| &**before) == candidate.as_ref() {
            return;
        }
        if let Some(before) = before.cloned() {
            self.claim(&name, &before, false);
        }
        match candidate.map(Arc::new) {
            Some(candidate) => {
                self.claim(&name, &candidate, true);
                self.candidates.insert(name.clone(), candidate);
            }
            None => _ = self.candidates.remove(&name),
        }
        self.dirty.insert(name);
    }

    /// A static pod says to be a resource, or does so no longer.
    fn claim(&mut self, pod: &ObjectName, candidate: &Candidate, holds: bool) {
        let Some(since) = candidate.static_since else { return };
        let resource = candidate.workload.resource_name();
        let claims = self.claims.entry(resource.clone()).or_default();
        // Another one may be it from now on.
        self.dirty.extend(claims.iter().map(|(_, pod)| pod.clone()));
        let claim = (since, pod.clone());
        if holds {
            claims.insert(claim);
        } else {
            claims.remove(&claim);
        }
        if claims.is_empty() {
            self.claims.remove(&resource);
        }
    }

    /// Why a pod is left alone, if it is.
    fn left_alone(&self, pod: &ObjectName, candidate: &Candidate) -> Option<LeftAlone> {
        candidate.left_alone.or_else(|| {
            candidate.static_since?;
            let (_, oldest) = self.claims.get(&candidate.workload.resource_name())?.first()?;
            (oldest != pod).then_some(LeftAlone::NotItself)
        })
    }

    /// The classes of these pods as callers have changed.
    pub(crate) fn classified(&mut self, pods: BTreeSet<ObjectName>) {
        self.dirty.extend(pods.into_iter().filter(|pod| self.published.contains_key(pod)));
    }

    /// What changed since the last call: first who joins, then who leaves. `class` tells what a pod is as a caller.
    pub(crate) fn flush(&mut self, class: impl Fn(&ObjectName) -> String) -> Vec<Change> {
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        for pod in std::mem::take(&mut self.dirty) {
            let candidate =
                self.candidates.get(&pod).filter(|_| self.namespaces.contains(&pod.namespace)).cloned();
            let left_alone = candidate.as_ref().and_then(|candidate| self.left_alone(&pod, candidate));
            self.leave_alone(&pod, left_alone);
            let now = candidate.filter(|_| left_alone.is_none()).map(|candidate| {
                let class = Some(class(&pod)).filter(|class| **class != *pod.namespace);
                Arc::new(Workload { class: class.unwrap_or_default(), ..candidate.workload.clone() })
            });
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
                leaves.push(before);
            }
            if let (Some(workload), Some(name)) = (now, name) {
                joins.push(Resource::encode(ResourceType::Workload, name, &*workload));
            }
        }
        // What one pod gave up another may have become.
        leaves.retain(|name| !joins.iter().any(|joined| joined.name == *name));
        let leaves = leaves.into_iter().map(|name| Change::Remove(ResourceType::Workload, name));
        joins.into_iter().map(Change::Upsert).chain(leaves).collect()
    }

    fn leave_alone(&mut self, pod: &ObjectName, why: Option<LeftAlone>) {
        let before = match why {
            Some(why) => self.left_alone.insert(pod.clone(), why),
            None => self.left_alone.remove(pod),
        };
        if before != why {
            if let Some(count) = before.and_then(|before| self.count.get_mut(&before)) {
                *count -= 1;
            }
            if let Some(why) = why {
                *self.count.entry(why).or_default() += 1;
            }
            let report = |why: LeftAlone| {
                let object = ObjectRef::new(&ObjectKey { kind: Kind::Pod, name: pod.clone() }, None);
                let message = format!("the pod doesn't take part, though its namespace does: {why}");
                Report::new(object, None, Severity::Refused, message)
            };
            self.reports.replace(before.map(report), why.map(report));
        }
    }

    /// What there is to say since the last call: what appeared, and what disappeared.
    pub(crate) fn reports(&mut self) -> (Vec<Report>, Vec<Report>) {
        self.reports.take()
    }

    /// How many pods are left alone, by reason.
    pub(crate) const fn count(&self) -> &BTreeMap<LeftAlone, usize> {
        &self.count
    }
}

/// What is said of a namespace's label that says neither yes nor no.
fn odd_namespace(key: &ObjectKey, namespace: &Namespace) -> Vec<Report> {
    let value = mesh_value(namespace).filter(|value| ![ENABLED, DISABLED].contains(value));
    let report = |value| {
        let message = format!(
            "the label {MESH} is {value:?}, which changes nothing: only {ENABLED:?} lets the pods of a namespace take part"
        );
        let field = Some(format!("metadata.labels[{MESH}]"));
        Report::new(ObjectRef::new(key, None), field, Severity::Refused, message)
    };
    value.map(report).into_iter().collect()
}

/// The same of a pod's label and annotation.
fn odd_pod(key: &ObjectKey, pod: &Pod) -> Vec<Report> {
    let odd = mesh_values(pod).filter(|(_, value)| ![ENABLED, DISABLED].contains(value));
    odd.map(|(field, value)| {
        let message = format!(
            "{MESH} is {value:?}, which changes nothing: a pod takes part where its namespace does, unless it says {DISABLED:?}"
        );
        let field = Some(format!("metadata.{field}[{MESH}]"));
        Report::new(ObjectRef::new(key, None), field, Severity::Refused, message)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use slotmesh_serve::{NodeName, Scope as _, Visibility};

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
        said(&enrolment.flush(|pod| pod.namespace.to_string()))
    }

    #[test]
    fn a_pod_whose_class_changes_stays_the_workload_that_it_is() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        step(&mut enrolment, pod("a", "n1", json!({})));
        let classify = |enrolment: &mut Enrolment, pod: &str, class: &str| {
            enrolment.classified([ObjectName::new("shop", pod)].into());
            said(&enrolment.flush(|_| class.to_owned()))
        };
        assert_eq!(classify(&mut enrolment, "a", "shop#1"), ["+n1/uid-a"]);
        assert_eq!(enrolment.published[&ObjectName::new("shop", "a")].class, "shop#1");
        assert!(classify(&mut enrolment, "a", "shop#1").is_empty());
        assert!(classify(&mut enrolment, "b", "shop#1").is_empty(), "it doesn't take part");
        assert_eq!(classify(&mut enrolment, "a", "shop"), ["+n1/uid-a"]);
        assert_eq!(enrolment.published[&ObjectName::new("shop", "a")].class, "");
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
    }

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    fn mirror(node: &str, hash: &str) -> serde_json::Value {
        json!({
            "/metadata/annotations": {"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash},
            "/metadata/ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node, "uid": "u"}],
        })
    }

    #[test]
    fn only_a_mirror_pod_is_known_by_its_hash() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        assert_eq!(step(&mut enrolment, pod("s", "n1", mirror("n1", HASH))), [format!("+n1/{HASH}")]);
        let alone = json!({"/metadata/annotations": {"kubernetes.io/config.hash": HASH}});
        let mut unowned = mirror("n1", HASH);
        unowned.as_object_mut().unwrap().remove("/metadata/ownerReferences");
        // Of another pod; and what another pod's uid looks like.
        let uid = "2f1d6c1e-8a4f-4a9e-9d0e-0f5f2f8f7a11";
        for (i, forged) in [alone, unowned, mirror("n2", HASH), mirror("n1", uid)].into_iter().enumerate() {
            assert!(step(&mut enrolment, pod(&format!("z{i}"), "n1", forged)).is_empty(), "{i}");
        }
        assert_eq!(enrolment.count()[&LeftAlone::NotItself], 4);
    }

    #[test]
    fn two_pods_never_have_one_resource() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        step(&mut enrolment, pod("b", "n1", mirror("n1", HASH)));
        let (resource, gone) = (format!("+n1/{HASH}"), json!({"/status": {"phase": "Failed"}}));
        assert!(step(&mut enrolment, pod("c", "n1", mirror("n1", HASH))).is_empty());
        let mut older = mirror("n1", HASH);
        older["/metadata/creationTimestamp"] = "2026-01-02T00:00:00Z".into();
        assert!(step(&mut enrolment, pod("a", "n1", older)).is_empty(), "b has no time: it was first");
        // On another node it is another resource.
        assert_eq!(step(&mut enrolment, pod("d", "n2", mirror("n2", HASH))), [format!("+n2/{HASH}")]);
        assert_eq!(
            step(&mut enrolment, pod("b", "n1", gone.clone())),
            [resource],
            "the other one has it now"
        );
        assert!(step(&mut enrolment, pod("a", "n1", gone.clone())).is_empty());
        assert_eq!(step(&mut enrolment, pod("c", "n1", gone)), [format!("-n1/{HASH}")]);
    }

    #[test]
    fn pods_of_other_meshes_and_kernels_are_left_alone_and_that_is_told() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, namespace("shop", "enabled"));
        step(&mut enrolment, pod("a", "n1", json!({})));
        for (more, why) in [
            (json!({"/spec/containers": [{"name": "app"}, {"name": "istio-proxy"}]}), LeftAlone::Sidecar),
            (json!({"/spec/initContainers": [{"name": "linkerd-proxy"}]}), LeftAlone::Sidecar),
            (
                json!({"/metadata/annotations": {"ambient.istio.io/redirection": "enabled"}}),
                LeftAlone::Ambient,
            ),
            (json!({"/spec/runtimeClassName": "gvisor"}), LeftAlone::Gvisor),
            (json!({"/spec/runtimeClassName": "kata-qemu"}), LeftAlone::Kata),
            (json!({"/metadata/labels": {"kubevirt.io": "virt-launcher"}}), LeftAlone::Kubevirt),
        ] {
            assert_eq!(step(&mut enrolment, pod("a", "n1", more)), ["-n1/uid-a"]);
            assert_eq!(enrolment.count()[&why], 1);
            let (appeared, _) = enrolment.reports();
            let [report] = &appeared[..] else { panic!("{appeared:?}") };
            assert!(report.message.contains(&why.to_string()), "{report}");
            assert_eq!(step(&mut enrolment, pod("a", "n1", json!({}))), ["+n1/uid-a"]);
            assert_eq!((enrolment.count()[&why], enrolment.reports()), (0, (vec![], appeared)));
        }
        // Where the namespace doesn't take part there is nothing to say.
        step(&mut enrolment, namespace("shop", "disabled"));
        step(&mut enrolment, pod("a", "n1", json!({"/spec/runtimeClassName": "kata"})));
        assert_eq!(enrolment.reports(), (vec![], vec![]));
    }

    #[test]
    fn a_label_that_says_neither_yes_nor_no_is_told() {
        let mut enrolment = Enrolment::default();
        step(&mut enrolment, pod("a", "n1", json!({})));
        for value in ["true", "Enabled"] {
            assert!(step(&mut enrolment, namespace("shop", value)).is_empty());
            let (appeared, _) = enrolment.reports();
            assert!(appeared[0].to_string().contains(&format!("{value:?}")), "{appeared:?}");
        }
        step(&mut enrolment, namespace("shop", "enabled"));
        assert_eq!(enrolment.reports().1.len(), 1);
        step(&mut enrolment, pod("a", "n1", json!({"/metadata/labels": {MESH: "false"}})));
        assert!(enrolment.reports().0[0].to_string().contains("metadata.labels"));
        step(&mut enrolment, pod("a", "n1", json!({"/metadata/labels": {MESH: "disabled"}})));
        assert_eq!(enrolment.reports().1.len(), 1);
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
            let changes = enrolment.flush(|pod| pod.namespace.to_string());
            let flipped = scoped.rescope(&changes).nodes;
            let sees = |node: &NodeName| {
                scoped.scope.visibility(node, ResourceType::Listener, &"l".into()) == Visibility::Seen
            };
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
        let own = |name: &str, node| scoped.scope.visibility(node, ResourceType::Workload, &name.into());
        assert_eq!((own("n1/u", &n1), own("n1/u", &n2)), (Visibility::Seen, Visibility::Foreign));
    }
}
