//! Listeners and route configurations of a Service, or of a host of a ServiceEntry: where connections to its
//! addresses go, and whose.
//!
//! ```text
//!  objects for the Service --order--> candidates --what a caller sees--> answer for (caller, port, address)
//!  answers: one for everybody --> listener's filter chain; those that differ --> chains by caller
//! ```
//!
//! For each port and caller the first object decides that has a route for the connection which can be decided: of
//! VirtualServices the one with the narrowest host, the oldest; then Gateway API's routes, those of the caller's own
//! namespace for a Service of another one first, and of each GRPCRoutes, HTTPRoutes, TLSRoutes and TCPRoutes in this
//! order, the oldest first. Invariants: a choice in force names only clusters that exist, and that the object may send
//! connections to; what a route says and can't be resolved refuses its share, which goes nowhere else; and a caller
//! costs a chain only where its answer differs.

mod destinations;
mod listeners;
mod points;
mod proxied;
mod reports;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use slotmesh_xds::Transport;

use self::{
    destinations::{Missing, destination_backend, destination_cluster},
    listeners::listen,
    points::Points,
    proxied::Requests,
    reports::{behind, left_to_kube_proxy, no_such_port, report_at, without_effect},
};
use crate::{
    Index, Kind, ObjectKey, ObjectName, Reason, Report, ServiceId,
    backends::{Backend, backend},
    links::Ranked,
    model::{
        Caller, Connection, Forwarding, PortKey, Protocol, Route, RouteKind, Routes, Service, ServicePort,
        WeightedBackend, WildHost,
    },
    names::{BLACK_HOLE, PASSTHROUGH, cluster_name},
    patterns::Suffix,
    unit::Compiled,
};

/// The clusters that a route leads to, by weight.
type WeightedClusters = Vec<(String, u32)>;

/// An object with routes for the Service.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    key: &'a ObjectKey,
    routes: &'a Routes,
    /// The wildcard by which it is for the Service, where it doesn't name it.
    wild: Option<&'a WildHost>,
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer<'a> {
    kind: RouteKind,
    way: Way,
    /// The objects that say so; none where they go to the Service's own endpoints because nobody says anything.
    by: Vec<&'a ObjectKey>,
    /// Tells whether the caller doesn't see the Service: it goes as if there were no listener.
    is_unseen: bool,
}

impl Answer<'_> {
    /// Tells whether something else becomes of the connections than would without a listener.
    fn needs_a_listener(&self) -> bool {
        let passes = match &self.way {
            Way { choice, requests: None } => matches!(&choice[..], [(only, _)] if only == PASSTHROUGH),
            Way { requests: Some(_), .. } => false,
        };
        !(self.is_unseen || passes)
    }
}

/// Where connections go, or their requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    choice: WeightedClusters,
    /// The routes of their requests, which a proxy looks at; `choice` is where they go without one.
    requests: Option<Requests>,
}

impl From<WeightedClusters> for Way {
    fn from(choice: WeightedClusters) -> Self {
        Self { choice, requests: None }
    }
}

/// A caller's sight of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sight {
    Everything,
    /// Nothing: connections go as if there were no routes and rules.
    Nothing,
    /// Nothing, and connections are refused.
    Refused,
}

/// The place of a connection among all: its port, and its address where routes ask for that.
type Place = (PortKey, Option<IpAddr>);

/// The answers to the connections of some callers.
type Answers<'a> = BTreeMap<Place, Answer<'a>>;

