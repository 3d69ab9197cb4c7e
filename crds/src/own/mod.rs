//! slotmesh's own custom resources, group `slotmesh.dev`.
//!
//! Invariant: the types here are the only definition. The CRDs in the chart and the reference in
//! `docs/` are generated from them (`tests/generated.rs` compares), and the rules that the API server
//! checks stand beside the fields that they are about.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt as _;

mod mesh_node;
mod mesh_replica;
mod schema;
mod slot_profile;
mod traffic_policy;

pub use mesh_node::{MeshNode, MeshNodeSpec, MeshNodeStatus, Refusal, SlotUse, StreamHolder};
pub use mesh_replica::{AgentGroup, MeshReplica, MeshReplicaSpec, MeshReplicaStatus};
pub use slot_profile::{GrowthMode, SLAB_COST, SlotProfile, SlotProfileSpec, SlotProfileStatus};
pub use traffic_policy::{
    AncestorRef, Balancing, Ejection, LoadBalancing, LocalityDistribution, LocalityFailover,
    LocalityPreference, NewConnections, PolicyAncestor, PolicyStatus, PolicyTarget, RateScope, TrafficPolicy,
    TrafficPolicySpec,
};

/// The API group of slotmesh's own objects.
pub const GROUP: &str = "slotmesh.dev";

/// The version of [`GROUP`].
pub const VERSION: &str = "v1alpha1";

/// What stands as `controllerName` in the statuses that slotmesh writes.
pub const CONTROLLER: &str = "slotmesh.dev/operator";

/// The CRDs of all own kinds, by name.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![MeshNode::crd(), MeshReplica::crd(), SlotProfile::crd(), TrafficPolicy::crd()];
    for version in all.iter_mut().flat_map(|crd| &mut crd.spec.versions) {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            without_nullable(schema);
        }
    }
    all
}

/// The API server drops `null` of a field that isn't nullable; a rule would have to reckon with it
/// otherwise.
fn without_nullable(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.properties.iter_mut().flat_map(|all| all.values_mut()).for_each(without_nullable);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        without_nullable(items);
    }
}
