//! `TrafficPolicy`: how connections to a Service are spread, and how many there may be.

#![expect(clippy::duplicated_attributes, reason = "each printcolumn has its own type and path")]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::conditions;

/// How connections to Services are spread over their endpoints, and how many there may be. Attached to
/// Services of its own namespace. Where several policies are attached to the same port, the oldest is in
/// force, then the first by name; one for a port (sectionName) goes before one for the whole Service.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "slotmesh.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    shortname = "tp",
    category = "slotmesh",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "How connections to Services are spread over their endpoints, and how many there may be.",
    label("gateway.networking.k8s.io/policy", "Direct"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.targetRefs[0].name"),
    printcolumn(name = "Balancing", type_ = "string", json_path = ".spec.loadBalancing.algorithm"),
    printcolumn(name = "Max", type_ = "integer", json_path = ".spec.maxConnections"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.ancestors[0].conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.loadBalancing) || has(self.maxConnections) || has(self.locality) || has(self.outlierDetection) || has(self.newConnections)")
        .message("the policy says nothing: set loadBalancing, maxConnections, newConnections, locality or outlierDetection"),
    validation = Rule::new(
        "self.targetRefs.all(a, self.targetRefs.exists_one(b, a.name == b.name && (has(a.sectionName) ? a.sectionName : '') == (has(b.sectionName) ? b.sectionName : '')))"
    )
    .message("targetRefs must not name the same Service and port twice"),
)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// The Services that the policy is for, in its own namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<PolicyTarget>,
    /// How a connection chooses its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// The most connections that each node may have open to a port of the Service at a time (or to a
    /// subset of it, where a DestinationRule defines some). A connection beyond that is refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_connections: Option<u32>,
    /// How a connection chooses among endpoints by where these are and where the caller is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<LocalityPreference>,
    /// When an endpoint is left out for some time, because connects to it fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<Ejection>,
    /// How fast new connections may come. A connection beyond that is refused at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_connections: Option<NewConnections>,
}

/// How fast new connections may come to a port of the Service (or to a subset of it, where a DestinationRule defines some),
/// on each node for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewConnections {
    /// So many a second.
    #[schemars(range(min = 1, max = 1000000))]
    pub per_second: u32,
    /// So many at once, after a time without any; as many as perSecond where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
    /// Whose they are: Service counts those of all callers on the node together, Caller those of each pod by itself.
    #[serde(default)]
    pub per: RateScope,
}

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateScope {
    /// Those of all callers.
    #[default]
    Service,
    /// Those of each by itself.
    Caller,
}

/// When an endpoint is left out for some time, because connects to it fail: unanswered, refused, or reset before a byte
/// came. Each node sees its own connects, and leaves endpoints out for its own callers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Ejection {
    /// After so many failed connects in a row.
    #[serde(default = "Ejection::failures")]
    #[schemars(range(min = 1, max = 1000000))]
    pub consecutive_failures: u32,
    /// For so many seconds the first time, twice as long the second time in a row, and so on.
    #[serde(default = "Ejection::base")]
    #[schemars(range(min = 1, max = 86400))]
    pub base_seconds: u32,
    /// For so many seconds at most, but never for less than baseSeconds.
    #[serde(default = "Ejection::most")]
    #[schemars(range(min = 1, max = 86400))]
    pub max_seconds: u32,
    /// Of so many percent of the endpoints at most; but one may be left out in any case.
    #[serde(default = "Ejection::most_percent")]
    #[schemars(range(min = 1, max = 100))]
    pub max_percent: u32,
    /// Where fewer percent of the endpoints than this are left, all are used. With 0, connections are refused where all are
    /// left out.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub min_healthy_percent: u32,
}

impl Ejection {
    const fn failures() -> u32 {
        5
    }

    const fn base() -> u32 {
        30
    }

    const fn most() -> u32 {
        300
    }

    const fn most_percent() -> u32 {
        10
    }
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: Self::failures(),
            base_seconds: Self::base(),
            max_seconds: Self::most(),
            max_percent: Self::most_percent(),
            min_healthy_percent: 0,
        }
    }
}

