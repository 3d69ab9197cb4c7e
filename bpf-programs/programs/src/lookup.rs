//! VIP -> listener -> route -> cluster -> endpoint: the one look-up that all programs share.
//!
//! Each handle is loaded exactly once a run, by one volatile load, so a run sees the whole old or the
//! whole new version of each resource. Every step is O(1): alias tables for clusters and endpoints.
//! A pointer or count that doesn't fit its slab ends the look-up with a refusal; it never reads past
//! the slab.

use core::mem::{offset_of, size_of};

use slotmesh_records::{
    Cluster, ClusterSet, Endpoint, EndpointChunk, EndpointIndex, Endpoints, Family, Handle, Listener, Record,
    RecordHeader, Route, SlotPtr, VipKey, VipValue, WeightedCluster, choose,
};

use crate::{
    maps::VIPS,
    place::{Place, tail},
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
    match target(listener, family, &mut random) {
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
    /// Which of the cluster's endpoints.
    Endpoint,
}

#[inline(always)]
fn target(listener: SlotPtr, family: Family, random: &mut impl FnMut(Choice) -> u32) -> Option<Target> {
    let at = current(listener)?;
    let listener = record::<Listener>(&at)?;
    let mut cluster = listener.cluster.ptr();
    if cluster.is_null() {
        // A weighted TCP route and an HTTP route are the same choice over another record.
        let at = if listener.clusters.ptr().is_null() {
            current(listener.route.ptr())?
        } else {
            Place::of(listener.clusters.ptr())?
        };
        const { assert!(size_of::<Route>() == size_of::<ClusterSet>()) };
        let count = at.read::<RecordHeader>(0)?.count;
        let element = |i: u32| at.read::<WeightedCluster>(tail::<Route, WeightedCluster>(i));
        let (i, fraction) = choose(random(Choice::Cluster), count);
        let mut chosen = element(i)?;
        if fraction >= chosen.threshold {
            chosen = element(chosen.alias)?;
        }
        cluster = chosen.cluster.ptr();
    }
    let handle = Place::of(cluster)?;
    let at = Place::of(handle.load_current()?)?;
    let cluster = handle.read::<u64>(offset_of!(Handle, name_hash))?;
    let assignment = record::<Cluster>(&at)?.endpoints.ptr();
    let endpoint = endpoint(assignment, family, random)?;
    Some(Target { addr: endpoint.addr, port: endpoint.port, cluster })
}

#[inline(always)]
fn endpoint(assignment: SlotPtr, family: Family, random: &mut impl FnMut(Choice) -> u32) -> Option<Endpoint> {
    let at = current(assignment)?;
    let head = at.read::<Endpoints>(0)?;
    let (first, count) = match family {
        Family::V4 => (0, head.v4),
        Family::V6 => (head.v4, head.v6),
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
    let (i, fraction) = choose(random(Choice::Endpoint), count);
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
