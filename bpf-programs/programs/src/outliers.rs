//! Outlier detection: an endpoint to which connects fail is left out for some time.
//!
//! Whoever sees that a connect has failed counts it, in a map of its own that no flush touches. Whoever chooses such an
//! endpoint next finds that there are too many in a row, and leaves it out: so both cost one look-up, and whoever has
//! nothing to do with it none. How many are left out is counted by compare and swap, so never more are than may be.
//! What is left out comes back by its time, the kernel's monotonic one, whether or not an agent is there.
//!
//! connect calls [`healthy`], whose parts are functions of their own, of numbers only: the verifier follows each by
//! itself. Below connect there is room for two of them on the stack, with 32 bytes each (`MAX_BPF_STACK` is of all
//! together, and 6.1 rounds each up), so they keep little, and look up again what they need. An endpoint is told of by
//! `at`: its number, and above it 1 for IPv6.

use core::{ffi::c_void, mem::offset_of};

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT},
    helpers::generated::bpf_probe_read_kernel,
};
use slotmesh_records::{
    Count, Endpoint, EndpointKey, Endpoints, Family, Guard, NO_LIMIT, OutlierState, SlotPtr, choose,
    cluster_tag, fields::BYTES_RECEIVED,
};

use crate::{
    connect::random,
    kernel::field,
    lookup::of_family,
    maps::OUTLIERS,
    place::Place,
    running::{LOOKS, compare_and_swap, count_down, count_up, fetch_add, give_up, now, tick},
};

/// In the answer of [`healthy`]: it matters whether the connect fails.
pub const WATCHED: u64 = 1 << 32;
/// The answer of [`healthy`] where no endpoint is left.
pub const NOBODY: u64 = 1 << 33;
/// How many endpoints are looked at instead of one that is left out: by chance, then those behind the last of these.
const DRAWS: u32 = 4;
const LOOKED_AT: u32 = 20;
/// Who gives a connect up sooner than in these 100 milliseconds didn't wait for an answer.
const PATIENCE: u32 = 95;

/// What became of a connect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Connected,
    Failed,
    /// Somebody gave it up.
    Unknown,
}

/// What became of the connect of a socket that is in this state now, and counts since then.
#[inline(always)]
pub fn outcome(sk: *const c_void, state: u32, since: u32) -> Outcome {
    if state == BPF_TCP_SYN_SENT {
        let waited = tick().wrapping_sub(since);
        return if waited >= PATIENCE { Outcome::Failed } else { Outcome::Unknown };
    }
    if state != BPF_TCP_CLOSE {
        return Outcome::Connected;
    }
    let at = field(BYTES_RECEIVED);
    if at == 0 {
        return Outcome::Failed;
    }
    let mut bytes = 0_u64;
    let from = sk.cast::<u8>().wrapping_add(at as usize).cast();
    // SAFETY: the helper checks the address. The end of what the other end sends counts as a byte.
    unsafe { bpf_probe_read_kernel((&raw mut bytes).cast(), size_of::<u64>() as u32, from) };
    if bytes == 0 { Outcome::Failed } else { Outcome::Connected }
}

/// Takes note of what became of a connect to an endpoint.
#[inline(always)]
pub fn note(endpoint: &EndpointKey, outcome: Outcome) {
    let key = OutlierState::key(endpoint.cluster, endpoint.at.addr, endpoint.at.port);
    match outcome {
        Outcome::Connected => connected(key),
        Outcome::Failed => failed(endpoint, key),
        Outcome::Unknown => {}
    }
}

#[inline(always)]
fn connected(key: u64) {
    let Some(state) = OUTLIERS.get_ptr_mut(key) else { return };
    // SAFETY: the word of an element.
    unsafe { end_row((&raw mut (*state).failures).cast(), key) };
}

/// No connect has failed in a row. One that fails at the same moment counts.
///
/// # Safety
/// A word of an element.
#[inline(always)]
unsafe fn end_row(word: *mut u64, key: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        let found = word.read_volatile();
        if Count::from_bits(found).of(cluster_tag(key)).is_some_and(|failures| failures != 0) {
            compare_and_swap(word, found, Count::none(cluster_tag(key)).bits());
        }
    }
}

