//! Endpoint assignments of a Service, or of a host of a ServiceEntry: which addresses stand behind each port and
//! subset.
//!
//! As kube-proxy decides: the ready endpoints, or, when none is ready, those that still serve while
//! they terminate. Each address family is decided by itself, because a connection to an IPv4
//! cluster IP can only go to an IPv4 endpoint.
//!
//! What depends on where the caller is, is decided on its node, of the same bytes for all: for whom endpoints are
//! meant travels along, and where callers have only those of their own node, all of both sorts do. Where callers choose
//! among localities, where each endpoint is travels along, and how they choose.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::SocketAddr,
};

use slotmesh_xds::{EndpointHints, LocalityPolicy};

use crate::{
    Index, Kind, ObjectName, Reason, Report, ServiceId,
    backends::{Backend, backends},
    clusters, envoy,
    index::Backing,
    model::{Hints, Place, Service, ServicePort, SlicePort, TargetPort},
    report::Findings,
    unit::Compiled,
};

/// An endpoint of one Service port.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    ready: bool,
    /// Used when none is ready.
    fallback: bool,
    /// Those of what stands behind it, where that is known and subsets ask for them.
    labels: Option<&'a BTreeMap<String, String>>,
    weight: u32,
    node: Option<&'a str>,
    hints: Option<&'a Hints>,
    /// Where it is, where anybody asks.
    place: Place<'a>,
}

impl Candidate<'_> {
    /// One that is ready, wherever it is.
    const ANYWHERE: Self = Self {
        ready: true,
        fallback: false,
        labels: None,
        weight: 1,
        node: None,
        hints: None,
        place: Place { region: "", zone: "", sub_zone: "" },
    };
}

type Candidates<'a> = BTreeMap<SocketAddr, Candidate<'a>>;

/// Compiles the assignments of a Service.
pub(crate) fn compile(index: &Index, name: &ServiceId) -> Compiled {
    let Some(service) = index.service(name) else { return Compiled::default() };
    let host = index.host(name);
    let mut reports = mismatched(index, name, service);
    let mut resources = Vec::new();
    let mut of_port = (None, Candidates::new());
    // The ports for which there is no endpoint, by subset and who defines it.
    let mut empty = BTreeMap::new();
    let mut made = BTreeSet::new();
    let backends = backends(index, name).into_iter().map(|backend| {
        let policy = clusters::traffic(index, name, &backend).locality_policy();
        (backend, policy)
    });
    let backends: Vec<_> = backends.collect();
    let wanted = Wanted {
        labels: index.has_subsets(name)
            || backends
                .iter()
                .any(|(_, policy)| policy.as_ref().is_some_and(|policy| asks_for_labels(policy))),
        places: backends.iter().any(|(_, policy)| policy.is_some()),
    };
    for (backend, policy) in backends {
        let assignment = backend.assignment(&host);
        if !made.insert(assignment.clone()) {
            continue;
        }
        if let Some(port) = service.port(backend.port).filter(|port| Some(port.key) != of_port.0) {
            of_port = (Some(port.key), candidates(index, name, port, wanted, &mut reports));
        }
        let policy = policy.as_deref().filter(|_| !service.local);
        if let Some(policy) = policy {
            reports.extend(shares_of_nobody(index, name, &backend, policy, &of_port.1));
        }
        let chosen = choose(&of_port.1, service.local, policy, |candidate| {
            backend.labels.is_none_or(|labels| {
                let all = |has: &BTreeMap<_, _>| labels.iter().all(|(k, v)| has.get(k) == Some(v));
                labels.is_empty() || candidate.labels.is_some_and(all)
            })
        });
        if chosen.is_empty() {
            let of = empty.entry((backend.subset, backend.definer)).or_insert((backend.labels, Vec::new()));
            of.1.push(backend.port.to_string());
        }
        resources.push(envoy::assignment(&assignment, backend.port.protocol, chosen));
    }
    let without = empty.into_iter();
    reports.extend(
        without.filter_map(|(of, (labels, ports))| without_endpoints(index, name, of, labels, &ports)),
    );
    Compiled { resources, reports, ..Compiled::default() }
}

