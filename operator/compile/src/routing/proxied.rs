//! Ports whose requests the proxy on the node looks at: the routes of their requests, each with its clusters.
//!
//! A VirtualService has its routes in its own order, those to which it delegates in place. Routes of Gateway API of the
//! same kind that are attached to the Service are merged: the most specific match goes before, then the oldest object,
//! then the first by name, then the first rule. Behind a route for every request there is none. A port on which nothing
//! takes a request is decided when a connection is made, whatever proxy there is.

use std::sync::Arc;

use super::{
    Answer, Candidate, Decisions, Missing, Way, WeightedClusters, destination_backend, destination_cluster,
    report_at,
};
use crate::{
    Index, Kind, ObjectKey, Reason,
    backends::Backend,
    envoy::RequestRoute,
    model::{
        Connection, Forwarding, HashedPart, LbPolicy, Match, MessageEdits, RequestCondition, Route,
        RouteKind, ServicePort, Treatment, WeightedBackend,
    },
    names::BLACK_HOLE,
};

/// Encoded routes of requests, the first that matches counts.
pub(super) type Requests = Arc<Vec<Vec<u8>>>;

/// The most routes of a port: what a proxy looks through for a request is bounded.
const MOST_ROUTES: usize = 4_096;

/// A route for some of the requests of a connection.
struct Entry<'a> {
    /// The object for the Service.
    key: &'a ObjectKey,
    /// The object that the route stands in.
    author: ObjectKey,
    /// `None` where it is delegated to what isn't there.
    route: Option<&'a Route>,
    /// Of the route that leads here.
    field: &'a str,
    condition: Option<RequestCondition>,
    treatment: Treatment,
}

impl Entry<'_> {
    /// Tells whether it takes a request to follow the route. A split takes one where a connection has many requests at a
    /// time: in HTTP/2, and so in gRPC.
    fn takes_a_request(&self, port: &ServicePort) -> bool {
        let many = port.http2 || self.author.kind == Kind::GrpcRoute;
        let differs = |route: &Route| match &route.to {
            Forwarding::Shares(shares) => {
                (many && shares.len() > 1)
                    || shares.iter().any(|share| share.edits != MessageEdits::default())
            }
            Forwarding::Answered => true,
            Forwarding::Own | Forwarding::Delegated(_) | Forwarding::Undecidable => false,
        };
        self.condition.is_some() || !self.treatment.is_none() || self.route.is_some_and(differs)
    }

    /// As people and statistics know it.
    fn name(&self) -> String {
        let ObjectKey { kind, name } = &self.author;
        let (field, own) = self.route.map_or((self.field, ""), |route| (&route.field, &route.name));
        let rule = if own.is_empty() { field.strip_prefix("spec.").unwrap_or(field) } else { own };
        format!("{kind}/{}/{}/{rule}", name.namespace, name.name)
    }
}

