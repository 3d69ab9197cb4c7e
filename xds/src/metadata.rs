//! Additions of slotmesh to Envoy's messages where these have no form for it, as typed metadata: whoever doesn't know it
//! passes it over.

use prost::Message;

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
}

impl EndpointHints {
    /// Its key in `typed_filter_metadata`.
    pub const KEY: &str = "slotmesh.endpoint_hints";
    /// The type URL.
    pub const TYPE_URL: &str = "type.googleapis.com/slotmesh.v1.EndpointHints";
}
