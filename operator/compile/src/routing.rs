//! Listeners and route configurations of a Service, or of a host of a ServiceEntry: where connections to its
//! addresses go.
//!
//! For each port the first object decides that has a route for it which can be decided: the oldest
//! VirtualService, then GRPCRoutes, HTTPRoutes, TLSRoutes and TCPRoutes in this order, of each kind the oldest first. Invariants: a choice in force names only
//! clusters that exist, and that the object may send connections to; and what a route says and can't be resolved
//! refuses its share, which goes nowhere else.

use std::{collections::BTreeMap, net::IpAddr};

use slotmesh_xds::Transport;

use crate::{
    Index, Kind, ObjectKey, ObjectName, Reason, Report, Severity,
    clusters::backends,
    compiler::{Compiled, Maker},
    envoy::{self, Forward},
    links::Claim,
    model::{
        Applies, Destination, Forwarding, Host, PortKey, Protocol, Route, RouteKind, Routes, Service,
        ServicePort, Share,
    },
    names::{BLACK_HOLE, absent, cluster_name, route_name},
};

/// The clusters that a route leads to, by weight.
type Choice = Vec<(String, u32)>;

/// An object with routes for the Service.
type Candidate<'a> = (&'a ObjectKey, &'a Routes);

/// A destination that a route can't lead to.
struct Missing {
    field: String,
    reason: Reason,
    fault: String,
}

/// Compiles the listeners and routes of a Service.
pub(crate) fn compile(index: &Index, name: &ObjectName) -> Compiled {
    let mut out = Compiled::default();
    let mut candidates = candidates(index, name, &mut out);
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
    let left =
        index.left_to_kube_proxy(name).filter(|_| !service.vips.is_empty() && !service.ports.is_empty());
    let mut routed_ports = Vec::new();
    // For each object that has no effect where it could have: the one that has, and the ports.
    let mut lost: BTreeMap<&ObjectKey, (&ObjectKey, Vec<PortKey>)> = BTreeMap::new();
    for port in &service.ports {
        let mut applying = candidates.iter().filter_map(|(key, routes)| {
            route_for(routes, name, port).map(|(kind, route)| (*key, kind, route))
        });
        let (mut routed, mut by) = (None, None);
        if let Some((key, kind, route)) = applying.next() {
            by = Some(key);
            for (loser, ..) in applying {
                lost.entry(loser).or_insert((key, Vec::new())).1.push(port.key);
            }
            routed = Some((kind, decide(index, name, port, (key, route), &mut out)));
            routed_ports.push(port.key.to_string());
        }
        if left.is_none() || routed.is_some() {
            let before = out.resources.len();
            listen(index, name, port, routed.as_ref(), &mut out);
            if let Some(object) = by {
                let made = out.resources.iter().skip(before).map(|resource| {
                    let maker = Maker { object: object.clone(), port: port.key };
                    ((resource.ty, resource.name.clone()), maker)
                });
                out.made.extend(made.collect::<Vec<_>>());
            }
        }
    }
    if let Some(field) = left {
        out.left = routed_ports.len() < service.ports.len();
        out.reports.push(left_to_kube_proxy(index, name, field, &routed_ports));
    }
    for (loser, (winner, ports)) in lost {
        let winner = index.object_ref(winner.kind, &winner.name);
        let hosts = index.routes(loser).into_iter().flat_map(|routes| &routes.hosts);
        for host in hosts.filter(|host| host.service == *name) {
            let of_host = |key: &&PortKey| service.port(**key).is_some_and(|port| host.covers(port));
            let ports: Vec<String> = ports.iter().filter(of_host).map(PortKey::to_string).collect();
            if ports.is_empty() {
                continue;
            }
            let fault = format!(
                "port {} of {} is already routed by {winner}, which goes before; these routes have no effect there for \
                 as long",
                ports.join(", "),
                index.called(name)
            );
            out.reports.push(about(index, loser, name, &host.field, Reason::Conflicted, fault));
        }
    }
    for (key, routes) in candidates {
        no_such_port(index, name, service, key, routes, &mut out);
        without_effect(index, name, service, key, routes, &mut out);
    }
    out
}

