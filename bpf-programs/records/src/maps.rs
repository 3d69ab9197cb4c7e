//! Keys and values of the maps beside the outer map: VIPs, sockets, identities.
//!
//! Addresses are 16 bytes in network order as four words, IPv4 as `::ffff:a.b.c.d`; ports are in
//! network order too, so that a program copies them from and to its context unchanged.

use core::net::{IpAddr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use crate::{
    Handle, Ref, SlotPtr,
    layout::{FNV_OFFSET, fnv1a},
};

/// The version of the per-socket and identity state, which outlives a change of record layouts.
pub const STATE_VERSION: u32 = 1;

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
    /// Zero.
    pub reserved: u8,
}

impl VipKey {
    /// `IPPROTO_TCP`
    pub const TCP: u8 = 6;

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

/// The value of the VIP map: the listener's handle and the key's tag, in one aligned 64-bit word.
///
/// The kernel reuses a deleted element of a hash map at once, so a program may find the value of
/// another key behind the pointer that it was given. One 64-bit load of pointer and tag together
/// tells: a value whose tag isn't that of the key asked for is treated as absent, as it then is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct VipValue(u64);

impl VipValue {
    /// The value to store under `key`.
    pub const fn new(key: &VipKey, listener: Ref<Handle>) -> Self {
        Self((key.tag() as u64) << 32 | listener.ptr().bits() as u64)
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
        if (self.0 >> 32) as u32 == key.tag() { Some(SlotPtr::from_bits(self.0 as u32)) } else { None }
    }
}

/// What a redirected socket remembers, in its sk_storage.
///
/// It isn't part of the layout hash: its layout, and that of [`Identity`], is versioned by
/// [`STATE_VERSION`], which names the directory of their pins. A change of either raises it once a
/// release has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketState {
    /// What the application asked for: what getpeername answers.
    pub original: VipKey,
    /// Where it was redirected to: the port, network order.
    pub target_port: u16,
    /// Bits: [`IN_CLUSTER`](Self::IN_CLUSTER) while it counts among the connections of its cluster, and
    /// [`AT_ENDPOINT`](Self::AT_ENDPOINT), which connect sets, where its endpoint counts it for as long.
    pub counted: u16,
    /// Where it was redirected to: the address. A program that runs after this one's, further up in the
    /// cgroup hierarchy, sees a connect to it.
    pub target: [u32; 4],
    /// [`name_hash`] of the chosen cluster.
    pub cluster: u64,
    /// [`Identity::workload`] of the caller.
    pub workload: u64,
}

impl SocketState {
    /// In [`counted`](Self::counted).
    pub const IN_CLUSTER: u16 = 1;
    /// In [`counted`](Self::counted).
    pub const AT_ENDPOINT: u16 = 2;
}

/// An endpoint of a cluster that chooses by how many connections each has: the key of [`EndpointCount`].
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
}

/// How many connections count at an endpoint: made by the first, removed with the last by the programs, so
/// that the map has an element for each endpoint with connections, and nobody looks after the others.
///
/// The kernel reuses the elements of a hash map at once, so the word also tells whose it is, as a
/// [`VipValue`] does: the lower half is the number, the upper half a hash of the key. Versioned as
/// [`SocketState`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct EndpointCount(u64);

impl EndpointCount {
    const fn tag(key: &EndpointKey) -> u32 {
        key.at.tag() ^ key.cluster as u32 ^ (key.cluster >> 32) as u32
    }

    /// No connection yet.
    #[inline(always)]
    pub const fn none(key: &EndpointKey) -> Self {
        Self((Self::tag(key) as u64) << 32)
    }

    /// What the map holds.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits that the map holds.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// How many connections; `None` where the element is another key's.
    #[inline(always)]
    pub const fn of(self, key: &EndpointKey) -> Option<u32> {
        if (self.0 >> 32) as u32 == Self::tag(key) { Some(self.0 as u32) } else { None }
    }
}

/// What runs of a cluster, whatever version of it is current: no flush touches it. Keyed by the
/// [`name_hash`] of the cluster; made by the first connection, removed by the agent some time after the
/// cluster. Versioned as [`SocketState`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ClusterState {
    /// TCP connections that count: from the SYN until the socket is closed.
    pub active: u64,
    /// How many connections were given an endpoint in turn.
    pub cursor: u64,
    /// TCP connections that have counted since the entry was made.
    pub opened: u64,
    /// Connects refused because there were as many connections as there may be.
    pub refused: u64,
}

/// Who a program's caller is, in the cgroup storage of the program's attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Identity {
    /// [`name_hash`] of `NAMESPACE/NAME`.
    pub workload: u64,
    /// [`name_hash`] of the namespace.
    pub namespace: u64,
}

impl Identity {
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
    fn value_of_another_key_is_told_apart() {
        let web = VipKey::new("10.96.0.10".parse().unwrap(), 80, 6);
        let db = VipKey::new("10.96.0.10".parse().unwrap(), 81, 6);
        let value = VipValue::new(&web, Ref::new(SlotPtr::from_bits(77)));
        assert_eq!(value.listener(&web), Some(SlotPtr::from_bits(77)));
        assert_eq!(value.listener(&db), None);
    }
}
