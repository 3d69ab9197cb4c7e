//! Reports about objects that have no effect on a Service, or not the one that they ask for.

use std::{collections::BTreeMap, net::IpAddr};

use slotmesh_xds::Transport;

use super::{Candidate, Outcome};
use crate::{
    Index, Kind, ObjectKey, ObjectName, Reason, Report, ServiceId, Severity,
    links::Claim,
    model::{Host, PortKey, Routes, Service, ServicePort},
    unit::Compiled,
};

/// Says that connections to a Service aren't taken over.
pub(super) fn left_to_kube_proxy(
    index: &Index,
    name: &ObjectName,
    field: &str,
    routed_ports: &[String],
) -> Report {
    let consequence = match routed_ports {
        [] => "connections to the Service are left to kube-proxy".to_owned(),
        ports => format!(
            "connections to the Service are left to kube-proxy, but for port {}, where a route says where they go",
            ports.join(", ")
        ),
    };
    let object = index.object_ref(Kind::Service, name);
    let message = format!("not supported: field {field}; {consequence}");
    Report::new(object, Some(field.to_owned()), Severity::NotSupported, message)
}

/// Says so where an object has no effect on a port, or on the Service, because for all whom it is for others go
/// before. That a wildcard stands behind what names the Service is as it should be.
pub(super) fn behind(
    index: &Index,
    name: &ServiceId,
    service: &Service,
    candidates: &[Candidate<'_>],
    outcome: &Outcome<'_>,
    out: &mut Compiled,
) {
    for Candidate { key, routes, .. } in candidates.iter().filter(|candidate| candidate.wild.is_none()) {
        if let Some(winner) = outcome.hidden.get(key).filter(|_| !outcome.shown.contains(key)) {
            let winner = index.object_ref(winner.kind, &winner.name);
            let fault = format!(
                "{} is already routed by {winner}, which is older or first by name; these routes have no effect on \
                 it for as long; put the routes of both into one",
                index.display_name(name)
            );
            let field = host_field(routes, name);
            out.reports.push(report_at(index, key, name, field, Reason::Conflicted, fault));
            continue;
        }
        let mut lost: BTreeMap<&ObjectKey, Vec<&ServicePort>> = BTreeMap::new();
        for port in &service.ports {
            let at = (*key, port.key);
            if let Some(winner) = outcome.losers.get(&at).filter(|_| !outcome.winners.contains(&at)) {
                lost.entry(winner).or_default().push(port);
            }
        }
        for (winner, ports) in lost {
            let winner = index.object_ref(winner.kind, &winner.name);
            for host in routes.hosts.iter().filter(|host| host.service == *name) {
                let ports = ports.iter().filter(|port| host.covers(port));
                let ports: Vec<String> = ports.map(|port| port.key.to_string()).collect();
                if ports.is_empty() {
                    continue;
                }
                let fault = format!(
                    "port {} of {} is already routed by {winner}, which goes before; these routes have no effect there \
                     for as long",
                    ports.join(", "),
                    index.display_name(name)
                );
                out.reports.push(report_at(index, key, name, &host.field, Reason::Conflicted, fault));
            }
        }
    }
}

/// Says so where an object is for a port that the Service hasn't.
pub(super) fn no_such_port(
    index: &Index,
    name: &ServiceId,
    service: &Service,
    candidate: &Candidate<'_>,
    out: &mut Compiled,
) {
    for host in candidate.routes.hosts.iter().filter(|host| host.usable && host.service == *name) {
        let Host { field, port, section, .. } = host;
        if (port.is_some() || section.is_some()) && !service.ports.iter().any(|port| host.covers(port)) {
            let wanted = port.map(|port| port.to_string()).or(section.clone()).unwrap_or_default();
            let fault =
                format!("{} has no TCP port {wanted} (it has {})", index.display_name(name), ports(service));
            out.reports.push(report_at(index, candidate.key, name, field, Reason::TargetNotFound, fault));
        }
    }
}

/// The ports of a Service, to be shown.
pub(super) fn ports(service: &Service) -> String {
    let ports: Vec<_> = service.ports.iter().map(|port| port.key.to_string()).collect();
    if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
}

/// Says so where the routes can't have an effect on any connection.
pub(super) fn without_effect(
    index: &Index,
    name: &ServiceId,
    service: &Service,
    candidate: &Candidate<'_>,
    out: &mut Compiled,
) {
    for host in candidate.routes.hosts.iter().filter(|host| host.usable && host.service == *name) {
        let ports: Vec<&ServicePort> = service.ports.iter().filter(|port| host.covers(port)).collect();
        let may_apply = |port: &&ServicePort| {
            candidate
                .allowed(port)
                .any(|(_, route)| port.key.protocol == Transport::Tcp && route.covers(port.key.number))
        };
        let (reason, fault) = if service.vips.is_empty() {
            let what =
                if index.service_for(Kind::Service, name).is_some() { "cluster IP" } else { "address" };
            let fault =
                format!("{} has no {what}, so these routes have no effect on it", index.display_name(name));
            (Reason::NotSupported, fault)
        } else if ports.is_empty() || ports.iter().any(may_apply) {
            continue;
        } else {
            let ports = ports.iter().map(|port| match port.key.protocol {
                Transport::Tcp => format!("{} ({})", port.key, port.protocol.as_str()),
                Transport::Udp => port.key.to_string(),
            });
            let ports = ports.collect::<Vec<_>>().join(", ");
            let fault = format!(
                "no route that can be decided applies to a port of {}; it has {ports}; connections go as if the object \
                 weren't there",
                index.display_name(name)
            );
            (Reason::UnsupportedValue, fault)
        };
        out.reports.push(report_at(index, candidate.key, name, &host.field, reason, fault));
    }
}

/// Says so where an object doesn't get an address that it has.
pub(super) fn not_its_own(
    index: &Index,
    name: &ServiceId,
    (ip, port): (IpAddr, PortKey),
    by: &ObjectKey,
    owner: Option<&Claim>,
) -> Report {
    let external = index.service(name).and_then(|service| {
        let mut external = service.external.iter().filter(|_| by.kind == Kind::Service);
        external.find(|(of, _)| *of == ip)
    });
    let (field, what) = match (external, by.kind) {
        (Some((_, field)), _) => (*field, "address"),
        (None, Kind::Service) if ip.is_unspecified() => ("spec.ports", "nodePort"),
        (None, Kind::Service) => ("spec.clusterIPs", "cluster IP"),
        _ => ("spec.addresses", "address"),
    };
    let (reason, fault) = match owner {
        Some(Claim { object: owner, .. }) => {
            let before = if owner.kind == by.kind { "is older or first by name" } else { "goes before" };
            let owner = index.object_ref(owner.kind, &owner.name);
            let fault = format!(
                "{ip} port {port} belongs to {owner}, which {before}; this {} takes it over when that one goes; choose \
                 another {what}",
                by.kind
            );
            (Reason::Conflicted, fault)
        }
        None if external.is_some() => {
            let owner = index.relations.service_addresses.first(&ip);
            let owner = owner.map(|owner| index.object_ref(Kind::Service, owner));
            let owner = owner.map(|owner| owner.to_string()).unwrap_or_default();
            let fault = format!("{ip} is a cluster IP of {owner}, which nobody else can have");
            (Reason::Conflicted, fault)
        }
        None => {
            let why = index.reserved(ip).unwrap_or_default();
            (Reason::Invalid, format!("{ip} {why}, so no ServiceEntry can have it; choose another address"))
        }
    };
    report_at(index, by, name, field, reason, fault)
}

/// The field in which an object names this Service.
pub(super) fn host_field<'a>(routes: &'a Routes, service: &ServiceId) -> &'a str {
    routes.hosts.iter().find(|host| host.service == *service).map_or("spec", |host| &host.field)
}

/// Something that an object doesn't get at a Service; of a wildcard's object, wherever that is.
pub(super) fn report_at(
    index: &Index,
    key: &ObjectKey,
    at: &ServiceId,
    field: &str,
    reason: Reason,
    message: String,
) -> Report {
    let object = index.object_ref(key.kind, &key.name);
    let report = Report::new(object, Some(field.to_owned()), Severity::Refused, message);
    let named = index.routes(key).is_none_or(|routes| routes.hosts.iter().any(|host| host.service == *at));
    Report { reason, at: named.then(|| at.clone()), ..report }
}