impl<'a> Decisions<'a, '_> {
    /// The answer to connections whose requests are looked at; `None` where that isn't needed.
    pub(super) fn decide_requests(
        &mut self,
        visible: &[Candidate<'a>],
        port: &'a ServicePort,
        connection: &Connection<'_>,
    ) -> Option<Answer<'a>> {
        if !self.index.options.proxy || !port.may_have_requests() {
            return None;
        }
        let kind = |candidate: &Candidate<'a>| {
            let covers = candidate.covers(self.name, port);
            let mut admitted = candidate.allowed(port).filter(|(_, route)| route.admits(connection));
            admitted.next().filter(|_| covers).map(|(kind, _)| kind)
        };
        let mut deciding = visible.iter().filter_map(|candidate| Some((candidate, kind(candidate)?)));
        let Some((first, kind)) = deciding.next() else { return self.hash_own_requests(connection) };
        if kind != RouteKind::Http {
            return None;
        }
        let is_alike = |other: &Candidate<'a>| {
            let consumers = |of: &Candidate<'a>| of.routes.is_consumers(of.key, self.name);
            first.key.kind == other.key.kind && consumers(first) == consumers(other)
        };
        let (mut group, mut behind) = (vec![first], Vec::new());
        for (candidate, _) in deciding {
            match first.key.kind != Kind::VirtualService && is_alike(candidate) {
                true => group.push(candidate),
                false => behind.push(candidate),
            }
        }
        let mut entries: Vec<Entry<'a>> =
            group.iter().flat_map(|candidate| entries(self.index, candidate, connection)).collect();
        if first.key.kind != Kind::VirtualService {
            entries.sort_by_key(|entry| RequestCondition::order(entry.condition.as_ref()));
        }
        if let Some(last) = entries.iter().position(|entry| entry.condition.is_none()) {
            entries.truncate(last + 1);
        }
        let hashes = |entry| !self.hashed_parts(entry, connection).is_empty();
        let needs_one = |entry: &Entry<'_>| entry.takes_a_request(port);
        if !entries.iter().any(needs_one) && !entries.iter().any(hashes) {
            return None;
        }
        // One whose routes all stand behind a route for every request has no effect.
        let acts =
            |candidate: &&Candidate<'a>| entries.iter().any(|entry| std::ptr::eq(entry.key, candidate.key));
        let (group, idle): (Vec<&Candidate<'a>>, Vec<&Candidate<'a>>) = group.into_iter().partition(acts);
        for candidate in &group {
            self.outcome.winners.insert((candidate.key, port.key));
        }
        for loser in idle.into_iter().chain(behind) {
            let winner = group.first().map_or(first.key, |of| of.key);
            self.outcome.losers.entry((loser.key, port.key)).or_insert(winner);
        }
        for entry in entries.drain(entries.len().min(MOST_ROUTES)..) {
            let fault =
                format!("port {} has {MOST_ROUTES} routes that go before; at most so many act", port.key);
            let reason = Reason::UnsupportedValue;
            self.said.insert(report_at(self.index, entry.key, self.name, entry.field, reason, fault));
        }
        let choice = match entries.last() {
            Some(Entry { condition: None, route: Some(route), author, .. })
                if route.to != Forwarding::Answered =>
            {
                self.without_requests(author, route, connection)
            }
            _ => vec![(BLACK_HOLE.to_owned(), 1)],
        };
        let requests = entries.iter().map(|entry| self.encode(entry, connection)).collect();
        let way = Way { choice, requests: Some(Arc::new(requests)) };
        let by = group.iter().map(|of| of.key).collect();
        Some(Answer { kind: RouteKind::Http, way, by, is_unseen: false })
    }

    /// The answer to connections that no route is for, where a part of each request chooses the endpoint.
    fn hash_own_requests(&self, connection: &Connection<'_>) -> Option<Answer<'a>> {
        let hashed = self.own_backend(connection).and_then(|own| hashed_part(&own))?;
        if self.left {
            return None;
        }
        let (choice, none) = (self.own_cluster(connection), MessageEdits::default());
        let route = RequestRoute {
            name: self.index.host(self.name),
            condition: None,
            treatment: &Treatment::default(),
            backends: choice
                .iter()
                .map(|(cluster, weight)| (Some(cluster.clone()), *weight, &none))
                .collect(),
            mirrors: Vec::new(),
            hashed: vec![hashed],
            retries_by_default: false,
        };
        let way = Way { requests: Some(Arc::new(vec![route.encode()])), choice };
        Some(Answer { kind: RouteKind::Http, way, by: Vec::new(), is_unseen: false })
    }

    /// The parts of requests by which the clusters of a route choose an endpoint, each once.
    fn hashed_parts(&self, entry: &Entry<'a>, connection: &Connection<'_>) -> Vec<HashedPart> {
        let mut parts = Vec::new();
        let mut add = |backend: &Backend<'_>| {
            parts.extend(hashed_part(backend).filter(|part| !parts.contains(part)));
        };
        match entry.route.map(|route| &route.to) {
            None | Some(Forwarding::Answered) => {}
            Some(Forwarding::Shares(shares)) => {
                for WeightedBackend { field, destination, .. } in shares {
                    let found = destination.as_ref().map(|destination| {
                        destination_backend(self.index, &entry.author, field, destination, connection)
                    });
                    if let Some(Ok(backend)) = found {
                        add(&backend);
                    }
                }
            }
            Some(Forwarding::Own | Forwarding::Delegated(_) | Forwarding::Undecidable) => {
                self.own_backend(connection).iter().for_each(add);
            }
        }
        parts
    }

    /// Where connections go while there is no proxy: by weight, and what can't be resolved is refused.
    fn without_requests(
        &self,
        key: &ObjectKey,
        route: &Route,
        connection: &Connection<'_>,
    ) -> WeightedClusters {
        let Forwarding::Shares(shares) = &route.to else { return self.own_cluster(connection) };
        let mut choice = WeightedClusters::new();
        for WeightedBackend { field, destination, weight, .. } in shares {
            let cluster = destination.as_ref().and_then(|destination| {
                destination_cluster(self.index, key, field, destination, connection).ok()
            });
            choice.push((cluster.unwrap_or_else(|| BLACK_HOLE.to_owned()), *weight));
        }
        if choice.is_empty() {
            choice.push((BLACK_HOLE.to_owned(), 1));
        }
        choice
    }

    /// Encodes a route for the clusters that this caller gets. Requests whose destination can't be resolved are
    /// answered with 500, and told.
    fn encode(&mut self, entry: &Entry<'a>, connection: &Connection<'_>) -> Vec<u8> {
        let none = MessageEdits::default();
        let mut backends = Vec::new();
        match entry.route.map(|route| &route.to) {
            None => {
                let fault = "there is no such VirtualService without hosts that its namespace sees; until it exists, \
                             its requests are answered with 500";
                let field = format!("{}.delegate", entry.field);
                let reason = Reason::BackendNotFound;
                self.said.insert(report_at(
                    self.index,
                    entry.key,
                    self.name,
                    &field,
                    reason,
                    fault.to_owned(),
                ));
                backends.push((None, 1, &none));
            }
            Some(Forwarding::Shares(shares)) => {
                for WeightedBackend { field, destination, weight, edits } in shares {
                    let cluster = destination.as_ref().map(|destination| {
                        destination_cluster(self.index, &entry.author, field, destination, connection)
                    });
                    let cluster = match cluster {
                        Some(Err(missing)) => {
                            let share = if shares.len() == 1 {
                                "its requests are"
                            } else {
                                "its share of the requests is"
                            };
                            self.missing(entry, missing, &format!("{share} answered with 500"));
                            None
                        }
                        cluster => cluster.and_then(Result::ok),
                    };
                    backends.push((cluster, *weight, edits));
                }
                if backends.is_empty() {
                    backends.push((None, 1, &none));
                }
            }
            Some(
                Forwarding::Own | Forwarding::Delegated(_) | Forwarding::Undecidable | Forwarding::Answered,
            ) => {
                let own = self.own_cluster(connection).into_iter();
                backends.extend(own.map(|(cluster, weight)| (Some(cluster), weight, &none)));
            }
        }
        let mut mirrors = Vec::new();
        for mirror in &entry.treatment.mirrors {
            let to = &mirror.destination;
            match destination_cluster(self.index, &entry.author, &mirror.field, to, connection) {
                Ok(cluster) => mirrors.push((cluster, mirror.share)),
                Err(missing) => self.missing(entry, missing, "nothing is mirrored there"),
            }
        }
        let (condition, treatment) = (entry.condition.as_ref(), &entry.treatment);
        let hashed = self.hashed_parts(entry, connection);
        let retries_by_default = entry.author.kind == Kind::VirtualService;
        RequestRoute {
            name: entry.name(),
            condition,
            treatment,
            backends,
            mirrors,
            hashed,
            retries_by_default,
        }
        .encode()
    }

    fn missing(&mut self, entry: &Entry<'a>, missing: Missing, consequence: &str) {
        let Missing { field, reason, fault } = missing;
        let until = if reason == Reason::RefNotPermitted { "allows it" } else { "exists" };
        let fault = format!("{fault}; until it {until}, {consequence}");
        self.said.insert(report_at(self.index, &entry.author, self.name, &field, reason, fault));
    }
}

