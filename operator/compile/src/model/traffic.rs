//! How connections to a cluster are spread, and how many there may be: what TrafficPolicies and
//! DestinationRules have in common.

use std::collections::BTreeMap;

/// How a connection chooses its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Balance {
    Random,
    RoundRobin,
    LeastConnections,
    /// By the source.
    ConsistentHash,
}

/// What somebody says of a cluster's connections; what isn't said is left to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) balance: Option<Balance>,
    pub(crate) max_connections: Option<u32>,
}

impl Traffic {
    /// What `self` doesn't say, `other` does.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            balance: self.balance.or(other.balance),
            max_connections: self.max_connections.or(other.max_connections),
        }
    }
}

/// A traffic policy of Istio's: of all ports, and of some of them instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) all: Traffic,
    pub(crate) ports: BTreeMap<u16, Traffic>,
}

impl Policy {
    /// What it says of a port; what it doesn't say, `rest` does. What is said of a port alone stands by itself: it
    /// inherits nothing.
    pub(crate) fn of(&self, port: u16, rest: Traffic) -> Traffic {
        self.ports.get(&port).copied().unwrap_or_else(|| self.all.or(rest))
    }
}
