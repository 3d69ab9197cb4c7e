//! Virtual addresses: key and value of the VIP map.
//!
//! Addresses are 16 bytes in network order as four words, IPv4 as `::ffff:a.b.c.d`; ports are in
//! network order too, so that a program copies them from and to its context unchanged.

use core::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use bytemuck::{Pod, Zeroable};

use crate::{Handle, Ref, SlotPtr};

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
fn ip(words: [u32; 4]) -> IpAddr {
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
}
