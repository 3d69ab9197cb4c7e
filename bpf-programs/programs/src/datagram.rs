//! sendmsg4/6 and recvmsg4/6: a datagram to a VIP goes to an endpoint, and the answer comes from the VIP. And what
//! connect does with a socket of UDP, after which no program runs for what it sends.
//!
//! A datagram of an IPv6 socket to an IPv4-mapped address runs sendmsg4, one that comes to it recvmsg6.

use aya_ebpf::{
    bindings::{BPF_TCP_ESTABLISHED, bpf_sock},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use slotmesh_records::{AffinityKey, Family, Flow, VipKey};

use crate::{
    connect::{ALLOW, Connecting, bound4, bound6, identity, is_foreign, random, read_ip6, refuse, write_ip6},
    flows::{self, Looked},
    lookup::{Choice, Found, Numbers, Sticky, Target, look_up},
};

#[cgroup_sock_addr(sendmsg4)]
#[inline(always)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    if is_foreign(&ctx) {
        return ALLOW;
    }
    // SAFETY: the kernel hands a valid context; these fields may be read and written in this hook.
    let addr = unsafe { &mut *ctx.sock_addr };
    let vip = VipKey::from_v4(addr.user_ip4, addr.user_port as u16, addr.protocol as u8);
    let verdict = send(&ctx, &vip, Family::V4, bound4, |target| {
        addr.user_ip4 = target.addr[3];
        addr.user_port = u32::from(target.port);
    });
    verdict.unwrap_or(ALLOW)
}

#[cgroup_sock_addr(sendmsg6)]
#[inline(always)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_foreign(&ctx) {
        return ALLOW;
    }
    // SAFETY: as in sendmsg4.
    let addr = unsafe { &mut *ctx.sock_addr };
    let vip = VipKey {
        addr: read_ip6(addr),
        port: addr.user_port as u16,
        protocol: addr.protocol as u8,
        reserved: 0,
    };
    let verdict = send(&ctx, &vip, Family::V6, bound6, |target| {
        write_ip6(addr, target.addr);
        addr.user_port = u32::from(target.port);
    });
    verdict.unwrap_or(ALLOW)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in sendmsg4.
    let addr = unsafe { &mut *ctx.sock_addr };
    let from = VipKey::from_v4(addr.user_ip4, addr.user_port as u16, 0);
    if let Some(vip) = asked(&ctx, &from) {
        addr.user_ip4 = vip.addr[3];
        addr.user_port = u32::from(vip.port);
    }
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as in sendmsg4.
    let addr = unsafe { &mut *ctx.sock_addr };
    let from = VipKey { addr: read_ip6(addr), port: addr.user_port as u16, protocol: 0, reserved: 0 };
    if let Some(vip) = asked(&ctx, &from) {
        write_ip6(addr, vip.addr);
        addr.user_port = u32::from(vip.port);
    }
    ALLOW
}

/// The VIP that was asked, where an endpoint answers.
#[inline(always)]
fn asked(ctx: &SockAddrContext, from: &VipKey) -> Option<VipKey> {
    // SAFETY: the storage lives as long as the socket, which is valid in these hooks.
    let looked = unsafe { flows::from(flows::of(ctx), from.addr, from.port) };
    if looked.is_found() { Some(looked.flow.vip) } else { None }
}