/// Says that connections to a Service, or those that routes send to a subset of it, are refused.
fn without_endpoints(
    index: &Index,
    name: &ServiceId,
    (subset, definer): (&str, Option<&ObjectName>),
    labels: Option<&BTreeMap<String, String>>,
    ports: &[String],
) -> Option<Report> {
    let (called, ports) = (index.display_name(name), ports.join(", "));
    let (Some(labels), Some(definer)) = (labels, definer) else {
        let provider = index.provider(name)?;
        let mut found = Findings::new(index.object_ref(provider.kind, &provider.name));
        let what =
            format!("no endpoint of {called} is ready for port {ports}; connections to it are refused");
        let field = if provider.kind == Kind::Service { "spec.selector" } else { "spec.endpoints" };
        found.note(field, what);
        return found.reports.pop().map(|report| Report { reason: Reason::NoEndpoints, ..report });
    };
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
    let mut found = Findings::new(index.object_ref(Kind::DestinationRule, definer));
    let fault = format!(
        "no endpoint of {called} has the labels of subset {subset} ({labels}) for port {ports}; connections that routes \
         send there are refused until one has"
    );
    found.refuse_as(Reason::NoEndpoints, "spec.subsets", fault);
    let report = found.reports.pop()?;
    Some(Report { at: Some(name.clone()), ..report })
}

/// Tells whether endpoints with some labels go before others.
fn asks_for_labels(policy: &LocalityPolicy) -> bool {
    policy.prefer.iter().any(|preference| preference.contains('='))
}

/// Says which shares of localities go to the others, as they have no endpoint.
fn shares_of_nobody(
    index: &Index,
    name: &ServiceId,
    backend: &Backend<'_>,
    policy: &LocalityPolicy,
    candidates: &Candidates<'_>,
) -> Vec<Report> {
    let says = Some(policy).filter(|policy| !policy.distribute.is_empty());
    let Some(by) = says.and_then(|_| clusters::says_localities(index, name, backend)) else {
        return Vec::new();
    };
    let mut found = Findings::new(index.object_ref(by.kind, &by.name));
    let is_of = |to: &str| candidates.values().any(|candidate| candidate.place.is_of(to));
    let lost: BTreeSet<&str> = policy
        .distribute
        .iter()
        .flat_map(|shares| &shares.to)
        .map(|share| share.to.as_str())
        .filter(|to| !is_of(to))
        .collect();
    if !lost.is_empty() {
        let lost = lost.into_iter().collect::<Vec<_>>().join(", ");
        let field = match by.kind {
            Kind::TrafficPolicy => "spec.locality.distribute",
            _ => "spec.trafficPolicy.loadBalancer.localityLbSetting.distribute",
        };
        let what = format!(
            "no endpoint of {} is in {lost}; where others have a share, too, they get it, else connections are refused",
            index.display_name(name)
        );
        found.note(field, what);
    }
    found.reports.into_iter().map(|report| Report { at: Some(name.clone()), ..report }).collect()
}

/// The slices whose ports have no name that a port of the Service has: their endpoints are never used.
fn mismatched(index: &Index, name: &ServiceId, service: &Service) -> Vec<Report> {
    let mut reports = Vec::new();
    for (slice_name, slice) in index.slices(name) {
        let named = |slice_port: &SlicePort| service.ports.iter().any(|port| slice_port.is_of(port));
        if slice.endpoints.is_empty() || slice.ports.iter().any(named) {
            continue;
        }
        let show = |names: Vec<&str>| match names.as_slice() {
            [] => "none".to_owned(),
            names => names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "),
        };
        let has = show(slice.ports.iter().map(|port| port.name.as_str()).collect());
        let wanted = show(service.ports.iter().map(|port| port.name.as_str()).collect());
        let mut found = Findings::new(index.object_ref(Kind::EndpointSlice, slice_name));
        found.note(
            "ports",
            format!(
                "its endpoints are not used: its ports are named {has}, those of Service {name} {wanted}; \
                 name them alike"
            ),
        );
        reports.append(&mut found.reports);
    }
    reports
}

