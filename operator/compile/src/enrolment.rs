//! Compiles Pods to workloads: those that take part, for the agents of their nodes.
//!
//! A Pod takes part when its namespace has the label `slotmesh.dev/mesh=enabled`, unless the Pod itself has the label or
//! annotation `slotmesh.dev/mesh=disabled`, shares its node's network, has ended, or is [left alone](LeftAlone). For each
//! there is one [`Workload`], for its own node. Another value than these two changes nothing, and is told.
//!
//! Where flags name the workloads of a node, and Pods are only what manifests say of callers, there is one for each Pod
//! whose class isn't its namespace's: a workload of which there is none is of its namespace's class.
//!
//! Invariant: no two Pods have one resource.

use slotmesh_xds::{Resource, ResourceType, Workload};

use crate::{
    EnrolmentMode, Index, Kind, LeftAlone, ObjectKey, ObjectName, ObjectRef, Report, Severity, unit::Compiled,
};

/// Compiles the workload of a Pod.
pub(crate) fn compile(index: &Index, pod: &ObjectName) -> Compiled {
    match &index.options.enrolment {
        EnrolmentMode::Nobody => Compiled::default(),
        EnrolmentMode::ByLabel => taking_part(index, pod),
        EnrolmentMode::Callers { node } => caller(index, pod, node),
    }
}

fn taking_part(index: &Index, pod: &ObjectName) -> Compiled {
    let Some(candidate) = index.enrolled(pod) else { return Compiled::default() };
    let another = index.is_another(pod, candidate).then_some(LeftAlone::NotItself);
    if let Some(why) = candidate.left_alone.or(another) {
        let object = ObjectRef::new(&ObjectKey { kind: Kind::Pod, name: pod.clone() }, None);
        let message = format!("the pod doesn't take part, though its namespace does: {why}");
        let report = Report::new(object, None, Severity::Refused, message);
        return Compiled { reports: vec![report], left_alone: Some(why), ..Compiled::default() };
    }
    let class = Some(index.classes.of(pod)).filter(|class| **class != *pod.namespace);
    told(Workload {
        uid: candidate.uid.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        service_account: candidate.service_account.to_string(),
        node: candidate.node.to_string(),
        class: class.unwrap_or_default(),
        ..Workload::default()
    })
}

fn caller(index: &Index, pod: &ObjectName, node: &str) -> Compiled {
    let class = index.classes.of(pod);
    if *class == *pod.namespace {
        return Compiled::default();
    }
    told(Workload {
        uid: pod.to_string(),
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        node: node.to_owned(),
        class,
        ..Workload::default()
    })
}

fn told(workload: Workload) -> Compiled {
    let resource = Resource::encode(ResourceType::Workload, workload.resource_name(), &workload);
    Compiled { resources: vec![resource], ..Compiled::default() }
}
