//! What runs of a cluster: its connections, those of each endpoint, and whose turn it is.
//!
//! A connection counts from its connect, before anything is sent, until its socket is closed, is found
//! closed, or connects anew; each connect once, which the socket's record remembers. So a limit holds
//! whatever the sockets do, and no count needs a callback flag that other programs may clear.
//!
//! While a cluster has a limit, its connections count in one word. Without one they count in lanes, by CPU, and
//! are counted down in the lane where they began: so no lane is ever below 0, and each is a count of its own. A
//! limit that comes later counts in what the lanes have left.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use slotmesh_records::{
    BucketKey, ClusterState, Count, Endpoint, EndpointKey, EndpointState, LaneKey, LaneState, NO_LIMIT,
    SocketShare, SocketState, cluster_tag,
};

use crate::{
    buckets,
    maps::{CLUSTERS, ENDPOINTS, LANES, SOCKET_LIMIT, SOCKET_TOTALS},
    outliers::{self, Outcome},
};

/// How often a count is tried to be changed while other CPUs change it.
pub const SWAPS: usize = 12;
/// How often an element is looked for that is being removed at that moment.
pub const LOOKS: usize = 3;

/// What became of a connection that was to count.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// It counts: where, as [`SocketState::counted`] has it.
    Counts(u8),
    /// There are as many as there may be.
    Full,
    /// There is no room for another count.
    Uncounted,
}

/// Adds to a word that other CPUs change at the same time; what it was before. The target's Rust has no
/// atomic arithmetic, the kernel does (5.12).
///
/// # Safety
/// `word` is aligned and lies in a map's element, whose pointer is valid for this run.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, mut add: u64) -> u64 {
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

/// Replaces a word where it is `old`; what it was before.
///
/// # Safety
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> u64 {
    let found;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") old => found,
            options(nostack),
        );
    }
    found
}

/// The kernel's nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// Now, as a socket's record has it.
#[inline(always)]
pub fn tick() -> u32 {
    SocketState::tick(now())
}

/// The number of this CPU.
#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_smp_processor_id() }
}

#[inline(always)]
fn second() -> u32 {
    (now() / 1_000_000_000) as u32
}

/// One more in a count of this owner, unless it is `most`. Whether it counts; `None` where the element isn't
/// the owner's.
///
/// # Safety
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn count_up(word: *mut u64, tag: u32, most: u32) -> Option<bool> {
    // SAFETY: the caller vouches for the pointer.
    let mut found = unsafe { word.read_volatile() };
    for _ in 0..SWAPS {
        if Count::from_bits(found).of(tag)? >= most {
            return Some(false);
        }
        // SAFETY: as above.
        let before = unsafe { compare_and_swap(word, found, found + 1) };
        if before == found {
            return Some(true);
        }
        found = before;
    }
    // So many others were faster. Never more than `most` this way either; another one may find it full for
    // the moment until this one has seen that it is.
    // SAFETY: as above.
    let before = Count::from_bits(unsafe { fetch_add(word, 1) });
    if before.of(tag).is_some_and(|count| count < most) {
        return Some(true);
    }
    // SAFETY: as above.
    unsafe { fetch_add(word, u64::MAX) };
    before.of(tag).map(|_| false)
}

/// One less in a count of this owner.
///
/// # Safety
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn count_down(word: *mut u64, tag: u32) {
    // Who counts keeps the element: it is the owner's, and not 0, unless somebody removed it by hand.
    // SAFETY: the caller vouches for the pointer.
    let found = Count::from_bits(unsafe { word.read_volatile() });
    if found.of(tag).is_some_and(|count| count != 0) {
        // SAFETY: as above.
        unsafe { fetch_add(word, u64::MAX) };
    }
}

/// The state of a cluster, made where it is missing.
#[inline(always)]
fn state(cluster: u64) -> Option<*mut ClusterState> {
    if let Some(state) = CLUSTERS.get_ptr_mut(cluster) {
        return Some(state);
    }
    // Another CPU may make it at the same time: then that one's is found.
    let _ = CLUSTERS.insert(cluster, ClusterState::none(cluster), u64::from(BPF_NOEXIST));
    CLUSTERS.get_ptr_mut(cluster)
}

