//! connect4 and connect6: a connect to a VIP goes to an endpoint.
//!
//! connect6 also sees IPv4-mapped addresses, which no connect4 program sees.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_prandom_u32, generated::bpf_set_retval},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use slotmesh_records::{
    AffinityKey, ConnectionEnding, Family, Identity, NO_LIMIT, SlotPtr, SocketState, VipKey, balance,
    source_hash,
};

use crate::{
    buckets, connection_ends, datagram,
    lookup::{Choice, Found, Numbers, Proxied, Target, look_up},
    maps::IDENTITY,
    network,
    outliers::Outcome,
    running::{self, Begun},
    socket::{self, Recorded},
    to_proxy,
};

pub const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

#[cgroup_sock_addr(connect4)]
#[inline(always)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    if is_foreign(&ctx) {
        return ALLOW;
    }
    // SAFETY: the kernel hands a valid context; these fields may be read and written in this hook.
    let addr = unsafe { &mut *ctx.sock_addr };
    let vip = VipKey::from_v4(addr.user_ip4, addr.user_port as u16, addr.protocol as u8);
    let Some(verdict) = decide(&ctx, &vip, Family::V4, bound4, |target| {
        addr.user_ip4 = target.addr[3];
        addr.user_port = u32::from(target.port);
    }) else {
        return ALLOW;
    };
    verdict
}

#[cgroup_sock_addr(connect6)]
#[inline(always)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if is_foreign(&ctx) {
        return ALLOW;
    }
    // SAFETY: as in connect4.
    let addr = unsafe { &mut *ctx.sock_addr };
    let vip = VipKey {
        addr: read_ip6(addr),
        port: addr.user_port as u16,
        protocol: addr.protocol as u8,
        reserved: 0,
    };
    let family = if vip.is_v4() { Family::V4 } else { Family::V6 };
    let Some(verdict) = decide(&ctx, &vip, family, bound6, |target| {
        write_ip6(addr, target.addr);
        addr.user_port = u32::from(target.port);
    }) else {
        return ALLOW;
    };
    verdict
}

/// Whether the socket is of another network namespace than its pod. Asked first: the verifier would follow the search
/// for each sort of address that it tells apart.
#[inline(always)]
pub fn is_foreign(ctx: &SockAddrContext) -> bool {
    // SAFETY: the storage of this program's attachment is always there.
    unsafe { network::is_foreign(ctx, IDENTITY.get_ptr_mut()) }
}

/// `None` where the connect isn't ours.
#[inline(always)]
fn decide(
    ctx: &SockAddrContext,
    vip: &VipKey,
    family: Family,
    bound: impl Fn(&bpf_sock) -> [u32; 4],
    redirect: impl FnOnce(&Target),
) -> Option<i32> {
    if vip.protocol == VipKey::UDP {
        return datagram::connect(vip, &Connecting { ctx, vip, family, bound }, redirect);
    }
    let Recorded::At(stored) = socket::find(ctx, vip.protocol) else { return None };
    // SAFETY: it lives as long as the socket.
    if let Some(state) = unsafe { stored.as_ref() } {
        if state.target_port == vip.port && state.target == vip.addr && state.mark() != identity().mark() {
            // The program of a cgroup further down has redirected it, and runs first: it has decided, and
            // getpeername is to answer with what was asked for then.
            return None;
        }
        // The kernel lets no socket that is connected connect: its earlier connection is over.
        // SAFETY: as above.
        unsafe {
            running::release(
                stored,
                true,
                |_| Outcome::Unknown,
                |record, since| {
                    connection_ends::ended_anew(record.cluster, record.mark(), since);
                },
            );
        };
    }
    let target = match look_up(vip, family, &Connecting { ctx, vip, family, bound }) {
        Found::Target(target) => target,
        Found::Refuse => return Some(refuse()),
        Found::Nowhere => {
            count_refusal(0, ConnectionEnding::NoEndpoint, vip);
            return Some(refuse());
        }
        Found::Pass => {
            if !stored.is_null() {
                // A socket that was redirected once and now goes elsewhere must not answer with its
                // old VIP.
                if socket::remove(ctx, vip.protocol) {
                    running::forget();
                }
            }
            return None;
        }
    };
    // What goes to the proxy counts where the proxy connects to.
    let counted = if target.cluster == 0 {
        None
    } else {
        match running::begin(target.cluster, target.max_connections) {
            Begun::Counts(counted) => Some(counted),
            Begun::Full => {
                count_refusal(target.cluster, ConnectionEnding::Full, vip);
                return Some(refuse());
            }
            Begun::Uncounted => {
                running::uncounted();
                if target.max_connections != NO_LIMIT {
                    count_refusal(target.cluster, ConnectionEnding::NoRoom, vip);
                    return Some(refuse());
                }
                None
            }
        }
    };
    let mark = u64::from(identity().mark()) << 32;
    let mut state = SocketState {
        original: *vip,
        target_port: target.port,
        counted: counted.unwrap_or(0),
        is_closed: 0,
        target: target.addr,
        cluster: target.cluster,
        counting: mark,
    };
    let stored = if stored.is_null() { remember(ctx, &mut state) } else { stored };
    // SAFETY: as above.
    let Some(record) = (unsafe { stored.as_mut() }) else {
        running::unrecorded();
        if let Some(counted) = counted {
            running::end(target.cluster, counted);
        }
        if target.max_connections != NO_LIMIT {
            // What isn't remembered can't be counted down: a limit lets nothing pass that it can't count.
            count_refusal(target.cluster, ConnectionEnding::NoRoom, vip);
            return Some(refuse());
        }
        redirect(&target);
        return Some(ALLOW);
    };
    if counted.is_some() && target.counts & SocketState::AT_ENDPOINT != 0 {
        if running::begin_at(&running::endpoint(&state)) {
            state.counted |= SocketState::AT_ENDPOINT;
        } else {
            running::uncounted();
        }
    }
    if counted.is_some() {
        state.counted |= target.counts & SocketState::WATCHED;
    }
    *record = state;
    if counted.is_some() {
        // Last: whoever finds it set finds the rest written.
        let counting = mark | u64::from(running::tick());
        // SAFETY: a word of the record, which nobody else changes while it doesn't count.
        unsafe { running::compare_and_swap(&raw mut record.counting, mark, counting) };
    }
    redirect(&target);
    Some(ALLOW)
}

