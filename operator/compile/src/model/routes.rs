//! Routes of Services, whatever kind of object says so: VirtualService, HTTPRoute, TCPRoute.

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

/// A destination and its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// The field of the destination.
    pub(crate) field: String,
    pub(crate) service: ObjectName,
    /// Empty for the Service as a whole.
    pub(crate) subset: String,
    pub(crate) port: Option<u16>,
    pub(crate) weight: u32,
}

/// A route. Its shares all have a weight above 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) matches: Vec<Match>,
    pub(crate) shares: Vec<Share>,
}

impl Route {
    /// Whether the route applies to connections to this port.
    pub(crate) fn applies(&self, port: u16) -> Applies {
        if self.shares.is_empty() {
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
}

impl Host {
    /// Whether the routes are for this port.
    pub(crate) fn covers(&self, port: &ServicePort) -> bool {
        self.port.is_none_or(|number| number == port.number)
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
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &ObjectName> {
        self.http.iter().chain(&self.tcp).flat_map(|route| &route.shares).map(|share| &share.service)
    }
}
