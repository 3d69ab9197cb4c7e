//! The part of an object that is kept: no more than is compiled, shown or compared.
//!
//! Invariant: nothing that the compiler reads is pruned here.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{
        Container, Namespace, Node, NodeSpec, NodeStatus, Pod, PodCondition, PodSpec, PodStatus, Service,
        ServiceStatus,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use slotmesh_compile::{ANNOTATIONS, Object, is_sidecar};

/// Annotations with this prefix are ours and are kept.
const OURS: &str = "slotmesh.dev/";

/// Drops what nobody reads: of all objects some metadata, of Kubernetes' own the parts that are large.
pub(super) fn prune(object: &mut Object) {
    metadata(object.meta_mut());
    match object {
        Object::Service(service) => prune_service(Arc::make_mut(service)),
        Object::Namespace(namespace) => prune_namespace(Arc::make_mut(namespace)),
        Object::Node(node) => prune_node(Arc::make_mut(node)),
        Object::Pod(pod) => prune_pod(Arc::make_mut(pod)),
        _ => {}
    }
}

/// Drops metadata that no kind needs.
fn metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.finalizers = None;
    meta.self_link = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|name, _| {
            let name = name.as_str();
            name.starts_with(OURS) || ANNOTATIONS.contains(&name)
        });
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
}

fn prune_service(service: &mut Service) {
    let balancer = service.status.take().and_then(|status| status.load_balancer);
    service.status = balancer
        .filter(|balancer| balancer.ingress.is_some())
        .map(|balancer| ServiceStatus { load_balancer: Some(balancer), ..ServiceStatus::default() });
}

fn prune_namespace(namespace: &mut Namespace) {
    (namespace.spec, namespace.status) = (None, None);
}

fn prune_node(node: &mut Node) {
    if let Some(status) = node.status.take() {
        node.status = Some(NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
    }
    if let Some(spec) = node.spec.take() {
        let (pod_cidr, pod_cidrs) = (spec.pod_cidr, spec.pod_cidrs);
        node.spec = Some(NodeSpec { pod_cidr, pod_cidrs, ..NodeSpec::default() });
    }
}

fn prune_pod(pod: &mut Pod) {
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            service_account_name: spec.service_account_name,
            host_network: spec.host_network,
            runtime_class_name: spec.runtime_class_name,
            containers: sidecars(spec.containers),
            init_containers: spec.init_containers.map(sidecars).filter(|sidecars| !sidecars.is_empty()),
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            pod_ips: status.pod_ips,
            conditions: status.conditions.map(readiness),
            ..PodStatus::default()
        });
    }
}

/// Of the containers, the names of those that say that the pod is another mesh's.
fn sidecars(containers: Vec<Container>) -> Vec<Container> {
    let sidecars = containers.into_iter().filter(is_sidecar);
    sidecars.map(|Container { name, .. }| Container { name, ..Container::default() }).collect()
}

/// A Pod that has conditions and isn't known to be ready keeps an empty list: it isn't one that says nothing.
fn readiness(conditions: Vec<PodCondition>) -> Vec<PodCondition> {
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let known = ready.map(|PodCondition { type_, status, .. }| PodCondition {
        type_,
        status,
        ..PodCondition::default()
    });
    known.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_keeps_address_readiness_node_account_labels_owner_and_our_annotations() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"},
                "annotations": {"slotmesh.dev/x": "y", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "o"}],
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "runtimeClassName": "gvisor",
                     "containers": [{"name": "c"}, {"name": "istio-proxy", "image": "i"}],
                     "initContainers": [{"name": "i"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                       "conditions": [{"type": "PodScheduled", "status": "True"},
                                      {"type": "Ready", "status": "True", "message": "so it is"}]},
        }))
        .unwrap();
        let mut pod = Object::from(pod);
        prune(&mut pod);
        assert_eq!(
            serde_json::to_value(&pod).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"},
                    "annotations": {"slotmesh.dev/x": "y"},
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "o"}],
                },
                "spec": {"nodeName": "n1", "serviceAccountName": "web", "runtimeClassName": "gvisor",
                         "containers": [{"name": "istio-proxy"}]},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                           "conditions": [{"type": "Ready", "status": "True"}]},
            })
        );
    }
}
