//! The records that lead from an address to clusters: listeners, filter chains, routes.
//!
//! Each choice is O(1) or a binary search with a constant bound: the agent builds the alias tables and
//! the index of virtual hosts.

use bytemuck::{Pod, Zeroable};
use slotmesh_records_derive::{Member, Record};

use crate::{Handle, Owned, Ref, SlotPtr, Text, VipKey, Within, layout::RecordHeader};

/// `envoy.config.listener.v3.Listener`: where the connections of its VIPs go.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 4, tail = Vip)]
#[repr(C)]
pub struct Listener {
    /// Record header.
    pub header: RecordHeader,
    /// The filter chain that matches all connections, or the default one; all null where there is
    /// none.
    pub any: Action,
    /// The chains that match a port, or a caller; null where there are none. A [`Chains`], [`ChainIndex`] or
    /// [`CallerIndex`] record.
    pub chains: Owned<Chains>,
    /// The names of all chains.
    pub names: Owned<Text>,
}

/// A listener of more addresses than fit its slot. Begins like [`Listener`], which is all that programs read of it.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 18, tail = Owned<VipChunk>)]
#[repr(C)]
pub struct WideListener {
    /// Record header.
    pub header: RecordHeader,
    /// As in [`Listener::any`].
    pub any: Action,
    /// As in [`Listener::chains`].
    pub chains: Owned<Chains>,
    /// As in [`Listener::names`].
    pub names: Owned<Text>,
}

impl WideListener {
    /// The most addresses: what the chunks of a full slot hold.
    pub const VIPS: usize = (4096 - size_of::<Self>()) / size_of::<SlotPtr>() * VipChunk::CAPACITY;
}

/// Some of the addresses of a listener.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 19, tail = Vip)]
#[repr(C)]
pub struct VipChunk {
    /// Record header.
    pub header: RecordHeader,
}

impl VipChunk {
    /// Addresses in a full chunk.
    pub const CAPACITY: usize = (4096 - size_of::<Self>()) / size_of::<Vip>();
}

impl Listener {
    /// The most addresses that fit its slot.
    pub const VIPS: usize = (4096 - size_of::<Self>()) / size_of::<Vip>();
}

/// A virtual address of a listener, so that whoever replaces the listener knows which to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Vip {
    /// The key in the VIP map.
    pub key: VipKey,
}

/// Where a filter chain's connections go. At most one is not null; where all are, they are refused.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Action {
    /// The only cluster of a TCP route.
    pub cluster: Ref<Handle>,
    /// The clusters of a weighted TCP route.
    pub clusters: Owned<ClusterSet>,
    /// The route configuration of an HTTP listener.
    pub route: Ref<Handle>,
    /// The route configuration that an HTTP listener has within itself.
    pub inline: Owned<Route>,
}

/// Filter chains that match a destination port, in ascending order of their ports.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 12, tail = Chain)]
#[repr(C)]
pub struct Chains {
    /// Record header.
    pub header: RecordHeader,
}

impl Chains {
    /// Chains in a full slot; programs search in log2 of it steps.
    pub const CAPACITY: u32 = ((4096 - size_of::<Self>()) / size_of::<Chain>()) as u32;
}

/// More filter chains than fit a slot, in ascending order of their ports.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 20, tail = ChainRange)]
#[repr(C)]
pub struct ChainIndex {
    /// Record header.
    pub header: RecordHeader,
}

impl ChainIndex {
    /// Ranges in a full slot: more than the ports need.
    pub const CAPACITY: u32 = ((4096 - size_of::<Self>()) / size_of::<ChainRange>()) as u32;
}

/// Filter chains behind each other.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct ChainRange {
    /// The port of the first.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// The chains.
    pub chains: Owned<Chains>,
}

/// Filter chains that match callers, in ascending order of their classes. Stands where [`Chains`] may stand: nobody
/// who connects to a listener without such chains looks for them.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 21, tail = CallerRange)]
#[repr(C)]
pub struct CallerIndex {
    /// Record header.
    pub header: RecordHeader,
    /// All chains, each once: callers of several classes may have the same.
    pub chains: Owned<CallerChains>,
    /// Zero.
    pub reserved: u32,
}