/// How a connection chooses among endpoints by where these are. With nothing set, the nearest are taken: those of the
/// caller's zone, where none is ready there those of its region, else others. A locality is written
/// REGION/ZONE/SUBZONE; what is left out at the end, or is *, may be anything.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new(
    "(has(self.distribute) ? 1 : 0) + (has(self.failover) ? 1 : 0) + (has(self.failoverPriority) ? 1 : 0) <= 1"
)
.message("distribute, failover and failoverPriority exclude each other"))]
#[serde(rename_all = "camelCase")]
pub struct LocalityPreference {
    /// The shares of localities for callers of others: the first entry for the caller's locality counts, and callers
    /// for whom there is none choose from all endpoints alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub distribute: Vec<LocalityDistribution>,
    /// The region that goes before the remaining ones, where none of the caller's own is ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64))]
    pub failover: Vec<LocalityFailover>,
    /// What endpoints have to have in common with the caller to go before others, the most important first:
    /// topology.kubernetes.io/region, topology.kubernetes.io/zone, topology.istio.io/subzone or
    /// kubernetes.io/hostname of the node, or a label of the endpoint with its value, KEY=VALUE. Those that agree in
    /// the most entries from the first on are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 317)))]
    pub failover_priority: Vec<String>,
}

/// The shares of localities for callers of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalityDistribution {
    /// The locality of the callers.
    #[schemars(length(min = 1, max = 253))]
    pub from: String,
    /// Share in percent by locality; 100 together. Those of the longest name count first. A share of which no endpoint
    /// is ready goes to the others; endpoints without a share get no connections.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 64))]
    pub to: BTreeMap<String, u32>,
}

/// The region that goes before the remaining ones, for callers of one.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.from != self.to").message("from and to are the same region"))]
#[serde(rename_all = "camelCase")]
pub struct LocalityFailover {
    /// The region of the callers.
    #[schemars(length(min = 1, max = 63))]
    pub from: String,
    /// The region of the endpoints.
    #[schemars(length(min = 1, max = 63))]
    pub to: String,
}

/// A Service, or a port of it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("self.group == '' && self.kind == 'Service'")
    .message("a policy is attached to a Service: group '' and kind Service"))]
#[serde(rename_all = "camelCase")]
pub struct PolicyTarget {
    /// The API group of the target: the empty one, that of Services.
    #[schemars(length(max = 253))]
    pub group: String,
    /// The kind of the target: Service.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The name of one of its ports; all where it isn't set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// How a connection chooses its endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// Random: each connection chooses anew, by weight. RoundRobin: the endpoints take turns, on each
    /// node for itself. LeastConnections: of two endpoints chosen at random, the one to which the node has
    /// fewer connections. ConsistentHash: connections from the same source go to the same endpoint, and
    /// most keep theirs when endpoints come and go; the source is the pod, or the address that the socket
    /// is bound to.
    pub algorithm: Balancing,
}

/// How endpoints are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Balancing {
    /// Each connection chooses anew.
    Random,
    /// The endpoints take turns.
    RoundRobin,
    /// The less busy of two.
    LeastConnections,
    /// By the source.
    ConsistentHash,
}

impl Balancing {
    /// As it stands in a manifest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Random => "Random",
            Self::RoundRobin => "RoundRobin",
            Self::LeastConnections => "LeastConnections",
            Self::ConsistentHash => "ConsistentHash",
        }
    }
}

/// What became of a policy, for each Service that it is attached to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyStatus {
    /// One entry for each Service, by the conventions of Gateway API.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    #[serde(default)]
    pub ancestors: Vec<PolicyAncestor>,
}

/// What became of a policy at one Service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyAncestor {
    /// The Service.
    pub ancestor_ref: AncestorRef,
    /// Who wrote this: slotmesh.dev/operator.
    #[schemars(length(min = 1, max = 253))]
    pub controller_name: String,
    /// Accepted: the policy can be acted on; what isn't supported is named by its field. Conflicted: an
    /// older policy has the same target. Programmed: every node has acknowledged the result; the message
    /// names those that didn't.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// The object that a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AncestorRef {
    /// Its API group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The port, where the policy is for one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}