/// Counts a connection that is refused.
#[inline(always)]
fn count_refusal(cluster: u64, ending: ConnectionEnding, vip: &VipKey) {
    if vip.protocol != VipKey::TCP {
        return;
    }
    let [a, b, c, d] = vip.addr;
    let both = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let of = u64::from(identity().mark()) << 32 | ending as u64;
    connection_ends::refused(cluster, of);
    connection_ends::tell_refusal(cluster, of, both(a, b), both(c, d), vip.port.into());
}

#[inline(always)]
pub fn refuse() -> i32 {
    // SAFETY: the helper has no preconditions; with a refusal it sets what connect returns.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    DENY
}

/// Makes the record of a socket; null where there is no room for it.
#[inline(always)]
fn remember(ctx: &SockAddrContext, state: &mut SocketState) -> *mut SocketState {
    if !running::record() {
        return core::ptr::null_mut();
    }
    let stored = socket::make(ctx, state);
    if stored.is_null() {
        running::forget();
    }
    stored
}

/// A connection that is being made.
pub struct Connecting<'c, B> {
    pub ctx: &'c SockAddrContext,
    /// The address that is asked for.
    pub vip: &'c VipKey,
    pub family: Family,
    /// Reads the address that the socket is bound to.
    pub bound: B,
}

impl<B: Fn(&bpf_sock) -> [u32; 4]> Numbers for Connecting<'_, B> {
    #[inline(always)]
    fn cluster(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn endpoint(&self, choice: &Choice) -> u32 {
        match choice.balance {
            balance::ROUND_ROBIN => {
                running::turn(choice.cluster, choice.count, choice.weighted).unwrap_or_else(random)
            }
            balance::HASH => self.source(),
            _ => random(),
        }
    }

    #[inline(always)]
    fn other(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn affinity(&self, cluster: u64) -> Option<AffinityKey> {
        Some(AffinityKey::new(identity().workload, cluster, self.family))
    }

    #[inline(always)]
    fn admits(&self, guard: SlotPtr, cluster: u64) -> bool {
        buckets::admit(guard.bits(), cluster, identity().workload) != 0
    }

    #[inline(always)]
    fn refuse(&self, cluster: u64, ending: ConnectionEnding) {
        count_refusal(cluster, ending, self.vip);
    }

    #[inline(always)]
    fn proxy(&self) -> Proxied {
        to_proxy::proxy(self.ctx, self.family, &self.bound)
    }

    #[inline(always)]
    fn classes(&self) -> [u64; 2] {
        let identity = identity();
        [identity.class, identity.namespace]
    }
}

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_prandom_u32() }
}

impl<B: Fn(&bpf_sock) -> [u32; 4]> Connecting<'_, B> {
    /// The number of the connection's source.
    #[inline(always)]
    fn source(&self) -> u32 {
        // SAFETY: the kernel hands a valid context, with the socket that connects.
        let bound = (self.bound)(unsafe { &*(*self.ctx.sock_addr).__bindgen_anon_1.sk });
        let [a, b, c, d] = bound;
        let any = match self.family {
            Family::V4 => d == 0,
            Family::V6 => a | b | c | d == 0,
        };
        source_hash(if any { identity().source() } else { bound })
    }
}

/// Who connects.
#[inline(always)]
pub fn identity() -> Identity {
    // SAFETY: the storage of this program's attachment is always there.
    unsafe { *IDENTITY.get_ptr_mut() }
}

/// The address that an IPv4 socket is bound to, mapped into IPv6.
#[inline(always)]
pub fn bound4(sk: &bpf_sock) -> [u32; 4] {
    // SAFETY: a word of the socket that the kernel lets be read.
    VipKey::from_v4(unsafe { (&raw const sk.src_ip4).read_volatile() }, 0, 0).addr
}

/// The address that an IPv6 socket is bound to.
#[inline(always)]
pub fn bound6(sk: &bpf_sock) -> [u32; 4] {
    read_words((&raw const sk.src_ip6).cast())
}

#[inline(always)]
pub fn read_ip6(addr: &bpf_sock_addr) -> [u32; 4] {
    read_words((&raw const addr.user_ip6).cast())
}

/// An IPv6 address of a context: the kernel accepts word-wise access to it only; volatile keeps the compiler
/// from merging the loads.
#[inline(always)]
fn read_words(words: *const u32) -> [u32; 4] {
    // SAFETY: four words within a context.
    unsafe {
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}

/// See `read_words`.
#[inline(always)]
pub fn write_ip6(addr: &mut bpf_sock_addr, ip: [u32; 4]) {
    let words = (&raw mut addr.user_ip6).cast::<u32>();
    // SAFETY: four words within the context.
    unsafe {
        words.write_volatile(ip[0]);
        words.add(1).write_volatile(ip[1]);
        words.add(2).write_volatile(ip[2]);
        words.add(3).write_volatile(ip[3]);
    }
}
