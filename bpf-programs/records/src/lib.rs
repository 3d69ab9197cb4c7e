//! Record layouts shared by the agent, which writes them, and the eBPF programs, which read them.
//!
//! A *record* is a `#[repr(C)]` value in a *slot*: a [`RecordHeader`], a fixed part, and a tail of
//! `header.count` equal elements. A [`SlotPtr`] stands where the xDS model has a pointer, a string or
//! a repeated member. What a record points at follows from its field types: [`Owned`] is a child that
//! lives and dies with its parent, [`Ref`] names a [`Handle`] that others may name too.
//!
//! ```text
//! Superblock -> DirectoryPage -> Handle* -> current version of one xDS resource
//! VIP map    -> Handle(listener) -> Listener -> Chains, or CallerIndex -> Callers -> CallerChain
//!               its chain  |-> Handle(cluster)                                  (TCP route)
//!                          |-> ClusterSet -> Handle(cluster)*                   (weighted TCP route)
//!                          |-> Handle(route) -> Route -> ClusterSet*            (HTTP route)
//!                                                 |-> HostIndex -> HostChunk*   (virtual hosts by address)
//! Handle(cluster) -> Cluster -> Handle(endpoints) -> Endpoints, EndpointIndex   (EDS)
//!                       |-> Endpoints, EndpointIndex                            (STATIC)
//!                       |-> Guard                                               (outlier detection)
//! Endpoints, EndpointIndex -> HashTable -> HashChunk*                           (chosen by the source)
//! what only people read: names, domains, localities                -> Text
//! ```
//!
//! Invariants: no implicit padding (`bytemuck::Pod` refuses it), every field at its natural
//! alignment, and any change of a layout changes [`LAYOUT_HASH`], which names the pin root.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod fields;
mod flows;
pub mod layout;
mod maps;
mod model;
#[cfg(feature = "next-layout")]
mod next;
mod pointer;
mod route;
mod test_runs;
mod traffic_state;

pub use flows::{Flow, FlowTotals, SocketFlows};
pub use layout::{LAYOUT_HASH, Record, RecordHeader, RecordKind};
pub use maps::{
    AffinityKey, AffinityState, AffinityTotals, BucketKey, BucketState, ClusterState, Count, EndpointKey,
    EndpointState, Failures, Identity, LaneKey, LaneState, NamespaceProxy, OutlierState, ProxyTotals,
    STATE_VERSION, SocketLimit, SocketShare, SocketState, SocketTotals, VipKey, VipValue, cluster_tag,
    mark_of, name_hash, source_hash, words,
};
pub use model::{
    Cluster, DirectoryPage, Endpoint, EndpointChunk, EndpointIndex, Endpoints, Guard, Handle, HashChunk,
    HashTable, NO_LIMIT, Superblock, Text, balance, choose,
};
#[cfg(feature = "next-layout")]
pub use next::Added;
pub use pointer::{
    MAX_SLABS, Owned, Ref, SLAB_BYTES, SlabIndex, SlotPtr, UNIT_BYTES, UNITS_PER_SLAB, Within,
};
pub use route::{
    Action, CallerChain, CallerChains, CallerEntry, CallerIndex, CallerRange, Callers, Chain, ChainIndex,
    ChainRange, Chains, ClusterRange, ClusterSet, Host, HostChunk, HostIndex, Listener, Route, Vip, VipChunk,
    WeightedCluster, WideListener, proxy_address,
};
pub use test_runs::{ExplainRequest, ExplainResponse, Family, Removal, Verdict};
pub use traffic_state::{
    ConnectionEnd, ConnectionEnding, OpenConnection, ToldTotals, TrafficKey, TrafficSettings, TrafficState,
};
