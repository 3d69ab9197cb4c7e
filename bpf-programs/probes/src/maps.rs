//! The maps that the probes read, under the names and with the types that the product's programs give
//! them, and those that they report in.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::btf_map,
};
use slotmesh_records::{MAX_SLABS, SLAB_BYTES, VipKey};

use crate::report::{OWNERS, Owner, Report};

/// The one element of an inner map.
#[repr(C, align(8))]
pub struct Slab(pub [u8; SLAB_BYTES]);

/// The outer map.
#[btf_map]
pub static OUTER: ArrayOfMaps<Array<Slab, 1, { BPF_F_MMAPABLE as usize }>, { MAX_SLABS as usize + 1 }> =
    ArrayOfMaps::new();

/// VIP to listener handle; the value is a `VipValue`.
#[btf_map]
pub static VIPS: HashMap<VipKey, u64, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Whose trees [`tree`](crate::tree) reads.
#[btf_map]
pub static TREES: Array<Owner, { OWNERS as usize }> = Array::new();

/// What [`tree`](crate::tree) found.
#[btf_map]
pub static REPORT: Array<Report, 1> = Array::new();
