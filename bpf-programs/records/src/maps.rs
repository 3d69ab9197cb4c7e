//! Keys and values of the maps beside the outer map: VIPs, sockets, identities.
//!
//! Addresses are 16 bytes in network order as four words, IPv4 as `::ffff:a.b.c.d`; ports are in
//! network order too, so that a program copies them from and to its context unchanged.

use core::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use bytemuck::{Pod, Zeroable};

use crate::{
    Handle, Ref, SlotPtr,
    layout::{FNV_OFFSET, fnv1a},
};

/// The version of the per-socket and identity state, which outlives a change of record layouts.
pub const STATE_VERSION: u32 = 3;

const V4_MAPPED: u32 = 0xffff_u32.to_be();

/// A virtual address: the key of the VIP map, and of each Vip that a listener record keeps.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable, slotmesh_records_derive::Member,
)]
#[repr(C)]
pub struct VipKey {
    /// The address, network order.
    pub addr: [u32; 4],
    /// The port, network order.
    pub port: u16,
    /// The IP protocol (`IPPROTO_TCP` is 6).
    pub protocol: u8,
    /// 0 in the key of an address; [`OF_NODE`](Self::OF_NODE) in those of node ports and of nodes' addresses.
    pub reserved: u8,
}

impl VipKey {
    /// `IPPROTO_TCP`
    pub const TCP: u8 = 6;
    /// `IPPROTO_UDP`
    pub const UDP: u8 = 17;

    /// The mark of the keys by which NodePorts are found: that of the port at all nodes' addresses of a family, and those
    /// of the nodes' addresses. Nobody connects to an address with such a key.
    pub const OF_NODE: u8 = 1;

    /// The key of a NodePort, of the family of an address.
    #[inline(always)]
    pub const fn node_port(addr: [u32; 4], port: u16, protocol: u8) -> Self {
        let family = if addr[0] == 0 && addr[1] == 0 && addr[2] == V4_MAPPED { V4_MAPPED } else { 0 };
        Self { addr: [0, 0, family, 0], port, protocol, reserved: Self::OF_NODE }
    }

    /// The key of a node's address: there NodePorts are served.
    #[inline(always)]
    pub const fn node(addr: [u32; 4]) -> Self {
        Self { addr, port: 0, protocol: 0, reserved: Self::OF_NODE }
    }

    /// The key of an address.
    pub const fn new(ip: IpAddr, port: u16, protocol: u8) -> Self {
        Self { addr: words(ip), port: port.to_be(), protocol, reserved: 0 }
    }

    /// The key of an IPv4 address as a socket context holds it (network order).
    #[inline(always)]
    pub const fn from_v4(ip: u32, port: u16, protocol: u8) -> Self {
        Self { addr: [0, 0, V4_MAPPED, ip], port, protocol, reserved: 0 }
    }

    /// The address and port, for people.
    pub fn socket_addr(&self) -> core::net::SocketAddr {
        core::net::SocketAddr::new(ip(self.addr), u16::from_be(self.port))
    }

    /// Whether the address is an IPv4 address, perhaps in its IPv6-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.addr[0] == 0 && self.addr[1] == 0 && self.addr[2] == V4_MAPPED
    }

    /// A hash that a [`VipValue`] repeats, so that a value can be told from that of a reused element.
    #[inline(always)]
    pub const fn tag(&self) -> u32 {
        const MIX: u32 = 0x9e37_79b1;
        let mut hash = (self.port as u32) << 8 | self.protocol as u32;
        let mut i = 0;
        while i < 4 {
            hash = (hash ^ self.addr[i]).wrapping_mul(MIX);
            hash ^= hash >> 15;
            i += 1;
        }
        hash
    }
}

impl fmt::Display for VipKey {
    /// `10.96.0.10:53` in TCP, or of no protocol; `10.96.0.10:53/UDP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket_addr().fmt(f)?;
        match self.protocol {
            0 | Self::TCP => Ok(()),
            Self::UDP => f.write_str("/UDP"),
            other => write!(f, "/{other}"),
        }
    }
}

/// The words of an address, network order, IPv4 mapped into IPv6.
pub const fn words(ip: IpAddr) -> [u32; 4] {
    let o = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    [
        u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
        u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
        u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
        u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
    ]
}