/// One connection more, unless there are `most`.
#[inline(always)]
pub fn begin(cluster: u64, most: u32) -> Begun {
    let mut elsewhere = 0;
    if most == NO_LIMIT {
        let lane = cpu() % LaneKey::LANES;
        if begin_in(&LaneKey::new(cluster, lane)) {
            return Begun::Counts(lane as u8 + 1);
        }
        // There is no room for the lane: it counts where all do.
    } else {
        elsewhere = in_lanes(cluster);
    }
    let tag = cluster_tag(cluster);
    for _ in 0..LOOKS {
        let Some(state) = state(cluster) else { break };
        // SAFETY: words of an element.
        match unsafe { count_up((&raw mut (*state).active).cast(), tag, most.saturating_sub(elsewhere)) } {
            Some(true) => {
                // SAFETY: a word of an element, which stays the cluster's: this connection counts in it.
                unsafe { fetch_add(&raw mut (*state).opened, 1) };
                return Begun::Counts(0);
            }
            Some(false) => {
                refuse(state, tag);
                return Begun::Full;
            }
            None => {}
        }
    }
    Begun::Uncounted
}

/// One connection more in a lane. Whether it counts.
#[inline(always)]
fn begin_in(lane: &LaneKey) -> bool {
    for _ in 0..LOOKS {
        let mut state = LANES.get_ptr_mut(lane);
        if state.is_none() {
            // As with clusters.
            let _ = LANES.insert(lane, LaneState::none(lane), u64::from(BPF_NOEXIST));
            state = LANES.get_ptr_mut(lane);
        }
        let Some(state) = state else { break };
        // SAFETY: words of an element, which stays the lane's once this connection counts in it.
        unsafe {
            if count_up((&raw mut (*state).active).cast(), lane.tag(), NO_LIMIT) == Some(true) {
                fetch_add(&raw mut (*state).opened, 1);
                return true;
            }
        }
    }
    false
}

/// How many connections of a cluster count in lanes: those that began while it had no limit. While it has one these
/// become only fewer, so what is read is never less than what there is at the end.
#[inline(always)]
fn in_lanes(cluster: u64) -> u32 {
    let mut sum = 0_u32;
    for lane in 0..LaneKey::LANES {
        let key = LaneKey::new(cluster, lane);
        if let Some(state) = LANES.get_ptr(&key) {
            // SAFETY: a word of an element, which other CPUs change.
            let active = unsafe { (&raw const (*state).active).read_volatile() };
            sum = sum.saturating_add(active.of(key.tag()).unwrap_or(0));
        }
    }
    sum
}

/// A connect was refused because the cluster is full.
#[inline(always)]
fn refuse(state: *mut ClusterState, tag: u32) {
    // SAFETY: words of an element.
    unsafe {
        fetch_add(&raw mut (*state).refused, 1);
        let owner = (&raw const (*state).active).cast::<u64>().read_volatile();
        if Count::from_bits(owner).of(tag).is_none() {
            // It was removed, and made another's, meanwhile.
            fetch_add(&raw mut (*state).refused, u64::MAX);
        }
    }
}

/// One connection less, where it counted.
#[inline(always)]
pub fn end(cluster: u64, counted: u8) {
    let lane = counted & !(SocketState::AT_ENDPOINT | SocketState::WATCHED);
    if lane == 0 {
        if let Some(state) = CLUSTERS.get_ptr_mut(cluster) {
            // SAFETY: a word of an element.
            unsafe { count_down((&raw mut (*state).active).cast(), cluster_tag(cluster)) };
        }
        return;
    }
    let key = LaneKey::new(cluster, u32::from(lane - 1));
    if let Some(state) = LANES.get_ptr_mut(&key) {
        // SAFETY: a word of an element.
        unsafe { count_down((&raw mut (*state).active).cast(), key.tag()) };
    }
}

/// One connection more at an endpoint. Whether it counts: where the map is full it doesn't.
#[inline(always)]
pub fn begin_at(endpoint: &EndpointKey) -> bool {
    for _ in 0..LOOKS {
        let mut state = ENDPOINTS.get_ptr_mut(endpoint);
        if state.is_none() {
            // As with clusters.
            let _ = ENDPOINTS.insert(endpoint, EndpointState::none(endpoint), u64::from(BPF_NOEXIST));
            state = ENDPOINTS.get_ptr_mut(endpoint);
        }
        let Some(state) = state else { break };
        // SAFETY: a word of an element.
        let counts = unsafe { count_up((&raw mut (*state).active).cast(), endpoint.tag(), NO_LIMIT) };
        if counts == Some(true) {
            return true;
        }
    }
    false
}

