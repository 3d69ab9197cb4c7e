//! The records themselves.

use bytemuck::{Pod, Zeroable};
use slotmesh_records_derive::{Member, Record};

use crate::{
    Owned, Ref, SLAB_BYTES, SlotPtr, VipKey,
    layout::{Layout, Record as _, RecordHeader},
};

/// All records, the source of the layout hash.
pub(crate) const LAYOUTS: &[Layout] = &[
    Superblock::LAYOUT,
    DirectoryPage::LAYOUT,
    Handle::LAYOUT,
    Listener::LAYOUT,
    ClusterSet::LAYOUT,
    Route::LAYOUT,
    Cluster::LAYOUT,
    Endpoints::LAYOUT,
    EndpointIndex::LAYOUT,
    EndpointChunk::LAYOUT,
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

/// `envoy.config.listener.v3.Listener`: where the connections of its VIPs go. Exactly one of
/// `cluster`, `clusters` and `route` is not null.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 4, tail = Vip)]
#[repr(C)]
pub struct Listener {
    /// Record header.
    pub header: RecordHeader,
    /// The only cluster of a TCP route.
    pub cluster: Ref<Handle>,
    /// The clusters of a weighted TCP route.
    pub clusters: Owned<ClusterSet>,
    /// The route configuration of an HTTP listener.
    pub route: Ref<Handle>,
    /// Zero.
    pub reserved: u32,
}

/// A virtual address of a listener, so that whoever replaces the listener knows which to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Vip {
    /// The key in the VIP map.
    pub key: VipKey,
}

/// Clusters with an alias table over their weights.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 5, tail = WeightedCluster)]
#[repr(C)]
pub struct ClusterSet {
    /// Record header.
    pub header: RecordHeader,
}

/// `envoy.config.route.v3.RouteConfiguration`: its default route's clusters.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 6, tail = WeightedCluster)]
#[repr(C)]
pub struct Route {
    /// Record header.
    pub header: RecordHeader,
}

/// An element of an alias table of clusters: see [`choose`].
#[derive(Clone, Copy, Debug, Pod, Zeroable, Member)]
#[repr(C)]
pub struct WeightedCluster {
    /// The cluster.
    pub cluster: Ref<Handle>,
    /// Below it this element is taken, else `alias`.
    pub threshold: u32,
    /// The element to take instead.
    pub alias: u32,
    /// The weight as configured.
    pub weight: u32,
}

/// `envoy.config.cluster.v3.Cluster`
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 7)]
#[repr(C)]
pub struct Cluster {
    /// Record header.
    pub header: RecordHeader,
    /// Its load assignment.
    pub endpoints: Ref<Handle>,
    /// Connect timeout in milliseconds.
    pub connect_timeout_ms: u32,
}

/// `envoy.config.endpoint.v3.ClusterLoadAssignment` that fits one slot: the IPv4 endpoints, then the
/// IPv6 endpoints, each group an alias table of its own.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 8, tail = Endpoint)]
#[repr(C)]
pub struct Endpoints {
    /// Record header.
    pub header: RecordHeader,
    /// How many endpoints are IPv4.
    pub v4: u32,
    /// How many endpoints are IPv6.
    pub v6: u32,
}

/// A load assignment that needs several slots. Begins like [`Endpoints`]; endpoint `i` is element
/// `i % EndpointChunk::CAPACITY` of chunk `i / EndpointChunk::CAPACITY`.
#[derive(Clone, Copy, Debug, Pod, Zeroable, Record)]
#[record(kind = 9, tail = Owned<EndpointChunk>)]
#[repr(C)]
pub struct EndpointIndex {
    /// Record header.
    pub header: RecordHeader,
    /// How many endpoints are IPv4.
    pub v4: u32,
    /// How many endpoints are IPv6.
    pub v6: u32,
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

/// One endpoint, an element of an alias table: see [`choose`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, Member)]
#[repr(C)]
pub struct Endpoint {
    /// The address, network order, IPv4 mapped into IPv6.
    pub addr: [u32; 4],
    /// The port, network order.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
    /// Below it this element is taken, else `alias`.
    pub threshold: u32,
    /// The element to take instead, counted from the start of its family's table.
    pub alias: u32,
    /// The weight as configured.
    pub weight: u32,
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
    assert!(size_of::<EndpointChunk>() + EndpointChunk::CAPACITY as usize * size_of::<Endpoint>() <= 4096);
    assert!(core::mem::offset_of!(Endpoints, v4) == core::mem::offset_of!(EndpointIndex, v4));
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
    use crate::layout::{Malformed, Points, pointers};

    fn route(clusters: &[u32]) -> Vec<u8> {
        let header = RecordHeader { kind: Route::KIND, units: 1, count: clusters.len() as u32, version: 1 };
        let mut bytes = bytemuck::bytes_of(&Route { header }).to_vec();
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
        pointers(&route(&[5, 0, 9]), |points, ptr| found.push((points, ptr.bits()))).unwrap();
        assert_eq!(found, [(Points::Ref, 5), (Points::Ref, 9)]);
    }

    #[test]
    fn damaged_records_are_refused() {
        let good = route(&[5, 6]);
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
