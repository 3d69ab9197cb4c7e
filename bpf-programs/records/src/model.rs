//! The records of the directory, of clusters and of endpoints; those that lead to clusters are in
//! `route`.

use bytemuck::{Pod, Zeroable};
use slotmesh_records_derive::{Member, Record};

use crate::{
    Owned, Ref, SLAB_BYTES, SlotPtr,
    layout::{Layout, Record as _, RecordHeader},
    route::{
        CallerChain, CallerChains, CallerIndex, Callers, ChainIndex, Chains, ClusterSet, HostChunk,
        HostIndex, Listener, Route, VipChunk, WideListener,
    },
};

/// All records, the source of the layout hash.
pub(crate) const LAYOUTS: &[Layout] = &[
    Superblock::LAYOUT,
    DirectoryPage::LAYOUT,
    Handle::LAYOUT,
    Listener::LAYOUT,
    WideListener::LAYOUT,
    VipChunk::LAYOUT,
    ClusterSet::LAYOUT,
    Route::LAYOUT,
    Cluster::LAYOUT,
    Endpoints::LAYOUT,
    EndpointIndex::LAYOUT,
    EndpointChunk::LAYOUT,
    HashTable::LAYOUT,
    HashChunk::LAYOUT,
    Text::LAYOUT,
    Chains::LAYOUT,
    ChainIndex::LAYOUT,
    HostIndex::LAYOUT,
    HostChunk::LAYOUT,
    CallerIndex::LAYOUT,
    Callers::LAYOUT,
    CallerChains::LAYOUT,
    CallerChain::LAYOUT,
    Guard::LAYOUT,
    #[cfg(feature = "next-layout")]
    crate::Added::LAYOUT,
];

/// The first slot of the first slab: the root from which every handle is found.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 1)]
#[repr(C)]
pub struct Superblock {
    /// Record header.
    pub header: RecordHeader,
    /// [`LAYOUT_HASH`](crate::LAYOUT_HASH) of the agent that wrote it.
    pub layout: u64,
    /// The newest page of the directory.
    pub directory: Owned<DirectoryPage>,
    /// Zero.
    pub reserved: u32,
}

/// A page of the directory. Entries may be null; pages are added in front and never removed.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 2, tail = Ref<Handle>)]
#[repr(C)]
pub struct DirectoryPage {
    /// Record header.
    pub header: RecordHeader,
    /// The next older page.
    pub next: Owned<DirectoryPage>,
    /// Zero.
    pub reserved: u32,
}

/// The current version of one named xDS resource. Its tail is the name, UTF-8.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 3, tail = u8)]
#[repr(C)]
pub struct Handle {
    /// Record header.
    pub header: RecordHeader,
    /// The root record of the current version; null while there is none. The only word of a record
    /// in use that ever changes.
    pub current: SlotPtr,
    /// The resource type: 1 cluster, 2 endpoints, 3 route, 4 listener.
    pub resource: u32,
    /// [`name_hash`](crate::name_hash) of the name.
    pub name_hash: u64,
}

/// Text and numbers that only people and the agent read, packed one behind the other: what exactly
/// follows from where the text hangs (`agent/src/packed.rs`). Beyond a slot it goes on in `next`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 11, tail = u8)]
#[repr(C)]
pub struct Text {
    /// Record header.
    pub header: RecordHeader,
    /// What follows.
    pub next: Owned<Text>,
    /// Zero.
    pub reserved: u32,
}

impl Text {
    /// Bytes in a full slot.
    pub const CAPACITY: usize = 4096 - size_of::<Self>();
}

/// A limit that isn't there.
pub const NO_LIMIT: u32 = u32::MAX;

/// How a cluster's endpoints are chosen: the numbers in [`Cluster::balance`].
pub mod balance {
    /// By a random number.
    pub const RANDOM: u32 = 0;
    /// One after the other, by weight.
    pub const ROUND_ROBIN: u32 = 1;
    /// The less busy of two that are chosen by random numbers.
    pub const LEAST_CONNECTIONS: u32 = 2;
    /// By a hash of the source.
    pub const HASH: u32 = 3;
    /// By a hash of the source where the route says so, else by a random number.
    pub const HASH_BY_ROUTE: u32 = 4;
    /// None is: connections go where they were meant to go.
    pub const NONE: u32 = 5;
}

