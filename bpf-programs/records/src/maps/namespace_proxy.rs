//! Proxies of network namespaces, and numbers of connections that go to them.

use bytemuck::{Pod, Zeroable};

/// The proxy of a network namespace, by the cookie of that: connections there whose requests are looked at go to it.
/// Versioned as [`SocketState`](super::SocketState) is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NamespaceProxy {
    /// The port at which it listens, network order; 0 where there is none and such connections are refused.
    pub port: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

/// Numbers of connections whose requests are looked at, on the CPUs of one lane: so that no two CPUs write the same
/// line of memory all the time. The map has [`LANES`](Self::LANES) of them. Versioned as [`SocketState`](super::SocketState) is.
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

const _: () = assert!(size_of::<NamespaceProxy>() == 8 && size_of::<ProxyTotals>() == 64);
