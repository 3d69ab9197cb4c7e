//! `SlotProfile`: how many slots the agents of some nodes keep ready, and how much memory they may take.

#![expect(clippy::duplicated_attributes, reason = "each printcolumn has its own type and path")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::conditions;

/// The memory that one outer record takes, in bytes: a slab of 64 KiB and what the kernel keeps beside it.
pub const SLAB_COST: u64 = 68 * 1024;

/// How many slots (pieces of eBPF maps that hold mesh configuration) the agents of the selected nodes
/// keep ready, when they create more, and how much memory they may take. Acts on running agents. A field
/// that isn't set leaves the agent's own flag in force. Where several profiles select a node, the oldest
/// is in force there.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "slotmesh.dev",
    version = "v1alpha1",
    kind = "SlotProfile",
    shortname = "sp",
    category = "slotmesh",
    status = "SlotProfileStatus",
    derive = "PartialEq",
    doc = "How many slots the agents of the selected nodes keep ready, and how much memory they may take.",
    printcolumn(name = "Initial", type_ = "integer", json_path = ".spec.initial"),
    printcolumn(name = "Cap", type_ = "integer", json_path = ".spec.cap"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memoryBudget"),
    printcolumn(name = "Growth", type_ = "string", json_path = ".spec.growth"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.selectedNodes"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("!has(self.initial) || !has(self.cap) || self.initial <= self.cap")
        .message("initial must not be more than cap"),
    validation = Rule::new(
        "!has(self.highWatermark) || self.highWatermark >= (has(self.lowWatermark) ? self.lowWatermark : 0) + (has(self.batch) ? self.batch : 1)"
    )
    .message("highWatermark must be at least lowWatermark and batch together, or what growth creates would be given back at once"),
    validation = Rule::new(
        "!has(self.memoryBudget) || !isQuantity(self.memoryBudget) || !has(self.cap) || quantity(self.memoryBudget).asApproximateFloat() >= double(self.cap) * 69632.0"
    )
    .message("memoryBudget must have room for cap outer records, of 68Ki each; set only one of the two"),
    validation = Rule::new(
        "!has(self.memoryBudget) || !isQuantity(self.memoryBudget) || !has(self.initial) || quantity(self.memoryBudget).asApproximateFloat() >= double(self.initial) * 69632.0"
    )
    .message("memoryBudget must have room for the initial outer records, of 68Ki each"),
)]
#[serde(rename_all = "camelCase")]
pub struct SlotProfileSpec {
    /// The labels that a node must have, all of them. Without labels, every node is selected (that
    /// nodeNames allows).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub node_selector: BTreeMap<String, String>,
    /// The nodes to which the profile is limited, by name. Without names, to none in particular.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    #[schemars(extend("x-kubernetes-list-type" = "set"))]
    pub node_names: Vec<String>,
    /// How many outer records (slabs of 64 KiB that hold many slots) there are from the start. They are
    /// never given back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub initial: Option<u32>,
    /// The most outer records there are to be. A change of configuration that needs more is refused, and
    /// the old configuration stays in force. Lowered below what is in use, it takes nothing away: outer
    /// records are given back as they become idle, and nothing new is accepted meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub cap: Option<u32>,
    /// More outer records are created in the background when fewer than this are wholly idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 16384))]
    pub low_watermark: Option<u32>,
    /// Outer records are given back to the kernel when more than this are wholly idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32768))]
    pub high_watermark: Option<u32>,
    /// When outer records are created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<GrowthMode>,
    /// How many outer records are created at a time. A batch takes about 10 ms, almost however large.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 16384))]
    pub batch: Option<u32>,
    /// The most memory that outer records may take, such as 64Mi; one takes 68Ki. Another way to set cap,
    /// to what fits. Keep the memory limit of the agent's container above it, at least by 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new(
        "isQuantity(self) && quantity(self).compareTo(quantity('68Ki')) >= 0"
    ).message("memoryBudget must be a quantity such as 64Mi, and at least 68Ki, one outer record"))]
    pub memory_budget: Option<String>,
}

/// When outer records are created: Eager, all up to the cap at once; Background, ahead of demand, by the
/// watermarks; OnDemand, when a change of configuration finds no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GrowthMode {
    /// All up to the cap at once.
    Eager,
    /// Ahead of demand, in the background.
    Background,
    /// When a flush finds no slot.
    OnDemand,
}

/// What became of a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotProfileStatus {
    /// How many nodes the profile selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected_nodes: Option<u32>,
    /// On how many of them it is in force, as their agents have acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub programmed_nodes: Option<u32>,
    /// Accepted: the settings can be acted on. Conflicted: an older profile has some of the nodes.
    /// Programmed: the agents of all nodes that this profile has acknowledged it; the message names
    /// those that didn't.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}
