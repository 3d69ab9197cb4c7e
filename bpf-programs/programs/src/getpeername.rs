//! getpeername4 and getpeername6: a redirected socket answers with the address that was asked for.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use slotmesh_records::VipKey;

use crate::{
    connect::write_ip6,
    flows,
    maps::{IDENTITY, SOCKETS},
};

const ALLOW: i32 = 1;

/// Uses the identity, so that attaching this program makes the cgroup's storage: the agent stores the
/// identity there before it attaches the programs that decide.
#[inline(always)]
fn claim_storage() {
    let _ = IDENTITY.get_ptr_mut();
}

/// The VIP that the socket was to be connected to; `None` where it wasn't redirected.
#[inline(always)]
fn original(ctx: &SockAddrContext) -> Option<VipKey> {
    // SAFETY: the kernel hands a valid context.
    if unsafe { (*ctx.sock_addr).protocol } == u32::from(VipKey::UDP) {
        // SAFETY: the context's socket is valid in this hook; the storage lives as long as the socket.
        return unsafe { flows::connected(flows::of(ctx)) };
    }
    // SAFETY: as above.
    unsafe { SOCKETS.get_ptr_mut(ctx).as_ref() }.map(|state| state.original)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    claim_storage();
    if let Some(original) = original(&ctx) {
        // SAFETY: the kernel hands a valid context; these fields may be written in this hook.
        let addr = unsafe { &mut *ctx.sock_addr };
        addr.user_ip4 = original.addr[3];
        addr.user_port = u32::from(original.port);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    claim_storage();
    if let Some(original) = original(&ctx) {
        // SAFETY: as in getpeername4.
        let addr = unsafe { &mut *ctx.sock_addr };
        write_ip6(addr, original.addr);
        addr.user_port = u32::from(original.port);
    }
    ALLOW
}