/// `envoy.config.cluster.v3.Cluster`. One of `endpoints` and `inline` is not null, but where no endpoint is chosen.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 7)]
#[repr(C)]
pub struct Cluster {
    /// Record header.
    pub header: RecordHeader,
    /// EDS: its load assignment.
    pub endpoints: Ref<Handle>,
    /// STATIC: its own load assignment, an [`Endpoints`] or [`EndpointIndex`] record.
    pub inline: Owned<Endpoints>,
    /// Connect timeout in milliseconds.
    pub connect_timeout_ms: u32,
    /// How an endpoint is chosen: see [`balance`].
    pub balance: u32,
    /// The most connections at a time; [`NO_LIMIT`] for none.
    pub max_connections: u32,
    /// The most requests that wait for a connection, as configured: there are none at connect time.
    pub max_pending_requests: u32,
    /// The most requests at a time, as configured.
    pub max_requests: u32,
    /// The most retries at a time, as configured.
    pub max_retries: u32,
    /// For so many seconds after its last connection a workload keeps to its endpoint; 0 for none.
    pub affinity: u32,
    /// What there is besides; null where that is nothing.
    pub guard: Owned<Guard>,
    /// Where its endpoints come from, once more.
    #[cfg(feature = "next-layout")]
    pub added: Owned<crate::Added>,
    /// Zero.
    #[cfg(feature = "next-layout")]
    pub reserved: u32,
}

/// When endpoints of a cluster are left out because connects to them fail, and how fast new connections may come.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 25)]
#[repr(C)]
pub struct Guard {
    /// Record header.
    pub header: RecordHeader,
    /// After so many failed connects in a row an endpoint is left out; 0 where none ever is.
    pub failures: u32,
    /// For so many milliseconds, times how often it has been.
    pub base_ms: u32,
    /// For so many milliseconds at most.
    pub most_ms: u32,
    /// Of so many percent of the endpoints of a family at most, but of one in any case; 0 where of none.
    pub most_percent: u32,
    /// Where fewer percent of the endpoints of a family than this are left, all are used.
    pub panic_percent: u32,
    /// So many new connections a second; 0 for as many as come.
    pub per_second: u32,
    /// So many at once; above 0.
    pub burst: u32,
    /// 1 where that is of each caller, 0 of all together.
    pub per_caller: u32,
}

/// `envoy.config.endpoint.v3.ClusterLoadAssignment` that fits one slot: the IPv4 endpoints, then the
/// IPv6 endpoints, each group an alias table of its own, in the order of [`Endpoint::order`].
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 8, tail = Endpoint)]
#[repr(C)]
pub struct Endpoints {
    /// Record header.
    pub header: RecordHeader,
    /// How many endpoints are IPv4; [`WEIGHTED`](Self::WEIGHTED) is set where they differ in weight.
    pub v4: u32,
    /// The same of IPv6.
    pub v6: u32,
    /// Which endpoint a source has; null where no cluster that is in force chooses by the source.
    pub hashes: Owned<HashTable>,
    /// Names, priorities and weights of the localities; null where there are none to tell of.
    pub localities: Owned<Text>,
}

impl Endpoints {
    /// The endpoints of a family differ in weight: the highest bit of their number.
    pub const WEIGHTED: u32 = 1 << 31;
}

/// A load assignment that needs several slots. Begins like [`Endpoints`]; endpoint `i` is element
/// `i % EndpointChunk::CAPACITY` of chunk `i / EndpointChunk::CAPACITY`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 9, tail = Owned<EndpointChunk>)]
#[repr(C)]
pub struct EndpointIndex {
    /// Record header.
    pub header: RecordHeader,
    /// As in [`Endpoints::v4`].
    pub v4: u32,
    /// As in [`Endpoints::v6`].
    pub v6: u32,
    /// As in [`Endpoints::hashes`].
    pub hashes: Owned<HashTable>,
    /// As in [`Endpoints::localities`].
    pub localities: Owned<Text>,
}

