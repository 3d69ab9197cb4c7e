//! Flows: to which endpoint a socket of UDP sends what it sends to a VIP, until the endpoint goes.
//!
//! They lie in the socket's storage and end with it, so no socket takes room from another one. What is read of them
//! may be written by another thread at the same time: see [`Flow`].

use core::ptr;

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::{bpf_get_smp_processor_id, generated::bpf_sk_storage_get},
    programs::SockAddrContext,
};
use bytemuck::Zeroable as _;
use slotmesh_records::{Flow, FlowTotals, SocketFlows, VipKey};

use crate::{
    lookup::{Target, fold, forget},
    maps::{FLOW_TOTALS, FLOWS},
    running,
};

/// A flow that was looked for.
#[derive(Clone, Copy)]
pub struct Looked {
    /// Its place; above all places where it isn't there.
    place: usize,
    /// The flow; all zero where what stands there isn't whole.
    pub flow: Flow,
}

/// Above all places.
const NOWHERE: usize = SocketFlows::CONNECTED + 1;

impl Looked {
    /// `true` where it was found.
    #[inline(always)]
    pub const fn is_found(&self) -> bool {
        self.flow.vip.port != 0
    }
}

/// The flows of the context's socket; null where it has none.
#[inline(always)]
pub fn of(ctx: &SockAddrContext) -> *mut SocketFlows {
    // SAFETY: the context's socket is valid in these hooks.
    unsafe { FLOWS.get_ptr_mut(ctx) }
}

/// The flow of the socket to a VIP.
///
/// # Safety
/// `flows` is null or valid for this run.
#[inline(always)]
pub unsafe fn to(flows: *mut SocketFlows, vip: &VipKey) -> Looked {
    // SAFETY: the caller vouches for the pointer.
    let is = |flow: *const Flow| unsafe {
        (&raw const (*flow).vip.port).read_volatile() == vip.port
            && words(&raw const (*flow).vip.addr) == vip.addr
    };
    // SAFETY: as above. There are flows of UDP only.
    unsafe { find(flows, u32::from(vip.port), is) }
}

/// The flow whose endpoint this is.
///
/// # Safety
/// As for [`to`].
#[inline(always)]
pub unsafe fn from(flows: *mut SocketFlows, addr: [u32; 4], port: u16) -> Looked {
    // SAFETY: the caller vouches for the pointer.
    let is = |flow: *const Flow| unsafe {
        (&raw const (*flow).port).read_volatile() == port
            && (&raw const (*flow).vip.port).read_volatile() != 0
            && words(&raw const (*flow).addr) == addr
    };
    // SAFETY: as above.
    unsafe { find(flows, u32::from(port), is) }
}

/// The flow of which this is true: that used last goes before the one to which the socket is connected, this before
/// the others. `unknown` is a number that the verifier doesn't know: it is to follow one flow that was found, not each
/// of them.
#[inline(always)]
unsafe fn find(flows: *mut SocketFlows, unknown: u32, is: impl Fn(*const Flow) -> bool) -> Looked {
    let mut looked = Looked { place: NOWHERE, flow: Flow::zeroed() };
    if flows.is_null() {
        return looked;
    }
    let mut found = NOWHERE;
    // SAFETY: the caller vouches for the pointer; the numbers are bounded.
    unsafe {
        let mut i = SocketFlows::CONNECTED + 1;
        while i > 0 {
            i -= 1;
            if is(at(flows, i)) {
                found = i;
                if i == SocketFlows::CONNECTED {
                    break;
                }
            }
        }
        let last = usize::from((&raw const (*flows).last).read_volatile());
        if last < NOWHERE && is(at(flows, last)) {
            found = last;
        }
        found = forget(found as u32, unknown) as usize;
        if found < NOWHERE {
            let flow = at(flows, found).read_volatile();
            looked.place = found;
            if flow.is_whole() {
                looked.flow = flow;
            }
        }
    }
    looked
}

/// The place with this number.
///
/// # Safety
/// The number is below [`NOWHERE`].
#[inline(always)]
unsafe fn at(flows: *mut SocketFlows, i: usize) -> *mut Flow {
    // SAFETY: the caller has bounded the number.
    unsafe { flows.cast::<Flow>().add(i) }
}

#[inline(always)]
unsafe fn words(at: *const [u32; 4]) -> [u32; 4] {
    let at = at.cast::<u32>();
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()]
    }
}

/// The flows of the socket, made where it has none; null where there is no room.
#[inline(always)]
pub fn make(ctx: &SockAddrContext) -> *mut SocketFlows {
    for made in 0..SocketFlows::PLACES {
        if !running::record() {
            for _ in 0..made {
                running::forget();
            }
            count(|totals| &raw mut totals.unrecorded);
            return ptr::null_mut();
        }
    }
    // SAFETY: the context's socket is valid in these hooks. It begins as zeroes.
    let made = unsafe {
        let sk: *mut bpf_sock = (*ctx.sock_addr).__bindgen_anon_1.sk;
        let map = (&raw const FLOWS).cast_mut().cast();
        bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into())
    };
    if made.is_null() {
        give_back();
        count(|totals| &raw mut totals.unrecorded);
    }
    made.cast()
}