/// Compiles the listeners and routes of a Service.
pub(crate) fn compile(index: &Index, name: &ServiceId) -> Compiled {
    let mut out = Compiled::default();
    let mut candidates = candidates(index, name);
    candidates.retain(|candidate| {
        let exists = index.service_for(candidate.key.kind, name).is_some();
        if !exists {
            let fault = format!("{}; the routes take effect when it appears", index.not_found(name));
            for host in candidate.routes.hosts.iter().filter(|host| host.usable && host.service == *name) {
                let report =
                    report_at(index, candidate.key, name, &host.field, Reason::TargetNotFound, fault.clone());
                out.reports.push(report);
            }
        }
        exists
    });
    let Some(service) = index.service(name) else { return out };
    let left =
        index.left_to_kube_proxy(name).filter(|_| !service.vips.is_empty() && !service.ports.is_empty());
    let points = Points::of(index, name, &candidates);
    let mut decisions = Decisions::new(index, name, service, &candidates, &points, left.is_some());
    let everybody = decisions.of(Caller::Anyone);
    let callers: Vec<_> = points.callers().map(|caller| (caller, decisions.of(caller))).collect();
    let mut routed_ports = Vec::new();
    for port in &service.ports {
        let mut by_port = callers.iter().map(|(_, answers)| answers).chain([&everybody]);
        let is_routed = by_port.any(|answers| {
            answers.iter().any(|((key, _), answer)| *key == port.key && !answer.by.is_empty())
        });
        if is_routed {
            routed_ports.push(port.key.to_string());
        }
        if left.is_none() || is_routed {
            listen(index, name, port, (&everybody, &callers), &mut out);
        }
    }
    if let Some(field) = left {
        out.left = routed_ports.len() < service.ports.len();
        out.reports.extend(name.object().map(|name| left_to_kube_proxy(index, name, field, &routed_ports)));
    }
    out.reports.extend(decisions.said);
    behind(index, name, service, &candidates, &decisions.outcome, &mut out);
    for candidate in
        candidates.iter().filter(|candidate| !decisions.outcome.hidden.contains_key(candidate.key))
    {
        no_such_port(index, name, service, candidate, &mut out);
        without_effect(index, name, service, candidate, &mut out);
    }
    out
}

/// The objects whose routes can be in force, the first goes first.
fn candidates<'a>(index: &'a Index, name: &ServiceId) -> Vec<Candidate<'a>> {
    let usable = |ranked: &'a Ranked| {
        let routes = index.routes(&ranked.key)?;
        let named = routes.hosts.iter().any(|host| host.usable && host.service == *name);
        named.then_some(Candidate { key: &ranked.key, routes, wild: None })
    };
    let named: Vec<_> = index.relations.routes.of(name).filter_map(usable).collect();
    let mut candidates: Vec<_> =
        named.iter().filter(|candidate| candidate.key.kind == Kind::VirtualService).copied().collect();
    for suffix in Suffix::of(&index.host(name)).collect::<Vec<_>>() {
        for ranked in index.relations.wild_routes.of(&suffix) {
            let Some(routes) = index.routes(&ranked.key) else { continue };
            let is_known = candidates.iter().any(|candidate| *candidate.key == ranked.key);
            if let Some(wild) = routes.wild.iter().find(|wild| wild.suffix == suffix && !is_known) {
                candidates.push(Candidate { key: &ranked.key, routes, wild: Some(wild) });
            }
        }
    }
    let others = || named.iter().filter(|candidate| candidate.key.kind != Kind::VirtualService).copied();
    candidates.extend(others().filter(|candidate| candidate.routes.is_consumers(candidate.key, name)));
    candidates.extend(others().filter(|candidate| !candidate.routes.is_consumers(candidate.key, name)));
    candidates
}

/// Which objects have an effect, as far as callers have been looked at.
#[derive(Debug, Default)]
struct Outcome<'a> {
    /// Those that decide, by port.
    winners: BTreeSet<(&'a ObjectKey, PortKey)>,
    /// Those that could, and the first that goes before.
    losers: BTreeMap<(&'a ObjectKey, PortKey), &'a ObjectKey>,
    /// VirtualServices of which another one is looked at instead.
    hidden: BTreeMap<&'a ObjectKey, &'a ObjectKey>,
    /// Those that are looked at.
    shown: BTreeSet<&'a ObjectKey>,
}

/// Finds what becomes of each caller's connections, once for all of whom the same is said.
struct Decisions<'a, 'p> {
    index: &'a Index,
    name: &'a ServiceId,
    service: &'a Service,
    candidates: &'p [Candidate<'a>],
    points: &'p Points,
    /// Connections of which no route says anything are kube-proxy's.
    left: bool,
    /// The addresses that are told apart, if any are.
    addresses: BTreeSet<Option<IpAddr>>,
    /// By which candidates a caller sees, and what else is said of it.
    known: HashMap<(Vec<bool>, Sight, Option<String>), Answers<'a>>,
    said: BTreeSet<Report>,
    outcome: Outcome<'a>,
}