/// One connection less at an endpoint; and for some seconds a failed one more, if it is.
#[inline(always)]
fn end_at(endpoint: &EndpointKey, failed: bool) {
    let Some(state) = ENDPOINTS.get_ptr_mut(endpoint) else { return };
    // SAFETY: words of an element, which is the endpoint's as long as this connection counts. Of failures at
    // the same moment one may be forgotten.
    unsafe {
        if failed {
            let failures = &raw mut (*state).failed;
            failures.write_volatile(failures.read_volatile().and(second()));
        }
        count_down((&raw mut (*state).active).cast(), endpoint.tag());
    }
}

/// A socket's connection counts no more, if it did. `outcome` is asked where it matters whether the connect failed;
/// `ended` is told what the record was, and since when it counted.
///
/// # Safety
/// The record of a socket, valid for this run.
#[inline(always)]
pub unsafe fn release(
    record: *mut SocketState,
    failed: bool,
    outcome: impl Fn(u32) -> Outcome,
    ended: impl Fn(&SocketState, u32),
) {
    // Twice: `closed` may be faster, once.
    for _ in 0..2 {
        // SAFETY: the caller vouches for the pointer.
        unsafe {
            let found = (&raw const (*record).counting).read_volatile();
            if found & SocketState::SINCE == 0 {
                return;
            }
            if stop_counting(record, found) {
                end_of(&*record, failed);
                if (*record).counted & SocketState::WATCHED != 0 {
                    outliers::note(&endpoint(&*record), outcome((found & SocketState::SINCE) as u32));
                }
                ended(&*record, (found & SocketState::SINCE) as u32);
                return;
            }
        }
    }
}

/// Clears since when a record counts, where it is as it was found. Whether that was so.
///
/// # Safety
/// As for [`release`].
#[inline(always)]
pub unsafe fn stop_counting(record: *mut SocketState, found: u64) -> bool {
    // SAFETY: the caller vouches for the pointer.
    unsafe { compare_and_swap(&raw mut (*record).counting, found, found & !SocketState::SINCE) == found }
}

/// Ends the connection of a record that has just been made not to count.
#[inline(always)]
pub fn end_of(record: &SocketState, failed: bool) {
    end(record.cluster, record.counted);
    if record.counted & SocketState::AT_ENDPOINT != 0 {
        end_at(&endpoint(record), failed);
    }
}

/// The endpoint of a record.
#[inline(always)]
pub fn endpoint(record: &SocketState) -> EndpointKey {
    EndpointKey::new(record.cluster, record.target, record.target_port)
}

/// What is known of sockets by all, and by the lane of this CPU.
#[inline(always)]
fn shares() -> Option<(*mut SocketShare, *mut SocketShare)> {
    let lane = 1 + cpu() % SocketShare::LANES;
    Some((SOCKET_TOTALS.get_ptr_mut(0)?, SOCKET_TOTALS.get_ptr_mut(lane)?))
}

/// A socket more is recorded. Whether there is room for it.
#[inline(always)]
pub fn record() -> bool {
    let (Some((all, lane)), Some(limit)) = (shares(), SOCKET_LIMIT.get_ptr(0)) else { return false };
    // SAFETY: words of elements.
    unsafe {
        let (taken, idle) = (&raw mut (*all).places, &raw mut (*lane).places);
        for _ in 0..LOOKS {
            let found = idle.read_volatile();
            if found == 0 {
                break;
            }
            if compare_and_swap(idle, found, found - 1) == found {
                return true;
            }
        }
        let (most, batch) =
            ((&raw const (*limit).most).read_volatile(), (&raw const (*limit).batch).read_volatile());
        if batch != 0 {
            if fetch_add(taken, 1 + batch).wrapping_add(1 + batch) <= most {
                fetch_add(idle, batch);
                return true;
            }
            fetch_add(taken, (1 + batch).wrapping_neg());
        }
        if fetch_add(taken, 1) < most {
            return true;
        }
        fetch_add(taken, u64::MAX);
    }
    false
}

