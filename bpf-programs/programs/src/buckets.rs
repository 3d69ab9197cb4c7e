//! Rates of new connections: each takes a token from a bucket, of its cluster or of its caller there, and is refused where
//! there is none.
//!
//! A bucket is one word that is changed by compare and swap, in a map of its own that no flush touches. So whatever
//! happens at the same moment, no more tokens are taken than there were.

use aya_ebpf::bindings::BPF_NOEXIST;
use slotmesh_records::{BucketKey, BucketState, Guard, SlotPtr};

use crate::{
    maps::BUCKETS,
    place::Place,
    running::{LOOKS, SWAPS, compare_and_swap, fetch_add, now},
};

/// 1 where a caller may have one more connection to a cluster with this guard, else 0. A function of its own, of numbers
/// only: else the verifier would follow each way through it to the end of the program.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit(guard: u32, cluster: u64, caller: u64) -> u64 {
    let guard = Place::of(SlotPtr::from_bits(guard)).and_then(|at| at.read::<Guard>(0));
    // Damaged records bound nothing: the look-up has read as much before.
    let Some(guard) = guard else { return 1 };
    if guard.per_second == 0 {
        return 1;
    }
    let caller = if guard.per_caller == 0 { 0 } else { caller };
    let interval = BucketState::interval(guard.per_second);
    if has_token(&BucketKey { cluster, caller }, interval, guard.burst) {
        return 1;
    }
    // Where there is no room for a bucket, too: a limit lets nothing pass that it can't count.
    if let Some(all) = bucket(&BucketKey { cluster, caller: 0 }) {
        // SAFETY: a word of an element.
        unsafe { fetch_add(&raw mut (*all).refused, 1) };
    }
    0
}

#[inline(always)]
fn has_token(key: &BucketKey, interval: u64, burst: u32) -> bool {
    for _ in 0..LOOKS {
        let Some(bucket) = bucket(key) else { return false };
        // SAFETY: a word of an element.
        let word = unsafe { &raw mut (*bucket).full };
        // SAFETY: as above.
        let mut found = unsafe { word.read_volatile() };
        for _ in 0..SWAPS {
            if found == BucketState::GONE {
                break;
            }
            let Some(full) = BucketState::take(found, now(), interval, burst) else { return false };
            // SAFETY: as above.
            let before = unsafe { compare_and_swap(word, found, full) };
            if before == found {
                return true;
            }
            found = before;
        }
    }
    false
}

/// A new bucket. Not on the stack, and not made by a call of `memset`: Linux 6.1 counts 32 bytes for each call, and below
/// connect6 there are none left.
static EMPTY: BucketState = BucketState { full: 0, refused: 0 };

/// A bucket, made where it is missing.
#[inline(always)]
fn bucket(key: &BucketKey) -> Option<*mut BucketState> {
    if let Some(bucket) = BUCKETS.get_ptr_mut(key) {
        return Some(bucket);
    }
    // Another CPU may make it at the same time: then that one's is found.
    let _ = BUCKETS.insert(key, &EMPTY, u64::from(BPF_NOEXIST));
    BUCKETS.get_ptr_mut(key)
}

/// Removes a bucket that is full, as one is that is made anew. Whether it did.
#[inline(always)]
pub fn remove(key: &BucketKey) -> bool {
    let Some(bucket) = BUCKETS.get_ptr_mut(key) else { return false };
    // SAFETY: a word of an element.
    unsafe {
        let word = &raw mut (*bucket).full;
        let found = word.read_volatile();
        found <= now()
            && compare_and_swap(word, found, BucketState::GONE) == found
            && BUCKETS.remove(key).is_ok()
    }
}