/// The address in four words; a mapped IPv4 address comes back as IPv4.
pub fn ip(words: [u32; 4]) -> IpAddr {
    let octets: [u8; 16] = bytemuck::cast(words);
    let v6 = Ipv6Addr::from(octets);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The value of the VIP map: the listener's handle, and a tag of key and handle, in one 64-bit word.
///
/// The kernel reuses a deleted element of a hash map at once, so a program may find the value of
/// another key behind the pointer that it was given, or some bytes of the one and some of the other: how the
/// kernel copies a value into an element is its own affair. The tag is of key and handle together, so
/// neither passes for a value of the key asked for; it counts as absent, as the key then is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct VipValue(u64);

impl VipValue {
    /// The value to store under `key`.
    pub const fn new(key: &VipKey, listener: Ref<Handle>) -> Self {
        let listener = listener.ptr().bits();
        Self((Self::tag(key, listener) as u64) << 32 | listener as u64)
    }

    /// The value with these bits.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits that the map holds.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The listener's handle; `None` where the value belongs to another key.
    #[inline(always)]
    pub const fn listener(self, key: &VipKey) -> Option<SlotPtr> {
        let listener = self.0 as u32;
        if (self.0 >> 32) as u32 == Self::tag(key, listener) {
            Some(SlotPtr::from_bits(listener))
        } else {
            None
        }
    }

    #[inline(always)]
    const fn tag(key: &VipKey, listener: u32) -> u32 {
        const MIX: u32 = 0x85eb_ca6b;
        let mixed = (key.tag() ^ listener).wrapping_mul(MIX);
        mixed ^ mixed >> 16
    }
}

/// What a redirected socket remembers of its last connect, in its sk_storage. 56 bytes: with eight more the
/// kernel takes 64 more for each socket.
///
/// It isn't part of the layout hash: its layout, and that of [`Identity`], is versioned by
/// [`STATE_VERSION`], which names the directories of their pins. A change of either raises it once a
/// release has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketState {
    /// What the application asked for: what getpeername answers.
    pub original: VipKey,
    /// Where it was redirected to: the port, network order.
    pub target_port: u16,
    /// Where its cluster counts it, while it does: 0 among all, else one more than the lane. With
    /// [`AT_ENDPOINT`](Self::AT_ENDPOINT) where its endpoint does, too, and [`WATCHED`](Self::WATCHED).
    pub counted: u8,
    /// 1 once its owner has closed it: programs of several cgroups may see that.
    pub is_closed: u8,
    /// Where it was redirected to: the address. A program that runs after this one's, further up in the
    /// cgroup hierarchy, sees a connect to it.
    pub target: [u32; 4],
    /// [`name_hash`] of the chosen cluster.
    pub cluster: u64,
    /// The upper half is that of whose program redirected it ([`Identity::mark`]). The lower half tells since when
    /// it counts among the connections of its cluster ([`tick`](Self::tick)), and is 0 while it doesn't: whoever
    /// clears it has to take the connection out of the count, so that is done once.
    pub counting: u64,
}

impl SocketState {
    /// Set in [`counted`](Self::counted) where the endpoint counts the connection.
    pub const AT_ENDPOINT: u8 = 1 << 7;
    /// Set in [`counted`](Self::counted) where it matters whether the connect fails.
    pub const WATCHED: u8 = 1 << 6;
    /// The lower half of [`counting`](Self::counting).
    pub const SINCE: u64 = u32::MAX as u64;

    /// A time in the kernel's nanoseconds, in some two milliseconds: never 0, and back at the same number after 52
    /// days.
    #[inline(always)]
    pub const fn tick(nanoseconds: u64) -> u32 {
        (nanoseconds >> 20) as u32 | 1
    }

    /// Whose program redirected it: an [`Identity::mark`].
    #[inline(always)]
    pub const fn mark(&self) -> u32 {
        (self.counting >> 32) as u32
    }
}

/// How many sockets are recorded, and what had no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketTotals {
    /// Sockets with a [`SocketState`] that their owners haven't closed.
    pub recorded: u64,
    /// Connections without a record, for want of room: redirected where their cluster has no limit, else
    /// refused.
    pub unrecorded: u64,
    /// Connections that couldn't be counted, because as many clusters or endpoints are counted as can be.
    pub uncounted: u64,
}

