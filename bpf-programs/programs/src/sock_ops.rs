//! sock_ops: counts the connections of each cluster, and of each endpoint where that decides.
//!
//! A connection counts from its SYN until its socket is closed, whoever closes it and whether or not it
//! was established; each socket once, which its record remembers.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    },
    helpers::generated::bpf_sk_storage_get,
    macros::sock_ops,
    programs::SockOpsContext,
};
use slotmesh_records::{EndpointKey, SocketState};

use crate::{maps::SOCKETS, running};

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if let Some(state) = stored(&ctx)
                && state.counted & SocketState::IN_CLUSTER == 0
                && ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_ok()
                && running::begin(state.cluster)
            {
                state.counted |= SocketState::IN_CLUSTER;
                if state.counted & SocketState::AT_ENDPOINT != 0 && !running::begin_at(&endpoint(state)) {
                    state.counted = SocketState::IN_CLUSTER;
                }
            }
        }
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => {
            if let Some(state) = stored(&ctx)
                && state.counted & SocketState::IN_CLUSTER != 0
            {
                running::end(state.cluster);
                if state.counted & SocketState::AT_ENDPOINT != 0 {
                    running::end_at(&endpoint(state));
                }
                state.counted = 0;
            }
        }
        _ => {}
    }
    1
}

#[inline(always)]
fn endpoint(state: &SocketState) -> EndpointKey {
    EndpointKey::new(state.cluster, state.target, state.target_port)
}

/// The record of the socket, if it was redirected.
#[inline(always)]
fn stored(ctx: &SockOpsContext) -> Option<&mut SocketState> {
    // SAFETY: the kernel hands a valid context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    let map = (&raw const SOCKETS).cast_mut().cast();
    // SAFETY: a socket of the kernel's; without flags nothing is made. The storage lives as long as the
    // socket, and no other program of the socket runs at the same time: it is locked.
    unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast::<SocketState>().as_mut() }
}
