//! foreign: a sock_ops program as others attach it, after the kernel's examples: when a socket connects it sets the callback
//! flags that it wants itself, and so clears those that anybody else has set.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB},
    macros::sock_ops,
    programs::SockOpsContext,
};

#[sock_ops]
pub fn foreign(ctx: SockOpsContext) -> u32 {
    if ctx.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        let _ = ctx.set_cb_flags(BPF_SOCK_OPS_RTT_CB_FLAG as i32);
    }
    1
}
