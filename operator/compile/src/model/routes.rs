//! Routes of Services, whatever kind of object says so: VirtualService, GRPCRoute, HTTPRoute, TLSRoute, TCPRoute.

use super::{Age, ServicePort};
use crate::{Kind, ObjectName};

/// Whether a route applies to connections to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applies {
    Yes,
    No,
    /// That depends on what only a request would tell.
    Undecidable,
}

/// The two lists of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    Http,
    Tcp,
}

/// One way to match; all that isn't the port can't be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) port: Option<u32>,
    pub(crate) decidable: bool,
}

/// The part of a Service, or of a host, that connections can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) service: ObjectName,
    /// Empty for the Service as a whole.
    pub(crate) subset: String,
    pub(crate) port: Option<u16>,
}

/// A destination and its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The field of the destination.
    pub(crate) field: String,
    /// `None` where it can't be one: its share is refused, which was reported when it was read.
    pub(crate) destination: Option<Destination>,
    /// Above 0.
    pub(crate) weight: u32,
}

/// Where the connections of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// That takes a request, as a redirect does: the route is skipped.
    Undecidable,
    /// To the Service's own endpoints.
    Own,
    /// To these by weight. Without any they are refused.
    Shares(Vec<Share>),
}

impl Forwarding {
    /// To these by weight; those without weight get nothing. The sum of all weights fits in 32 bits afterwards.
    pub(crate) fn by_weight(mut shares: Vec<Share>) -> Self {
        shares.retain(|share| share.weight > 0);
        let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum();
        let most = u64::from(u32::MAX) - shares.len() as u64;
        let divisor = u32::try_from(total.div_ceil(most)).unwrap_or(u32::MAX).max(1);
        for share in &mut shares {
            share.weight = (share.weight / divisor).max(1);
        }
        Self::Shares(shares)
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The field that defines it.
    pub(crate) field: String,
    pub(crate) matches: Vec<Match>,
    pub(crate) to: Forwarding,
}

impl Route {
    /// Whether there are connections to which the route can apply.
    pub(crate) fn acts(&self) -> bool {
        let decidable = self.matches.is_empty() || self.matches.iter().any(|m| m.decidable);
        self.to != Forwarding::Undecidable && decidable
    }

    /// Whether the route applies to connections to this port.
    pub(crate) fn applies(&self, port: u16) -> Applies {
        if self.to == Forwarding::Undecidable {
            return Applies::Undecidable;
        }
        if self.matches.is_empty() {
            return Applies::Yes;
        }
        let mut applies = Applies::No;
        for m in self.matches.iter().filter(|m| m.port.is_none_or(|p| p == u32::from(port))) {
            if m.decidable {
                return Applies::Yes;
            }
            applies = Applies::Undecidable;
        }
        applies
    }
}

/// A Service whose connections are routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The field that says so.
    pub(crate) field: String,
    pub(crate) service: ObjectName,
    /// The number of the only port; `None` for all.
    pub(crate) port: Option<u16>,
    /// The name of the only port; `None` for all.
    pub(crate) section: Option<String>,
    /// Whether the routes can be for it at all; why not was reported when it was read.
    pub(crate) usable: bool,
}

impl Host {
    /// Whether the routes are for this port.
    pub(crate) fn covers(&self, port: &ServicePort) -> bool {
        self.usable
            && self.port.is_none_or(|number| number == port.key.number)
            && self.section.as_ref().is_none_or(|name| *name == port.name)
    }
}

/// A valid object that routes connections to Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Routes {
    /// Of what kind of object they are.
    pub(crate) kind: Kind,
    pub(crate) age: Age,
    /// The Services whose connections it routes; none when it isn't for the mesh.
    pub(crate) hosts: Vec<Host>,
    pub(crate) http: Vec<Route>,
    pub(crate) tcp: Vec<Route>,
}

impl Routes {
    /// All destinations of all routes.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let shares = self.http.iter().chain(&self.tcp).flat_map(|route| match &route.to {
            Forwarding::Shares(shares) => shares.as_slice(),
            Forwarding::Own | Forwarding::Undecidable => &[],
        });
        shares.filter_map(|share| share.destination.as_ref())
    }
}
