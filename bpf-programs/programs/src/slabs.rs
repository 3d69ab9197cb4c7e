//! The maps that lead from a VIP to its records: for the product's programs and for the probes.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::btf_map,
};
use slotmesh_records::{MAX_SLABS, SLAB_BYTES, VipKey};

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
