//! How connections to a cluster are spread, and how many there may be: what TrafficPolicies and
//! DestinationRules have in common.

use std::{collections::BTreeMap, sync::Arc};

use slotmesh_xds::LocalityPolicy;

use super::{Localities, Outliers};

/// How a connection chooses its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LbPolicy {
    Random,
    RoundRobin,
    LeastConnections,
    /// By the source.
    ConsistentHash,
    /// By a part of the request, where a proxy looks at it; connections are spread at random.
    RequestHash(HashedPart),
}

/// The part of a request that is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashedPart {
    Header(String),
    /// A cookie; where a request has none, one that lasts for `ttl` milliseconds (0: the session) is made, if that is set.
    Cookie {
        name: String,
        path: String,
        ttl: Option<u64>,
        attributes: Vec<(String, String)>,
    },
    Query(String),
}

/// How fast new connections may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
    pub(crate) per_caller: bool,
}

/// Settings of a cluster's connections, as somebody says; what isn't said is left to others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrafficSettings {
    pub(crate) balance: Option<LbPolicy>,
    pub(crate) max_connections: Option<u32>,
    pub(crate) localities: Option<Localities>,
    pub(crate) outliers: Option<Outliers>,
    pub(crate) rate: Option<Rate>,
    /// Tells whether a DestinationRule has outlier detection: Istio prefers the nearest endpoints only then.
    pub(crate) fails_over: bool,
}

impl TrafficSettings {
    /// Fills in from `other` what `self` doesn't say.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            balance: self.balance.or(other.balance),
            max_connections: self.max_connections.or(other.max_connections),
            localities: self.localities.or(other.localities),
            outliers: self.outliers.or(other.outliers),
            rate: self.rate.or(other.rate),
            fails_over: self.fails_over || other.fails_over,
        }
    }

    /// How much it says of localities, in every assignment that it is for.
    pub(crate) fn places(&self) -> usize {
        match &self.localities {
            Some(Localities::By { policy, .. }) => {
                let LocalityPolicy { distribute, failover, prefer } = &**policy;
                let shares = distribute.iter().map(|from| 1 + from.to.len()).sum::<usize>();
                shares + failover.len() + prefer.len()
            }
            _ => 0,
        }
    }

    /// How callers choose among localities; `None` where all are alike.
    pub(crate) fn locality_policy(&self) -> Option<Arc<LocalityPolicy>> {
        match &self.localities {
            Some(Localities::Alike) => None,
            Some(Localities::By { policy, always }) => {
                Some(policy.clone()).filter(|_| *always || self.fails_over)
            }
            None => self.fails_over.then(Arc::default),
        }
    }
}

/// A traffic policy of Istio's: of all ports, and of some of them instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) all: TrafficSettings,
    pub(crate) ports: BTreeMap<u16, TrafficSettings>,
}

impl Policy {
    /// The settings of a port; what it doesn't say, `rest` does. What is said of a port alone stands by itself: it
    /// inherits nothing.
    pub(crate) fn of(&self, port: u16, rest: TrafficSettings) -> TrafficSettings {
        self.ports.get(&port).cloned().unwrap_or_else(|| self.all.clone().or(rest))
    }
}
