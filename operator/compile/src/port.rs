//! Ports, as they are told apart everywhere: by number and protocol.

use std::fmt;

use slotmesh_xds::Transport;

/// A port: a number in a protocol. Resources, claims and reports name it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortKey {
    /// Not 0.
    pub(crate) number: u16,
    /// TCP and UDP may have the same number.
    pub(crate) protocol: Transport,
}

#[cfg(test)]
impl PortKey {
    /// The TCP port with this number.
    pub(crate) const fn tcp(number: u16) -> Self {
        Self { number, protocol: Transport::Tcp }
    }
}

impl fmt::Display for PortKey {
    /// `53` in TCP, which is what a bare number means; `53/UDP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Transport::Tcp => self.number.fmt(f),
            Transport::Udp => write!(f, "{}/{}", self.number, self.protocol),
        }
    }
}
