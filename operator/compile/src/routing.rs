//! Listeners and route configurations of a Service, or of a host of a ServiceEntry: where connections to its
//! addresses go.
//!
//! For each port the first object decides that has a route for it which can be decided: the oldest
//! VirtualService, then the oldest HTTPRoute, then the oldest TCPRoute. Invariant: a choice in force
//! names only clusters that exist, and that the object may send connections to.

use std::collections::BTreeMap;

use crate::{
    Index, Kind, ObjectKey, ObjectName, Reason, Report, Severity,
    clusters::backends,
    compiler::Compiled,
    envoy::{self, Forward},
    links::Claim,
    model::{Applies, Host, Protocol, Route, RouteKind, Routes, Service, ServicePort, Share},
    names::{absent, cluster_name, route_name},
};

/// A cluster that a route leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Backend {
    service: ObjectName,
    port: u16,
    subset: String,
}

impl Backend {
    fn exists(&self, index: &Index) -> bool {
        backends(index, &self.service).any(|(port, subset)| port == self.port && subset == self.subset)
    }
}

/// The last good version of the routes of one port.
#[derive(Clone, Debug)]
pub(crate) struct Routed {
    by: ObjectKey,
    kind: RouteKind,
    choice: Vec<(Backend, u32)>,
}

/// The last good versions of a Service's routes by port.
pub(crate) type Memory = BTreeMap<u16, Routed>;

/// An object with routes for the Service.
type Candidate<'a> = (&'a ObjectKey, &'a Routes);

/// A destination that a route can't lead to.
struct Missing {
    field: String,
    reason: Reason,
    fault: String,
}

/// Compiles the listeners and routes of a Service. `memory` is what was in force of its routes.
pub(crate) fn compile(index: &Index, name: &ObjectName, memory: &mut Memory) -> Compiled {
    let mut out = Compiled::default();
    let mut candidates = candidates(index, name, &mut out);
    let before = std::mem::take(memory);
    candidates.retain(|(key, routes)| {
        let exists = index.service_for(key.kind, name).is_some();
        if !exists {
            let fault = format!("{}; the routes take effect when it appears", absent(name));
            let field = host_field(routes, name);
            out.reports.push(about(index, key, name, field, Reason::TargetNotFound, fault));
        }
        exists
    });
    let Some(service) = index.service(name) else { return out };
    // For each object that has no effect where it could have: the one that has, and the ports.
    let mut lost: BTreeMap<&ObjectKey, (&ObjectKey, Vec<u16>)> = BTreeMap::new();
    for port in &service.ports {
        let mut applying = candidates.iter().filter_map(|(key, routes)| {
            route_for(routes, name, port).map(|(kind, route)| (*key, kind, route))
        });
        let mut routed = None;
        if let Some((key, kind, route)) = applying.next() {
            for (loser, ..) in applying {
                lost.entry(loser).or_insert((key, Vec::new())).1.push(port.number);
            }
            routed = decide(index, name, port, (key, kind, route), before.get(&port.number), &mut out);
            if let Some((routed, _)) = &routed {
                memory.insert(port.number, routed.clone());
            }
        }
        let usable = routed.as_ref().filter(|(_, usable)| *usable).map(|(routed, _)| routed);
        listen(index, name, service, port, usable, &mut out);
    }
    for (loser, (winner, ports)) in lost {
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
        let winner = index.object_ref(winner.kind, &winner.name);
        let field = index.routes(loser).map_or("spec.parentRefs", |routes| host_field(routes, name));
        let fault = format!(
            "port {ports} of {} is already routed by {winner}, which goes before; these routes have no effect there for \
             as long",
            index.called(name)
        );
        out.reports.push(about(index, loser, name, field, Reason::Conflicted, fault));
    }
    for (key, routes) in candidates {
        no_such_port(index, name, service, key, routes, &mut out);
        out.reports.extend(without_effect(index, name, service, key, routes));
    }
    out
}

/// The objects whose routes can be in force, the first goes first. Of VirtualServices that is one only.
fn candidates<'a>(index: &'a Index, name: &ObjectName, out: &mut Compiled) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for ranked in index.relations.routes.of(name) {
        let Some(routes) = index.routes(&ranked.key) else { continue };
        match candidates.first() {
            Some((winner, _))
                if winner.kind == Kind::VirtualService && ranked.key.kind == Kind::VirtualService =>
            {
                let winner = index.object_ref(winner.kind, &winner.name);
                let fault = format!(
                    "{} is already routed by {winner}, which is older or first by name; these routes have no effect on \
                     it for as long; put the routes of both into one",
                    index.called(name)
                );
                let field = host_field(routes, name);
                out.reports.push(about(index, &ranked.key, name, field, Reason::Conflicted, fault));
            }
            _ => candidates.push((&ranked.key, routes)),
        }
    }
    candidates
}

