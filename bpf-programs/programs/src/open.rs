//! open: goes over all sockets that are recorded, wherever they are, and tells of those that count: whose they are, and
//! how many bytes they have sent and received until now.
//!
//! The agent runs it when it is asked for numbers. Nothing is locked, so what it tells of a socket is of some moment
//! while it runs.

use aya_ebpf::{bindings::seq_file, helpers::generated::bpf_seq_write};
use slotmesh_records::{OpenConnection, SocketState};

use crate::{
    connection_ends::{figures, is_open},
    socket::STATE_AT,
};

/// `struct bpf_iter__bpf_sk_storage_map`
#[repr(C)]
pub struct OpenVisit {
    meta: *const OpenMeta,
    map: *const u8,
    sk: *const u8,
    value: *mut SocketState,
}

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
pub struct OpenMeta {
    seq: *mut seq_file,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub extern "C" fn open(ctx: *const OpenVisit) -> i32 {
    // SAFETY: the kernel hands a valid context; both are null at the end.
    let (meta, sk, record) = unsafe { ((*ctx).meta, (*ctx).sk, (*ctx).value) };
    if sk.is_null() || record.is_null() {
        return 0;
    }
    // SAFETY: words of the record, which lives for this run; its socket may change them meanwhile.
    let (counting, cluster) = unsafe {
        ((&raw const (*record).counting).read_volatile(), (&raw const (*record).cluster).read_volatile())
    };
    let since = (counting & SocketState::SINCE) as u32;
    if since == 0 {
        return 0;
    }
    // SAFETY: the kernel checks the place of the byte, and lets it be read of any socket.
    let state = u32::from(unsafe { sk.add(STATE_AT).read_volatile() });
    if !is_open(state) {
        return 0;
    }
    let figures = figures(sk.cast(), state, since);
    let found = OpenConnection {
        cluster,
        sent: figures.sent,
        received: figures.received,
        source: (counting >> 32) as u32,
        retransmits: figures.retransmits,
    };
    // SAFETY: the kernel hands a valid context; the helper copies the bytes.
    unsafe {
        bpf_seq_write((*meta).seq, (&raw const found).cast(), size_of::<OpenConnection>() as u32);
    }
    0
}