/// Says that connections to a Service aren't taken over.
fn left_to_kube_proxy(index: &Index, name: &ObjectName, field: &str, routed_ports: &[String]) -> Report {
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

/// The objects whose routes can be in force, the first goes first. Of VirtualServices that is one only.
fn candidates<'a>(index: &'a Index, name: &ObjectName, out: &mut Compiled) -> Vec<Candidate<'a>> {
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for ranked in index.relations.routes.of(name) {
        let Some(routes) = index.routes(&ranked.key) else { continue };
        if !routes.hosts.iter().any(|host| host.usable && host.service == *name) {
            continue;
        }
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

/// Where a route leads. Whatever of it can't be resolved is refused, and told.
fn decide(
    index: &Index,
    name: &ObjectName,
    port: &ServicePort,
    (key, route): (&ObjectKey, &Route),
    out: &mut Compiled,
) -> Choice {
    let shares = match &route.to {
        Forwarding::Shares(shares) => shares.as_slice(),
        Forwarding::Own | Forwarding::Undecidable => return vec![own_cluster(index, name, port)],
    };
    let mut choice = Choice::new();
    let mut refused = 0;
    for Share { field, destination, weight } in shares {
        let Some(destination) = destination else {
            refused += weight;
            continue;
        };
        match backend(index, key, field, destination, port.key) {
            Ok(cluster) => choice.push((cluster, *weight)),
            Err(Missing { field, reason, fault }) => {
                refused += weight;
                let until = if reason == Reason::RefNotPermitted { "allows it" } else { "exists" };
                let share =
                    if shares.len() == 1 { "every connection" } else { "its share of the connections" };
                let fault = format!("{fault}; until it {until}, {share} to port {} is refused", port.key);
                out.reports.push(about(index, key, name, &field, reason, fault));
            }
        }
    }
    if refused > 0 || choice.is_empty() {
        choice.push((BLACK_HOLE.to_owned(), refused.max(1)));
    }
    choice
}

/// The cluster of the Service's own endpoints.
fn own_cluster(index: &Index, name: &ObjectName, port: &ServicePort) -> (String, u32) {
    (cluster_name(&index.host(name), port.key, ""), 1)
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
    for host in routes.hosts.iter().filter(|host| host.usable && host.service == *name) {
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
    let ports: Vec<_> = service.ports.iter().map(|port| port.key.to_string()).collect();
    if ports.is_empty() { "none".to_owned() } else { ports.join(", ") }
}

/// Says so where the routes can't have an effect on any connection.
fn without_effect(
    index: &Index,
    name: &ObjectName,
    service: &Service,
    key: &ObjectKey,
    routes: &Routes,
    out: &mut Compiled,
) {
    for host in routes.hosts.iter().filter(|host| host.usable && host.service == *name) {
        let ports: Vec<&ServicePort> = service.ports.iter().filter(|port| host.covers(port)).collect();
        let applies = |port: &&&ServicePort| route_for(routes, name, port).is_some();
        let (reason, fault) = if service.vips.is_empty() {
            let what =
                if index.service_for(Kind::Service, name).is_some() { "cluster IP" } else { "address" };
            let fault = format!("{} has no {what}, so these routes have no effect on it", index.called(name));
            (Reason::NotSupported, fault)
        } else if ports.is_empty() || ports.iter().any(|port| applies(&port)) {
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
                index.called(name)
            );
            (Reason::UnsupportedValue, fault)
        };
        out.reports.push(about(index, key, name, &host.field, reason, fault));
    }
}

/// The route in force for connections to a port, if any.
fn route_for<'a>(
    routes: &'a Routes,
    name: &ObjectName,
    port: &ServicePort,
) -> Option<(RouteKind, &'a Route)> {
    // None of these kinds is for UDP.
    let is_for = |host: &Host| host.service == *name && host.covers(port);
    if port.key.protocol == Transport::Udp || !routes.hosts.iter().any(is_for) {
        return None;
    }
    let http = routes.http.iter().map(|route| (RouteKind::Http, route));
    let tcp = routes.tcp.iter().map(|route| (RouteKind::Tcp, route));
    let allowed = |list| match (routes.kind, port.protocol) {
        // It looks at the port only.
        (Kind::TcpRoute, _) | (_, Protocol::Undeclared) => true,
        (Kind::TlsRoute, protocol) => protocol == Protocol::Tls,
        (_, Protocol::Http) => list == RouteKind::Http,
        (_, Protocol::Tcp) => list == RouteKind::Tcp,
        (_, Protocol::Tls) => false,
    };
    http.chain(tcp).find(|(kind, route)| allowed(*kind) && route.applies(port.key.number) == Applies::Yes)
}

