//! The socket that an application connects, and its record.
//!
//! A socket of MPTCP isn't the one that connects: it has sockets of TCP within, one for each path, that come to the hook.
//! The record is of the application's, as that is what is asked for its peer's name and is closed. Paths that the kernel
//! adds to a connection later are none of ours.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    programs::SockAddrContext,
};
use slotmesh_records::{SocketState, VipKey, fields::HAS_MPTCP};

use crate::{kernel::field, maps::SOCKETS};

/// `skc_state` in the kernel's `struct sock_common`, whose first words haven't changed since 3.13: addresses,
/// hash, ports, family, then this byte. A socket of whatever kind begins with it.
pub const STATE_AT: usize = 18;

/// Where a connect has its record.
pub enum Recorded {
    /// Here; null where the socket has none.
    At(*mut SocketState),
    /// Nowhere: it is the kernel that connects, not an application.
    Nowhere,
}

/// The record of the socket that connects to an address of this protocol.
#[inline(always)]
pub fn find(ctx: &SockAddrContext, protocol: u8) -> Recorded {
    let sk = connecting(ctx);
    let whole = whole(sk, protocol);
    if whole.is_null() {
        return Recorded::At(get(sk, core::ptr::null_mut(), 0));
    }
    // SAFETY: the kernel lets the byte be read of any socket.
    let state = u32::from(unsafe { whole.cast::<u8>().add(STATE_AT).read_volatile() });
    if state != BPF_TCP_SYN_SENT && state != BPF_TCP_CLOSE {
        return Recorded::Nowhere;
    }
    Recorded::At(get(whole, core::ptr::null_mut(), 0))
}

/// As [`find`], of a socket that has no record: it is made, with this content. Null where there is no memory.
#[inline(always)]
pub fn make(ctx: &SockAddrContext, state: &mut SocketState) -> *mut SocketState {
    let sk = connecting(ctx);
    let whole = whole(sk, state.original.protocol);
    // Two calls, here and above: the verifier would follow all that comes after with either sort of socket.
    let flags = BPF_SK_STORAGE_GET_F_CREATE.into();
    if whole.is_null() { get(sk, state, flags) } else { get(whole, state, flags) }
}

/// Removes the record of the socket that connects; whether it had one.
#[inline(always)]
pub fn remove(ctx: &SockAddrContext, protocol: u8) -> bool {
    let sk = connecting(ctx);
    let whole = whole(sk, protocol);
    // SAFETY: valid sockets.
    unsafe {
        if whole.is_null() {
            bpf_sk_storage_delete(map(), sk) == 0
        } else {
            bpf_sk_storage_delete(map(), whole) == 0
        }
    }
}

/// The socket that comes to the hook.
#[inline(always)]
fn connecting(ctx: &SockAddrContext) -> *mut c_void {
    // SAFETY: the kernel hands a valid context, with the socket that connects.
    unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }.cast()
}

/// The socket of MPTCP that it is a path of; null of others.
#[inline(always)]
fn whole(sk: *mut c_void, protocol: u8) -> *mut c_void {
    if protocol != VipKey::TCP || field(HAS_MPTCP) == 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: a valid socket.
    unsafe { bpf_skc_to_mptcp_sock(sk) }.cast()
}

#[inline(always)]
fn get(sk: *mut c_void, content: *mut SocketState, flags: u64) -> *mut SocketState {
    // SAFETY: a valid socket, and a whole record or none.
    unsafe { bpf_sk_storage_get(map(), sk, content.cast(), flags).cast() }
}

#[inline(always)]
fn map() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}