impl EndpointIndex {
    /// The most endpoints: what the chunks of a full slot hold.
    pub const CAPACITY: usize =
        (4096 - size_of::<Self>()) / size_of::<SlotPtr>() * EndpointChunk::CAPACITY as usize;
}

/// A piece of a long load assignment.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 10, tail = Endpoint)]
#[repr(C)]
pub struct EndpointChunk {
    /// Record header.
    pub header: RecordHeader,
    /// Zero.
    pub reserved: [u32; 4],
}

impl EndpointChunk {
    /// Endpoints in a full chunk: what fits a slot of 4 KiB.
    pub const CAPACITY: u32 = 126;
}

/// Which endpoint a source has: a table for each family. The number at place
/// [`choose`]`(`[`source_hash`](crate::source_hash)`, size).0` is that of the element. Place `i` is element
/// `i % HashChunk::CAPACITY` of chunk `i / HashChunk::CAPACITY`; the IPv6 table begins with a chunk.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 16, tail = Owned<HashChunk>)]
#[repr(C)]
pub struct HashTable {
    /// Record header.
    pub header: RecordHeader,
    /// Places of the IPv4 table; 0 where there is nothing to choose.
    pub v4: u32,
    /// Places of the IPv6 table.
    pub v6: u32,
}

impl HashTable {
    /// The most places of a family: what half of the chunks of a full slot hold.
    pub const PLACES: usize =
        (4096 - size_of::<Self>()) / size_of::<SlotPtr>() / 2 * HashChunk::CAPACITY as usize;
}

/// A piece of a table of sources: numbers of endpoints, counted from the first of their family.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 17, tail = u32)]
#[repr(C)]
pub struct HashChunk {
    /// Record header.
    pub header: RecordHeader,
}

impl HashChunk {
    /// Places in a full chunk.
    pub const CAPACITY: u32 = ((4096 - size_of::<Self>()) / size_of::<u32>()) as u32;
}

/// One endpoint, an element of an alias table: see [`choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Endpoint {
    /// The address, network order, IPv4 mapped into IPv6.
    pub addr: [u32; 4],
    /// The port, network order.
    pub port: u16,
    /// The number of its locality in the message.
    pub locality: u16,
    /// Below it this element is taken, else `alias`.
    pub threshold: u32,
    /// The element to take instead, counted from the start of its family's table.
    pub alias: u32,
    /// The weight as configured.
    pub weight: u32,
}

impl Endpoint {
    /// By what the endpoints of a family are sorted: address and port, both given in network order.
    #[inline(always)]
    pub const fn order(addr: [u32; 4], port: u16) -> (u64, u64, u16) {
        let [a, b, c, d] = addr;
        let high = (u32::from_be(a) as u64) << 32 | u32::from_be(b) as u64;
        let low = (u32::from_be(c) as u64) << 32 | u32::from_be(d) as u64;
        (high, low, u16::from_be(port))
    }
}

/// Picks from an alias table of `n` elements with one random number: the element to look at, and the
/// number to hold against that element's threshold (below it: the element, else its alias).
#[inline(always)]
pub const fn choose(random: u32, n: u32) -> (u32, u32) {
    let scaled = random as u64 * n as u64;
    ((scaled >> 32) as u32, scaled as u32)
}

