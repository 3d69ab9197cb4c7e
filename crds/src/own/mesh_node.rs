//! `MeshNode`: what the agent of one node has and does.

#![expect(clippy::duplicated_attributes, reason = "each printcolumn has its own type and path")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::{conditions, time};

/// A MeshNode has no spec: it is written by slotmesh only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "slotmesh.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    shortname = "mn",
    category = "slotmesh",
    status = "MeshNodeStatus",
    derive = "PartialEq",
    no_spec,
    doc = "What the agent of one node has in force and how many slots it has; written by slotmesh.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agentVersion"),
    printcolumn(name = "Used", type_ = "integer", json_path = ".status.slots.used"),
    printcolumn(name = "Idle", type_ = "integer", json_path = ".status.slots.idle"),
    printcolumn(name = "Remaining", type_ = "integer", json_path = ".status.slots.remaining"),
    printcolumn(name = "Flush p99", type_ = "string", json_path = ".status.flushP99"),
    printcolumn(name = "Last refusal", type_ = "string", json_path = ".status.lastRefusal.resource"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.lastRefusal.reason", priority = 1),
    printcolumn(name = "Profile", type_ = "string", json_path = ".status.slotProfile", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct MeshNodeSpec {}

/// What the agent of a node has in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshNodeStatus {
    /// The version of slotmesh that the agent is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// How many resources the agent has in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<u32>,
    /// The slots, and the outer records that they are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<SlotUse>,
    /// The SlotProfile in force; none where the agent's own flags are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_profile: Option<String>,
    /// How long 99 of 100 flushes took at most, from a validated resource to records that programs read,
    /// such as 41us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(rename = "flushP99")]
    pub flush_p99: Option<String>,
    /// What the agent refused last, of what it still refuses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<Refusal>,
    /// How many resources the agent refuses at present. What it had of them before stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_resources: Option<u32>,
    /// Some of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub refused: Vec<Refusal>,
    /// The replica of the operator to which the agent is connected, and which writes this. What the agent has
    /// acknowledged stands in the MeshReplica of that process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<StreamHolder>,
    /// Ready: the agent is connected, and has answered to all that was meant for the node when it
    /// connected. What it refuses stands in refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// Who holds an agent's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamHolder {
    /// The replica.
    pub replica: String,
    /// Rises whenever another replica takes the node over.
    #[schemars(range(min = 0, max = 9007199254740991i64))]
    pub session: u64,
    /// Whether the stream is open.
    pub connected: bool,
}

/// How many slots there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotUse {
    /// Slots that hold a record.
    pub used: u64,
    /// Slots that can take a record at once.
    pub idle: u64,
    /// Slots that programs under way may still read.
    pub retired: u64,
    /// Outer records that exist.
    pub outer_records: u32,
    /// Outer records that are not created yet, up to the cap.
    pub remaining: u32,
    /// The most outer records there are to be.
    pub cap: u32,
}

/// A resource that an agent refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// The resource, by type and name.
    pub resource: String,
    /// Why, and what to do.
    pub reason: String,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time")]
    pub at: Option<Time>,
}
