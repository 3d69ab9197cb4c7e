//! The protocol that a port is of.

use std::fmt;

use crate::envoy::envoy::config::core::v3::socket_address::Protocol;

/// The protocol that a port is of: the same number is another port in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP, also where nothing is said.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As it stands in a `SocketAddress`.
    pub const fn to_proto(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }

    /// That of a `SocketAddress`; `None` for a number that means none.
    pub fn from_proto(protocol: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.to_proto() as i32 == protocol)
    }

    /// As Kubernetes objects name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// The one that Kubernetes objects name so; without a name it is TCP.
    pub fn named(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("") => Some(Self::Tcp),
            Some(name) => Self::ALL.into_iter().find(|transport| transport.as_str() == name),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_back() {
        for transport in Transport::ALL {
            assert_eq!(Transport::from_proto(transport.to_proto() as i32), Some(transport));
            assert_eq!(Transport::named(Some(transport.as_str())), Some(transport));
        }
        assert_eq!(Transport::named(None), Some(Transport::Tcp));
        assert_eq!(Transport::named(Some("")), Some(Transport::Tcp));
        assert_eq!(Transport::named(Some("SCTP")), None);
        assert_eq!(Transport::from_proto(7), None);
    }
}