impl SocketTotals {
    /// The sum of all elements of the map.
    pub fn of(shares: impl IntoIterator<Item = (u32, SocketShare)>) -> Self {
        let mut totals = Self::default();
        for (i, share) in shares {
            let places = if i == 0 { share.places } else { share.places.wrapping_neg() };
            totals.recorded = totals.recorded.wrapping_add(places);
            totals.unrecorded += share.unrecorded;
            totals.uncounted += share.uncounted;
        }
        totals
    }
}

/// What is known of sockets by the CPUs of one lane, or by all: so that no two CPUs write the same line of memory at
/// each connect, places for records are taken, and given back, by the batch.
///
/// The map has an element of all, and [`LANES`](Self::LANES) behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketShare {
    /// Of all: the places that were taken. Of a lane: those of them in which no socket is recorded yet.
    pub places: u64,
    /// See [`SocketTotals::unrecorded`].
    pub unrecorded: u64,
    /// See [`SocketTotals::uncounted`].
    pub uncounted: u64,
    /// Zero: the next element lies in other lines of memory.
    pub reserved: [u64; 13],
}

impl SocketShare {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 64;
    /// The elements of the map.
    pub const ELEMENTS: u32 = 1 + Self::LANES;
}

/// How many sockets may be recorded: the one element of a map of its own, which the agent writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketLimit {
    /// The most sockets.
    pub most: u64,
    /// How many places a lane takes at once; it keeps at most twice as many. 0: one by one.
    pub batch: u64,
}

impl SocketLimit {
    /// At most so many sockets, on so many CPUs: less than a sixteenth of the places lie idle in lanes.
    pub fn new(most: u32, cpus: u32) -> Self {
        const MOST: u32 = 32;
        let batch = most / (cpus.clamp(1, SocketShare::LANES) * 32);
        Self { most: most.into(), batch: batch.min(MOST).into() }
    }
}

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

/// The tag of the count of a cluster, by the [`name_hash`] of its name.
#[inline(always)]
pub const fn cluster_tag(cluster: u64) -> u32 {
    (cluster ^ cluster >> 32) as u32 | 1
}

/// An endpoint of a cluster that chooses by how many connections each has: the key of [`EndpointState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct EndpointKey {
    /// [`name_hash`] of the cluster.
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
/// one. Versioned as [`SocketState`] is.
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

/// A bucket of a cluster that has a rate of new connections: the key of [`BucketState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct BucketKey {
    /// [`name_hash`] of the cluster.
    pub cluster: u64,
    /// [`Identity::workload`] of the caller whose it is; 0 of the one for all, which there is in any case where connects
    /// were refused.
    pub caller: u64,
}

/// A bucket from which each new connection takes a token: made by the first, removed by the agent when it is full again,
/// and that of all with the cluster. Versioned as [`SocketState`] is.
///
/// A token flows in after each `interval`; so one number tells how many there are: when the bucket will be full. All
/// times are the kernel's nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BucketState {
    /// When it is full.
    pub full: u64,
    /// Connects that found no token in this or any other bucket of the cluster; of the one for all.
    pub refused: u64,
}

impl BucketState {
    /// Of a bucket that is being removed.
    pub const GONE: u64 = u64::MAX;

    /// The time in which a token flows in, of so many (not 0) a second. Rounded up, so there are never more.
    #[inline(always)]
    pub const fn interval(per_second: u32) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        SECOND.div_ceil(per_second as u64)
    }

    /// A token of a bucket that holds `burst`: when it will be full then; `None` where there is none.
    #[inline(always)]
    pub const fn take(full: u64, now: u64, interval: u64, burst: u32) -> Option<u64> {
        let full = if full > now { full } else { now };
        if full - now > interval * (burst.saturating_sub(1)) as u64 { None } else { Some(full + interval) }
    }
}

