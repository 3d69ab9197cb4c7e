//! Numbers of connections and of their bytes, by workload and cluster; and the end of each, told to the agent.
//!
//! All is taken at the end of a connection, from the kernel's socket: whoever swaps the record's count for 0 ends it, so it
//! is done once, and no callback flag is needed that another program may clear. What is open the agent reads itself
//! ([`open`](crate::open)). Where nothing is to be done, a connection costs one look at an array.
//!
//! Elements are made by the first connection of a workload to a cluster that ends on a lane of CPUs. Where there is no
//! room, it counts among all others that have none: an element that the agent has made.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT},
    helpers::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id,
        generated::{bpf_probe_read_kernel, bpf_ringbuf_reserve, bpf_ringbuf_submit},
    },
};
use slotmesh_records::{
    ConnectionEnd, ConnectionEnding, SocketState, ToldTotals, TrafficKey, TrafficSettings, TrafficState,
    VipKey,
    fields::{
        BYTES_ACKED, BYTES_RECEIVED, RCV_NXT, SK_FLAGS, SK_PROTOCOL, SND_UNA, SRTT_US, TCP_MSTAMP,
        TOTAL_RETRANS, WRITE_SEQ,
    },
};

use crate::{
    kernel::field,
    maps::{ENDS, TOLD_TOTALS, TRAFFIC, TRAFFIC_SETTINGS},
    running::{fetch_add, now, tick},
};

const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const FIN_WAIT1: u32 = 4;
const FIN_WAIT2: u32 = 5;
const CLOSING: u32 = 11;
/// In a socket's flags: the other end has sent its end.
const DONE: u64 = 1 << 1;
/// In units of 2^20 ns: the first segment of a connect is sent again after a second. What ended sooner was answered, or
/// given up.
const PATIENCE: u32 = 858;

/// Facts of a connection at some moment.
pub struct Figures {
    pub ending: ConnectionEnding,
    pub is_measured: bool,
    pub sent: u64,
    pub received: u64,
    pub retransmits: u32,
    pub round_trip_us: u32,
}

/// A number of the kernel's socket.
#[inline(always)]
fn number<T: Default>(sk: *const c_void, at: usize) -> T {
    let mut value = T::default();
    let from = sk.cast::<u8>().wrapping_add(field(at) as usize).cast();
    // SAFETY: the helper checks the address, and writes zeros where nothing can be read.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from) };
    value
}

/// Facts that a socket tells that is in this state, and counts since then.
#[inline(always)]
pub fn figures(sk: *const c_void, state: u32, since: u32) -> Figures {
    let mut figures = Figures {
        ending: ConnectionEnding::Closed,
        is_measured: false,
        sent: 0,
        received: 0,
        retransmits: 0,
        round_trip_us: 0,
    };
    let waited = tick().wrapping_sub(since);
    if state == BPF_TCP_SYN_SENT {
        figures.ending =
            if waited >= PATIENCE { ConnectionEnding::TimedOut } else { ConnectionEnding::Abandoned };
    }
    if field(BYTES_ACKED) == 0 || number::<u16>(sk, SK_PROTOCOL) != u16::from(VipKey::TCP) {
        // Unknown, or MPTCP, which has its bytes elsewhere.
        return figures;
    }
    figures.retransmits = number(sk, TOTAL_RETRANS);
    if state == BPF_TCP_SYN_SENT {
        return figures;
    }
    let acknowledged = number::<u64>(sk, BYTES_ACKED);
    if state == BPF_TCP_CLOSE && number::<u32>(sk, RCV_NXT) == 0 {
        // Never answered. The kernel may have cleared all else but the time of what was sent or received last.
        let last = (number::<u64>(sk, TCP_MSTAMP) * 1_000 >> 20) as u32;
        let waited = last.wrapping_sub(since) as i32;
        figures.ending = if waited < -2 {
            ConnectionEnding::Unsent
        } else if waited >= PATIENCE as i32 {
            ConnectionEnding::TimedOut
        } else {
            ConnectionEnding::Refused
        };
        return figures;
    }
    if acknowledged == 0 {
        // It was disconnected, which clears the rest.
        return figures;
    }
    figures.is_measured = true;
    figures.round_trip_us = number::<u32>(sk, SRTT_US) >> 3;
    // The end of either direction counts as a byte there, and the beginning of ours.
    let mut received = number::<u64>(sk, BYTES_RECEIVED);
    let mut sent = acknowledged - 1;
    let is_ended = matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING);
    if state == BPF_TCP_CLOSE {
        let is_done = number::<u64>(sk, SK_FLAGS) & DONE != 0;
        if is_done {
            received = received.wrapping_sub(1);
        } else {
            figures.ending = ConnectionEnding::Reset;
        }
    } else {
        let waiting = number::<u32>(sk, WRITE_SEQ).wrapping_sub(number(sk, SND_UNA));
        sent += u64::from(waiting);
        if matches!(state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK) {
            sent = sent.wrapping_sub(1);
        }
        if is_ended {
            received = received.wrapping_sub(1);
        }
    }
    figures.sent = sent;
    figures.received = received;
    figures
}

