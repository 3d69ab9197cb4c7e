//! VIP -> listener -> chain -> route -> cluster -> endpoint: the one look-up that all programs share.
//!
//! Each handle is loaded exactly once a run, by one volatile load, so a run sees the whole old or the
//! whole new version of each resource. Every step is O(1): alias tables for clusters and endpoints, a table of
//! sources, a cuckoo table for virtual hosts, binary searches of at most nine
//! steps among filter chains and classes of callers.
//! A pointer or count that doesn't fit its slab ends the look-up with a refusal; it never reads past
//! the slab. A handle without a version ends it, too: of a resource that has never been in force (it was
//! refused, or there was no room for it) nothing is known, and the connection goes where it went before.

mod chains;
mod endpoint_choice;

use core::{arch::asm, mem::offset_of};

use slotmesh_records::{
    Action, AffinityKey, Cluster, ClusterRange, ClusterSet, ConnectionEnding, Endpoints, Family, Handle,
    Host, HostChunk, HostIndex, Listener, NO_LIMIT, Record, RecordHeader, Route, SlotPtr, SocketState,
    VipKey, VipValue, WeightedCluster, balance, choose, proxy_address,
};

pub use self::endpoint_choice::of_family;
use self::{
    chains::chain,
    endpoint_choice::{Chosen, endpoint},
};
use crate::{
    affinity::{self, Kept},
    outliers,
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
    /// The name hash of the chosen cluster; 0 where it goes to the proxy, which chooses.
    pub cluster: u64,
    /// Half of the content hash of the endpoints; 0 where these have none.
    pub version: u32,
    /// The most connections that it may have.
    pub max_connections: u32,
    /// [`SocketState::AT_ENDPOINT`] where its endpoint is to count it, and [`SocketState::WATCHED`] where it matters that
    /// the connect may fail.
    pub counts: u8,
}

/// The proxy that looks at the requests of a connection.
pub enum Proxied {
    /// Nobody does: the connection is followed.
    No,
    /// Somebody should, and doesn't.
    Refused,
    /// The one at this port, network order.
    At(u16),
}

/// The endpoint that a flow keeps to for as long as it is there.
#[derive(Clone, Copy)]
pub struct Sticky {
    /// Its address, network order.
    pub addr: [u32; 4],
    /// Its port, network order.
    pub port: u16,
    /// Half of the name hash of its cluster, see [`fold`].
    pub cluster: u32,
    /// [`Target::version`], where it was found.
    pub version: u32,
}

/// What the look-up found.
pub enum Found {
    /// Not an address of ours.
    Pass,
    /// Ours, and its cluster has nothing to connect to: [`Numbers::refuse`] was told.
    Refuse,
    /// Ours, and leads to no cluster.
    Nowhere,
    /// An endpoint.
    Target(Target),
}

/// The numbers by which a connection chooses. Each is asked for at most once.
pub trait Numbers {
    /// A random number, for the route's clusters.
    fn cluster(&self) -> u32;

    /// The number for a cluster's endpoints.
    fn endpoint(&self, choice: &Choice) -> u32;

    /// A random number, for the endpoint that may be taken instead.
    fn other(&self) -> u32;

    /// Whose connections to a cluster keep to an endpoint; `None` where nobody's do.
    #[inline(always)]
    fn affinity(&self, _cluster: u64) -> Option<AffinityKey> {
        None
    }

    /// The endpoint that is kept to; of port 0 where that is nothing.
    #[inline(always)]
    fn sticky(&self) -> Sticky {
        Sticky { addr: [0; 4], port: 0, cluster: 0, version: 0 }
    }

    /// Whether a cluster with this guard may have one connection more now.
    #[inline(always)]
    fn admits(&self, _guard: SlotPtr, _cluster: u64) -> bool {
        true
    }

    /// Told that a connection to a cluster is refused, and why.
    #[inline(always)]
    fn refuse(&self, _cluster: u64, _ending: ConnectionEnding) {}