#[inline(always)]
fn failed(endpoint: &EndpointKey, key: u64) {
    for _ in 0..LOOKS {
        let Some(state) = OUTLIERS.get_ptr_mut(key) else {
            // Another CPU may make it at the same time: then that one's is found. That of the family is made here, too, as
            // there is room on the stack.
            let is_v6 = u64::from(!endpoint.at.is_v4());
            let family = OutlierState::none(&OutlierState::family(endpoint.cluster, is_v6));
            let _ = OUTLIERS.insert(
                OutlierState::family_key(endpoint.cluster, is_v6),
                family,
                u64::from(BPF_NOEXIST),
            );
            let _ = OUTLIERS.insert(key, OutlierState::none(endpoint), u64::from(BPF_NOEXIST));
            continue;
        };
        // SAFETY: words of an element.
        unsafe {
            if (&raw const (*state).until).read_volatile() != 0 {
                // Of a connect that began before it was left out.
                return;
            }
            if count_up((&raw mut (*state).failures).cast(), cluster_tag(key), NO_LIMIT) == Some(true) {
                (&raw mut (*state).failed).write_volatile(now());
                return;
            }
        }
    }
}

/// The number of the endpoint to take where this one is chosen, of the records at `endpoints`: this one, or another
/// where it is left out; with [`WATCHED`], or [`NOBODY`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn healthy(guard: u32, endpoints: u32, cluster: u64, mut at: u64) -> u64 {
    if guard_of(guard, offset_of!(Guard, failures)).is_none_or(|failures| failures == 0) {
        return u64::from(at as u32);
    }
    if standing(guard, endpoints, cluster, at) != OUT {
        return WATCHED | u64::from(at as u32);
    }
    match scarcity(guard, endpoints, cluster, at) {
        PANIC => return WATCHED | u64::from(at as u32),
        ALL_OUT => return NOBODY,
        _ => {}
    }
    for round in 0..LOOKED_AT {
        at = next(endpoints, at, round);
        if standing(guard, endpoints, cluster, at) != OUT {
            break;
        }
    }
    // Where so many are left out, one of these is better than none.
    WATCHED | u64::from(at as u32)
}

/// The endpoint is left out.
const OUT: u64 = 1;

/// How an endpoint stands, as it is chosen: [`OUT`], or 0.
#[inline(always)]
fn standing(guard: u32, endpoints: u32, cluster: u64, at: u64) -> u64 {
    match recent(endpoints, cluster, at) {
        0 => 0,
        STILL_OUT => OUT,
        failures => {
            if reserve(guard, endpoints, cluster, at, failures) == 0 {
                return 0;
            }
            if leave_out(times_of(guard), endpoints, cluster, at) == 0 {
                // Another one was faster.
                release(cluster, at);
            }
            OUT
        }
    }
}

/// The answer of [`recent`] where the time of an endpoint isn't over.
const STILL_OUT: u64 = 1 << 32;

/// How many connects to an endpoint have failed in a row; an endpoint whose time is over is in again.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn recent(endpoints: u32, cluster: u64, at: u64) -> u64 {
    let Some(key) = key_of(endpoints, cluster, at) else { return 0 };
    let Some(state) = OUTLIERS.get_ptr_mut(key) else { return 0 };
    // SAFETY: words of an element.
    unsafe {
        let until = (&raw const (*state).until).read_volatile();
        if until != 0 {
            if until > now() {
                return STILL_OUT;
            }
            take_back(state, until, OutlierState::family_key(cluster, at >> 32));
        }
        let failures = (&raw const (*state).failures).read_volatile();
        failures.of(cluster_tag(key)).map_or(0, u64::from)
    }
}

/// Two words of the address of an endpoint, network order: part 0 and 1; its port: part 2. 0 where there is none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn part_of(endpoints: u32, at: u64, part: u32) -> u64 {
    find_part(endpoints, at, part).unwrap_or(0)
}

#[inline(always)]
fn find_part(endpoints: u32, at: u64, part: u32) -> Option<u64> {
    let place = Place::of(SlotPtr::from_bits(endpoints))?;
    let (list, ..) = of_family(&place, &place.read::<Endpoints>(0)?, family_of(at));
    let Endpoint { addr: [a, b, c, d], port, .. } = list.element(at as u32)?;
    let both = |first: u32, second: u32| u64::from(second) << 32 | u64::from(first);
    Some(match part {
        0 => both(a, b),
        1 => both(c, d),
        _ => u64::from(port),
    })
}

