//! The proxy of a network namespace: where connections go whose requests are looked at.
//!
//! It listens at all addresses of 127/8 on one port of the pod's own namespace, so the address to which a connection is
//! sent tells it which routes to follow. Where the agent has named no proxy, nothing but a counter changes.
//!
//! An IPv6 socket is sent to the address mapped into IPv6, which the kernel takes for one of IPv4 unless the socket is for
//! IPv6 only or bound to an address of it; one that is bound to a device doesn't reach the loopback interface.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_smp_processor_id, bpf_skc_to_tcp6_sock},
    programs::SockAddrContext,
};
use slotmesh_records::{Family, ProxyTotals, VipKey, fields::NSPROXY};

use crate::{
    kernel::field,
    lookup::Proxied,
    maps::{PROXIES, PROXY_TOTALS},
    running::fetch_add,
    socket::STATE_AT,
};

/// The byte of `struct sock_common` behind that of the state: `skc_reuse:4, skc_reuseport:1, skc_ipv6only:1`.
const BITS_AT: usize = STATE_AT + 1;
const IPV6_ONLY: u8 = 1 << 5;

/// Where requests of the socket that connects are looked at. `bound` is the address that the socket is bound to.
#[inline(always)]
pub fn proxy(ctx: &SockAddrContext, family: Family, bound: impl Fn(&bpf_sock) -> [u32; 4]) -> Proxied {
    // SAFETY: the kernel hands a valid context, with the socket that connects.
    let (protocol, sk) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).__bindgen_anon_1.sk) };
    if protocol != u32::from(VipKey::TCP) {
        return Proxied::No;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let Some(proxy) = PROXIES.get_ptr(&cookie) else {
        count(|totals| &raw mut totals.absent);
        return Proxied::No;
    };
    // SAFETY: a word of the element; should it become another namespace's, then this one's is gone just now.
    let port = unsafe { (&raw const (*proxy).port).read_volatile() };
    if port == 0 {
        count(|totals| &raw mut totals.refused);
        return Proxied::Refused;
    }
    // SAFETY: as above; a word that the kernel lets be read.
    let device = unsafe { (&raw const (*sk).bound_dev_if).read_volatile() };
    if device != 0 || family == Family::V6 && !reaches_ipv4(sk, bound) {
        count(|totals| &raw mut totals.unreachable);
        return Proxied::No;
    }
    count(|totals| &raw mut totals.sent);
    Proxied::At(port)
}

/// Tells a socket of IPv6 that was to connect to an IPv6 address, and can connect to one of IPv4 as well.
#[inline(always)]
fn reaches_ipv4(sk: *mut bpf_sock, bound: impl Fn(&bpf_sock) -> [u32; 4]) -> bool {
    // SAFETY: a valid socket.
    let [a, b, c, d] = bound(unsafe { &*sk });
    if a | b | c | d != 0 {
        return false;
    }
    // Without the kernel's types this isn't known, and the connect fails as the socket's owner wants.
    if field(NSPROXY) == 0 {
        return true;
    }
    // The kernel lets a byte be read of the socket that it is, not of what a hook is shown.
    // SAFETY: a valid socket; null where it is none of TCP.
    let socket = unsafe { bpf_skc_to_tcp6_sock(sk.cast()) };
    // SAFETY: a socket of whatever kind begins with these bytes.
    !socket.is_null() && unsafe { socket.cast::<u8>().add(BITS_AT).read_volatile() } & IPV6_ONLY == 0
}

#[inline(always)]
fn count(word: impl FnOnce(&mut ProxyTotals) -> *mut u64) {
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } % ProxyTotals::LANES;
    if let Some(totals) = PROXY_TOTALS.get_ptr_mut(lane) {
        // SAFETY: a word of an element.
        unsafe { fetch_add(word(&mut *totals), 1) };
    }
}