/// What of a route comes into force: the route itself, or its last good version; and whether it can be
/// used now.
fn decide(
    index: &Index,
    name: &ObjectName,
    port: &ServicePort,
    (key, kind, route): (&ObjectKey, RouteKind, &Route),
    before: Option<&Routed>,
    out: &mut Compiled,
) -> Option<(Routed, bool)> {
    let mut missing = Vec::new();
    let choice = resolve(index, key, route, port.number, &mut missing);
    let routed = if missing.is_empty() {
        Some(Routed { by: key.clone(), kind, choice })
    } else if missing.iter().any(|m| m.reason == Reason::RefNotPermitted) {
        // What was allowed once and isn't any more doesn't stay.
        None
    } else {
        before.filter(|last| last.by == *key).cloned()
    };
    let usable = routed.as_ref().is_some_and(|r| r.choice.iter().all(|(backend, _)| backend.exists(index)));
    let kept =
        if usable { "keeps the route's last good version" } else { "goes to the Service's own endpoints" };
    out.reports.extend(missing.into_iter().map(|Missing { field, reason, fault }| {
        let until = if reason == Reason::RefNotPermitted { "allows it" } else { "exists" };
        let fault = format!("{fault}; until it {until}, port {} {kept}", port.number);
        about(index, key, name, &field, reason, fault)
    }));
    routed.map(|routed| (routed, usable))
}

/// Says so where an object is for a port that the Service hasn't.
fn no_such_port(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    key: &ObjectKey,
    routes: &Routes,
    out: &mut Compiled,
) {
    for host in routes.hosts.iter().filter(|host| host.service == *name) {
        let Host { field, port, section, .. } = host;
        if (port.is_some() || section.is_some()) && !service.ports.iter().any(|port| host.covers(port)) {
            let wanted = port.map(|port| port.to_string()).or(section.clone()).unwrap_or_default();
            let fault =
                format!("{} has no TCP port {wanted} (it has {})", index.called(name), ports(service));
            out.reports.push(about(index, key, name, field, Reason::TargetNotFound, fault));
        }
    }
}

/// The ports of a Service, to be shown.
fn ports(service: &Service) -> String {
    let ports: Vec<_> = service.ports.iter().map(|p| p.number.to_string()).collect();
    if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
}

/// Says so when the routes can't have an effect on any connection.
fn without_effect(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    key: &ObjectKey,
    routes: &Routes,
) -> Option<Report> {
    let reason = if service.vips.is_empty() {
        let what = if index.service_for(Kind::Service, name).is_some() { "cluster IP" } else { "address" };
        format!("{} has no {what}, so these routes have no effect on it", index.called(name))
    } else if service.ports.iter().any(|port| route_for(routes, name, port).is_some()) {
        return None;
    } else {
        let ports = service.ports.iter().map(|p| format!("{} ({})", p.number, p.protocol.as_str()));
        let ports = ports.collect::<Vec<_>>().join(", ");
        format!("no route that can be decided applies to a port of {}; it has {ports}", index.called(name))
    };
    let report = about(index, key, name, host_field(routes, name), Reason::Note, reason);
    Some(Report { severity: Severity::Note, ..report })
}

/// The route in force for connections to a port, if any.
fn route_for<'a>(
    routes: &'a Routes,
    name: &ObjectName,
    port: &ServicePort,
) -> Option<(RouteKind, &'a Route)> {
    if !routes.hosts.iter().any(|host| host.service == *name && host.covers(port)) {
        return None;
    }
    let http = routes.http.iter().map(|route| (RouteKind::Http, route));
    let tcp = routes.tcp.iter().map(|route| (RouteKind::Tcp, route));
    let allowed = |kind| match port.protocol {
        Protocol::Http => kind == RouteKind::Http,
        Protocol::Tcp => kind == RouteKind::Tcp,
        Protocol::Tls => false,
        Protocol::Undeclared => true,
    };
    http.chain(tcp).find(|(kind, route)| allowed(*kind) && route.applies(port.number) == Applies::Yes)
}