/// `None` where the datagram isn't ours.
#[inline(always)]
fn send(
    ctx: &SockAddrContext,
    vip: &VipKey,
    family: Family,
    bound: impl Fn(&bpf_sock) -> [u32; 4],
    redirect: impl FnOnce(&Target),
) -> Option<i32> {
    if vip.protocol != VipKey::UDP {
        return None;
    }
    let stored = flows::of(ctx);
    // SAFETY: the storage lives as long as the socket, which is valid in these hooks.
    let looked = unsafe { flows::to(stored, vip) };
    let sending = Sending::new(Connecting { ctx, vip, family, bound }, &looked);
    let target = match look_up(vip, family, &sending) {
        Found::Target(target) => target,
        Found::Refuse | Found::Nowhere => {
            flows::refused();
            return Some(refuse());
        }
        Found::Pass => {
            // SAFETY: as above.
            unsafe { flows::give_up(stored, vip, identity().caller(), is_connected(ctx)) };
            return None;
        }
    };
    let stored = if stored.is_null() { flows::make(ctx) } else { stored };
    if stored.is_null() {
        // Answers would come from an address that nobody asked: it is kube-proxy's.
        return None;
    }
    let flow = flows::flow(vip, identity().caller(), sending.number, &target);
    // SAFETY: as above.
    unsafe { flows::use_flow(stored, &looked, &flow) };
    redirect(&target);
    Some(ALLOW)
}

/// `true` where the socket is connected: then the kernel has it in the state of a TCP connection.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context's socket is valid in this hook; a word of it that the kernel lets be read.
    unsafe {
        (&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).state).read_volatile() == BPF_TCP_ESTABLISHED
    }
}

/// The connect of a socket of UDP: `None` where it isn't ours. Each chooses an endpoint, as a connect of TCP does.
#[inline(always)]
pub fn connect<B: Fn(&bpf_sock) -> [u32; 4]>(
    vip: &VipKey,
    connecting: &Connecting<'_, B>,
    redirect: impl FnOnce(&Target),
) -> Option<i32> {
    let (ctx, caller) = (connecting.ctx, identity().caller());
    let target = match look_up(vip, connecting.family, connecting) {
        Found::Target(target) => target,
        Found::Refuse | Found::Nowhere => {
            // The kernel leaves the socket as it was.
            flows::refused();
            return Some(refuse());
        }
        Found::Pass => {
            let stored = flows::of(ctx);
            // SAFETY: as in `send`. A program of a cgroup further down may have redirected it: it runs first.
            unsafe {
                if !stored.is_null() && !flows::is_connected_by_another(stored, vip, caller) {
                    flows::disconnect(stored);
                    flows::give_up(stored, vip, caller, false);
                }
            }
            return None;
        }
    };
    let stored = flows::of(ctx);
    let stored = if stored.is_null() { flows::make(ctx) } else { stored };
    if stored.is_null() {
        return None;
    }
    // SAFETY: as in `send`.
    unsafe { flows::connect(stored, &flows::flow(vip, caller, random(), &target)) };
    redirect(&target);
    Some(ALLOW)
}

/// A datagram that is being sent.
struct Sending<'c, B> {
    connecting: Connecting<'c, B>,
    /// Chooses the cluster: always the same one of a flow.
    number: u32,
    sticky: Sticky,
}

impl<'c, B> Sending<'c, B> {
    #[inline(always)]
    fn new(connecting: Connecting<'c, B>, looked: &Looked) -> Self {
        let Flow { vip: _, port, caller: _, addr, cluster, version, number, check: _ } = looked.flow;
        let number = if looked.is_found() { number } else { random() };
        Self { connecting, number, sticky: Sticky { addr, port, cluster, version } }
    }
}

impl<B: Fn(&bpf_sock) -> [u32; 4]> Numbers for Sending<'_, B> {
    #[inline(always)]
    fn cluster(&self) -> u32 {
        self.number
    }

    #[inline(always)]
    fn endpoint(&self, choice: &Choice) -> u32 {
        self.connecting.endpoint(choice)
    }

    #[inline(always)]
    fn other(&self) -> u32 {
        self.connecting.other()
    }

    #[inline(always)]
    fn affinity(&self, cluster: u64) -> Option<AffinityKey> {
        self.connecting.affinity(cluster)
    }

    #[inline(always)]
    fn sticky(&self) -> Sticky {
        self.sticky
    }

    #[inline(always)]
    fn classes(&self) -> [u64; 2] {
        self.connecting.classes()
    }
}
