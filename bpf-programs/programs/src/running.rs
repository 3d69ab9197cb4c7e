//! What runs of a cluster: its connections, and whose turn it is.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use slotmesh_records::{ClusterState, NO_LIMIT};

use crate::maps::CLUSTERS;

/// The state of a cluster, made where it is missing.
#[inline(always)]
fn state(cluster: u64) -> Option<*mut ClusterState> {
    if let Some(state) = CLUSTERS.get_ptr_mut(cluster) {
        return Some(state);
    }
    // Another CPU may make it at the same time: then that one's is found.
    let new = ClusterState { active: 0, cursor: 0, opened: 0, refused: 0 };
    let _ = CLUSTERS.insert(cluster, new, u64::from(BPF_NOEXIST));
    CLUSTERS.get_ptr_mut(cluster)
}

/// Adds to a word that other CPUs change at the same time; what it was before. The target's Rust has no
/// atomic arithmetic, the kernel does (5.12).
///
/// # Safety
/// `word` is aligned and lies in a map's element, whose pointer is valid for this run.
#[inline(always)]
unsafe fn fetch_add(word: *mut u64, mut add: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{add} = atomic_fetch_add((u64 *)({word} + 0), {add})",
            word = in(reg) word,
            add = inout(reg) add,
            options(nostack),
        );
    }
    add
}

/// Whether the cluster has all the connections that it may have.
#[inline(always)]
pub fn is_full(cluster: u64, most: u32) -> bool {
    most != NO_LIMIT
        && match CLUSTERS.get_ptr_mut(cluster) {
            // Signed: see `end`.
            // SAFETY: the helper's pointer is valid for this run.
            Some(state) => {
                (unsafe { (&raw const (*state).active).read_volatile() }) as i64 >= i64::from(most)
            }
            None => most == 0,
        }
}

/// One connection more. Whether it counts.
#[inline(always)]
pub fn begin(cluster: u64) -> bool {
    let Some(state) = state(cluster) else { return false };
    // SAFETY: words of an element.
    unsafe {
        fetch_add(&raw mut (*state).active, 1);
        fetch_add(&raw mut (*state).opened, 1);
    }
    true
}

/// A connect was refused because the cluster is full.
#[inline(always)]
pub fn refuse(cluster: u64) {
    if let Some(state) = state(cluster) {
        // SAFETY: a word of an element.
        unsafe { fetch_add(&raw mut (*state).refused, 1) };
    }
}

/// One connection less. One that began while the agent removed the entry of a cluster that was gone isn't
/// among those of an entry made since: then the count is below zero for a moment, and no longer.
#[inline(always)]
pub fn end(cluster: u64) {
    if let Some(state) = CLUSTERS.get_ptr_mut(cluster) {
        // SAFETY: a word of an element.
        unsafe {
            if fetch_add(&raw mut (*state).active, u64::MAX) == 0 {
                fetch_add(&raw mut (*state).active, 1);
            }
        }
    }
}

/// The number by which the endpoint is chosen whose turn it is, of `count` (not 0). Where all weigh the
/// same, each has its turn once in `count` connections. Else multiples of the golden ratio: of any number
/// of connections in a row, each endpoint has nearly its share.
#[inline(always)]
pub fn turn(cluster: u64, count: u32, weighted: bool) -> Option<u32> {
    const GOLDEN: u64 = 0x9e37_79b9;
    let state = state(cluster)?;
    // SAFETY: a word of an element.
    let cursor = unsafe { fetch_add(&raw mut (*state).cursor, 1) };
    if weighted {
        return Some(cursor.wrapping_mul(GOLDEN) as u32);
    }
    let count = u64::from(count);
    // The least number that leads to this element.
    Some((((cursor % count) << 32).wrapping_add(count - 1) / count) as u32)
}