/// What is known of an endpoint to which connects fail, or failed: made by the first that does, removed by the agent
/// when it has been quiet for [`IDLE`](Self::IDLE). Keyed by a [hash](Self::key) of what it is of, as programs have
/// little room on their stack where they ask for it. Under the key of a [family](Self::family_key) it tells how many
/// endpoints of a cluster's family are left out. Versioned as [`SocketState`] is. Times
/// are the kernel's nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct OutlierState {
    /// The endpoint; of port 0 for a family of the cluster.
    pub of: EndpointKey,
    /// Of an endpoint, connects that failed in a row; of a family, how many endpoints are left out.
    pub failures: Count,
    /// Until when it is left out; 0 where it isn't.
    pub until: u64,
    /// When it was taken back last.
    pub back: u64,
    /// Of an endpoint, how often in a row it was left out; of a family, how often any was.
    pub times: u64,
    /// When a connect failed last.
    pub failed: u64,
}

impl OutlierState {
    /// After so many nanoseconds without a failed connect an endpoint is as one of which nothing is known.
    pub const IDLE: u64 = 600_000_000_000;

    /// The state of an endpoint to which no connect has failed, or of a family.
    #[inline(always)]
    pub const fn none(of: &EndpointKey) -> Self {
        let failures = Count::none(cluster_tag(Self::key(of.cluster, of.at.addr, of.at.port)));
        Self { of: *of, failures, until: 0, back: 0, times: 0, failed: 0 }
    }

    /// The key of an address and port of a cluster, both in network order.
    #[inline(always)]
    pub const fn key(cluster: u64, addr: [u32; 4], port: u16) -> u64 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = (cluster ^ addr[0] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[1] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[2] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[3] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ port as u64).wrapping_mul(MIX);
        hash ^ hash >> 32
    }

    /// What stands for a family of a cluster's endpoints: an address that is none.
    #[inline(always)]
    pub const fn family(cluster: u64, is_v6: u64) -> EndpointKey {
        EndpointKey::new(cluster, [0, 0, 0, is_v6 as u32], 0)
    }

    /// The key of that.
    #[inline(always)]
    pub const fn family_key(cluster: u64, is_v6: u64) -> u64 {
        Self::key(cluster, [0, 0, 0, is_v6 as u32], 0)
    }

    /// How often in a row an endpoint is left out that was `times` before, and came back then: where it has been in for
    /// longer than it was out, it begins anew.
    #[inline(always)]
    pub const fn times(times: u64, back: u64, base_ms: u32, most_ms: u32, now: u64) -> u64 {
        let was_in = now.wrapping_sub(back);
        if times == 0 || was_in > Self::length(times, base_ms, most_ms) { 1 } else { times + 1 }
    }

    /// For how many nanoseconds an endpoint is left out the so-many-th time in a row.
    #[inline(always)]
    pub const fn length(times: u64, base_ms: u32, most_ms: u32) -> u64 {
        let times = if times > 1 << 20 { 1 << 20 } else { times };
        let long = base_ms as u64 * times;
        let most = if most_ms > base_ms { most_ms as u64 } else { base_ms as u64 };
        (if long > most { most } else { long }) * 1_000_000
    }

    /// How many of `count` endpoints may be left out.
    #[inline(always)]
    pub const fn most(count: u32, percent: u32) -> u32 {
        if percent == 0 {
            return 0;
        }
        let most = (count as u64 * percent as u64 / 100) as u32;
        if most == 0 { 1 } else { most }
    }

    /// Tells whether so few of `count` endpoints are left that all are used.
    #[inline(always)]
    pub const fn is_panic(count: u32, out: u32, percent: u32) -> bool {
        (count.saturating_sub(out) as u64) * 100 < count as u64 * percent as u64
    }
}

/// What runs of a cluster, whatever version of it is current: no flush touches it. Keyed by the
/// [`name_hash`] of the cluster; made by the first connection that counts here, removed by the agent some time after
/// the cluster. Versioned as [`SocketState`] is.
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

/// A workload that keeps to one endpoint of a cluster, in a family: the key of [`AffinityState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// [`Identity::workload`].
    pub workload: u64,
    /// [`name_hash`] of the cluster, which is that of a Service port.
    pub cluster: u64,
    /// 4 or 6.
    pub family: u64,
}

impl AffinityKey {
    /// The key of a workload's connections to a cluster.
    #[inline(always)]
    pub const fn new(workload: u64, cluster: u64, family: crate::Family) -> Self {
        let family = match family {
            crate::Family::V4 => 4,
            crate::Family::V6 => 6,
        };
        Self { workload, cluster, family }
    }
}