/// A socket less is recorded.
#[inline(always)]
pub fn forget() {
    let (Some((all, lane)), Some(limit)) = (shares(), SOCKET_LIMIT.get_ptr(0)) else { return };
    // SAFETY: words of elements.
    unsafe {
        let idle = &raw mut (*lane).places;
        let batch = (&raw const (*limit).batch).read_volatile();
        let found = fetch_add(idle, 1).wrapping_add(1);
        if found > 2 * batch {
            // Should another one have been faster, it or the next one gives them back.
            let many = found - batch;
            if compare_and_swap(idle, found, batch) == found {
                fetch_add(&raw mut (*all).places, many.wrapping_neg());
            }
        }
    }
}

/// A connection has no record.
#[inline(always)]
pub fn unrecorded() {
    if let Some((_, lane)) = shares() {
        // SAFETY: a word of an element.
        unsafe { fetch_add(&raw mut (*lane).unrecorded, 1) };
    }
}

/// A connection isn't counted that should be.
#[inline(always)]
pub fn uncounted() {
    if let Some((_, lane)) = shares() {
        // SAFETY: a word of an element.
        unsafe { fetch_add(&raw mut (*lane).uncounted, 1) };
    }
}

/// Whether the first endpoint has more connections for its weight than the second; those that failed of late
/// are among them.
#[inline(always)]
pub fn is_busier(cluster: u64, first: &Endpoint, second: &Endpoint) -> bool {
    let now = self::second();
    let open = |endpoint: &Endpoint| {
        let key = EndpointKey::new(cluster, endpoint.addr, endpoint.port);
        let Some(state) = ENDPOINTS.get_ptr(&key) else { return 0 };
        // SAFETY: words of an element, which other CPUs change.
        let (active, failed) = unsafe {
            ((&raw const (*state).active).read_volatile(), (&raw const (*state).failed).read_volatile())
        };
        active.of(key.tag()).map_or(0, |active| u64::from(active) + u64::from(failed.at(now)))
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
    // SAFETY: a word of an element. Should it have become another's, that one's turn moves on by one.
    let cursor = unsafe { fetch_add(&raw mut (*state).cursor, 1) };
    if weighted {
        return Some(cursor.wrapping_mul(GOLDEN) as u32);
    }
    let count = u64::from(count);
    // The least number that leads to this element.
    Some((cursor.checked_rem(count)? << 32).wrapping_add(count - 1).checked_div(count)? as u32)
}

/// Removes what there is of a cluster in which nothing counts. Whether nothing is left.
#[inline(always)]
pub fn remove(cluster: u64) -> bool {
    let mut nothing = true;
    for lane in 0..LaneKey::LANES {
        let key = LaneKey::new(cluster, lane);
        if let Some(state) = LANES.get_ptr_mut(&key) {
            // SAFETY: a word of an element.
            nothing &= unsafe { give_up((&raw mut (*state).active).cast(), key.tag()) }
                && LANES.remove(&key).is_ok();
        }
    }
    outliers::remove(cluster);
    buckets::remove(&BucketKey { cluster, caller: 0 });
    if let Some(state) = CLUSTERS.get_ptr_mut(cluster) {
        // SAFETY: a word of an element.
        nothing &= unsafe { give_up((&raw mut (*state).active).cast(), cluster_tag(cluster)) }
            && CLUSTERS.remove(cluster).is_ok();
    }
    nothing
}

/// Removes the state of an endpoint at which nothing counts. Whether it did.
#[inline(always)]
pub fn remove_at(endpoint: &EndpointKey) -> bool {
    let Some(state) = ENDPOINTS.get_ptr_mut(endpoint) else { return false };
    // SAFETY: a word of an element.
    let given_up = unsafe { give_up((&raw mut (*state).active).cast(), endpoint.tag()) };
    given_up && ENDPOINTS.remove(endpoint).is_ok()
}

/// Makes a count of 0 nobody's. Whether it was 0.
///
/// # Safety
/// As for [`fetch_add`].
#[inline(always)]
pub unsafe fn give_up(word: *mut u64, tag: u32) -> bool {
    let none = Count::none(tag).bits();
    // SAFETY: the caller vouches for the pointer.
    unsafe { compare_and_swap(word, none, Count::GONE.bits()) == none }
}
