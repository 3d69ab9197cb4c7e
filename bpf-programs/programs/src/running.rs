//! What runs of a cluster: its connections, those of each endpoint, and whose turn it is.

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use slotmesh_records::{ClusterState, Endpoint, EndpointCount, EndpointKey, NO_LIMIT};

use crate::maps::{CLUSTERS, ENDPOINTS};

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

/// One connection more at an endpoint. Whether it counts: where the map is full it doesn't.
#[inline(always)]
pub fn begin_at(endpoint: &EndpointKey) -> bool {
    let mut count = ENDPOINTS.get_ptr_mut(endpoint);
    if count.is_none() {
        // As with clusters.
        let _ = ENDPOINTS.insert(endpoint, EndpointCount::none(endpoint).bits(), u64::from(BPF_NOEXIST));
        count = ENDPOINTS.get_ptr_mut(endpoint);
    }
    let Some(count) = count else { return false };
    // SAFETY: an aligned word of an element, whose pointer is valid for this run.
    let ours = EndpointCount::from_bits(unsafe { fetch_add(count, 1) }).of(endpoint).is_some();
    if !ours {
        // It was removed, and made another's, after it was found.
        // SAFETY: as above.
        unsafe { fetch_add(count, u64::MAX) };
    }
    ours
}

/// One connection less at an endpoint; the last one takes the element along. One that begins at that moment
/// isn't among those counted: then the number is too low by it, and never too high.
#[inline(always)]
pub fn end_at(endpoint: &EndpointKey) {
    let Some(count) = ENDPOINTS.get_ptr_mut(endpoint) else { return };
    // SAFETY: as in `begin_at`.
    match EndpointCount::from_bits(unsafe { fetch_add(count, u64::MAX) }).of(endpoint) {
        // SAFETY: as in `begin_at`.
        None => drop(unsafe { fetch_add(count, 1) }),
        Some(0 | 1) => drop(ENDPOINTS.remove(endpoint)),
        Some(_) => {}
    }
}

/// Whether the first endpoint has more connections for its weight than the second.
#[inline(always)]
pub fn is_busier(cluster: u64, first: &Endpoint, second: &Endpoint) -> bool {
    let open = |endpoint: &Endpoint| {
        let key = EndpointKey::new(cluster, endpoint.addr, endpoint.port);
        // SAFETY: the helper's pointer is valid for this run; other CPUs change the word.
        let count = ENDPOINTS.get_ptr(&key).map(|count| unsafe { count.read_volatile() });
        u64::from(count.and_then(|count| EndpointCount::from_bits(count).of(&key)).unwrap_or(0))
    };
    open(first) * u64::from(second.weight) > open(second) * u64::from(first.weight)
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
    Some((cursor.checked_rem(count)? << 32).wrapping_add(count - 1).checked_div(count)? as u32)
}