impl CallerIndex {
    /// Ranges in a full slot.
    pub const CAPACITY: u32 = ((4096 - size_of::<Self>()) / size_of::<CallerRange>()) as u32;
}

/// Classes of callers behind each other.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct CallerRange {
    /// The first class: [`name_hash`](crate::name_hash) of its name.
    pub class: u64,
    /// The classes.
    pub callers: Owned<Callers>,
    /// Zero.
    pub reserved: u32,
}

/// Some of the classes of callers that have chains of their own.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 22, tail = CallerEntry)]
#[repr(C)]
pub struct Callers {
    /// Record header.
    pub header: RecordHeader,
}

impl Callers {
    /// Classes in a full slot; programs search in log2 of it steps.
    pub const CAPACITY: u32 = ((4096 - size_of::<Self>()) / size_of::<CallerEntry>()) as u32;
    /// The most classes of a listener.
    pub const MOST: u32 = Self::CAPACITY * CallerIndex::CAPACITY;
}

/// A class of callers.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct CallerEntry {
    /// [`name_hash`](crate::name_hash) of its name.
    pub class: u64,
    /// Its chain.
    pub chain: Within<CallerChain>,
    /// Zero.
    pub reserved: u32,
}

/// The chains of callers, so that whoever gives the listener up finds each once.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 23, tail = Owned<CallerChain>)]
#[repr(C)]
pub struct CallerChains {
    /// Record header.
    pub header: RecordHeader,
    /// More of them; null where there are no more.
    pub next: Owned<CallerChains>,
    /// Zero.
    pub reserved: u32,
}

impl CallerChains {
    /// Chains in a full slot.
    pub const CAPACITY: usize = (4096 - size_of::<Self>()) / size_of::<SlotPtr>();
}

/// A filter chain that matches callers.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 24)]
#[repr(C)]
pub struct CallerChain {
    /// Record header.
    pub header: RecordHeader,
    /// Where to.
    pub action: Action,
}

/// A filter chain that matches a destination port.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Chain {
    /// The destination port, host order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// Where to.
    pub action: Action,
}

/// Clusters in alias tables over their weights: one table, or those of many routes behind each other.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 5, tail = WeightedCluster)]
#[repr(C)]
pub struct ClusterSet {
    /// Record header.
    pub header: RecordHeader,
}

impl ClusterSet {
    /// Elements in a full slot: the most clusters of one route.
    pub const CAPACITY: usize = (4096 - size_of::<Self>()) / size_of::<WeightedCluster>();
}

/// An element of an alias table of clusters: see [`choose`](crate::choose).
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: Ref<Handle>,
    /// Below it this element is taken, else `alias`.
    pub threshold: u32,
    /// The element to take instead, counted from the start of its table.
    pub alias: u16,
    /// 1 where the route says to hash the source; it has effect on a cluster that leaves this to the route.
    pub by_source: u16,
    /// The weight as configured.
    pub weight: u32,
}

/// An alias table within a set.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct ClusterRange {
    /// The set; null where nothing can be chosen.
    pub set: Within<ClusterSet>,
    /// Its first element.
    pub first: u16,
    /// How many elements it has.
    pub count: u16,
}

/// `envoy.config.route.v3.RouteConfiguration`: the clusters of all its routes in the sets of the tail,
/// and by which address which of them are chosen. Names and domains stand in the text.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 6, tail = Owned<ClusterSet>)]
#[repr(C)]
pub struct Route {
    /// Record header.
    pub header: RecordHeader,
    /// The first route of the virtual host with domain `*`.
    pub any: ClusterRange,
    /// The virtual hosts with addresses as domains; null where there are none.
    pub index: Owned<HostIndex>,
    /// Virtual hosts, their domains and routes.
    pub text: Owned<Text>,
    /// The [`proxy_address`] at which a proxy looks at its requests, without the first byte; 0 where connections are
    /// followed only.
    pub proxy: u32,
    /// Zero.
    pub reserved: u32,
}