    /// Asked where requests are looked at.
    #[inline(always)]
    fn proxy(&self) -> Proxied {
        Proxied::No
    }

    /// The classes of who connects, the narrower first: only asked for where a listener tells callers apart.
    fn classes(&self) -> [u64; 2];
}

/// A choice among the endpoints of a cluster.
pub struct Choice {
    /// The name hash of the cluster.
    pub cluster: u64,
    /// How to choose, see [`balance`].
    pub balance: u32,
    /// How many there are; not 0.
    pub count: u32,
    /// Whether they differ in weight.
    pub weighted: bool,
}

/// Looks up where a connection to `vip` goes.
#[inline(always)]
pub fn look_up(vip: &VipKey, family: Family, numbers: &impl Numbers) -> Found {
    let listener = match listener_at(vip) {
        Some(listener) => listener,
        None => {
            let [a, b, c, d] = vip.addr;
            let high = u64::from(a) << 32 | u64::from(b);
            let low = u64::from(c) << 32 | u64::from(d);
            let of_node = node_port(high, low, u32::from(vip.port) << 8 | u32::from(vip.protocol));
            if of_node == 0 {
                return Found::Pass;
            }
            SlotPtr::from_bits(of_node)
        }
    };
    match target(listener, vip, family, numbers) {
        Ok(target) => Found::Target(target),
        Err(Nothing::ToKnow) => Found::Pass,
        Err(Nothing::ToTake) => Found::Nowhere,
        Err(Nothing::Refused) => Found::Refuse,
    }
}

/// Why there is no endpoint.
enum Nothing {
    /// A resource on the way has no version.
    ToKnow,
    /// There is none to choose.
    ToTake,
    /// The cluster has none.
    Refused,
}

/// The connection is refused for the cluster's sake.
#[inline(always)]
fn refuse(numbers: &impl Numbers, cluster: u64, ending: ConnectionEnding) -> Nothing {
    numbers.refuse(cluster, ending);
    Nothing::Refused
}

/// What is there to be taken.
#[inline(always)]
fn there<T>(found: Option<T>) -> Result<T, Nothing> {
    found.ok_or(Nothing::ToTake)
}

/// The listener that the VIP map has for a key.
#[inline(always)]
fn listener_at(key: &VipKey) -> Option<SlotPtr> {
    // The kernel may have reused the element for another key while this run looked at it: then the key
    // has been deleted, and perhaps been entered again. Ask once more.
    entry(key)?.listener(key).or_else(|| entry(key)?.listener(key))
}

/// The listener of the NodePort that this is, as a number; 0 where it is none. Only asked for what isn't in the VIP map
/// itself. A function of its own, of numbers only: else the verifier would follow the rest of the program once more.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn node_port(high: u64, low: u64, port_and_protocol: u32) -> u32 {
    let addr = [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32];
    let port = VipKey::node_port(addr, (port_and_protocol >> 8) as u16, port_and_protocol as u8);
    match listener_at(&port) {
        // Most connections go to no port that a node has.
        None => 0,
        Some(listener) => listener_at(&VipKey::node(addr)).map_or(0, |_| listener.bits()),
    }
}

#[inline(always)]
fn entry(vip: &VipKey) -> Option<VipValue> {
    let value = VIPS.get_ptr(vip)?;
    // SAFETY: the helper's pointer is valid for this run; one volatile load takes pointer and tag
    // together, as the element may be reused for another key meanwhile.
    Some(VipValue::from_bits(unsafe { value.read_volatile() }))
}