/// The endpoint that a workload keeps to: made by its first connection, brought up to date by each further one,
/// whatever version of the cluster is current. The kernel gives up the one that was used longest ago where there is
/// no room. Versioned as [`SocketState`] is.
///
/// A program may read an element while it becomes another key's. So what stands there is a hint: whoever follows it
/// looks it up among the endpoints that there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityState {
    /// The address, network order.
    pub addr: [u32; 4],
    /// The port, network order.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// When it was used last, in the kernel's nanoseconds.
    pub used: u64,
}

/// How many [`AffinityState`]s the programs made and removed: what else is missing, the kernel gave up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityTotals {
    /// Made.
    pub made: u64,
    /// Removed, because the time or the endpoint was over.
    pub removed: u64,
}

/// The proxy of a network namespace, by the cookie of that: connections there whose requests are looked at go to it.
/// Versioned as [`SocketState`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NamespaceProxy {
    /// The port at which it listens, network order; 0 where there is none and such connections are refused.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Numbers of connections whose requests are looked at, on the CPUs of one lane: so that no two CPUs write the same
/// line of memory all the time. The map has [`LANES`](Self::LANES) of them. Versioned as [`SocketState`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ProxyTotals {
    /// They went to the proxy of their network namespace.
    pub sent: u64,
    /// The namespace has none: they went where the rule for every request says.
    pub absent: u64,
    /// They were refused, as [`NamespaceProxy::port`] says.
    pub refused: u64,
    /// Their socket can't reach the loopback interface over IPv4: it is bound to an IPv6 address or to a device, or is for
    /// IPv6 only. They went where the rule for every request says.
    pub unreachable: u64,
    /// Zero: the next element lies in another line of memory.
    pub reserved: [u64; 4],
}

impl ProxyTotals {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 64;

    /// The sum of two.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            absent: self.absent + other.absent,
            refused: self.refused + other.refused,
            unreachable: self.unreachable + other.unreachable,
            reserved: [0; 4],
        }
    }
}

/// A lane of a cluster: the CPUs whose numbers have the same remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct LaneKey {
    /// [`name_hash`] of the cluster.
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

const _: () = assert!(
    size_of::<SocketState>() == 56
        && size_of::<SocketShare>() == 128
        && size_of::<NamespaceProxy>() == 8
        && size_of::<ProxyTotals>() == 64
        && LaneKey::LANES < SocketState::WATCHED as u32
);

/// Who a program's caller is, in the cgroup storage of the program's attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// [`name_hash`] of `NAMESPACE/NAME`.
    pub workload: u64,
    /// [`name_hash`] of the namespace: the class of all its callers, where a listener says nothing of theirs.
    pub namespace: u64,
    /// [`name_hash`] of the name of its class: those callers of whom every rule says the same.
    pub class: u64,
    /// The id of the cgroup, where that is a pod's: its connections are routed in its own network namespace only. 0 of
    /// other workloads.
    pub pod: u64,
    /// The cookie of that namespace, which the pod's first connect finds; 0 while it isn't known.
    pub network: u64,
}

impl Identity {
    /// What stands for the workload in the record of a socket.
    #[inline(always)]
    pub const fn mark(&self) -> u32 {
        (self.workload ^ self.workload >> 32) as u32
    }

    /// Half of [`mark`](Self::mark), for a [`Flow`](crate::Flow).
    #[inline(always)]
    pub const fn caller(&self) -> u16 {
        let half = self.workload ^ self.workload >> 32;
        (half ^ half >> 16) as u16
    }

    /// What stands for the source of a socket that is bound to no address: the workload.
    #[inline(always)]
    pub const fn source(&self) -> [u32; 4] {
        [self.workload as u32, (self.workload >> 32) as u32, 0, 0]
    }
}

/// The hash by which programs know a name (FNV-1a, 64 bits).
pub const fn name_hash(name: &str) -> u64 {
    fnv1a(FNV_OFFSET, name.as_bytes())
}

