//! Additions of slotmesh to Envoy's messages where these have no form for it, as typed metadata: whoever doesn't know it
//! passes it over.

use prost::Message;

/// The key in a listener's `typed_filter_metadata` that makes its unspecified address (`0.0.0.0`, `[::]`) a NodePort: the
/// port at each address that is a node's. Those are the addresses of listeners that are marked, too, and have port 0.
/// What stands under the key has no meaning.
pub const OF_NODES: &str = "slotmesh.of_nodes";

/// In the metadata of a `Cluster`: a workload keeps to its endpoint, as `sessionAffinity: ClientIP` of a Service says.
/// Field numbers are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct SessionAffinity {
    /// For so many seconds after its last connection; above 0.
    #[prost(uint32, tag = "1")]
    pub seconds: u32,
}

impl SessionAffinity {
    /// Its key in `typed_filter_metadata`.
    pub const KEY: &str = "slotmesh.session_affinity";
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.SessionAffinity";
}

/// Among the filters of a `Cluster`: how fast new connections to it may come, on each node for itself. Envoy bounds that by
/// listener only. Field numbers are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ConnectionRate {
    /// So many a second; above 0.
    #[prost(uint32, tag = "1")]
    pub per_second: u32,
    /// So many at once; above 0.
    #[prost(uint32, tag = "2")]
    pub burst: u32,
    /// Of each caller, instead of all together.
    #[prost(bool, tag = "3")]
    pub per_caller: bool,
}

impl ConnectionRate {
    /// Its name among the filters.
    pub const NAME: &str = "slotmesh.connection_rate";
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.ConnectionRate";
}

/// In the metadata of a `LocalityLbEndpoints`: for whom its endpoints are, as `internalTrafficPolicy: Local` of a
/// Service and the hints of its EndpointSlices say. Field numbers are never used again for something else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Message)]
pub struct EndpointHints {
    /// For callers on this node and nobody else; empty for all.
    #[prost(string, tag = "1")]
    pub only_node: String,
    /// The nodes whose callers take these before others, where each endpoint is meant for some.
    #[prost(string, repeated, tag = "2")]
    pub for_nodes: Vec<String>,
    /// The zones whose callers do, likewise; nodes go before zones.
    #[prost(string, repeated, tag = "3")]
    pub for_zones: Vec<String>,
    /// The node that they are on, where the policy asks for it.
    #[prost(string, tag = "4")]
    pub on_node: String,
    /// Which entries of [`LocalityPolicy::prefer`] that give a value they agree with: a bit for each place in that list.
    #[prost(uint32, tag = "5")]
    pub agreeing: u32,
    /// How callers choose among the localities of the assignment; stands in its first one.
    #[prost(message, optional, tag = "6")]
    pub policy: Option<LocalityPolicy>,
}

/// How callers choose among the localities of an assignment, by their own: Istio's `localityLbSetting`. Nothing set
/// means the nearest first. Localities are written `REGION/ZONE/SUBZONE`; what is left out at the end, or is `*`, may be
/// anything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct LocalityPolicy {
    /// The shares of localities; the first that is from the caller's counts. Excludes the others.
    #[prost(message, repeated, tag = "1")]
    pub distribute: Vec<LocalityShares>,
    /// The regions that callers of a region go to next.
    #[prost(message, repeated, tag = "2")]
    pub failover: Vec<RegionFailover>,
    /// Labels that endpoints have to have in common with the caller's node to go before others, the most important
    /// first: [`REGION`](Self::REGION), [`ZONE`](Self::ZONE), [`SUB_ZONE`](Self::SUB_ZONE) or [`NODE`](Self::NODE); or
    /// `KEY=VALUE`, which they have to have. Empty for region, zone and sub-zone. At most 32.
    #[prost(string, repeated, tag = "3")]
    pub prefer: Vec<String>,
}

impl LocalityPolicy {
    /// The label of a node that tells its region.
    pub const REGION: &str = "topology.kubernetes.io/region";
    /// The label of a node that tells its zone.
    pub const ZONE: &str = "topology.kubernetes.io/zone";
    /// The label of a node that tells the part of its zone: Kubernetes has none, Istio does.
    pub const SUB_ZONE: &str = "topology.istio.io/subzone";
    /// The label of a node that is its name.
    pub const NODE: &str = "kubernetes.io/hostname";
}

/// The shares of localities, for callers of one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct LocalityShares {
    /// The locality of the callers.
    #[prost(string, tag = "1")]
    pub from: String,
    /// The shares. An endpoint counts with the first locality that it is of; those of none are left out.
    #[prost(message, repeated, tag = "2")]
    pub to: Vec<LocalityShare>,
}

/// The share of a locality.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct LocalityShare {
    /// The locality of the endpoints.
    #[prost(string, tag = "1")]
    pub to: String,
    /// Its share in percent; 1 to 100.
    #[prost(uint32, tag = "2")]
    pub percent: u32,
}

/// The region that goes before the remaining ones.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Message)]
pub struct RegionFailover {
    /// The region of the callers.
    #[prost(string, tag = "1")]
    pub from: String,
    /// The region of the endpoints.
    #[prost(string, tag = "2")]
    pub to: String,
}

impl EndpointHints {
    /// Its key in `typed_filter_metadata`.
    pub const KEY: &str = "slotmesh.endpoint_hints";
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.EndpointHints";
}

/// In the metadata of a `RouteConfiguration`: its routes are for requests, so connections that follow it go to the proxy
/// on the node, where there is one. Field numbers are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct RoutedByRequest {}

impl RoutedByRequest {
    /// Its key in `typed_filter_metadata`.
    pub const KEY: &str = "slotmesh.routed_by_request";
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.RoutedByRequest";
}
