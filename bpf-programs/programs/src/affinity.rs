//! Session affinity: a workload keeps to its endpoint of a Service port until it has been quiet for long enough, or
//! the endpoint has gone.
//!
//! A memory outlives every version of the cluster. Whether the endpoint is still there, the look-up finds out in
//! the version that it has loaded.

use aya_ebpf::bindings::BPF_NOEXIST;
use slotmesh_records::{AffinityKey, AffinityState, Endpoint};

use crate::{
    maps::{AFFINITIES, AFFINITY_TOTALS},
    running::{fetch_add, now},
};

/// An endpoint that a workload keeps to.
#[derive(Clone, Copy)]
pub struct Kept {
    /// Its address, network order.
    pub addr: [u32; 4],
    /// Its port, network order.
    pub port: u16,
}

/// The endpoint that was kept for this key within so many seconds, from now on for as long again. What is older is removed.
#[inline(always)]
pub fn kept(key: &AffinityKey, seconds: u32) -> Option<Kept> {
    let state = AFFINITIES.get_ptr_mut(key)?;
    let now = now();
    // SAFETY: words of an element. Should it become another key's meanwhile, then this is a hint that leads to
    // another endpoint or to none, and that one is used a little later than it was.
    unsafe {
        let used = (&raw const (*state).used).read_volatile();
        if now.wrapping_sub(used) as i64 >= (u64::from(seconds) * 1_000_000_000) as i64 {
            remove(key);
            return None;
        }
        (&raw mut (*state).used).write_volatile(now);
        let addr = (&raw const (*state).addr).cast::<u32>();
        let addr = [
            addr.read_volatile(),
            addr.add(1).read_volatile(),
            addr.add(2).read_volatile(),
            addr.add(3).read_volatile(),
        ];
        Some(Kept { addr, port: (&raw const (*state).port).read_volatile() })
    }
}

/// Keeps to this endpoint from now on. `false` where somebody else was faster, and another one is kept.
#[inline(always)]
pub fn keep(key: &AffinityKey, endpoint: &Endpoint) -> bool {
    let state = AffinityState { addr: endpoint.addr, port: endpoint.port, reserved: [0; 3], used: now() };
    if AFFINITIES.insert(key, state, u64::from(BPF_NOEXIST)).is_err() {
        return false;
    }
    if let Some(totals) = AFFINITY_TOTALS.get_ptr_mut(0) {
        // SAFETY: a word of the one element.
        unsafe { fetch_add(&raw mut (*totals).made, 1) };
    }
    true
}

/// Keeps to it no longer.
#[inline(always)]
pub fn remove(key: &AffinityKey) {
    if AFFINITIES.remove(key).is_ok()
        && let Some(totals) = AFFINITY_TOTALS.get_ptr_mut(0)
    {
        // SAFETY: a word of the one element.
        unsafe { fetch_add(&raw mut (*totals).removed, 1) };
    }
}