#[inline(always)]
fn target(
    listener: SlotPtr,
    vip: &VipKey,
    family: Family,
    numbers: &impl Numbers,
) -> Result<Target, Nothing> {
    let at = current(listener)?;
    let listener = there(record::<Listener>(&at))?;
    let action = there(chain(&listener, u16::from_be(vip.port), numbers))?;
    let mut cluster = action.cluster.ptr();
    let mut by_source = false;
    if cluster.is_null() {
        // A weighted TCP route and an HTTP route are the same choice over another part of a set.
        let (set, first, count) = if action.clusters.ptr().is_null() {
            let route = route_of(&action)?;
            if route.proxy != 0 {
                match numbers.proxy() {
                    Proxied::No => {}
                    Proxied::Refused => return Err(Nothing::ToTake),
                    Proxied::At(port) => {
                        return Ok(Target {
                            addr: proxy_address(route.proxy),
                            port,
                            cluster: 0,
                            version: 0,
                            max_connections: NO_LIMIT,
                            counts: 0,
                        });
                    }
                }
            }
            let range = range_of(&route, vip)?;
            (there(Place::of(range.set.ptr()))?, u32::from(range.first), u32::from(range.count))
        } else {
            let set = there(Place::of(action.clusters.ptr()))?;
            let count = there(set.read::<RecordHeader>(0))?.count;
            (set, 0, count)
        };
        let element =
            |i: u32| set.read::<WeightedCluster>(tail::<ClusterSet, WeightedCluster>(first.wrapping_add(i)));
        let (i, fraction) = choose(numbers.cluster(), count);
        let mut chosen = there(element(i))?;
        if fraction >= chosen.threshold {
            chosen = there(element(chosen.alias.into()))?;
        }
        cluster = chosen.cluster.ptr();
        by_source = chosen.by_source != 0;
    }
    let handle = there(Place::of(cluster))?;
    let at = current_of(&handle)?;
    let name = there(handle.read::<u64>(offset_of!(Handle, name_hash)))?;
    let cluster = there(record::<Cluster>(&at))?;
    if cluster.balance == balance::NONE {
        return Err(Nothing::ToKnow);
    }
    let inline = cluster.inline.ptr();
    let root = if inline.is_null() { version_of(cluster.endpoints.ptr())? } else { inline };
    let endpoints = there(Place::of(root))?;
    let head = there(endpoints.read::<Endpoints>(0))?;
    let version = fold(head.header.version);
    // With session affinity a flow keeps to the endpoint of its workload.
    let sticky = numbers.sticky();
    let mut kept = Kept { addr: [0; 4], port: 0 };
    if sticky.port != 0 && sticky.cluster == fold(name) && cluster.affinity == 0 {
        kept = Kept { addr: sticky.addr, port: sticky.port };
    }
    if kept.port != 0 && is_current(&sticky, version) {
        return Ok(Target {
            addr: kept.addr,
            port: kept.port,
            cluster: name,
            version,
            max_connections: cluster.max_connections,
            counts: 0,
        });
    }
    let balance = match cluster.balance {
        balance::HASH_BY_ROUTE if by_source => balance::HASH,
        other => other,
    };
    let chosen = Chosen { name, balance, affinity: cluster.affinity };
    let Some(mut endpoint) = endpoint(&endpoints, &head, family, &chosen, kept, numbers) else {
        return Err(refuse(numbers, name, ConnectionEnding::NoEndpoint));
    };
    let guard = cluster.guard.ptr();
    let mut counts = if balance == balance::LEAST_CONNECTIONS { SocketState::AT_ENDPOINT } else { 0 };
    if !guard.is_null() {
        let asked = u64::from(endpoint.alias) | if let Family::V4 = family { 0 } else { 1 << 32 };
        let found = outliers::healthy(guard.bits(), root.bits(), name, asked);
        if found & outliers::NOBODY != 0 {
            return Err(refuse(numbers, name, ConnectionEnding::NoEndpoint));
        }
        if !numbers.admits(guard, name) {
            return Err(refuse(numbers, name, ConnectionEnding::TooFast));
        }
        if found & outliers::WATCHED != 0 {
            counts |= SocketState::WATCHED;
        }
        if found as u32 != endpoint.alias {
            // In place: there is no room on the stack for another one.
            let at = asked & 1 << 32 | u64::from(found as u32);
            let part = |part| outliers::part_of(root.bits(), at, part);
            let (high, low) = (part(0), part(1));
            endpoint.addr = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
            endpoint.port = part(2) as u16;
            if endpoint.port == 0 {
                return Err(refuse(numbers, name, ConnectionEnding::NoEndpoint));
            }
            if cluster.affinity != 0
                && let Some(key) = numbers.affinity(name)
            {
                // The workload's own is left out: its next connection chooses anew, and keeps to that.
                affinity::remove(&key);
            }
        }
    }
    // All that follows is the same whatever it is.
    let counts = forget(u32::from(counts), u32::from(endpoint.port)) as u8;
    Ok(Target {
        addr: endpoint.addr,
        port: endpoint.port,
        cluster: name,
        version,
        max_connections: cluster.max_connections,
        counts,
    })
}

