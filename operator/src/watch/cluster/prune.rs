//! What is kept of an object: no more than is compiled, shown or compared.
//!
//! Invariant: nothing that the compiler or enrolment reads is pruned here.

use k8s_openapi::{
    api::{
        core::v1::{
            Container, Namespace, Node, NodeSpec, NodeStatus, Pod, PodCondition, PodSpec, PodStatus, Service,
            ServiceStatus,
        },
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use slotmesh_crds::{
    DestinationRule, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
    gateway::{GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute},
    own::{SlotProfile, TrafficPolicy},
};

use crate::enrol::{ANNOTATIONS, is_sidecar};

/// Annotations with this prefix are ours and are kept.
const OURS: &str = "slotmesh.dev/";

/// Drops what nobody reads.
pub(super) trait Prune {
    /// Drops it.
    fn prune(&mut self);
}

/// What every object drops.
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

macro_rules! only_metadata {
    ($($kind:ty),*) => {$(
        impl Prune for $kind {
            fn prune(&mut self) {
                metadata(&mut self.metadata);
            }
        }
    )*};
}
only_metadata!(
    ServiceCIDR,
    EndpointSlice,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    WorkloadEntry,
    Sidecar,
    GrpcRoute,
    HttpRoute,
    TlsRoute,
    TcpRoute,
    ReferenceGrant,
    TrafficPolicy,
    SlotProfile
);

impl Prune for Service {
    fn prune(&mut self) {
        metadata(&mut self.metadata);
        let balancer = self.status.take().and_then(|status| status.load_balancer);
        self.status = balancer
            .filter(|balancer| balancer.ingress.is_some())
            .map(|balancer| ServiceStatus { load_balancer: Some(balancer), ..ServiceStatus::default() });
    }
}

impl Prune for Namespace {
    fn prune(&mut self) {
        metadata(&mut self.metadata);
        (self.spec, self.status) = (None, None);
    }
}

impl Prune for Node {
    fn prune(&mut self) {
        metadata(&mut self.metadata);
        if let Some(status) = self.status.take() {
            self.status = Some(NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
        }
        if let Some(spec) = self.spec.take() {
            let (pod_cidr, pod_cidrs) = (spec.pod_cidr, spec.pod_cidrs);
            self.spec = Some(NodeSpec { pod_cidr, pod_cidrs, ..NodeSpec::default() });
        }
    }
}

impl Prune for Pod {
    fn prune(&mut self) {
        metadata(&mut self.metadata);
        if let Some(spec) = self.spec.take() {
            self.spec = Some(PodSpec {
                node_name: spec.node_name,
                service_account_name: spec.service_account_name,
                host_network: spec.host_network,
                runtime_class_name: spec.runtime_class_name,
                containers: sidecars(spec.containers),
                init_containers: spec.init_containers.map(sidecars).filter(|sidecars| !sidecars.is_empty()),
                ..PodSpec::default()
            });
        }
        if let Some(status) = self.status.take() {
            self.status = Some(PodStatus {
                phase: status.phase,
                pod_ip: status.pod_ip,
                pod_ips: status.pod_ips,
                conditions: status.conditions.map(readiness),
                ..PodStatus::default()
            });
        }
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
        let mut pod: Pod = serde_json::from_value(json!({
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
        pod.prune();
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
