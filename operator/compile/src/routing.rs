//! Listeners and route configurations of a Service: where connections to its cluster IPs go.
//!
//! The oldest VirtualService for the Service decides; its first route that applies to the port and
//! can be decided is in force. Invariant: a choice in force names only clusters that exist.

use std::collections::BTreeMap;

use crate::{
    Index, Kind, ObjectName, ObjectRef, Reason, Report, Severity,
    clusters::backends,
    compiler::Compiled,
    envoy::{self, Forward},
    model::{Applies, Protocol, Route, RouteKind, Service, ServicePort, Share, VirtualService},
    names::{cluster_name, route_name},
    report::Findings,
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
    by: ObjectName,
    kind: RouteKind,
    choice: Vec<(Backend, u32)>,
}

/// The last good versions of a Service's routes by port.
pub(crate) type Memory = BTreeMap<u16, Routed>;

/// Compiles the listeners and routes of a Service. `memory` is what was in force of its routes.
pub(crate) fn compile(index: &Index, name: &ObjectName, memory: &mut Memory) -> Compiled {
    let mut out = Compiled::default();
    let routes = index.relations.routes.of(name).map(|(_, vs)| vs);
    let winner = routes.clone().next().and_then(|vs| Some((vs, index.virtual_service(vs)?)));
    if let Some((vs, _)) = winner {
        for loser in routes.skip(1) {
            out.reports.push(lost(index, name, vs, loser));
        }
    }
    let before = std::mem::take(memory);
    let Some(service) = index.service(name) else {
        if let Some((vs, object)) = winner {
            let fault = format!("there is no Service {name}; the routes take effect when it appears");
            out.reports.push(about(index, vs, host_field(object, name), fault));
        }
        return out;
    };
    for port in &service.ports {
        let mut routed = None;
        if let Some((vs, object)) = winner
            && let Some((kind, route)) = route_for(object, port)
        {
            let mut missing = Vec::new();
            let choice = resolve(index, route, port.number, &mut missing);
            if missing.is_empty() {
                routed = Some(Routed { by: vs.clone(), kind, choice });
            } else {
                routed = before.get(&port.number).filter(|last| last.by == *vs).cloned();
            }
            let usable =
                routed.as_ref().is_some_and(|r| r.choice.iter().all(|(backend, _)| backend.exists(index)));
            if !missing.is_empty() {
                let kept = if usable {
                    "keeps the route's last good version"
                } else {
                    "goes to the Service's own endpoints"
                };
                out.reports.extend(missing.into_iter().map(|(field, fault)| {
                    about(index, vs, &field, format!("{fault}; until it exists, port {} {kept}", port.number))
                }));
            }
            if let Some(routed) = &routed {
                memory.insert(port.number, routed.clone());
            }
            routed = routed.filter(|_| usable);
        }
        listen(index, name, service, port, routed.as_ref(), &mut out);
    }
    if let Some((vs, object)) = winner {
        out.reports.extend(without_effect(index, name, service, vs, object));
    }
    out
}

/// Says so when the routes can't have an effect on any connection.
fn without_effect(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    vs: &ObjectName,
    object: &VirtualService,
) -> Option<Report> {
    let reason = if service.vips.is_empty() {
        format!("Service {name} has no cluster IP, so these routes have no effect on it")
    } else if service.ports.iter().any(|port| route_for(object, port).is_some()) {
        return None;
    } else {
        let ports = service.ports.iter().map(|p| format!("{} ({})", p.number, p.protocol.as_str()));
        let ports = ports.collect::<Vec<_>>().join(", ");
        format!("no route that can be decided applies to a port of Service {name}; it has {ports}")
    };
    Some(Report {
        severity: Severity::Note,
        reason: Reason::Note,
        ..about(index, vs, host_field(object, name), reason)
    })
}

/// The route in force for connections to a port, if any.
fn route_for<'a>(vs: &'a VirtualService, port: &ServicePort) -> Option<(RouteKind, &'a Route)> {
    let http = vs.http.iter().map(|route| (RouteKind::Http, route));
    let tcp = vs.tcp.iter().map(|route| (RouteKind::Tcp, route));
    let allowed = |kind| match port.protocol {
        Protocol::Http => kind == RouteKind::Http,
        Protocol::Tcp => kind == RouteKind::Tcp,
        Protocol::Tls => false,
        Protocol::Undeclared => true,
    };
    http.chain(tcp).find(|(kind, route)| allowed(*kind) && route.applies(port.number) == Applies::Yes)
}