impl<'a, 'p> Decisions<'a, 'p> {
    fn new(
        index: &'a Index,
        name: &'a ServiceId,
        service: &'a Service,
        candidates: &'p [Candidate<'a>],
        points: &'p Points,
        left: bool,
    ) -> Self {
        let asks = |routes: &Routes| routes.all().flat_map(|route| &route.matches).any(|m| !m.to.is_empty());
        let by_address = candidates.iter().any(|candidate| asks(candidate.routes));
        let of_port = |port: &ServicePort| index.places(name, port.key).into_iter().map(|(ip, ..)| Some(ip));
        let mut addresses: BTreeSet<_> = match by_address {
            true => service.ports.iter().flat_map(of_port).collect(),
            false => BTreeSet::new(),
        };
        if addresses.is_empty() {
            addresses.insert(None);
        }
        let (known, said, outcome) = (HashMap::new(), BTreeSet::new(), Outcome::default());
        Self { index, name, service, candidates, points, left, addresses, known, said, outcome }
    }

    /// The answers to a caller's connections.
    fn of(&mut self, caller: Caller<'_>) -> Answers<'a> {
        let sidecar = self.index.sidecar_of(caller);
        let host = sidecar.map(|_| self.index.host(self.name)).unwrap_or_default();
        let sees = |namespace: &str| {
            sidecar.is_none_or(|sidecar| sidecar.sees(caller.namespace(), namespace, &host))
        };
        let provider = self.index.provider(self.name);
        let sight = match provider.is_none_or(|provider| sees(&provider.name.namespace)) {
            true => Sight::Everything,
            false if sidecar.is_some_and(|sidecar| sidecar.refuses) => Sight::Refused,
            false => Sight::Nothing,
        };
        let is_for = |candidate: &Candidate<'_>| {
            let seen = candidate.key.kind != Kind::VirtualService || sees(&candidate.key.name.namespace);
            sight == Sight::Everything && seen && candidate.routes.is_for(candidate.key, self.name, caller)
        };
        let seen: Vec<bool> = self.candidates.iter().map(is_for).collect();
        let differs = self.points.differs(caller).map(|caller| match caller {
            Caller::Anyone => String::new(),
            Caller::Of(namespace) => namespace.to_string(),
            Caller::In(class) => class.to_string(),
        });
        let known = (seen, sight, differs);
        if let Some(answers) = self.known.get(&known) {
            return answers.clone();
        }
        let visible = self.visible(&known.0);
        let mut answers = Answers::new();
        for port in &self.service.ports {
            for to in self.addresses.clone() {
                let connection = Connection { caller, to, port: port.key };
                let answer = match sight {
                    Sight::Everything => self.decide(&visible, port, &connection),
                    Sight::Nothing | Sight::Refused => self.unseen(sight, port.key),
                };
                answers.insert((port.key, to), answer);
            }
        }
        self.known.insert(known, answers.clone());
        answers
    }

    /// The answer to connections to a Service that a caller doesn't see.
    fn unseen(&self, sight: Sight, port: PortKey) -> Answer<'a> {
        let is_service = self.index.service_for(Kind::Service, self.name).is_some();
        let cluster = match sight {
            Sight::Refused => BLACK_HOLE.to_owned(),
            _ if is_service && !self.left => cluster_name(&self.index.host(self.name), port, ""),
            _ => PASSTHROUGH.to_owned(),
        };
        let is_unseen = sight == Sight::Nothing;
        Answer { kind: RouteKind::Tcp, way: vec![(cluster, 1)].into(), by: Vec::new(), is_unseen }
    }

    /// Of what a caller sees, what is looked at: one VirtualService at most.
    fn visible(&mut self, seen: &[bool]) -> Vec<Candidate<'a>> {
        let mut visible: Vec<Candidate<'a>> = Vec::new();
        for (candidate, _) in self.candidates.iter().zip(seen).filter(|(_, seen)| **seen) {
            match visible.first().map(|first| first.key) {
                Some(first)
                    if first.kind == Kind::VirtualService && candidate.key.kind == Kind::VirtualService =>
                {
                    self.outcome.hidden.entry(candidate.key).or_insert(first);
                }
                _ => {
                    self.outcome.shown.insert(candidate.key);
                    visible.push(*candidate);
                }
            }
        }
        visible
    }

    fn decide(
        &mut self,
        visible: &[Candidate<'a>],
        port: &'a ServicePort,
        connection: &Connection<'_>,
    ) -> Answer<'a> {
        // None of these kinds is for UDP.
        let visible = if port.key.protocol == Transport::Udp { &[] } else { visible };
        if let Some(answer) = self.decide_requests(visible, port, connection) {
            return answer;
        }
        let applying = visible.iter().filter_map(|candidate| {
            let (kind, found) = route_for(self.index, candidate, self.name, port, connection)?;
            Some((candidate.key, kind, found))
        });
        let applying: Vec<_> = applying.collect();
        let Some((first, rest)) = applying.split_first() else {
            let choice = match self.left {
                true => vec![(PASSTHROUGH.to_owned(), 1)],
                false => self.own_cluster(connection),
            };
            return Answer { kind: RouteKind::Tcp, way: choice.into(), by: Vec::new(), is_unseen: false };
        };
        let (key, kind, found) = first.clone();
        self.outcome.winners.insert((key, port.key));
        for (loser, ..) in rest {
            self.outcome.losers.entry((*loser, port.key)).or_insert(key);
        }
        let choice = match found {
            AppliedRoute::Route(author, route) => self.choose((&author, route), connection),
            AppliedRoute::NoDelegate(route, delegate) => {
                let field = format!("{}.delegate", route.field);
                let fault = format!(
                    "there is no VirtualService {delegate} without hosts that namespace {} sees; until it exists, every \
                     connection to port {} is refused",
                    key.name.namespace, port.key
                );
                let report = report_at(self.index, key, self.name, &field, Reason::BackendNotFound, fault);
                self.said.insert(report);
                vec![(BLACK_HOLE.to_owned(), 1)]
            }
        };
        Answer { kind, way: choice.into(), by: vec![key], is_unseen: false }
    }

    /// Where a route leads. Whatever of it can't be resolved is refused, and told.
    fn choose(
        &mut self,
        (key, route): (&ObjectKey, &'a Route),
        connection: &Connection<'_>,
    ) -> WeightedClusters {
        let shares = match &route.to {
            Forwarding::Shares(shares) => shares.as_slice(),
            Forwarding::Own | Forwarding::Delegated(_) => return self.own_cluster(connection),
            Forwarding::Undecidable | Forwarding::Answered => return self.own_cluster(connection),
        };
        let mut choice = WeightedClusters::new();
        let mut refused = 0;
        for WeightedBackend { field, destination, weight, .. } in shares {
            let Some(destination) = destination else {
                refused += weight;
                continue;
            };
            match destination_cluster(self.index, key, field, destination, connection) {
                Ok(cluster) => choice.push((cluster, *weight)),
                Err(Missing { field, reason, fault }) => {
                    refused += weight;
                    let until = if reason == Reason::RefNotPermitted { "allows it" } else { "exists" };
                    let share =
                        if shares.len() == 1 { "every connection" } else { "its share of the connections" };
                    let port = connection.port;
                    let fault = format!("{fault}; until it {until}, {share} to port {port} is refused");
                    self.said.insert(report_at(self.index, key, self.name, &field, reason, fault));
                }
            }
        }
        if refused > 0 || choice.is_empty() {
            choice.push((BLACK_HOLE.to_owned(), refused.max(1)));
        }
        if let [(_, weight)] = &mut choice[..] {
            // Whatever it is: who is told the same by another weight gets no chain of his own.
            *weight = 1;
        }
        choice
    }

    /// The cluster of the Service's own endpoints.
    fn own_cluster(&self, connection: &Connection<'_>) -> WeightedClusters {
        let cluster = self.own_backend(connection);
        cluster.map(|cluster| (cluster.name(&self.index.host(self.name)), 1)).into_iter().collect()
    }

    /// The Service's own endpoints.
    fn own_backend(&self, connection: &Connection<'_>) -> Option<Backend<'a>> {
        let Connection { caller, port, .. } = *connection;
        backend(self.index, self.name, (port, ""), caller, self.name.namespace())
    }
}

/// A route that applies to a connection.
#[derive(Clone)]
enum AppliedRoute<'a> {
    /// Of this object.
    Route(ObjectKey, &'a Route),
    /// Delegated to what isn't there.
    NoDelegate(&'a Route, &'a ObjectName),
}

/// The route in force for a connection, if any.
fn route_for<'a>(
    index: &'a Index,
    candidate: &Candidate<'a>,
    name: &ServiceId,
    port: &ServicePort,
    connection: &Connection<'_>,
) -> Option<(RouteKind, AppliedRoute<'a>)> {
    if !candidate.covers(name, port) {
        return None;
    }
    let applying = candidate.allowed(port).filter(|(_, route)| route.applies(connection));
    for (kind, route) in applying {
        let Forwarding::Delegated(delegate) = &route.to else {
            return Some((kind, AppliedRoute::Route(candidate.key.clone(), route)));
        };
        let seen = index.delegate_for(delegate, &candidate.key.name.namespace);
        let Some((author, routes)) = seen else {
            return Some((kind, AppliedRoute::NoDelegate(route, delegate)));
        };
        // Where none of its routes applies, the next one of the first object may.
        if let Some(route) = routes.http.iter().find(|route| route.applies(connection)) {
            return Some((kind, AppliedRoute::Route(author, route)));
        }
    }
    None
}

