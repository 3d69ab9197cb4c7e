//! VIP -> listener -> chain -> route -> cluster -> endpoint: the one look-up that all programs share.
//!
//! Each handle is loaded exactly once a run, by one volatile load, so a run sees the whole old or the
//! whole new version of each resource. Every step is O(1): alias tables for clusters and endpoints, a cuckoo
//! table for virtual hosts, a binary search among at most 64 filter chains.
//! A pointer or count that doesn't fit its slab ends the look-up with a refusal; it never reads past
//! the slab.

use core::mem::offset_of;

use slotmesh_records::{
    Action, Chain, Chains, Cluster, ClusterRange, ClusterSet, Endpoint, EndpointChunk, EndpointIndex,
    Endpoints, Family, Handle, Host, HostChunk, HostIndex, Listener, Record, RecordHeader, Route, SlotPtr,
    VipKey, VipValue, WeightedCluster, choose,
};

use crate::{
    place::{Place, tail},
    slabs::VIPS,
};

/// Where a connection goes.
#[derive(Clone, Copy)]
pub struct Target {
    /// The endpoint's address, network order.
    pub addr: [u32; 4],
    /// The endpoint's port, network order.
    pub port: u16,
    /// The name hash of the chosen cluster.
    pub cluster: u64,
    /// The most connections that it may have.
    pub max_connections: u32,
}

/// What the look-up found.
pub enum Found {
    /// Not an address of ours.
    Pass,
    /// Ours, but nothing to connect to.
    Refuse,
    /// An endpoint.
    Target(Target),
}

/// Looks up where a connection to `vip` goes. `random` is asked at most twice: for the cluster, then
/// for the endpoint.
#[inline(always)]
pub fn look_up(vip: &VipKey, family: Family, mut random: impl FnMut(Choice) -> u32) -> Found {
    let Some(value) = entry(vip) else { return Found::Pass };
    // The kernel may have reused the element for another key while this run looked at it: then the key
    // has been deleted, and perhaps been entered again. Ask once more.
    let listener = value.listener(vip).or_else(|| entry(vip)?.listener(vip));
    let Some(listener) = listener else { return Found::Pass };
    match target(listener, vip, family, &mut random) {
        Some(target) => Found::Target(target),
        None => Found::Refuse,
    }
}

#[inline(always)]
fn entry(vip: &VipKey) -> Option<VipValue> {
    let value = VIPS.get_ptr(vip)?;
    // SAFETY: the helper's pointer is valid for this run; one volatile load takes pointer and tag
    // together, as the element may be reused for another key meanwhile.
    Some(VipValue::from_bits(unsafe { value.read_volatile() }))
}

/// What a random number is for.
pub enum Choice {
    /// Which of the route's clusters.
    Cluster,
    /// Which of a cluster's endpoints, of `count` (not 0).
    Endpoint {
        /// The name hash of the cluster.
        cluster: u64,
        /// Its way of choosing, see [`slotmesh_records::balance`].
        balance: u32,
        /// How many there are.
        count: u32,
        /// Whether they differ in weight.
        weighted: bool,
    },
}

#[inline(always)]
fn target(
    listener: SlotPtr,
    vip: &VipKey,
    family: Family,
    random: &mut impl FnMut(Choice) -> u32,
) -> Option<Target> {
    let at = current(listener)?;
    let listener = record::<Listener>(&at)?;
    let action = chain(&listener, u16::from_be(vip.port))?;
    let mut cluster = action.cluster.ptr();
    if cluster.is_null() {
        // A weighted TCP route and an HTTP route are the same choice over another part of a set.
        let (set, first, count) = if action.clusters.ptr().is_null() {
            let range = route(&action, vip)?;
            (Place::of(range.set.ptr())?, u32::from(range.first), u32::from(range.count))
        } else {
            let set = Place::of(action.clusters.ptr())?;
            let count = set.read::<RecordHeader>(0)?.count;
            (set, 0, count)
        };
        let element =
            |i: u32| set.read::<WeightedCluster>(tail::<ClusterSet, WeightedCluster>(first.wrapping_add(i)));
        let (i, fraction) = choose(random(Choice::Cluster), count);
        let mut chosen = element(i)?;
        if fraction >= chosen.threshold {
            chosen = element(chosen.alias)?;
        }
        cluster = chosen.cluster.ptr();
    }
    let handle = Place::of(cluster)?;
    let at = Place::of(handle.load_current()?)?;
    let name = handle.read::<u64>(offset_of!(Handle, name_hash))?;
    let cluster = record::<Cluster>(&at)?;
    let inline = cluster.inline.ptr();
    let endpoints = if inline.is_null() { current(cluster.endpoints.ptr())? } else { Place::of(inline)? };
    let endpoint = endpoint(&endpoints, family, |count, weighted| {
        random(Choice::Endpoint { cluster: name, balance: cluster.balance, count, weighted })
    })?;
    let max_connections = cluster.max_connections;
    Some(Target { addr: endpoint.addr, port: endpoint.port, cluster: name, max_connections })
}

