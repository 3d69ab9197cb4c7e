//! The maps of run-time state, by the names under which the agent pins them.

#![expect(
    deprecated,
    reason = "only the cgroup storage of an attachment tells whose program runs, in every hook"
)]

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, CgroupStorage, HashMap, LruHashMap, RingBuf, SkStorage},
    macros::btf_map,
};
use slotmesh_records::{
    AffinityKey, AffinityState, AffinityTotals, BucketKey, BucketState, ClusterState, ConnectionEnd,
    EndpointKey, EndpointState, FlowTotals, Identity, LaneKey, LaneState, NamespaceProxy, OutlierState,
    ProxyTotals, SocketFlows, SocketLimit, SocketShare, SocketState, ToldTotals, TrafficKey, TrafficSettings,
    TrafficState,
};

/// What a redirected socket remembers.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// The flows of a socket of UDP.
#[btf_map]
pub static FLOWS: SkStorage<SocketFlows> = SkStorage::new();

/// Numbers of flows, by lane.
#[btf_map]
pub static FLOW_TOTALS: Array<FlowTotals, { FlowTotals::LANES as usize }> = Array::new();

/// Whose program runs.
#[btf_map]
pub static IDENTITY: CgroupStorage<Identity> = CgroupStorage::new();

/// How many sockets are recorded: of all, then by lane.
#[btf_map]
pub static SOCKET_TOTALS: Array<SocketShare, { SocketShare::ELEMENTS as usize }> = Array::new();

/// How many sockets may be recorded; the agent writes it.
#[btf_map]
pub static SOCKET_LIMIT: Array<SocketLimit, 1> = Array::new();

/// What runs at each endpoint that counts its connections.
#[btf_map]
pub static ENDPOINTS: HashMap<EndpointKey, EndpointState, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// How fast connections to each cluster with a rate come.
#[btf_map]
pub static BUCKETS: HashMap<BucketKey, BucketState, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The endpoints to which connects fail, or failed of late.
#[btf_map]
pub static OUTLIERS: HashMap<u64, OutlierState, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What runs of each cluster, by the hash of its name.
#[btf_map]
pub static CLUSTERS: HashMap<u64, ClusterState, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Which endpoint a workload keeps to. Where it is full, the one goes that was used longest ago.
#[btf_map]
pub static AFFINITIES: LruHashMap<AffinityKey, AffinityState, 16_384> = LruHashMap::new();

/// Where the proxy of a network namespace listens, by its cookie; the agent writes it.
#[btf_map]
pub static PROXIES: HashMap<u64, NamespaceProxy, 4_096, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Numbers of connections whose requests are looked at.
#[btf_map]
pub static PROXY_TOTALS: Array<ProxyTotals, { ProxyTotals::LANES as usize }> = Array::new();

/// How many endpoints that workloads keep to were made and removed.
#[btf_map]
pub static AFFINITY_TOTALS: Array<AffinityTotals, 1> = Array::new();

/// What runs of clusters without a limit, by lane.
#[btf_map]
pub static LANES: HashMap<LaneKey, LaneState, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The agent's wishes about connections that end.
#[btf_map]
pub static TRAFFIC_SETTINGS: Array<TrafficSettings, 1> = Array::new();

/// Numbers of connections by workload and cluster, by lane.
#[btf_map]
pub static TRAFFIC: HashMap<TrafficKey, TrafficState, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Ends of connections, for the agent. It says how many bytes there is room for.
#[btf_map]
pub static ENDS: RingBuf<ConnectionEnd, 65_536> = RingBuf::new();

/// How many were told and lost.
#[btf_map]
pub static TOLD_TOTALS: Array<ToldTotals, { ToldTotals::LANES as usize }> = Array::new();
