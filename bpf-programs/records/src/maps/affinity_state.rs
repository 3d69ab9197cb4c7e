//! Endpoints that workloads keep to.

use bytemuck::{Pod, Zeroable};

use crate::Family;

/// A workload that keeps to one endpoint of a cluster, in a family: the key of [`AffinityState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// [`Identity::workload`](super::Identity::workload).
    pub workload: u64,
    /// [`name_hash`](super::name_hash) of the cluster, which is that of a Service port.
    pub cluster: u64,
    /// 4 or 6.
    pub family: u64,
}

impl AffinityKey {
    /// The key of a workload's connections to a cluster.
    #[inline(always)]
    pub const fn new(workload: u64, cluster: u64, family: Family) -> Self {
        let family = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        Self { workload, cluster, family }
    }
}

/// The endpoint that a workload keeps to: made by its first connection, brought up to date by each further one,
/// whatever version of the cluster is current. The kernel gives up the one that was used longest ago where there is
/// no room. Versioned as [`SocketState`](super::SocketState) is.
///
/// A program may read an element while it becomes another key's. So what stands there is a hint: whoever follows it
/// looks it up among the endpoints that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityState {
    /// The address, network order.
    pub addr: [u32; 4],
    /// The port, network order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// When it was used last, in the kernel's nanoseconds.
    pub used: u64,
}

/// How many [`AffinityState`]s the programs made and removed: what else is missing, the kernel gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityTotals {
    /// Made.
    pub made: u64,
    /// Removed, because the time or the endpoint was over.
    pub removed: u64,
}
