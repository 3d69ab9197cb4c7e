//! sock_release: a socket that its last owner closes counts no more, whatever state it is in, and whoever
//! else attached programs to it. Runs once a socket.
//!
//! Stays attached to a cgroup that is no longer routed, and runs for the sockets of one that was removed: the
//! kernel keeps the programs of a cgroup as long as it has sockets.

use aya_ebpf::{
    bindings::{BPF_TCP_CLOSE, BPF_TCP_SYN_SENT},
    helpers::generated::bpf_sk_storage_get,
    macros::cgroup_sock,
    programs::SockContext,
};
use slotmesh_records::{SocketFlows, SocketState, VipKey};

use crate::{
    connection_ends, flows,
    maps::{FLOWS, SOCKETS},
    outliers::{self, Outcome},
    running,
};

const ALLOW: i32 = 1;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: a word of the socket that the kernel lets be read.
    let protocol = unsafe { (&raw const (*ctx.sock).protocol).read_volatile() };
    if protocol == u32::from(VipKey::UDP) {
        let map = (&raw const FLOWS).cast_mut().cast();
        // SAFETY: the kernel hands a valid socket; without flags nothing is made.
        let flows = unsafe { bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), 0) };
        // SAFETY: the storage lives as long as the socket.
        if let Some(flows) = unsafe { flows.cast::<SocketFlows>().as_mut() }
            && flows.is_closed == 0
        {
            flows.is_closed = 1;
            flows::give_back();
        }
        return ALLOW;
    }
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: as above.
    let record = unsafe { bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), 0) };
    let record = record.cast::<SocketState>();
    if !record.is_null() {
        // SAFETY: a word of the socket that the kernel lets be read.
        let state = unsafe { (&raw const (*ctx.sock).state).read_volatile() };
        // SAFETY: the storage lives as long as the socket.
        unsafe {
            running::release(
                record,
                state == BPF_TCP_CLOSE || state == BPF_TCP_SYN_SENT,
                |since| {
                    if protocol == u32::from(VipKey::TCP) {
                        outliers::outcome(ctx.sock.cast(), state, since)
                    } else {
                        // A socket of MPTCP has its bytes elsewhere.
                        Outcome::Unknown
                    }
                },
                |record, since| connection_ends::ended(record, ctx.sock.cast(), state, since),
            );
            if (*record).is_closed == 0 {
                (*record).is_closed = 1;
                running::forget();
            }
        }
    }
    ALLOW
}