/// The part of requests by which a cluster chooses an endpoint, where DestinationRules say so.
fn hashed_part(backend: &Backend<'_>) -> Option<HashedPart> {
    match &backend.traffic.balance {
        Some(LbPolicy::RequestHash(part)) => Some(part.clone()),
        _ => None,
    }
}

/// The routes of an object for requests of a connection, in its own order, one for each match.
fn entries<'a>(index: &'a Index, candidate: &Candidate<'a>, connection: &Connection<'_>) -> Vec<Entry<'a>> {
    let key = candidate.key;
    let mut entries = Vec::new();
    for route in candidate.routes.http.iter().filter(|route| route.admits(connection)) {
        for condition in conditions(route, connection) {
            let of_route = |author, route: Option<&'a Route>, condition, treatment, field| Entry {
                key,
                author,
                route,
                field,
                condition,
                treatment,
            };
            let Forwarding::Delegated(delegate) = &route.to else {
                let treatment = route.treatment.clone();
                entries.push(of_route(key.clone(), Some(route), condition.cloned(), treatment, &route.field));
                continue;
            };
            let Some((author, routes)) = index.delegate_for(delegate, &key.name.namespace) else {
                entries.push(of_route(
                    key.clone(),
                    None,
                    condition.cloned(),
                    Treatment::default(),
                    &route.field,
                ));
                continue;
            };
            for inner in routes.http.iter().filter(|inner| inner.admits(connection)) {
                for further in conditions(inner, connection) {
                    let both = match (condition, further) {
                        (Some(one), Some(other)) => match one.and(other) {
                            None => continue,
                            both => both,
                        },
                        (one, other) => one.or(other).cloned(),
                    };
                    let treatment = route.treatment.delegated(&inner.treatment);
                    entries.push(of_route(author.clone(), Some(inner), both, treatment, &route.field));
                }
            }
        }
    }
    entries
}

/// Conditions of a route for requests of a connection, each a way to match; `None` where every request matches.
fn conditions<'a>(route: &'a Route, connection: &Connection<'_>) -> Vec<Option<&'a RequestCondition>> {
    if route.matches.is_empty() {
        return vec![None];
    }
    let admitted = route.matches.iter().filter(|m| m.admits(connection));
    admitted.map(|Match { request, .. }| request.as_ref()).collect()
}