/// The address of the loopback interface at which the proxy takes connections for a route configuration with this
/// handle: `127.a.b.c`, network order, IPv4 mapped into IPv6.
#[inline(always)]
pub const fn proxy_address(handle: u32) -> [u32; 4] {
    VipKey::from_v4((0x7f00_0000 | handle & 0x00ff_ffff).to_be(), 0, 0).addr
}

impl Route {
    /// The most sets: what fits a slot beside the fixed part.
    pub const SETS: usize = (4096 - size_of::<Self>()) / size_of::<SlotPtr>();
}

/// Virtual hosts by address: a cuckoo table, in which an address stands at one of two places. Place `i`
/// is element `i % HostChunk::CAPACITY` of chunk `i / HostChunk::CAPACITY`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 13, tail = Owned<HostChunk>)]
#[repr(C)]
pub struct HostIndex {
    /// Record header.
    pub header: RecordHeader,
    /// How many places there are.
    pub size: u32,
    /// By what the places are computed.
    pub seed: u32,
}

impl HostIndex {
    /// The most places: what the chunks of a full slot hold.
    pub const PLACES: u32 = ((4096 - size_of::<Self>()) / size_of::<SlotPtr>()) as u32 * HostChunk::CAPACITY;

    /// The two places of an address, where `size` is not 0. `port` in network order, 0 for all.
    #[inline(always)]
    pub const fn places(addr: [u32; 4], port: u16, size: u32, seed: u32) -> [u32; 2] {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = (seed as u64) << 32 | port as u64;
        let mut i = 0;
        while i < 4 {
            hash = (hash ^ addr[i] as u64).wrapping_mul(MIX);
            hash ^= hash >> 29;
            i += 1;
        }
        hash = hash.wrapping_mul(MIX);
        let (high, low) = (hash >> 32, hash & 0xffff_ffff);
        [((high * size as u64) >> 32) as u32, ((low * size as u64) >> 32) as u32]
    }
}

/// A piece of an index of virtual hosts.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 14, tail = Host)]
#[repr(C)]
pub struct HostChunk {
    /// Record header.
    pub header: RecordHeader,
}

impl HostChunk {
    /// Places in a full chunk.
    pub const CAPACITY: u32 = 128;
}

/// An address by which a virtual host is chosen. An empty place has no clusters.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Host {
    /// The address, network order, IPv4 mapped into IPv6.
    pub addr: [u32; 4],
    /// The port, network order; 0 for all.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// The first route of the virtual host.
    pub clusters: ClusterRange,
}

const _: () = {
    assert!(size_of::<Action>() == 16 && size_of::<Chain>() == 20 && size_of::<ClusterRange>() == 8);
    assert!(size_of::<Listener>() + size_of::<Vip>() <= crate::UNIT_BYTES, "one address: one unit");
    assert!(core::mem::offset_of!(ChainRange, port) == 0 && core::mem::offset_of!(Chain, port) == 0);
    assert!(core::mem::offset_of!(CallerRange, class) == 0 && core::mem::offset_of!(CallerEntry, class) == 0);
    assert!(Chains::CAPACITY * ChainIndex::CAPACITY > u16::MAX as u32, "a chain for each port");
    assert!(size_of::<Listener>() == size_of::<WideListener>(), "they begin alike");
    assert!(
        core::mem::offset_of!(Listener, any) == core::mem::offset_of!(WideListener, any)
            && core::mem::offset_of!(Listener, chains) == core::mem::offset_of!(WideListener, chains)
    );
    assert!(size_of::<HostChunk>() + HostChunk::CAPACITY as usize * size_of::<Host>() <= 4096);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_within_the_table_and_spread() {
        for size in [1, 2, 7, 64, 1000] {
            let mut counts = [0_u32; 1000];
            for i in 0..10_000_u32 {
                let addr = VipKey::from_v4((0x0a60_0000 + i).to_be(), 0, 6).addr;
                for place in HostIndex::places(addr, 80_u16.to_be(), size, 3) {
                    counts[place as usize] += 1;
                }
            }
            let average = 20_000 / size;
            let used = &counts[..size as usize];
            assert!(used.iter().all(|&count| count < average * 3 + 20), "{size}: {used:?}");
        }
    }
}