/// The key of an endpoint.
#[inline(always)]
fn key_of(endpoints: u32, cluster: u64, at: u64) -> Option<u64> {
    let place = Place::of(SlotPtr::from_bits(endpoints))?;
    let (list, ..) = of_family(&place, &place.read::<Endpoints>(0)?, family_of(at));
    let element = list.element(at as u32)?;
    Some(OutlierState::key(cluster, element.addr, element.port))
}

/// How many endpoints there are of a family.
#[inline(always)]
fn count_of(endpoints: u32, at: u64) -> Option<u32> {
    let place = Place::of(SlotPtr::from_bits(endpoints))?;
    let (_, count, _) = of_family(&place, &place.read::<Endpoints>(0)?, family_of(at));
    Some(count)
}

/// A number of the guard.
#[inline(always)]
fn guard_of(guard: u32, offset: usize) -> Option<u32> {
    Place::of(SlotPtr::from_bits(guard))?.read::<u32>(offset)
}

/// An endpoint whose time is over is in again.
///
/// # Safety
/// The state of an endpoint of this family.
#[inline(always)]
unsafe fn take_back(state: *mut OutlierState, until: u64, family: u64) {
    // SAFETY: words of elements. Who swaps it counts it.
    unsafe {
        if compare_and_swap(&raw mut (*state).until, until, 0) != until {
            return;
        }
        (&raw mut (*state).back).write_volatile(until);
        if let Some(of_family) = OUTLIERS.get_ptr_mut(family) {
            count_down((&raw mut (*of_family).failures).cast(), cluster_tag(family));
        }
    }
}

/// One more endpoint of a family is to be left out, where so many failed connects in a row are too many; 0 where they
/// aren't, or where as many are left out as may be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn reserve(guard: u32, endpoints: u32, cluster: u64, at: u64, failures: u64) -> u64 {
    let Some(too_many) = guard_of(guard, offset_of!(Guard, failures)) else { return 0 };
    if too_many == 0 || failures < u64::from(too_many) {
        return 0;
    }
    let Some(percent) = guard_of(guard, offset_of!(Guard, most_percent)) else { return 0 };
    let Some(count) = count_of(endpoints, at) else { return 0 };
    let most = OutlierState::most(count, percent);
    let key = OutlierState::family_key(cluster, at >> 32);
    let Some(family) = OUTLIERS.get_ptr_mut(key) else { return 0 };
    // SAFETY: words of an element.
    unsafe {
        if count_up((&raw mut (*family).failures).cast(), cluster_tag(key), most) != Some(true) {
            return 0;
        }
        fetch_add(&raw mut (*family).times, 1);
    }
    1
}

/// Takes that back.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn release(cluster: u64, at: u64) -> u64 {
    let key = OutlierState::family_key(cluster, at >> 32);
    let Some(family) = OUTLIERS.get_ptr_mut(key) else { return 0 };
    // SAFETY: words of an element.
    unsafe {
        count_down((&raw mut (*family).failures).cast(), cluster_tag(key));
        fetch_add(&raw mut (*family).times, u64::MAX);
    }
    1
}

/// The first time that an endpoint is left out, in milliseconds, and above it the longest.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn times_of(guard: u32) -> u64 {
    let Some(base) = guard_of(guard, offset_of!(Guard, base_ms)) else { return 0 };
    let Some(most) = guard_of(guard, offset_of!(Guard, most_ms)) else { return 0 };
    u64::from(most) << 32 | u64::from(base)
}