const _: () = {
    assert!(size_of::<RecordHeader>() == 16);
    assert!(size_of::<Superblock>() <= crate::UNIT_BYTES);
    assert!(size_of::<Handle>() == 32);
    assert!(size_of::<Endpoint>() == 32);
    assert!(size_of::<Cluster>() <= crate::UNIT_BYTES);
    assert!(
        size_of::<Endpoints>() + EndpointChunk::CAPACITY as usize * size_of::<Endpoint>() <= 4096,
        "what isn't chunked fits one slot"
    );
    assert!(size_of::<EndpointChunk>() + EndpointChunk::CAPACITY as usize * size_of::<Endpoint>() <= 4096);
    assert!(core::mem::offset_of!(Endpoints, v4) == core::mem::offset_of!(EndpointIndex, v4));
    assert!(size_of::<Endpoints>() == size_of::<EndpointIndex>());
    assert!(core::mem::offset_of!(Handle, current) % 4 == 0 && SLAB_BYTES == 65_536);
    let mut i = 0;
    while i < LAYOUTS.len() {
        let mut j = i + 1;
        while j < LAYOUTS.len() {
            assert!(LAYOUTS[i].kind.get() != LAYOUTS[j].kind.get(), "two records share a kind");
            j += 1;
        }
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;
    use crate::{
        WeightedCluster,
        layout::{Malformed, Points, pointers},
    };

    fn set(clusters: &[u32]) -> Vec<u8> {
        let header =
            RecordHeader { kind: ClusterSet::KIND, units: 1, count: clusters.len() as u32, version: 1 };
        let mut bytes = bytemuck::bytes_of(&ClusterSet { header }).to_vec();
        for &cluster in clusters {
            let element = WeightedCluster {
                cluster: Ref::new(SlotPtr::from_bits(cluster)),
                ..WeightedCluster::zeroed()
            };
            bytes.extend_from_slice(bytemuck::bytes_of(&element));
        }
        bytes
    }

    #[test]
    fn pointers_follow_from_the_field_types() {
        let mut found = vec![];
        pointers(&set(&[5, 0, 9]), |points, ptr| found.push((points, ptr.bits()))).unwrap();
        assert_eq!(found, [(Points::Ref, 5), (Points::Ref, 9)]);
    }

    #[test]
    fn all_pointers_tell_where_they_stand() {
        let mut found = vec![];
        let bytes = set(&[5, 0, 9]);
        assert_eq!(
            crate::layout::all_pointers(&bytes, |at, ptr| found.push((at, ptr.bits()))),
            Ok(bytes.len())
        );
        let element = |i| size_of::<ClusterSet>() + i * size_of::<WeightedCluster>();
        assert_eq!(found, [(element(0), 5), (element(2), 9)]);
        // Those within a version are none of those that say what it owns and refers to.
        let mut host = crate::Host::zeroed();
        host.clusters.set = crate::Within::new(SlotPtr::from_bits(7));
        let header = RecordHeader { kind: HostChunk::KIND, units: 1, count: 1, version: 0 };
        let mut bytes = bytemuck::bytes_of(&HostChunk { header }).to_vec();
        bytes.extend_from_slice(bytemuck::bytes_of(&host));
        let (mut all, mut some) = (vec![], vec![]);
        crate::layout::all_pointers(&bytes, |_, ptr| all.push(ptr.bits())).unwrap();
        pointers(&bytes, |_, ptr| some.push(ptr.bits())).unwrap();
        assert_eq!((all, some), (vec![7], vec![]));
    }

    #[test]
    fn damaged_records_are_refused() {
        let good = set(&[5, 6]);
        assert_eq!(pointers(&good[..good.len() - 1], |_, _| {}).unwrap_err(), Malformed::TooShort);
        assert_eq!(pointers(&good[..7], |_, _| {}).unwrap_err(), Malformed::TooShort);
        let mut unknown = good.clone();
        unknown[..2].copy_from_slice(&999_u16.to_ne_bytes());
        assert!(matches!(pointers(&unknown, |_, _| {}), Err(Malformed::UnknownKind(_))));
        let mut endless = good;
        endless[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(pointers(&endless, |_, _| {}).unwrap_err(), Malformed::TooShort);
    }

    #[test]
    fn choice_covers_the_table_evenly() {
        assert_eq!(choose(0, 10).0, 0);
        assert_eq!(choose(u32::MAX, 10).0, 9);
        let counts = (0..10_000_u32).fold([0_u32; 10], |mut counts, i| {
            counts[choose(i.wrapping_mul(429_496), 10).0 as usize] += 1;
            counts
        });
        assert!(counts.iter().all(|&c| (990..=1010).contains(&c)), "{counts:?}");
    }
}
