//! State in force on a node: resources as the kernel's records hold them, its workloads, and what the program in the
//! kernel answers.

use serde::{Deserialize, Serialize};

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerInForce {
    /// Name.
    pub name: String,
    /// Content hash.
    pub version: String,
    /// Addresses, with port and protocol.
    pub addresses: Vec<String>,
    /// Filter chains; the last is for whom and what no other matches.
    pub chains: Vec<ChainInForce>,
}

/// A filter chain of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainInForce {
    /// Name.
    pub name: Option<String>,
    /// Port that it matches; any where there is none.
    #[serde(default)]
    pub port: Option<u16>,
    /// Classes of callers that it is for; all where there are none.
    #[serde(default)]
    pub callers: Vec<String>,
    /// Where its connections go.
    pub to: ActionInForce,
}

/// Where connections go: one of these is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ActionInForce {
    /// A cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// A route of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Clusters by weight.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<WeightedInForce>,
    /// Virtual hosts, within the listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub virtual_hosts: Vec<HostInForce>,
    /// Address at which a proxy takes the connections, to look at their requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
}

/// A cluster and its weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedInForce {
    /// Name of the cluster.
    pub cluster: String,
    /// Weight among the others.
    pub weight: u32,
}

/// A route configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteInForce {
    /// Name.
    pub name: String,
    /// Content hash.
    pub version: String,
    /// Virtual hosts.
    pub virtual_hosts: Vec<HostInForce>,
    /// Address at which a proxy takes the connections, to look at their requests.
    #[serde(default)]
    pub proxy: Option<String>,
}

/// A virtual host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInForce {
    /// Name.
    pub name: String,
    /// Domains.
    pub domains: Vec<String>,
    /// Routes, of which the first decides about connections.
    pub routes: Vec<RuleInForce>,
}

/// A route of a virtual host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleInForce {
    /// Name.
    pub name: String,
    /// Clusters by weight.
    pub clusters: Vec<WeightedInForce>,
}

/// A cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInForce {
    /// Name.
    pub name: String,
    /// Content hash.
    pub version: String,
    /// How an endpoint is chosen, in words.
    pub balance: String,
    /// Most connections at a time.
    pub max_connections: Option<u32>,
    /// Name of its load assignment.
    pub assignment: Option<String>,
    /// Endpoints within the cluster itself, where it has no assignment.
    pub endpoints: Option<MembersInForce>,
    /// Seconds for which a workload keeps its endpoint.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// Endpoints that are left out because connects to them failed.
    #[serde(default)]
    pub ejected: Vec<EjectedInForce>,
    /// Bound of how fast connections may come, where there is one.
    #[serde(default)]
    pub new_connections: Option<RateInForce>,
    /// Its connections from this node, where it has had any.
    #[serde(default)]
    pub connections: Option<ConnectionsInForce>,
}

/// Bound of how fast connections may come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateInForce {
    /// Connections a second.
    pub per_second: u32,
    /// Connections at once.
    pub burst: u32,
    /// For whom it is: `cluster` for all callers on the node together, `caller` for each.
    pub per: String,
}

/// Connections of this node's workloads to a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionsInForce {
    /// Number of those that are open.
    pub active: u64,
    /// Number of those that began since the cluster's first.
    pub opened: u64,
    /// Number of connects refused because there were as many as there may be.
    pub refused: u64,
    /// Number of connects refused because they came faster than they may.
    pub too_fast: u64,
}

/// A node, as its agent knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInForce {
    /// Name; empty where it isn't known.
    pub name: String,
    /// Region, of its labels.
    pub region: String,
    /// Zone, of its labels.
    pub zone: String,
    /// Zone within the zone, of its labels.
    pub sub_zone: String,
}

/// An endpoint that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectedInForce {
    /// Address and port.
    pub address: String,
    /// Seconds until it is tried again.
    pub seconds: u64,
}

/// A load assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignmentInForce {
    /// Name.
    pub name: String,
    /// Content hash.
    pub version: String,
    /// Its endpoints.
    #[serde(flatten)]
    pub members: MembersInForce,
}

/// Endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MembersInForce {
    /// Endpoints, IPv4 first.
    pub endpoints: Vec<EndpointInForce>,
    /// Localities that endpoints point at.
    #[serde(default)]
    pub localities: Vec<LocalityInForce>,
    /// Set where they were chosen by where the node is.
    #[serde(default)]
    pub chosen_for_this_node: bool,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointInForce {
    /// Address and port.
    pub address: String,
    /// Weight among the others.
    pub weight: u32,
    /// Place of its locality in the list.
    #[serde(default)]
    pub locality: usize,
}

/// A locality.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityInForce {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Zone within the zone.
    pub sub_zone: String,
}

/// A workload whose connections are routed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInForce {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Directory of its cgroup.
    pub cgroup: String,
    /// Class as a caller, where somebody said so since the agent's start.
    pub class: Option<String>,
}

/// A resource that an operator serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedView {
    /// Name.
    pub name: String,
    /// Content hash.
    pub version: String,
}

/// Verdict of the program in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VerdictInForce {
    /// The caller isn't attached here: no program decides about its connections.
    NotAttached,
    /// No address of slotmesh's: whoever else routes on the node has it.
    NotOurs,
    /// All connects are refused.
    Refused,
    /// Connects are routed.
    Routed,
}

/// Answers of the program in the kernel about one destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedInForce {
    /// Destination, address and port.
    pub to: String,
    /// Protocol: `tcp` or `udp`.
    pub protocol: String,
    /// Verdict.
    pub verdict: VerdictInForce,
    /// Listener that has the address.
    pub listener: Option<String>,
    /// Class of the caller, where it is known by name.
    pub class: Option<String>,
    /// Number of connections that were asked about, with numbers that are spread evenly.
    pub asked: u32,
    /// Number of these that would be refused.
    pub refused: u32,
    /// Number of these that would go where they were meant to go.
    pub passed: u32,
    /// Endpoints of the others.
    pub routed: Vec<ShareInForce>,
}

/// Share of connections that go to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareInForce {
    /// Cluster that was chosen; `None` where it has gone meanwhile.
    pub cluster: Option<String>,
    /// Endpoint, address and port.
    pub address: String,
    /// Number of connections.
    pub count: u32,
}