/// What the filter chain of a port does: the one that matches it, else the one that matches all.
#[inline(always)]
fn chain(listener: &Listener, port: u16) -> Option<Action> {
    let chains = listener.chains.ptr();
    if chains.is_null() {
        return Some(listener.any);
    }
    let at = Place::of(chains)?;
    let count = at.read::<RecordHeader>(0)?.count;
    let port_of = |i: u32| at.read::<u16>(tail::<Chains, Chain>(i) + offset_of!(Chain, port));
    // The last chain whose port is not above: a binary search by halving steps.
    let mut found = 0;
    let mut step = Chains::CAPACITY;
    while step > 0 {
        let next = found + step;
        if next < count && port_of(next)? <= port {
            found = next;
        }
        step /= 2;
    }
    if port_of(found)? == port {
        return at.read::<Action>(tail::<Chains, Chain>(found) + offset_of!(Chain, action));
    }
    Some(listener.any)
}

/// The clusters that a route configuration has for an address: those of the virtual host that names
/// the address with its port, else without, else of `*`.
#[inline(always)]
fn route(action: &Action, vip: &VipKey) -> Option<ClusterRange> {
    let inline = action.inline.ptr();
    let at = if inline.is_null() { current(action.route.ptr())? } else { Place::of(inline)? };
    let route = record::<Route>(&at)?;
    let index = route.index.ptr();
    if index.is_null() {
        return Some(route.any);
    }
    let at = Place::of(index)?;
    let index = record::<HostIndex>(&at)?;
    for port in [vip.port, 0] {
        for place in HostIndex::places(vip.addr, port, index.size, index.seed) {
            let chunk = at.read::<SlotPtr>(tail::<HostIndex, SlotPtr>(place / HostChunk::CAPACITY))?;
            let host =
                Place::of(chunk)?.read::<Host>(tail::<HostChunk, Host>(place % HostChunk::CAPACITY))?;
            if host.addr == vip.addr && host.port == port && !host.clusters.set.ptr().is_null() {
                return Some(host.clusters);
            }
        }
    }
    Some(route.any)
}

#[inline(always)]
fn endpoint(at: &Place, family: Family, random: impl FnOnce(u32, bool) -> u32) -> Option<Endpoint> {
    let head = at.read::<Endpoints>(0)?;
    let (first, count, weighted) = match family {
        Family::V4 => (0, head.v4, Endpoints::WEIGHTED_V4),
        Family::V6 => (head.v4, head.v6, Endpoints::WEIGHTED_V6),
    };
    if count == 0 {
        return None;
    }
    let chunked = head.header.kind.get() == EndpointIndex::KIND.get();
    let element = |i: u32| {
        let i = first.wrapping_add(i);
        if chunked {
            let chunk = at.read::<SlotPtr>(tail::<EndpointIndex, SlotPtr>(i / EndpointChunk::CAPACITY))?;
            let chunk = Place::of(chunk)?;
            chunk.read::<Endpoint>(tail::<EndpointChunk, Endpoint>(i % EndpointChunk::CAPACITY))
        } else {
            at.read::<Endpoint>(tail::<Endpoints, Endpoint>(i))
        }
    };
    let (i, fraction) = choose(random(count, head.flags & weighted != 0), count);
    let chosen = element(i)?;
    if fraction < chosen.threshold { Some(chosen) } else { element(chosen.alias) }
}

/// The current version behind a handle.
#[inline(always)]
fn current(handle: SlotPtr) -> Option<Place> {
    Place::of(Place::of(handle)?.load_current()?)
}

#[inline(always)]
fn record<T: Record>(at: &Place) -> Option<T> {
    at.read::<T>(0)
}
