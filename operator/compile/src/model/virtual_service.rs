//! VirtualServices: where connections to hosts go.

use slotmesh_crds as crds;

use super::{Age, Host, Match, Route, Routes, Share, destination_rule::refuse_export, port_number};
use crate::{Kind, ObjectName, names::resolve_host, report::Findings};

const MESH: &str = "mesh";

/// Reads a VirtualService; `None` when it must be refused.
pub(crate) fn read(object: &crds::VirtualService, key: &ObjectName, found: &mut Findings) -> Option<Routes> {
    let spec = &object.spec;
    refuse_export(&spec.export_to, found);
    found.unsupported_rest("spec", &spec.rest);
    let for_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|g| g == MESH);
    if !for_mesh {
        found.note("spec.gateways", "the object is for gateways only; it has no effect in the mesh");
    }
    let hosts = if for_mesh { read_hosts(&spec.hosts, key, found) } else { Vec::new() };
    let http = spec.http.iter().enumerate().map(|(i, route)| {
        let at = format!("spec.http[{i}]");
        found.unsupported_rest(&at, &route.rest);
        let matches = route.matches.iter().map(|m| (m.port, &m.rest)).collect::<Vec<_>>();
        read_route(&at, &matches, &route.route, key, found)
    });
    let http = http.collect();
    let tcp = spec.tcp.iter().enumerate().map(|(i, route)| {
        let at = format!("spec.tcp[{i}]");
        found.unsupported_rest(&at, &route.rest);
        let matches = route.matches.iter().map(|m| (m.port, &m.rest)).collect::<Vec<_>>();
        read_route(&at, &matches, &route.route, key, found)
    });
    let tcp = tcp.collect();
    (!found.refused()).then(|| Routes {
        kind: Kind::VirtualService,
        age: Age::of(&object.metadata),
        hosts,
        http,
        tcp,
    })
}

fn read_hosts(hosts: &[String], key: &ObjectName, found: &mut Findings) -> Vec<Host> {
    if hosts.is_empty() {
        found.refuse("spec.hosts", "no host is given; name the Service whose connections are to be routed");
    }
    let mut resolved: Vec<Host> = Vec::new();
    for (i, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        match resolve_host(host, &key.namespace) {
            Some(service) if resolved.iter().any(|host| host.service == service) => {
                found.note(field, format!("{host} stands there twice"));
            }
            Some(service) => resolved.push(Host { field, service, port: None, section: None }),
            None => found.unsupported(field, &format!("{host:?} isn't one host, and routes are for one")),
        }
    }
    resolved
}

fn read_route(
    at: &str,
    matches: &[(Option<u32>, &crds::Rest)],
    destinations: &[crds::RouteDestination],
    key: &ObjectName,
    found: &mut Findings,
) -> Route {
    for (i, (_, rest)) in matches.iter().enumerate() {
        for name in rest.keys() {
            let field = format!("{at}.match[{i}].{name}");
            found.unsupported(field, "it can't be decided when a connection is made; this match is skipped");
        }
    }
    let matches =
        matches.iter().map(|(port, rest)| Match { port: *port, decidable: rest.is_empty() }).collect();
    if destinations.is_empty() {
        found.unsupported(format!("{at}.route"), "a route without destinations is skipped");
    }
    let single = destinations.len() == 1;
    let shares: Vec<Share> = destinations
        .iter()
        .enumerate()
        .filter_map(|(i, d)| read_share(&format!("{at}.route[{i}]"), d, single, key, found))
        .collect();
    let total: u64 = shares.iter().map(|s| u64::from(s.weight)).sum();
    if !destinations.is_empty() && total == 0 && shares.len() == destinations.len() {
        let fault =
            "the weights sum to 0, so no destination could be chosen; give at least one a weight above 0";
        found.refuse(format!("{at}.route"), fault);
    }
    if total > u64::from(u32::MAX) {
        found.refuse(format!("{at}.route"), format!("the weights sum to {total}, above {}", u32::MAX));
    }
    Route { matches, shares: shares.into_iter().filter(|s| s.weight > 0).collect() }
}

fn read_share(
    at: &str,
    share: &crds::RouteDestination,
    single: bool,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Share> {
    let destination = &share.destination;
    let field = format!("{at}.destination");
    found.unsupported_rest(at, &share.rest);
    found.unsupported_rest(&field, &destination.rest);
    // A destination that stands alone gets everything: 0 can't be told from unset in Istio's own API.
    let weight =
        share.weight.filter(|&weight| !(single && weight == 0)).unwrap_or(if single { 100 } else { 0 });
    let Ok(weight) = u32::try_from(weight) else {
        found.refuse(format!("{at}.weight"), format!("{weight} is below 0; weights start at 0"));
        return None;
    };
    let port = match &destination.port {
        None => None,
        Some(selector) => {
            found.unsupported_rest(&format!("{field}.port"), &selector.rest);
            let port = selector.number.and_then(port_number);
            if let (Some(number), None) = (selector.number, port) {
                let fault = format!("{number} is not a port; ports are 1 to 65535");
                found.refuse(format!("{field}.port.number"), fault);
            }
            port
        }
    };
    let Some(service) = resolve_host(&destination.host, &key.namespace) else {
        let fault = format!("{:?} is no host; name a Service, or a host of a ServiceEntry", destination.host);
        found.refuse(format!("{field}.host"), fault);
        return None;
    };
    let subset = destination.subset.clone().unwrap_or_default();
    Some(Share { field, service, subset, port, weight })
}
