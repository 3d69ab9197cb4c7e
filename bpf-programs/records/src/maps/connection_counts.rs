//! Connections of clusters and endpoints: counts, which no flush touches.

use bytemuck::{Pod, Zeroable};

use super::VipKey;

/// A number of connections, and whose it is, in one word that programs of all CPUs change by compare and swap.
///
/// The kernel reuses the elements of a hash map at once, so a program may have found an element that is
/// another key's by now: the upper half is a hash of the key, which is never 0, the lower half the number. An
/// element is removed only after its number was swapped from 0 to [`GONE`](Self::GONE), which has no owner:
/// who counts in an element keeps it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Count(u64);

impl Count {
    /// Of an element that is being removed: nobody's.
    pub const GONE: Self = Self(u32::MAX as u64);

    /// Nothing yet.
    #[inline(always)]
    pub const fn none(tag: u32) -> Self {
        Self((tag as u64) << 32)
    }

    /// What an element holds.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits that an element holds.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The number; `None` where the element is another's.
    #[inline(always)]
    pub const fn of(self, tag: u32) -> Option<u32> {
        if (self.0 >> 32) as u32 == tag { Some(self.0 as u32) } else { None }
    }

    /// The number, whosever it is: for those who read a copy.
    pub const fn get(self) -> u32 {
        if self.0 >> 32 == 0 { 0 } else { self.0 as u32 }
    }
}

/// The tag of the count of a cluster, by the [`name_hash`](super::name_hash) of its name.
#[inline(always)]
pub const fn cluster_tag(cluster: u64) -> u32 {
    (cluster ^ cluster >> 32) as u32 | 1
}

/// What runs of a cluster, whatever version of it is current: no flush touches it. Keyed by the
/// [`name_hash`](super::name_hash) of the cluster; made by the first connection that counts here, removed by the agent some time after
/// the cluster. Versioned as [`SocketState`](super::SocketState) is.
///
/// Connections count here while the cluster has a limit, in one word, so that the limit is exact. While it has none
/// they count in lanes ([`LaneState`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ClusterState {
    /// TCP connections: from connect until the socket is closed, by its owner, by the other end's reset, or
    /// because the connect failed.
    pub active: Count,
    /// How many connections were given an endpoint in turn.
    pub cursor: u64,
    /// TCP connections that have counted since the entry was made.
    pub opened: u64,
    /// Connects refused because there were as many connections as there may be.
    pub refused: u64,
}

impl ClusterState {
    /// The state of a cluster without connections.
    #[inline(always)]
    pub const fn none(cluster: u64) -> Self {
        Self { active: Count::none(cluster_tag(cluster)), cursor: 0, opened: 0, refused: 0 }
    }
}

/// A lane of a cluster: the CPUs whose numbers have the same remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct LaneKey {
    /// [`name_hash`](super::name_hash) of the cluster.
    pub cluster: u64,
    /// The number of a CPU by [`LANES`](Self::LANES).
    pub lane: u32,
    /// Zero.
    pub reserved: u32,
}

impl LaneKey {
    /// The number of lanes that a cluster has; a power of two.
    pub const LANES: u32 = 8;

    /// A lane of a cluster.
    #[inline(always)]
    pub const fn new(cluster: u64, lane: u32) -> Self {
        Self { cluster, lane, reserved: 0 }
    }

    /// The tag of its count.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        cluster_tag(self.cluster) ^ self.lane << 1
    }
}

/// What runs of a cluster without a limit, as far as it began on the CPUs of a lane: these write no line of memory
/// that other CPUs write at each connect, too. As [`ClusterState`] otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct LaneState {
    /// See [`ClusterState::active`].
    pub active: Count,
    /// See [`ClusterState::opened`].
    pub opened: u64,
}

impl LaneState {
    /// The state of a lane without connections.
    #[inline(always)]
    pub const fn none(key: &LaneKey) -> Self {
        Self { active: Count::none(key.tag()), opened: 0 }
    }
}

/// An endpoint of a cluster that chooses by how many connections each has: the key of [`EndpointState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointKey {
    /// [`name_hash`](super::name_hash) of the cluster.
    pub cluster: u64,
    /// Its address and port; the protocol is 0.
    pub at: VipKey,
    /// Zero.
    pub reserved: u32,
}

impl EndpointKey {
    /// The key of an address and port, both in network order.
    #[inline(always)]
    pub const fn new(cluster: u64, addr: [u32; 4], port: u16) -> Self {
        Self { cluster, at: VipKey { addr, port, protocol: 0, reserved: 0 }, reserved: 0 }
    }

    /// The tag of its count.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        self.at.tag() ^ cluster_tag(self.cluster) | 1
    }
}

/// What runs at an endpoint: made by the first connection, removed by the agent some time after the last
/// one. Versioned as [`SocketState`](super::SocketState) is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointState {
    /// Connections, from connect until the socket is closed.
    pub active: Count,
    /// Connects that failed of late: see [`Failures`].
    pub failed: Failures,
}

impl EndpointState {
    /// The state of an endpoint without connections.
    #[inline(always)]
    pub const fn none(key: &EndpointKey) -> Self {
        Self { active: Count::none(key.tag()), failed: Failures(0) }
    }
}

/// Connects that failed, in one word: the upper half tells the second of the last one, the lower half how
/// many there were without a pause of [`SECONDS`](Self::SECONDS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Failures(u64);

impl Failures {
    /// For so long a failed connect counts like an open connection, so that an endpoint that refuses doesn't
    /// pass for the least busy one.
    pub const SECONDS: u32 = 10;
    const MOST: u32 = 1 << 20;

    /// How many count at this second.
    #[inline(always)]
    pub const fn at(self, second: u32) -> u32 {
        let passed = second.wrapping_sub((self.0 >> 32) as u32);
        if passed < Self::SECONDS { self.0 as u32 } else { 0 }
    }

    /// One more.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, second: u32) -> Self {
        let count = self.at(second);
        let count = if count < Self::MOST { count + 1 } else { count };
        Self((second as u64) << 32 | count as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name_hash;

    #[test]
    fn lanes_of_a_cluster_have_tags_of_their_own() {
        let mut tags: [u32; LaneKey::LANES as usize] =
            core::array::from_fn(|lane| LaneKey::new(name_hash("web"), lane as u32).tag());
        tags.sort_unstable();
        assert!(tags.windows(2).all(|pair| pair[0] != pair[1]) && tags.iter().all(|tag| tag & 1 == 1));
    }

    #[test]
    fn a_count_is_of_its_key() {
        let key = |port| EndpointKey::new(7, [0, 0, 1, 2], port);
        let count = Count::from_bits(EndpointState::none(&key(80)).active.bits() + 3);
        assert_eq!((count.of(key(80).tag()), count.get()), (Some(3), 3));
        assert_eq!(count.of(key(81).tag()), None);
        assert_eq!((Count::GONE.of(key(80).tag()), Count::GONE.get()), (None, 0));
        assert_ne!(cluster_tag(0), 0, "that is nobody's");
    }

    #[test]
    fn failures_count_for_some_seconds() {
        let failed = Failures::default().and(100).and(103);
        assert_eq!([failed.at(103), failed.at(112), failed.at(113)], [2, 2, 0]);
        assert_eq!(failed.and(200).at(200), 1);
        assert_eq!(Failures::default().at(1), 0);
    }
}