/// Leaves an endpoint out from now on, for as long as [`times_of`] says; 0 where it is left out already.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn leave_out(times: u64, endpoints: u32, cluster: u64, at: u64) -> u64 {
    let Some(key) = key_of(endpoints, cluster, at) else { return 0 };
    let (base, most) = (times as u32, (times >> 32) as u32);
    let now = now();
    let Some(state) = OUTLIERS.get_ptr_mut(key) else { return 0 };
    // SAFETY: words of an element.
    unsafe {
        let (before, back) =
            ((&raw const (*state).times).read_volatile(), (&raw const (*state).back).read_volatile());
        let times = OutlierState::times(before, back, base, most, now);
        let until = now + OutlierState::length(times, base, most);
        if compare_and_swap(&raw mut (*state).until, 0, until) != 0 {
            return 0;
        }
        (&raw mut (*state).times).write_volatile(times);
        // When it is back, it begins anew.
        end_row((&raw mut (*state).failures).cast(), key);
    }
    1
}

/// So few endpoints are left that all are used.
const PANIC: u64 = 1;
/// No endpoint is left.
const ALL_OUT: u64 = 2;

/// Tells whether there is another endpoint to look for.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scarcity(guard: u32, endpoints: u32, cluster: u64, at: u64) -> u64 {
    let Some(count) = count_of(endpoints, at) else { return PANIC };
    let Some(percent) = guard_of(guard, offset_of!(Guard, panic_percent)) else { return PANIC };
    let key = OutlierState::family_key(cluster, at >> 32);
    let Some(family) = OUTLIERS.get_ptr(key) else { return 0 };
    // SAFETY: a word of an element.
    let out = unsafe { (&raw const (*family).failures).read_volatile() }.of(cluster_tag(key)).unwrap_or(0);
    if OutlierState::is_panic(count, out, percent) {
        PANIC
    } else if out >= count {
        ALL_OUT
    } else {
        0
    }
}

/// The endpoint to look at after this one: by chance, and from some round on the one behind it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn next(endpoints: u32, at: u64, round: u32) -> u64 {
    find_next(endpoints, at, round).unwrap_or(at)
}

#[inline(always)]
fn find_next(endpoints: u32, at: u64, round: u32) -> Option<u64> {
    let place = Place::of(SlotPtr::from_bits(endpoints))?;
    let (list, count, _) = of_family(&place, &place.read::<Endpoints>(0)?, family_of(at));
    let mut i = (at as u32).wrapping_add(1);
    if round < DRAWS {
        let (drawn, fraction) = choose(random(), count);
        let element = list.element(drawn)?;
        i = if fraction < element.threshold { drawn } else { element.alias };
    }
    let i = if i < count { i } else { 0 };
    Some(at & !u64::from(u32::MAX) | u64::from(i))
}

#[inline(always)]
const fn family_of(at: u64) -> Family {
    if at >> 32 == 0 { Family::V4 } else { Family::V6 }
}

/// Takes an endpoint back whose time is over, and forgets it where nothing has failed for long. Whether it did.
#[inline(always)]
pub fn settle(endpoint: &EndpointKey) -> bool {
    let key = OutlierState::key(endpoint.cluster, endpoint.at.addr, endpoint.at.port);
    let Some(state) = OUTLIERS.get_ptr_mut(key) else { return false };
    let now = now();
    // SAFETY: words of an element.
    unsafe {
        let until = (&raw const (*state).until).read_volatile();
        if until > now {
            return false;
        }
        if until != 0 {
            let is_v6 = u64::from(!endpoint.at.is_v4());
            take_back(state, until, OutlierState::family_key(endpoint.cluster, is_v6));
        }
        let quiet = now.wrapping_sub((&raw const (*state).failed).read_volatile());
        let word = (&raw mut (*state).failures).cast::<u64>();
        let found = word.read_volatile();
        let is_own = Count::from_bits(found).of(cluster_tag(key)).is_some();
        is_own
            && quiet > OutlierState::IDLE
            && compare_and_swap(word, found, Count::GONE.bits()) == found
            && OUTLIERS.remove(key).is_ok()
    }
}

/// Forgets how many endpoints of a cluster were left out, where none is.
#[inline(always)]
pub fn remove(cluster: u64) {
    for is_v6 in 0..2 {
        let key = OutlierState::family_key(cluster, is_v6);
        if let Some(state) = OUTLIERS.get_ptr_mut(key) {
            // SAFETY: a word of an element.
            if unsafe { give_up((&raw mut (*state).failures).cast(), cluster_tag(key)) } {
                let _ = OUTLIERS.remove(key);
            }
        }
    }
}
