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
use slotmesh_records::SocketState;

use crate::{maps::SOCKETS, running};

const ALLOW: i32 = 1;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: the kernel hands a valid socket; without flags nothing is made.
    let record = unsafe { bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), 0) };
    let record = record.cast::<SocketState>();
    if !record.is_null() {
        // SAFETY: a word of the socket that the kernel lets be read.
        let state = unsafe { (&raw const (*ctx.sock).state).read_volatile() };
        // SAFETY: the storage lives as long as the socket.
        unsafe {
            running::release(record, state == BPF_TCP_CLOSE || state == BPF_TCP_SYN_SENT);
            if (*record).is_closed == 0 {
                (*record).is_closed = 1;
                running::forget();
            }
        }
    }
    ALLOW
}