/// The number by which a source chooses its endpoint: of the address in four words, network order, that its
/// socket is bound to, or, of a socket that isn't, of [`Identity::source`].
#[inline(always)]
pub const fn source_hash(source: [u32; 4]) -> u32 {
    const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = 0;
    let mut i = 0;
    while i < 4 {
        hash = (hash ^ source[i] as u64).wrapping_mul(MIX);
        hash ^= hash >> 29;
        i += 1;
    }
    (hash.wrapping_mul(MIX) >> 32) as u32
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn v4_and_its_mapped_form_are_one_key() {
        let v4 = VipKey::new("10.96.0.10".parse().unwrap(), 80, 6);
        let mapped = VipKey::new("::ffff:10.96.0.10".parse().unwrap(), 80, 6);
        assert_eq!(v4, mapped);
        assert!(v4.is_v4());
        assert_eq!(v4.socket_addr(), "10.96.0.10:80".parse().unwrap());
        let from_context = VipKey::from_v4(u32::from_ne_bytes([10, 96, 0, 10]), 80_u16.to_be(), 6);
        assert_eq!(from_context, v4);
    }

    #[test]
    fn one_number_is_a_port_in_each_protocol() {
        let [tcp, udp] = [VipKey::TCP, VipKey::UDP]
            .map(|protocol| VipKey::new("10.96.0.10".parse().unwrap(), 53, protocol));
        assert_ne!(tcp, udp);
        assert_ne!(tcp.tag(), udp.tag());
        assert_eq!(std::format!("{tcp} {udp}"), "10.96.0.10:53 10.96.0.10:53/UDP");
    }

    #[test]
    fn places_of_sockets_are_those_taken_without_the_idle_ones() {
        let share = |places| SocketShare { places, unrecorded: 1, uncounted: 2, ..SocketShare::default() };
        let totals = SocketTotals::of([(0, share(40)), (1, share(7)), (64, share(3))]);
        assert_eq!(totals, SocketTotals { recorded: 30, unrecorded: 3, uncounted: 6 });
        // A lane that has just given some back.
        assert_eq!(SocketTotals::of([(1, share(5)), (0, share(9))]).recorded, 4);
    }

    #[test]
    fn few_places_lie_idle_in_lanes() {
        for (most, cpus) in
            [(65_536, 2), (65_536, 64), (65_536, 512), (1_000, 8), (2, 4), (0, 1), (u32::MAX, 1)]
        {
            let SocketLimit { most: allowed, batch } = SocketLimit::new(most, cpus);
            assert_eq!(allowed, u64::from(most));
            let lanes = u64::from(cpus.min(SocketShare::LANES));
            assert!(2 * batch * lanes <= allowed / 16, "{batch} of {most} on {cpus}");
        }
        assert_eq!(SocketLimit::new(2, 4).batch, 0, "so few are counted exactly");
    }

    #[test]
    fn lanes_of_a_cluster_have_tags_of_their_own() {
        let mut tags: [u32; LaneKey::LANES as usize] =
            core::array::from_fn(|lane| LaneKey::new(name_hash("web"), lane as u32).tag());
        tags.sort_unstable();
        assert!(tags.windows(2).all(|pair| pair[0] != pair[1]) && tags.iter().all(|tag| tag & 1 == 1));
    }

    #[test]
    fn a_time_in_a_record_is_never_0() {
        for nanoseconds in [0, 1, 1 << 20, (1 << 52) - 1, 1 << 52, u64::MAX] {
            assert_ne!(SocketState::tick(nanoseconds), 0);
        }
        assert_eq!(SocketState::tick(5 << 20), 5);
    }

    #[test]
    fn value_of_another_key_is_told_apart() {
        let web = VipKey::new("10.96.0.10".parse().unwrap(), 80, 6);
        let db = VipKey::new("10.96.0.10".parse().unwrap(), 81, 6);
        let value = VipValue::new(&web, Ref::new(SlotPtr::from_bits(77)));
        assert_eq!(value.listener(&web), Some(SlotPtr::from_bits(77)));
        assert_eq!(value.listener(&db), None);
    }

    /// Whatever the kernel's copy of a value into a reused element looks like half-way.
    #[test]
    fn bytes_of_two_values_are_no_value() {
        let key = |port| VipKey::new("10.96.0.10".parse().unwrap(), port, 6);
        for (before, after) in [(80, 81), (81, 80), (80, 80)] {
            let old = VipValue::new(&key(before), Ref::new(SlotPtr::from_bits(0x0001_0402)));
            let new = VipValue::new(&key(after), Ref::new(SlotPtr::from_bits(0x0203_0807)));
            for mask in 1..255_u8 {
                let (old, new) = (old.bits().to_le_bytes(), new.bits().to_le_bytes());
                let mixed = core::array::from_fn(|i| if mask >> i & 1 == 0 { old[i] } else { new[i] });
                let mixed = VipValue::from_bits(u64::from_le_bytes(mixed));
                if [old, new].contains(&mixed.bits().to_le_bytes()) {
                    continue;
                }
                for port in [before, after] {
                    assert_eq!(mixed.listener(&key(port)), None, "{mask:08b}");
                }
            }
        }
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
    fn a_bucket_never_gives_more_than_it_holds_and_what_flows_in() {
        for (per_second, burst) in [(1, 1), (3, 5), (1_000, 1), (7, 100), (1_000_000, 10)] {
            let interval = BucketState::interval(per_second);
            // As many as it holds at once, then one for each that flows in.
            let (mut full, start) = (0, 5_000_000_000);
            let mut taken = 0_u64;
            let mut now = start;
            for step in 0..2_000_u64 {
                match BucketState::take(full, now, interval, burst) {
                    Some(after) => {
                        full = after;
                        taken += 1;
                    }
                    None => now += interval / 3 + step % 2,
                }
                let most = u64::from(burst) + (now - start) / interval;
                assert!(taken <= most, "{per_second} {burst}: {taken} of {most}");
            }
            assert!(taken >= u64::from(burst), "{per_second} {burst}: {taken}");
            // A quiet time fills it, and no more than that.
            let now = full + 1_000_000_000_000;
            let mut at_once = 0;
            while let Some(after) = BucketState::take(full, now, interval, burst) {
                full = after;
                at_once += 1;
            }
            assert_eq!(at_once, burst);
        }
        assert_eq!(BucketState::interval(3), 333_333_334);
    }

    #[test]
    fn who_is_left_out_again_soon_is_for_longer() {
        const SECOND: u64 = 1_000_000_000;
        let times =
            |times, back, now| OutlierState::times(times, back * SECOND, 10_000, 25_000, now * SECOND);
        assert_eq!(
            [times(0, 0, 5), times(1, 100, 105), times(1, 100, 110), times(1, 100, 111)],
            [1, 2, 2, 1]
        );
        assert_eq!([times(2, 100, 120), times(2, 100, 121)], [3, 1]);
        let lengths = [1, 2, 3, u64::MAX].map(|times| OutlierState::length(times, 10_000, 25_000) / SECOND);
        assert_eq!(lengths, [10, 20, 25, 25]);
        assert_eq!(OutlierState::length(3, 10_000, 1) / SECOND, 10, "the most is never less than the first");
    }

    #[test]
    fn endpoints_and_families_have_keys_of_their_own() {
        let mut keys = std::vec::Vec::new();
        for cluster in [1, 2, name_hash("web")] {
            keys.extend([0, 1].map(|family| OutlierState::family_key(cluster, family)));
            for ip in ["10.0.0.1", "10.0.0.2", "::1", "fd00::1"] {
                let addr = words(ip.parse().unwrap());
                keys.extend([80_u16, 81].map(|port| OutlierState::key(cluster, addr, port.to_be())));
            }
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn one_may_be_left_out_in_any_case_and_none_with_0_percent() {
        let most = |count, percent| OutlierState::most(count, percent);
        assert_eq!([most(3, 10), most(3, 0), most(10, 50), most(10, 100), most(1, 1)], [1, 0, 5, 10, 1]);
        let panic = |count, out, percent| OutlierState::is_panic(count, out, percent);
        assert!(panic(10, 6, 50) && !panic(10, 5, 50) && !panic(10, 10, 0) && panic(10, 1, 100));
    }

    #[test]
    fn failures_count_for_some_seconds() {
        let failed = Failures::default().and(100).and(103);
        assert_eq!([failed.at(103), failed.at(112), failed.at(113)], [2, 2, 0]);
        assert_eq!(failed.and(200).at(200), 1);
        assert_eq!(Failures::default().at(1), 0);
    }
}
