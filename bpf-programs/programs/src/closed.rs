//! closed: goes over all sockets that are recorded, wherever they are, and lets those count no more whose
//! connection is over although their owners keep them: the other end reset it, the connect failed, or the
//! socket was disconnected.
//!
//! The agent runs it every second. It holds no lock of a socket, so a connect may be on its way at the same
//! time; such a record is younger than [`YOUNG`], or is another one by the time it is swapped.

use aya_ebpf::bindings::{BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_LISTEN};
use slotmesh_records::SocketState;

use crate::{
    connection_ends,
    outliers::{self, Outcome},
    running,
    socket::STATE_AT,
};

/// What counts for less long may not have left the connect hook: two seconds.
const YOUNG: u32 = SocketState::tick(2_000_000_000);
/// A connection that is open is told of until it is so old: once or twice, as the agent runs this every second. Those
/// that are closed sooner are told of then.
const SEEN: u32 = SocketState::tick(3_500_000_000);

/// `struct bpf_iter__bpf_sk_storage_map`
#[repr(C)]
pub struct Visit {
    meta: *const u8,
    map: *const u8,
    sk: *const u8,
    value: *mut SocketState,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn closed(ctx: *const Visit) -> i32 {
    // SAFETY: the kernel hands a valid context; both are null at the end.
    let (sk, record) = unsafe { ((*ctx).sk, (*ctx).value) };
    if sk.is_null() || record.is_null() {
        return 0;
    }
    // SAFETY: words of the record, which lives for this run; its socket may change them meanwhile.
    let counting = unsafe { (&raw const (*record).counting).read_volatile() };
    let since = (counting & SocketState::SINCE) as u32;
    if since == 0 || running::tick().wrapping_sub(since) < YOUNG {
        return 0;
    }
    // SAFETY: the kernel checks the place of the byte, and lets it be read of any socket.
    let state = u32::from(unsafe { sk.add(STATE_AT).read_volatile() });
    if state == BPF_TCP_ESTABLISHED && running::tick().wrapping_sub(since) < SEEN {
        // SAFETY: as below.
        let copy = unsafe { record.read_volatile() };
        if copy.counted & SocketState::WATCHED != 0 {
            outliers::note(&running::endpoint(&copy), Outcome::Connected);
        }
        return 0;
    }
    if state != BPF_TCP_CLOSE && state != BPF_TCP_LISTEN {
        return 0;
    }
    // SAFETY: as above. A record that has been written for long is whole; where it is another one by now, it
    // counts since another time.
    let copy = unsafe { record.read_volatile() };
    // SAFETY: the record of a socket.
    if unsafe { running::stop_counting(record, counting) } {
        running::end_of(&copy, true);
        if copy.counted & SocketState::WATCHED != 0 {
            outliers::note(&running::endpoint(&copy), outliers::outcome(sk.cast(), state, since));
        }
        connection_ends::ended(&copy, sk.cast(), state, since);
    }
    0
}