/// The cluster of a destination.
fn backend(
    index: &Index,
    by: &ObjectKey,
    at: &str,
    destination: &Destination,
    port: PortKey,
) -> Result<String, Missing> {
    let Destination { service: name, subset, .. } = destination;
    let [of_name, of_port] = match by.kind {
        Kind::VirtualService => ["host", "port.number"],
        _ => ["name", "port"],
    };
    let missing = |field: &str, fault: String| Missing {
        field: format!("{at}.{field}"),
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
    let mut alike = service.ports.iter().map(|of| of.key).filter(|key| key.protocol == port.protocol);
    let key = match (destination.port, alike.next(), alike.next()) {
        (Some(number), ..) => PortKey { number, protocol: port.protocol },
        (None, Some(only), None) => only,
        (None, ..) => port,
    };
    if service.port(key).is_none() {
        let PortKey { number, protocol } = key;
        let fault =
            format!("{} has no {protocol} port {number} (it has {})", index.called(name), ports(service));
        return Err(missing(of_port, fault));
    }
    let rules = index.rules(name);
    if !subset.is_empty() && rules.subset(subset).is_none() {
        let known: Vec<_> = rules.subsets().into_keys().collect();
        let has = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let fault = format!(
            "no DestinationRule in force defines subset {subset} of {} (defined: {has})",
            index.called(name)
        );
        return Err(missing("subset", fault));
    }
    debug_assert!(backends(index, name).any(|(port, of)| port == key && of == subset), "{name} {subset}");
    Ok(cluster_name(&index.host(name), key, subset))
}

/// The listeners of one port, for each address that belongs to this Service.
fn listen(
    index: &Index,
    name: &ObjectName,
    port: &ServicePort,
    routed: Option<&(RouteKind, Choice)>,
    out: &mut Compiled,
) {
    let host = index.host(name);
    let own = vec![own_cluster(index, name, port)];
    let (kind, choice) = routed.map_or((RouteKind::Tcp, &own), |(kind, choice)| (*kind, choice));
    let route = route_name(&host, port.key);
    let http = kind == RouteKind::Http;
    let forward = if http { Forward::Http(&route) } else { Forward::Layer4(choice) };
    let before = out.resources.len();
    for (ip, by) in index.addresses(name, port.key) {
        match index.owner_of(ip, port.key) {
            Some(claim) if claim.object == by => {
                out.resources.push(envoy::listener(ip, port.key, &own[0].0, &forward));
            }
            // Two ServiceEntries of one host that have the same address.
            Some(claim) if claim.service == *name => {}
            owner => out.reports.push(not_its_own(index, name, (ip, port.key), &by, owner)),
        }
    }
    if out.resources.len() > before {
        out.refuses |= choice.iter().any(|(cluster, _)| cluster == BLACK_HOLE);
        if http {
            out.resources.push(envoy::route(&route, choice));
        }
    }
}

/// Says so where an object doesn't get an address that it has.
fn not_its_own(
    index: &Index,
    name: &ObjectName,
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
    about(index, by, name, field, reason, fault)
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
