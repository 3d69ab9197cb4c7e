//! The maps, by the names under which the agent pins them.

#![expect(
    deprecated,
    reason = "only the cgroup storage of an attachment tells whose program runs, in every hook"
)]

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, CgroupStorage, HashMap, SkStorage},
    macros::btf_map,
};
use slotmesh_records::{ClusterState, Identity, MAX_SLABS, SLAB_BYTES, SocketState, VipKey};

/// The one element of an inner map.
#[repr(C, align(8))]
pub struct Slab(pub [u8; SLAB_BYTES]);

/// The outer map. The element behind the last slab belongs to the agent's grace periods.
#[btf_map]
pub static OUTER: ArrayOfMaps<Array<Slab, 1, { BPF_F_MMAPABLE as usize }>, { MAX_SLABS as usize + 1 }> =
    ArrayOfMaps::new();

/// VIP, port and protocol to listener handle; the value is a `VipValue`.
#[btf_map]
pub static VIPS: HashMap<VipKey, u64, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What a redirected socket remembers.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Whose program runs.
#[btf_map]
pub static IDENTITY: CgroupStorage<Identity> = CgroupStorage::new();

/// What runs of each cluster, by the hash of its name.
#[btf_map]
pub static CLUSTERS: HashMap<u64, ClusterState, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
