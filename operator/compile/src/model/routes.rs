//! Routes of Services, whatever kind of object says so: VirtualService, GRPCRoute, HTTPRoute, TLSRoute, TCPRoute.

use std::{net::IpAddr, sync::Arc};

use super::{
    Age, Caller, Export, Labels, Mirrored, PortKey, RequestCondition, ServicePort, Treatment,
    treatment::MessageEdits,
};
use crate::{Cidr, Kind, ObjectKey, ObjectName, ServiceId, patterns::Suffix};

/// A connection, as far as it is known when it is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection<'a> {
    pub(crate) caller: Caller<'a>,
    /// The address that it is made to; `None` where no route asks for it.
    pub(crate) to: Option<IpAddr>,
    pub(crate) port: PortKey,
}

/// The two lists of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RouteKind {
    Http,
    Tcp,
}

/// Which callers a match is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct From {
    /// Those of this namespace; `None` for all.
    pub(crate) namespace: Option<Arc<str>>,
    /// Those with all these labels.
    pub(crate) labels: Labels,
}

/// One way to match.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Match {
    pub(crate) port: Option<u32>,
    pub(crate) from: From,
    /// The ranges to which a connection may be made; none for all.
    pub(crate) to: Vec<Cidr>,
    /// Tells whether it can be decided: where no proxy looks at requests, whether it asks for nothing that only a
    /// request tells.
    pub(crate) decidable: bool,
    /// Asked of requests, which a proxy looks at; `None` where every request meets it.
    pub(crate) request: Option<RequestCondition>,
}

impl Match {
    /// A match of all connections, or of those that only a request tells.
    pub(crate) fn of_all(decidable: bool) -> Self {
        Self { port: None, from: From::default(), to: Vec::new(), decidable, request: None }
    }

    /// Tells whether a connection to the port may match, whoever makes it.
    fn covers(&self, port: u16) -> bool {
        self.decidable && self.port.is_none_or(|number| number == u32::from(port))
    }

    /// Tells whether requests of a connection may match.
    pub(crate) fn admits(&self, connection: &Connection<'_>) -> bool {
        let Connection { caller, to, port } = *connection;
        let from = self.from.namespace.as_deref().is_none_or(|wanted| caller.namespace() == Some(wanted));
        let here = self.to.is_empty() || to.is_some_and(|ip| self.to.iter().any(|range| range.contains(ip)));
        self.covers(port.number) && from && here && caller.has(&self.from.labels)
    }

    fn applies(&self, connection: &Connection<'_>) -> bool {
        self.request.is_none() && self.admits(connection)
    }
}

/// The part of a Service, or of a host, that connections can be sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) service: ServiceId,
    /// Empty for the Service as a whole.
    pub(crate) subset: String,
    pub(crate) port: Option<u16>,
}

/// A destination and its share of the connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WeightedBackend {
    /// The field of the destination.
    pub(crate) field: String,
    /// `None` where it can't be one: its share is refused, which was reported when it was read.
    pub(crate) destination: Option<Destination>,
    /// Above 0.
    pub(crate) weight: u32,
    /// Changes of the messages that go there.
    pub(crate) edits: MessageEdits,
}

/// Where the connections of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding {
    /// That takes a request, as a redirect does, and nobody looks at requests; or what is to be done with them can't
    /// be: the route is skipped.
    Undecidable,
    /// Nowhere: the proxy gives the answer that the route's treatment has.
    Answered,
    /// To the Service's own endpoints.
    Own,
    /// Where the VirtualService of this name says, to which it is delegated.
    Delegated(ObjectName),
    /// To these by weight. Without any they are refused.
    Shares(Vec<WeightedBackend>),
}

impl Forwarding {
    /// To these by weight; those without weight get nothing. The sum of all weights fits in 32 bits afterwards.
    pub(crate) fn by_weight(mut shares: Vec<WeightedBackend>) -> Self {
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
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    /// The field that defines it.
    pub(crate) field: String,
    /// Its name among the routes of a proxy; empty where it has none of its own.
    pub(crate) name: String,
    pub(crate) matches: Vec<Match>,
    pub(crate) to: Forwarding,
    /// The treatment of its requests.
    pub(crate) treatment: Treatment,
}

impl Route {
    /// A route that leaves requests as they are.
    pub(crate) fn plain(field: String, matches: Vec<Match>, to: Forwarding) -> Self {
        Self { field, name: String::new(), matches, to, treatment: Treatment::default() }
    }