/// The facts of endpoints that somebody asks for.
#[derive(Clone, Copy)]
struct Wanted {
    labels: bool,
    places: bool,
}

/// All endpoints that have this port, each address once.
fn candidates<'a>(
    index: &'a Index,
    name: &ServiceId,
    port: &ServicePort,
    wanted: Wanted,
    reports: &mut Vec<Report>,
) -> Candidates<'a> {
    let place = |node: Option<&str>| match node.filter(|_| wanted.places) {
        Some(node) => index.place_of(node),
        None => Place::default(),
    };
    let mut found = Candidates::new();
    for (slice_name, slice) in index.slices(name) {
        for SlicePort { number, .. } in slice.ports.iter().filter(|of| of.is_of(port)) {
            for endpoint in &slice.endpoints {
                let pod = if wanted.labels { index.pod(&slice_name.namespace, endpoint) } else { None };
                let labels = pod.map(|pod| &pod.labels);
                let (ready, fallback) = (endpoint.ready, endpoint.fallback);
                let at = SocketAddr::new(endpoint.ip, *number);
                let (node, hints) = (endpoint.node.as_deref(), endpoint.hints.as_deref());
                let mut place = place(node);
                if wanted.places
                    && let Some(zone) = &endpoint.zone
                {
                    place.zone = zone;
                }
                add(&mut found, at, Candidate { ready, fallback, labels, weight: 1, node, hints, place });
            }
        }
    }
    for backing in index.backings(name) {
        if let Some(port) = backing.service.port(port.key) {
            add_workloads(index, name, &backing, port, &mut found, reports);
        }
    }
    found
}

/// Adds the workloads that an object names or selects itself, beside slices.
fn add_workloads<'a>(
    index: &'a Index,
    name: &ServiceId,
    backing: &Backing<'a>,
    port: &ServicePort,
    found: &mut Candidates<'a>,
    reports: &mut Vec<Report>,
) {
    let named = backing.endpoints.iter().map(|workload| (None, workload));
    let selected =
        index.selected_workloads(backing).into_iter().map(|(entry, workload)| (Some(entry), workload));
    for (entry, workload) in named.chain(selected) {
        match (workload.port(port), &port.target, entry) {
            (Some(number), ..) => {
                let (labels, weight) = (Some(&workload.labels), workload.weight);
                let (at, place) = (SocketAddr::new(workload.ip, number), workload.locality.place());
                add(found, at, Candidate { labels, weight, place, ..Candidate::ANYWHERE });
            }
            (None, TargetPort::Name(wanted), Some(entry)) => {
                let mut said = Findings::new(index.object_ref(Kind::WorkloadEntry, entry));
                let fault = format!("no port is named {wanted}, which Service {name} asks for");
                said.note("spec.ports", fault);
                reports.append(&mut said.reports);
            }
            _ => {}
        }
    }
    if let TargetPort::Number(number) = port.target {
        for (_, pod) in index.selected_pods(backing) {
            let (ready, fallback) = (pod.ready && !pod.terminating, pod.ready && pod.terminating);
            for ip in &pod.ips {
                let (labels, node) = (Some(&pod.labels), pod.node.as_deref());
                let place = node.map(|node| index.place_of(node)).unwrap_or_default();
                let candidate = Candidate { ready, fallback, labels, node, place, ..Candidate::ANYWHERE };
                add(found, SocketAddr::new(*ip, number), candidate);
            }
        }
    }
}