/// Tells the states of a socket that has a connection.
#[inline(always)]
pub const fn is_open(state: u32) -> bool {
    matches!(state, BPF_TCP_ESTABLISHED | FIN_WAIT1 | FIN_WAIT2 | CLOSE_WAIT | LAST_ACK | CLOSING)
}

/// The agent's wishes.
#[inline(always)]
fn settings() -> TrafficSettings {
    let Some(settings) = TRAFFIC_SETTINGS.get_ptr(0) else { return TrafficSettings::default() };
    // SAFETY: words of the one element.
    unsafe {
        TrafficSettings {
            counts: (&raw const (*settings).counts).read_volatile(),
            told: (&raw const (*settings).told).read_volatile(),
        }
    }
}

/// Draws whether the end of this connection is told.
#[inline(always)]
fn is_told(told: u32) -> bool {
    // SAFETY: the helper has no preconditions.
    told == TrafficSettings::ALL || told != 0 && unsafe { bpf_get_prandom_u32() } < told
}

/// The connection of a socket has ended, whose record has just been made not to count; it is in this state, and counted
/// since then.
#[inline(always)]
pub fn ended(record: &SocketState, sk: *const c_void, state: u32, since: u32) {
    let TrafficSettings { counts, told } = settings();
    if counts | told == 0 {
        return;
    }
    let figures = figures(sk, state, since);
    let lasted = tick().wrapping_sub(since);
    if counts != 0
        && let Some(element) = element(record.cluster, record.mark())
    {
        // SAFETY: words of an element.
        unsafe { add(element, &figures, lasted) };
    }
    if is_told(told)
        && let Some(end) = reserve()
    {
        // SAFETY: room for an event, which is written whole before it is handed over.
        unsafe {
            (*end).at = now();
            (*end).cluster = record.cluster;
            (*end).sent = figures.sent;
            (*end).received = figures.received;
            (*end).source = record.mark();
            (*end).lasted = lasted;
            (*end).retransmits = figures.retransmits;
            (*end).round_trip_us = figures.round_trip_us;
            (*end).original = record.original;
            (*end).target = record.target;
            (*end).target_port = record.target_port;
            (*end).ending = figures.ending as u8;
            (*end).is_measured = figures.is_measured as u8;
            bpf_ringbuf_submit(end.cast(), u64::from(BPF_RB_NO_WAKEUP));
        }
    }
}

/// # Safety
/// An element of the map.
#[inline(always)]
unsafe fn add(element: *mut TrafficState, figures: &Figures, lasted: u32) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        fetch_add(word(element, figures.ending as u32), 1);
        if figures.retransmits != 0 {
            fetch_add(&raw mut (*element).retransmits, figures.retransmits.into());
        }
        if figures.ending.is_failure() {
            return;
        }
        fetch_add(&raw mut (*element).lasted, lasted.into());
        if !figures.is_measured {
            fetch_add(&raw mut (*element).unmeasured, 1);
            return;
        }
        fetch_add(&raw mut (*element).sent, figures.sent);
        fetch_add(&raw mut (*element).received, figures.received);
        if figures.round_trip_us != 0 {
            fetch_add(&raw mut (*element).round_trip_us, figures.round_trip_us.into());
            fetch_add(&raw mut (*element).round_trips, 1);
        }
    }
}

/// The number of those that ended so.
///
/// # Safety
/// An element of the map.
#[inline(always)]
unsafe fn word(element: *mut TrafficState, ending: u32) -> *mut u64 {
    // SAFETY: the caller vouches for the pointer, and there are 16.
    unsafe { (&raw mut (*element).ended).cast::<u64>().add((ending & 15) as usize) }
}

/// A new element: not on the stack, of which there is little below connect.
static EMPTY: TrafficState = TrafficState::NONE;