/// The same number, which has no more bits than the other may have, by way of that one, which the verifier doesn't
/// know. Else it would follow every outcome of every step by itself.
#[inline(always)]
pub fn forget(number: u32, unknown: u32) -> u32 {
    let (mut number, unknown) = (u64::from(number), u64::from(unknown));
    // SAFETY: two exclusive ors with the same number change nothing.
    unsafe {
        asm!("{0} ^= {1}", "{0} ^= {1}", inout(reg) number, in(reg) unknown, options(pure, nomem, nostack));
    }
    number as u32
}

/// The route configuration that a chain follows.
#[inline(always)]
fn route_of(action: &Action) -> Result<Route, Nothing> {
    let inline = action.inline.ptr();
    let at = if inline.is_null() { current(action.route.ptr())? } else { there(Place::of(inline))? };
    there(record::<Route>(&at))
}

/// The clusters that a route configuration has for an address: those of the virtual host that names
/// the address with its port, else without, else of `*`.
#[inline(always)]
fn range_of(route: &Route, vip: &VipKey) -> Result<ClusterRange, Nothing> {
    let index = route.index.ptr();
    if index.is_null() {
        return Ok(route.any);
    }
    let at = there(Place::of(index))?;
    let index = there(record::<HostIndex>(&at))?;
    for port in [vip.port, 0] {
        for place in HostIndex::places(vip.addr, port, index.size, index.seed) {
            let chunk = at.read::<SlotPtr>(tail::<HostIndex, SlotPtr>(place / HostChunk::CAPACITY));
            let chunk = there(Place::of(there(chunk)?))?;
            let host = there(chunk.read::<Host>(tail::<HostChunk, Host>(place % HostChunk::CAPACITY)))?;
            if host.addr == vip.addr && host.port == port && !host.clusters.set.ptr().is_null() {
                return Ok(host.clusters);
            }
        }
    }
    Ok(route.any)
}

/// Half of a hash.
#[inline(always)]
pub const fn fold(hash: u64) -> u32 {
    (hash ^ hash >> 32) as u32
}

/// `true` where the endpoints are still those among which it was found.
#[inline(always)]
const fn is_current(kept: &Sticky, version: u32) -> bool {
    version != 0 && kept.version == version
}

/// The current version behind a handle.
#[inline(always)]
fn current(handle: SlotPtr) -> Result<Place, Nothing> {
    current_of(&there(Place::of(handle))?)
}

#[inline(always)]
fn current_of(handle: &Place) -> Result<Place, Nothing> {
    there(Place::of(handle.load_current().ok_or(Nothing::ToKnow)?))
}

/// The root record of the current version behind a handle.
#[inline(always)]
fn version_of(handle: SlotPtr) -> Result<SlotPtr, Nothing> {
    there(Place::of(handle))?.load_current().ok_or(Nothing::ToKnow)
}

#[inline(always)]
fn record<T: Record>(at: &Place) -> Option<T> {
    at.read::<T>(0)
}
