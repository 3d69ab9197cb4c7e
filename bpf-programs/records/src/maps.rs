//! Keys and values of the maps beside the outer map: VIPs, sockets, identities, and what runs.
//!
//! An update touches none of them but the VIP map's.

mod affinity_state;
mod connection_counts;
mod identity;
mod namespace_proxy;
mod outlier_state;
mod rates;
mod socket_state;
mod vip;

pub use self::{
    affinity_state::{AffinityKey, AffinityState, AffinityTotals},
    connection_counts::{
        ClusterState, Count, EndpointKey, EndpointState, Failures, LaneKey, LaneState, cluster_tag,
    },
    identity::{Identity, mark_of, name_hash, source_hash},
    namespace_proxy::{NamespaceProxy, ProxyTotals},
    outlier_state::OutlierState,
    rates::{BucketKey, BucketState},
    socket_state::{SocketLimit, SocketShare, SocketState, SocketTotals},
    vip::{VipKey, VipValue, words},
};

/// The version of the per-socket and identity state, which outlives a change of record layouts.
pub const STATE_VERSION: u32 = 3;