/// The element of a workload's connections to a cluster on this lane, made where it is missing; that of all others where
/// there is no room.
#[inline(always)]
fn element(cluster: u64, source: u32) -> Option<*mut TrafficState> {
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } % TrafficKey::LANES;
    let mut key = TrafficKey { cluster, source, lane };
    if let Some(element) = TRAFFIC.get_ptr_mut(&key) {
        return Some(element);
    }
    // Another CPU may make it at the same time: then that one's is found.
    let _ = TRAFFIC.insert(&key, &EMPTY, u64::from(BPF_NOEXIST));
    if let Some(element) = TRAFFIC.get_ptr_mut(&key) {
        return Some(element);
    }
    key.cluster = 0;
    key.source = 0;
    TRAFFIC.get_ptr_mut(&key)
}

/// Room for an event; counted where there is none.
#[inline(always)]
fn reserve() -> Option<*mut ConnectionEnd> {
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } % ToldTotals::LANES;
    let totals = TOLD_TOTALS.get_ptr_mut(lane)?;
    let map = (&raw const ENDS).cast_mut().cast();
    // SAFETY: whoever is given room hands it over.
    let end = unsafe { bpf_ringbuf_reserve(map, size_of::<ConnectionEnd>() as u64, 0) };
    // SAFETY: words of an element.
    unsafe {
        if end.is_null() {
            fetch_add(&raw mut (*totals).lost, 1);
            return None;
        }
        fetch_add(&raw mut (*totals).told, 1);
    }
    Some(end.cast())
}

/// A program has refused a connect to a cluster: the upper half of `of` tells whose, the lower one is the number of the
/// [`ConnectionEnding`]. A function of its own, of numbers only: the verifier follows it by itself, and connect keeps nothing for it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refused(cluster: u64, of: u64) -> u32 {
    if settings().counts != 0
        && let Some(element) = element(cluster, (of >> 32) as u32)
    {
        // SAFETY: a word of an element.
        unsafe { fetch_add(word(element, of as u32), 1) };
    }
    0
}

/// Tells of it: `high`, `low` and `port` are the address that was asked for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_refusal(cluster: u64, of: u64, high: u64, low: u64, port: u32) -> u32 {
    if !is_told(settings().told) {
        return 0;
    }
    let Some(end) = reserve() else { return 0 };
    // SAFETY: room for an event, which is written whole before it is handed over. Each by itself: the compiler would call a
    // function that clears memory, for which there is no room on the stack.
    unsafe {
        (&raw mut (*end).at).write_volatile(now());
        (&raw mut (*end).cluster).write_volatile(cluster);
        (&raw mut (*end).sent).write_volatile(0);
        (&raw mut (*end).received).write_volatile(0);
        (&raw mut (*end).source).write_volatile((of >> 32) as u32);
        (&raw mut (*end).lasted).write_volatile(0);
        (&raw mut (*end).retransmits).write_volatile(0);
        (&raw mut (*end).round_trip_us).write_volatile(0);
        let addr = (&raw mut (*end).original.addr).cast::<u32>();
        addr.write_volatile((high >> 32) as u32);
        addr.add(1).write_volatile(high as u32);
        addr.add(2).write_volatile((low >> 32) as u32);
        addr.add(3).write_volatile(low as u32);
        (&raw mut (*end).original.port).write_volatile(port as u16);
        (&raw mut (*end).original.protocol).write_volatile(VipKey::TCP);
        (&raw mut (*end).original.reserved).write_volatile(0);
        let target = (&raw mut (*end).target).cast::<u32>();
        target.write_volatile(0);
        target.add(1).write_volatile(0);
        target.add(2).write_volatile(0);
        target.add(3).write_volatile(0);
        (&raw mut (*end).target_port).write_volatile(0);
        (&raw mut (*end).ending).write_volatile(of as u8);
        (&raw mut (*end).is_measured).write_volatile(0);
        bpf_ringbuf_submit(end.cast(), u64::from(BPF_RB_NO_WAKEUP));
    }
    0
}

/// A connection has ended whose socket connects anew: what became of it nobody can tell any more. As [`refused`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ended_anew(cluster: u64, source: u32, since: u32) -> u32 {
    if settings().counts != 0
        && let Some(element) = element(cluster, source)
    {
        // SAFETY: words of an element.
        unsafe {
            fetch_add(word(element, ConnectionEnding::Closed as u32), 1);
            fetch_add(&raw mut (*element).unmeasured, 1);
            fetch_add(&raw mut (*element).lasted, tick().wrapping_sub(since).into());
        }
    }
    0
}