    /// Tells whether there are connections to which the route can apply.
    pub(crate) fn acts(&self) -> bool {
        let decidable = self.matches.is_empty() || self.matches.iter().any(|m| m.decidable);
        self.to != Forwarding::Undecidable && decidable
    }

    /// Tells whether the route may apply to connections to this port, whoever makes them.
    pub(crate) fn covers(&self, port: u16) -> bool {
        self.to != Forwarding::Undecidable
            && (self.matches.is_empty() || self.matches.iter().any(|m| m.covers(port)))
    }

    /// Tells whether the route may apply to requests of a connection.
    pub(crate) fn admits(&self, connection: &Connection<'_>) -> bool {
        self.to != Forwarding::Undecidable
            && (self.matches.is_empty() || self.matches.iter().any(|m| m.admits(connection)))
    }

    /// Tells whether the route is known to apply to a connection.
    pub(crate) fn applies(&self, connection: &Connection<'_>) -> bool {
        self.to != Forwarding::Undecidable
            && (self.matches.is_empty() || self.matches.iter().any(|m| m.applies(connection)))
    }
}

/// A Service whose connections are routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// The field that says so.
    pub(crate) field: String,
    pub(crate) service: ServiceId,
    /// The number of the only port; `None` for all.
    pub(crate) port: Option<u16>,
    /// The name of the only port; `None` for all.
    pub(crate) section: Option<String>,
    /// Tells whether the routes can be for it at all; why not was reported when it was read.
    pub(crate) usable: bool,
}

impl Host {
    /// Tells whether the routes are for this port.
    pub(crate) fn covers(&self, port: &ServicePort) -> bool {
        self.usable
            && self.port.is_none_or(|number| number == port.key.number)
            && self.section.as_ref().is_none_or(|name| *name == port.name)
    }
}

/// All hosts that end alike, whose connections are routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WildHost {
    /// The field that says so.
    pub(crate) field: String,
    pub(crate) suffix: Suffix,
}

/// A valid object that routes connections to Services.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Routes {
    /// Of what kind of object they are.
    pub(crate) kind: Kind,
    pub(crate) age: Age,
    /// Whose connections they are for, as far as the object says.
    pub(crate) export: Export,
    /// The Services whose connections it routes; none, here and in `wild`, where others delegate to it.
    pub(crate) hosts: Vec<Host>,
    pub(crate) wild: Vec<WildHost>,
    pub(crate) http: Vec<Route>,
    pub(crate) tcp: Vec<Route>,
    /// How large the routes of requests are as text, in bytes; 0 where nobody looks at requests.
    pub(crate) text: usize,
}

impl Routes {
    /// All routes.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Route> {
        self.http.iter().chain(&self.tcp)
    }

    /// All destinations of all routes.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let shares = self.all().flat_map(|route| match &route.to {
            Forwarding::Shares(shares) => shares.as_slice(),
            Forwarding::Own | Forwarding::Delegated(_) => &[],
            Forwarding::Undecidable | Forwarding::Answered => &[],
        });
        let mirrors = self.all().flat_map(|route| &route.treatment.mirrors);
        let mirrors = mirrors.map(|Mirrored { destination, .. }| destination);
        shares.filter_map(|share| share.destination.as_ref()).chain(mirrors)
    }

    /// The VirtualServices to which it delegates.
    pub(crate) fn delegates(&self) -> impl Iterator<Item = &ObjectName> {
        self.all().filter_map(|route| match &route.to {
            Forwarding::Delegated(to) => Some(to),
            _ => None,
        })
    }

    /// Tells whether it is one that others delegate to.
    pub(crate) fn is_delegate(&self) -> bool {
        self.hosts.is_empty() && self.wild.is_empty()
    }

    /// Tells whether it is for connections of callers of its own namespace only: a route of Gateway API that is attached to
    /// a Service of another namespace.
    pub(crate) fn is_consumers(&self, key: &ObjectKey, service: &ServiceId) -> bool {
        self.kind != Kind::VirtualService && key.name.namespace != *service.namespace()
    }

    /// Tells whether it is for connections of this caller to the Service.
    pub(crate) fn is_for(&self, key: &ObjectKey, service: &ServiceId, caller: Caller<'_>) -> bool {
        if self.is_consumers(key, service) {
            return caller.namespace() == Some(&*key.name.namespace);
        }
        self.export.sees(caller)
    }
}
