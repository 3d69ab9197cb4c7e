//! Endpoint assignments of a Service: which addresses stand behind each port and subset.
//!
//! As kube-proxy decides: the ready endpoints, or, when none is ready, those that still serve while
//! they terminate. Each address family is decided by itself, because a connection to an IPv4
//! cluster IP can only go to an IPv4 endpoint.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::SocketAddr,
};

use crate::{
    Index, Kind, ObjectName, Report,
    clusters::backends,
    compiler::Compiled,
    envoy,
    model::{Endpoint, Pod, Service},
    names::cluster_name,
    report::Findings,
};

/// An endpoint of one Service port.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    pod: Option<&'a Pod>,
}

/// Compiles the assignments of a Service.
pub(crate) fn compile(index: &Index, name: &ObjectName) -> Compiled {
    let Some(service) = index.service(name) else { return Compiled::default() };
    let mut resources = Vec::new();
    let mut of_port = (0, BTreeMap::new());
    for (port, subset) in backends(index, name) {
        if of_port.0 != port {
            let port_name = service.port(port).map_or("", |p| &p.name);
            of_port = (port, candidates(index, name, port_name));
        }
        let labels = index.rule(name).and_then(|rule| rule.subsets.get(subset)).map(|subset| &subset.labels);
        let chosen = choose(&of_port.1, |candidate| {
            labels.is_none_or(|labels| {
                let has = |pod: &Pod| labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
                labels.is_empty() || candidate.pod.is_some_and(has)
            })
        });
        resources.push(envoy::assignment(&cluster_name(name, port, subset), chosen.into_iter()));
    }
    Compiled { resources, reports: mismatched(index, name, service) }
}

/// The slices whose ports have no name that a port of the Service has: their endpoints are never used.
fn mismatched(index: &Index, name: &ObjectName, service: &Service) -> Vec<Report> {
    let mut reports = Vec::new();
    for (slice_name, slice) in index.slices(name) {
        let named =
            |(slice_port, _): &(String, u16)| service.ports.iter().any(|port| port.name == *slice_port);
        if slice.endpoints.is_empty() || slice.ports.iter().any(named) {
            continue;
        }
        let show = |names: Vec<&str>| match names.as_slice() {
            [] => "none".to_owned(),
            names => names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
        };
        let has = show(slice.ports.iter().map(|(port, _)| port.as_str()).collect());
        let wanted = show(service.ports.iter().map(|port| port.name.as_str()).collect());
        let mut found = Findings::new(index.object_ref(Kind::EndpointSlice, slice_name));
        found.note(
            "ports",
            format!(
                "its endpoints are not used: its TCP ports are named {has}, those of Service {name} {wanted}; \
                 name them alike"
            ),
        );
        reports.append(&mut found.reports);
    }
    reports
}

/// The endpoints of all slices that have this port, each address once.
fn candidates<'a>(
    index: &'a Index,
    name: &ObjectName,
    port_name: &str,
) -> BTreeMap<SocketAddr, Candidate<'a>> {
    let with_pods = index.rule(name).is_some_and(|rule| !rule.subsets.is_empty());
    let mut found: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
    for (slice_name, slice) in index.slices(name) {
        for (_, number) in slice.ports.iter().filter(|(name, _)| name == port_name) {
            for endpoint in &slice.endpoints {
                let pod = if with_pods { index.pod(&slice_name.namespace, endpoint) } else { None };
                let candidate = Candidate { endpoint, pod };
                match found.entry(SocketAddr::new(endpoint.ip, *number)) {
                    Entry::Vacant(vacant) => {
                        vacant.insert(candidate);
                    }
                    // While an endpoint moves to another slice it can be in both.
                    Entry::Occupied(mut held) => {
                        let rank =
                            |c: &Candidate<'_>| (c.endpoint.ready, c.endpoint.fallback, c.pod.is_some());
                        if rank(&candidate) > rank(held.get()) {
                            held.insert(candidate);
                        }
                    }
                }
            }
        }
    }
    found
}

fn choose<'a>(
    candidates: &'a BTreeMap<SocketAddr, Candidate<'a>>,
    selected: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<SocketAddr> {
    let mut chosen = Vec::new();
    for v4 in [true, false] {
        let family = || candidates.iter().filter(|(at, c)| at.is_ipv4() == v4 && selected(c));
        let before = chosen.len();
        chosen.extend(family().filter(|(_, c)| c.endpoint.ready).map(|(at, _)| *at));
        if chosen.len() == before {
            chosen.extend(family().filter(|(_, c)| c.endpoint.fallback).map(|(at, _)| *at));
        }
    }
    chosen
}
