//! getpeername4 and getpeername6: a redirected socket answers with the address that was asked for.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    connect::write_ip6,
    maps::{IDENTITY, SOCKETS},
};

const ALLOW: i32 = 1;

/// Uses the identity, so that attaching this program makes the cgroup's storage: the agent stores the
/// identity there before it attaches the programs that decide.
#[inline(always)]
fn claim_storage() {
    let _ = IDENTITY.get_ptr_mut();
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    claim_storage();
    // SAFETY: the context's socket is valid in this hook; the storage lives as long as the socket.
    if let Some(state) = unsafe { SOCKETS.get_ptr_mut(&ctx).as_ref() } {
        // SAFETY: the kernel hands a valid context; these fields may be written in this hook.
        let addr = unsafe { &mut *ctx.sock_addr };
        addr.user_ip4 = state.original.addr[3];
        addr.user_port = u32::from(state.original.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    claim_storage();
    // SAFETY: as in getpeername4.
    if let Some(state) = unsafe { SOCKETS.get_ptr_mut(&ctx).as_ref() } {
        // SAFETY: as in getpeername4.
        let addr = unsafe { &mut *ctx.sock_addr };
        write_ip6(addr, state.original.addr);
        addr.user_port = u32::from(state.original.port);
    }
    ALLOW
}