impl<'a> Candidate<'a> {
    /// Tells whether it is for this port of the Service.
    fn covers(&self, name: &ServiceId, port: &ServicePort) -> bool {
        self.wild.is_some() || self.routes.hosts.iter().any(|host| host.service == *name && host.covers(port))
    }

    /// Its routes that are for what is spoken on the port.
    fn allowed(&self, port: &ServicePort) -> impl Iterator<Item = (RouteKind, &'a Route)> + use<'a> {
        let (kind, protocol) = (self.routes.kind, port.protocol);
        let allowed = move |list| match (kind, protocol) {
            // It looks at the port only.
            (Kind::TcpRoute, _) | (_, Protocol::Undeclared) => true,
            (Kind::TlsRoute, protocol) => protocol == Protocol::Tls,
            (_, Protocol::Http) => list == RouteKind::Http,
            (_, Protocol::Tcp) => list == RouteKind::Tcp,
            (_, Protocol::Tls) => false,
        };
        let http = self.routes.http.iter().map(|route| (RouteKind::Http, route));
        let tcp = self.routes.tcp.iter().map(|route| (RouteKind::Tcp, route));
        http.chain(tcp).filter(move |(list, _)| allowed(*list))
    }
}

impl Index {
    /// The VirtualService without hosts of this name, to which others delegate.
    pub(crate) fn delegate(&self, name: &ObjectName) -> Option<&Routes> {
        self.virtual_service(name).map(|(_, routes)| routes).filter(|routes| routes.is_delegate())
    }

    /// The same where those of a namespace see it, with its key.
    fn delegate_for(&self, name: &ObjectName, namespace: &Arc<str>) -> Option<(ObjectKey, &Routes)> {
        let (key, routes) = self.virtual_service(name)?;
        (routes.is_delegate() && routes.export.sees(Caller::Of(namespace))).then_some((key, routes))
    }
}