/// The clusters that a route leads to; what doesn't exist goes to `missing` with its field.
fn resolve(
    index: &Index,
    route: &Route,
    port: u16,
    missing: &mut Vec<(String, String)>,
) -> Vec<(Backend, u32)> {
    let mut choice = Vec::new();
    for share in &route.shares {
        match backend(index, share, port) {
            Ok(backend) => choice.push((backend, share.weight)),
            Err((field, fault)) => missing.push((format!("{}.{field}", share.field), fault)),
        }
    }
    choice
}

fn backend(index: &Index, share: &Share, port: u16) -> Result<Backend, (&'static str, String)> {
    let Share { service: name, subset, .. } = share;
    let service = index.service(name).ok_or_else(|| ("host", format!("there is no Service {name}")))?;
    let number = match (share.port, &service.ports[..]) {
        (Some(number), _) => number,
        (None, [only]) => only.number,
        (None, _) => port,
    };
    if service.port(number).is_none() {
        let ports: Vec<_> = service.ports.iter().map(|p| p.number.to_string()).collect();
        let has = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        let fault = format!("Service {name} has no TCP port {number} (it has {has})");
        return Err(("port.number", fault));
    }
    let subsets = index.rule(name).map(|rule| &rule.subsets);
    if !subset.is_empty() && !subsets.is_some_and(|s| s.contains_key(subset)) {
        let known: Vec<_> = subsets.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
        let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let fault =
            format!("no DestinationRule in force defines subset {subset} of Service {name} (defined: {has})");
        return Err(("subset", fault));
    }
    Ok(Backend { service: name.clone(), port: number, subset: subset.clone() })
}

/// The listeners of one port, for each cluster IP that belongs to this Service.
fn listen(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    port: &ServicePort,
    routed: Option<&Routed>,
    out: &mut Compiled,
) {
    let own = cluster_name(name, port.number, "");
    let choice: Vec<(String, u32)> = match routed {
        Some(routed) => {
            let named = |b: &Backend| cluster_name(&b.service, b.port, &b.subset);
            routed.choice.iter().map(|(backend, weight)| (named(backend), *weight)).collect()
        }
        None => vec![(own.clone(), 1)],
    };
    let route = route_name(name, port.number);
    let http = routed.is_some_and(|r| r.kind == RouteKind::Http);
    let forward = if http { Forward::Http(&route) } else { Forward::Tcp(&choice) };
    let before = out.resources.len();
    for ip in &service.vips {
        match index.relations.claims.first(&(*ip, port.number)) {
            Some((_, owner)) if owner != name => {
                let owner = index.object_ref(Kind::Service, owner);
                let mut found = Findings::new(index.object_ref(Kind::Service, name));
                found.refuse(
                    "spec.clusterIPs",
                    format!(
                        "{ip} port {} belongs to {owner}, which is older or first by name; this Service takes it \
                         over when that one goes; choose another cluster IP",
                        port.number
                    ),
                );
                out.reports.append(&mut found.reports);
            }
            _ => out.resources.push(envoy::listener(*ip, port.number, &own, &forward)),
        }
    }
    if http && out.resources.len() > before {
        out.resources.push(envoy::route(&route, &choice));
    }
}

/// The field in which a VirtualService names this host.
fn host_field<'a>(vs: &'a VirtualService, host: &ObjectName) -> &'a str {
    vs.hosts.iter().find(|(_, name)| name == host).map_or("spec.hosts", |(field, _)| field)
}

fn lost(index: &Index, host: &ObjectName, winner: &ObjectName, loser: &ObjectName) -> Report {
    let field = index.virtual_service(loser).map_or("spec.hosts", |vs| host_field(vs, host));
    let winner = index.object_ref(Kind::VirtualService, winner);
    let fault = format!(
        "Service {host} is already routed by {winner}, which is older or first by name; these routes have no \
         effect on it for as long; put the routes of both into one"
    );
    about(index, loser, field, fault)
}

fn about(index: &Index, vs: &ObjectName, field: &str, message: String) -> Report {
    let object: ObjectRef = index.object_ref(Kind::VirtualService, vs);
    Report::new(object, Some(field.to_owned()), Severity::Refused, message)
}