/// The flows of a socket are gone.
#[inline(always)]
pub fn give_back() {
    for _ in 0..SocketFlows::PLACES {
        running::forget();
    }
}

/// A datagram to a VIP goes to this endpoint.
///
/// # Safety
/// `flows` is valid for this run.
#[inline(always)]
pub unsafe fn use_flow(flows: *mut SocketFlows, looked: &Looked, flow: &Flow) {
    let mut place = looked.place;
    // SAFETY: the caller vouches for the pointer; the numbers are bounded.
    unsafe {
        if place < NOWHERE {
            if looked.flow.check == flow.check {
                // What was asked last answers, where two VIPs have one endpoint.
                let last = &raw mut (*flows).last;
                if last.read_volatile() != place as u16 {
                    last.write_volatile(place as u16);
                }
                return;
            }
            if looked.is_found() && (looked.flow.addr != flow.addr || looked.flow.port != flow.port) {
                count(|totals| &raw mut totals.moved);
            }
        } else {
            let next = &raw mut (*flows).next;
            // After the last the first. The verifier doesn't follow a remainder.
            place = next.read_volatile() as usize;
            if place >= SocketFlows::FLOWS {
                place = 0;
            }
            next.write_volatile(place as u32 + 1);
            if (&raw const (*at(flows, place)).vip.port).read_volatile() != 0 {
                count(|totals| &raw mut totals.evicted);
            }
            count(|totals| &raw mut totals.opened);
        }
        at(flows, place).write_volatile(*flow);
        (&raw mut (*flows).last).write_volatile(place as u16);
    }
}

/// The socket is connected to this endpoint of a VIP.
///
/// # Safety
/// `flows` is valid for this run.
#[inline(always)]
pub unsafe fn connect(flows: *mut SocketFlows, flow: &Flow) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        at(flows, SocketFlows::CONNECTED).write_volatile(*flow);
        (&raw mut (*flows).last).write_volatile(SocketFlows::CONNECTED as u16);
    }
    count(|totals| &raw mut totals.opened);
}

/// `true` where the program of another workload connected the socket to this endpoint.
///
/// # Safety
/// As for [`connect`].
#[inline(always)]
pub unsafe fn is_connected_by_another(flows: *mut SocketFlows, to: &VipKey, caller: u16) -> bool {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        let flow = at(flows, SocketFlows::CONNECTED);
        (&raw const (*flow).caller).read_volatile() != caller
            && (&raw const (*flow).port).read_volatile() == to.port
            && words(&raw const (*flow).addr) == to.addr
    }
}

/// The socket is connected to no VIP.
///
/// # Safety
/// As for [`connect`].
#[inline(always)]
pub unsafe fn disconnect(flows: *mut SocketFlows) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { (&raw mut (*at(flows, SocketFlows::CONNECTED)).vip.port).write_volatile(0) };
}

/// The VIP that the socket is connected to, if it is.
///
/// # Safety
/// As for [`to`].
#[inline(always)]
pub unsafe fn connected(flows: *mut SocketFlows) -> Option<VipKey> {
    if flows.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for the pointer.
    let flow = unsafe { at(flows, SocketFlows::CONNECTED).read_volatile() };
    if flow.is_whole() { Some(flow.vip) } else { None }
}

/// The application asks an endpoint itself: its answers are its own from now on. What a program of a cgroup
/// further down redirected there, which runs first, isn't that; nor is what a connected socket sends, as an IPv6
/// socket that is connected to an IPv4-mapped address names its destination with each datagram.
///
/// # Safety
/// `flows` is null or valid for this run.
#[inline(always)]
pub unsafe fn give_up(flows: *mut SocketFlows, to: &VipKey, caller: u16, is_connected: bool) {
    if flows.is_null() {
        return;
    }
    for i in 0..NOWHERE {
        if i == SocketFlows::CONNECTED && is_connected {
            break;
        }
        // SAFETY: the caller vouches for the pointer; the number is bounded.
        unsafe {
            let flow = at(flows, i);
            if (&raw const (*flow).port).read_volatile() == to.port
                && (&raw const (*flow).caller).read_volatile() == caller
                && words(&raw const (*flow).addr) == to.addr
            {
                (&raw mut (*flow).vip.port).write_volatile(0);
            }
        }
    }
}

/// The flow to a VIP that goes to this endpoint.
#[inline(always)]
pub const fn flow(vip: &VipKey, caller: u16, number: u32, target: &Target) -> Flow {
    let cluster = fold(target.cluster);
    let flow = Flow {
        vip: *vip,
        port: target.port,
        caller,
        addr: target.addr,
        cluster,
        version: target.version,
        number,
        check: 0,
    };
    flow.checked()
}

/// A datagram, or a connect, is refused.
#[inline(always)]
pub fn refused() {
    count(|totals| &raw mut totals.refused);
}

#[inline(always)]
fn count(word: impl Fn(&mut FlowTotals) -> *mut u64) {
    // SAFETY: the helper has no preconditions.
    let lane = unsafe { bpf_get_smp_processor_id() } % FlowTotals::LANES;
    if let Some(totals) = FLOW_TOTALS.get_ptr_mut(lane) {
        // SAFETY: a word of an element.
        unsafe { running::fetch_add(word(&mut *totals), 1) };
    }
}
