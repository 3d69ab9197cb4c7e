//! Identity of a caller, and the hashes by which programs know names and sources.

use bytemuck::{Pod, Zeroable};

use crate::layout::{FNV_OFFSET, fnv1a};

/// Who a program's caller is, in the cgroup storage of the program's attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// [`name_hash`] of `NAMESPACE/NAME`.
    pub workload: u64,
    /// [`name_hash`] of the namespace: the class of all its callers, where a listener says nothing of theirs.
    pub namespace: u64,
    /// [`name_hash`] of the name of its class: those callers of whom every rule says the same.
    pub class: u64,
    /// The id of the cgroup, where that is a pod's: its connections are routed in its own network namespace only. 0 of
    /// other workloads.
    pub pod: u64,
    /// The cookie of that namespace, which the pod's first connect finds; 0 while it isn't known.
    pub network: u64,
}

impl Identity {
    /// What stands for the workload in the record of a socket.
    #[inline(always)]
    pub const fn mark(&self) -> u32 {
        mark_of(self.workload)
    }

    /// Half of [`mark`](Self::mark), for a [`Flow`](crate::Flow).
    #[inline(always)]
    pub const fn caller(&self) -> u16 {
        let half = self.workload ^ self.workload >> 32;
        (half ^ half >> 16) as u16
    }

    /// What stands for the source of a socket that is bound to no address: the workload.
    #[inline(always)]
    pub const fn source(&self) -> [u32; 4] {
        [self.workload as u32, (self.workload >> 32) as u32, 0, 0]
    }
}

/// The [`mark`](Identity::mark) of the workload with this [`name_hash`].
#[inline(always)]
pub const fn mark_of(workload: u64) -> u32 {
    (workload ^ workload >> 32) as u32
}

/// The hash by which programs know a name (FNV-1a, 64 bits).
pub const fn name_hash(name: &str) -> u64 {
    fnv1a(FNV_OFFSET, name.as_bytes())
}

/// The number by which a source chooses its endpoint: of the address in four words, network order, that its
/// socket is bound to, or, of a socket that isn't, of [`Identity::source`].
#[inline(always)]
pub const fn source_hash(source: [u32; 4]) -> u32 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = 0;
    let mut i = 0;
    while i < 4 {
        hash = (hash ^ source[i] as u64).wrapping_mul(MIX);
        hash ^= hash >> 29;
        i += 1;
    }
    (hash.wrapping_mul(MIX) >> 32) as u32
}