/// While an endpoint moves to another slice it can be in both: the better one counts.
fn add<'a>(found: &mut Candidates<'a>, at: SocketAddr, candidate: Candidate<'a>) {
    match found.entry(at) {
        Entry::Vacant(vacant) => drop(vacant.insert(candidate)),
        Entry::Occupied(mut held) => {
            let rank = |c: &Candidate<'_>| (c.ready, c.fallback, c.labels.is_some());
            if rank(&candidate) > rank(held.get()) {
                held.insert(candidate);
            }
        }
    }
}

/// For whom endpoints are, as far as that depends on where callers are.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Audience<'a> {
    /// Callers on this node only; empty for all.
    node: &'a str,
    hints: Option<&'a Hints>,
    /// Where they are, as far as callers ask for it.
    place: Place<'a>,
    on_node: &'a str,
    agreeing: u32,
}

impl<'a> Audience<'a> {
    /// Of an endpoint among which callers choose by where it is.
    fn among_localities(candidate: &Candidate<'a>, policy: &LocalityPolicy) -> Self {
        let asks_for_nodes = policy.prefer.iter().any(|preference| preference == LocalityPolicy::NODE);
        let on_node = candidate.node.filter(|_| asks_for_nodes).unwrap_or_default();
        let has = |preference: &String| {
            let label = preference.split_once('=').zip(candidate.labels);
            label.is_some_and(|((key, value), labels)| match key {
                LocalityPolicy::REGION => candidate.place.region == value,
                LocalityPolicy::ZONE => candidate.place.zone == value,
                LocalityPolicy::SUB_ZONE => candidate.place.sub_zone == value,
                _ => labels.get(key).is_some_and(|of| of == value),
            })
        };
        let bits = policy.prefer.iter().enumerate().filter(|(_, preference)| has(preference));
        let agreeing = bits.fold(0, |bits, (i, _)| bits | 1 << i);
        Self { place: candidate.place, on_node, agreeing, ..Self::default() }
    }
}

/// The endpoints with their weights, by whom they are for.
fn choose<'a>(
    candidates: &Candidates<'a>,
    local: bool,
    policy: Option<&LocalityPolicy>,
    selected: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<envoy::Group> {
    let mut groups: BTreeMap<Audience<'_>, Vec<envoy::Chosen>> = BTreeMap::new();
    for v4 in [true, false] {
        let family = || candidates.iter().filter(|(at, c)| at.is_ipv4() == v4 && selected(c));
        let any_ready = family().any(|(_, c)| c.ready);
        for (at, candidate) in family() {
            let is_fallback = !candidate.ready && candidate.fallback;
            let audience = if local {
                // Each node decides for itself whether one of its own is ready.
                candidate.node.map(|node| Audience { node, ..Audience::default() })
            } else if let Some(policy) = policy {
                Some(Audience::among_localities(candidate, policy))
            } else {
                let hints = candidate.hints.filter(|_| candidate.ready);
                Some(Audience { hints, ..Audience::default() })
            };
            let is_chosen = candidate.ready || is_fallback && (local || !any_ready);
            if let Some(audience) = audience.filter(|_| is_chosen) {
                let chosen =
                    envoy::Chosen { at: *at, weight: candidate.weight, is_degraded: is_fallback && local };
                groups.entry(audience).or_default().push(chosen);
            }
        }
    }
    let group = |(i, (audience, endpoints)): (usize, (Audience<'_>, Vec<envoy::Chosen>))| {
        let Audience { node, hints, place, on_node, agreeing } = audience;
        let hints = EndpointHints {
            only_node: node.to_owned(),
            for_nodes: hints.map(|hints| hints.nodes.clone()).unwrap_or_default(),
            for_zones: hints.map(|hints| hints.zones.clone()).unwrap_or_default(),
            on_node: on_node.to_owned(),
            agreeing,
            policy: policy.filter(|_| i == 0).cloned(),
        };
        let place = (place != Place::default()).then(|| place.to_proto());
        envoy::Group { hints, place, endpoints }
    };
    groups.into_iter().enumerate().map(group).collect()
}
