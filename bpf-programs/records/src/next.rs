//! The record that a build with another layout has more (feature `next-layout`).
//!
//! It exists for tests of upgrades, and stands for any change of the model: a type that programs of the
//! other layout don't know, found by a field that they don't know either. It points at all that a record
//! can point at, so whoever walks records without having been told of it loses slots.

use bytemuck::{Pod, Zeroable};
use slotmesh_records_derive::Record;

use crate::{Handle, Owned, Ref, Text, layout::RecordHeader};

/// Where a cluster's endpoints come from. Its tail is the load assignment, where it is one by name.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 15, tail = Ref<Handle>)]
#[repr(C)]
pub struct Added {
    /// Record header.
    pub header: RecordHeader,
    /// The name of the load assignment; empty where it lies within the cluster.
    pub source: Owned<Text>,
    /// Zero.
    pub reserved: u32,
}
