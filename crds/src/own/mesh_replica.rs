//! `MeshReplica`: what the agents of one replica of the operator have acknowledged.

#![expect(clippy::duplicated_attributes, reason = "each printcolumn has its own type and path")]

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A MeshReplica has no spec: it is written by one process of the operator only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "slotmesh.dev",
    version = "v1alpha1",
    kind = "MeshReplica",
    shortname = "mr",
    category = "slotmesh",
    status = "MeshReplicaStatus",
    derive = "PartialEq",
    no_spec,
    doc = "What the agents of one replica of the operator have acknowledged; written by slotmesh.",
    printcolumn(name = "Agents", type_ = "integer", json_path = ".status.agents"),
    printcolumn(name = "Alike", type_ = "integer", json_path = ".status.alike"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.groups[0].version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct MeshReplicaSpec {}

/// What the agents have acknowledged that a replica holds, or held last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshReplicaStatus {
    /// How many agents this tells of.
    #[serde(default)]
    pub agents: u32,
    /// How many of them are in the largest group.
    #[serde(default)]
    pub alike: u32,
    /// The agents by what they have acknowledged, the largest group first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub groups: Vec<AgentGroup>,
    /// The nodes whose agents have just begun, and not caught up yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub syncing: Vec<String>,
    /// The settings of a SlotProfile that nodes have acknowledged, as hashes of their content, by node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub settings: BTreeMap<String, String>,
}

/// Nodes whose agents have acknowledged the same clusters, routes and listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentGroup {
    /// What they have acknowledged, in one hash.
    pub version: String,
    /// What they have acknowledged, as a sketch of fixed size; left out where lacks and besides say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub acknowledged: Option<String>,
    /// What the first group has acknowledged and this one hasn't, as hashes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub lacks: Vec<String>,
    /// What this group has acknowledged besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub besides: Vec<String>,
    /// The nodes, each with the session in which the replica has it: where two replicas tell of a node, the
    /// higher session counts.
    #[schemars(extend("x-kubernetes-map-type" = "atomic"))]
    pub nodes: BTreeMap<String, u64>,
}