/// The clusters that a route leads to; what it can't lead to goes to `missing`.
fn resolve(
    index: &Index,
    by: &ObjectKey,
    route: &Route,
    port: u16,
    missing: &mut Vec<Missing>,
) -> Vec<(Backend, u32)> {
    let mut choice = Vec::new();
    for share in &route.shares {
        match backend(index, by, share, port) {
            Ok(backend) => choice.push((backend, share.weight)),
            Err(what) => missing.push(what),
        }
    }
    choice
}

fn backend(index: &Index, by: &ObjectKey, share: &Share, port: u16) -> Result<Backend, Missing> {
    let Share { service: name, subset, .. } = share;
    let [of_name, of_port] = match by.kind {
        Kind::VirtualService => ["host", "port.number"],
        _ => ["name", "port"],
    };
    let missing = |field: &str, fault: String| Missing {
        field: format!("{}.{field}", share.field),
        reason: Reason::BackendNotFound,
        fault,
    };
    // First, so that nobody learns what is in a namespace that doesn't let him.
    if !index.permits(by, name) {
        let fault = format!(
            "no ReferenceGrant in namespace {} lets {} of namespace {} send connections to Service {}",
            name.namespace, by.kind, by.name.namespace, name.name
        );
        return Err(Missing { reason: Reason::RefNotPermitted, ..missing("namespace", fault) });
    }
    let service = index.service_for(by.kind, name).ok_or_else(|| missing(of_name, absent(name)))?;
    let number = match (share.port, &service.ports[..]) {
        (Some(number), _) => number,
        (None, [only]) => only.number,
        (None, _) => port,
    };
    if service.port(number).is_none() {
        let fault = format!("{} has no TCP port {number} (it has {})", index.called(name), ports(service));
        return Err(missing(of_port, fault));
    }
    let subsets = index.rule(name).map(|rule| &rule.subsets);
    if !subset.is_empty() && !subsets.is_some_and(|s| s.contains_key(subset)) {
        let known: Vec<_> = subsets.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let fault = format!(
            "no DestinationRule in force defines subset {subset} of {} (defined: {has})",
            index.called(name)
        );
        return Err(missing("subset", fault));
    }
    Ok(Backend { service: name.clone(), port: number, subset: subset.clone() })
}

/// The listeners of one port, for each address that belongs to this Service.
fn listen(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
    routed: Option<&Routed>,
    out: &mut Compiled,
) {
    let host = index.host(name);
    let own = cluster_name(&host, port.number, "");
    let choice: Vec<(String, u32)> = match routed {
        Some(routed) => {
            let named = |b: &Backend| cluster_name(&index.host(&b.service), b.port, &b.subset);
            routed.choice.iter().map(|(backend, weight)| (named(backend), *weight)).collect()
        }
        None => vec![(own.clone(), 1)],
    };
    let route = route_name(&host, port.number);
    let http = routed.is_some_and(|r| r.kind == RouteKind::Http);
    let forward = if http { Forward::Http(&route) } else { Forward::Tcp(&choice) };
    let before = out.resources.len();
    let Some(provider) = index.provider(name) else { return };
    for ip in &service.vips {
        match index.relations.claims.first(&(*ip, port.number)) {
            Some(Claim { object: owner, .. }) if *owner != provider => {
                let owner = index.object_ref(owner.kind, &owner.name);
                let (field, what) = match provider.kind {
                    Kind::Service => ("spec.clusterIPs", "cluster IP"),
                    _ => ("spec.addresses", "address"),
                };
                let fault = format!(
                    "{ip} port {} belongs to {owner}, which is older or first by name; this {} takes it over when that \
                     one goes; choose another {what}",
                    port.number, provider.kind
                );
                out.reports.push(about(index, &provider, name, field, Reason::Conflicted, fault));
            }
            _ => out.resources.push(envoy::listener(*ip, port.number, &own, &forward)),
        }
    }
    if http && out.resources.len() > before {
        out.resources.push(envoy::route(&route, &choice));
    }
}

/// The field in which an object names this Service.
fn host_field<'a>(routes: &'a Routes, service: &ObjectName) -> &'a str {
    routes.hosts.iter().find(|host| host.service == *service).map_or("spec", |host| &host.field)
}

/// Something that an object doesn't get at a Service.
fn about(
    index: &Index,
    key: &ObjectKey,
    at: &ObjectName,
    field: &str,
    reason: Reason,
    message: String,
) -> Report {
    let object = index.object_ref(key.kind, &key.name);
    let report = Report::new(object, Some(field.to_owned()), Severity::Refused, message);
    Report { reason, at: Some(at.clone()), ..report }
}
