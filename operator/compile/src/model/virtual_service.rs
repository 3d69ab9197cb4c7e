//! VirtualServices: where connections to hosts go.

use std::sync::Arc;

use slotmesh_crds as crds;

use super::{
    Age, Destination, Export, Forwarding, From, Host, Match, Read, Route, Routes, Treatment, WeightedBackend,
    WildHost,
    istio_requests::{read_condition, read_edits, read_treatment},
    json_fields::{JsonFields, Readable, Unreadable, unreadable},
    port_number,
    treatment::MessageEdits,
};
use crate::{
    Cidr, CompileOptions, Kind, ObjectName, Reason, ServiceId, patterns::HostPattern, report::Findings,
};

const MESH: &str = "mesh";

impl Read<crds::VirtualService> for Routes {
    fn read(
        object: &crds::VirtualService,
        key: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let requests = options.proxy;
        let spec = &object.spec;
        // Of gateways only: somebody else's.
        if !spec.gateways.is_empty() && !spec.gateways.iter().any(|g| g == MESH) {
            return None;
        }
        let export = Export::read(&spec.export_to, &key.namespace, found);
        found.unsupported_rest("spec", &spec.rest);
        let (hosts, wild) = read_hosts(&spec.hosts, key, found);
        let http = spec.http.iter().enumerate().filter_map(|(i, route)| {
            let at = format!("spec.http[{i}]");
            let treatment = match requests {
                true => read_treatment(&at, &route.rest, key),
                false => {
                    found.unsupported_rest(&at, &route.rest);
                    Ok(Treatment::default())
                }
            };
            let wanted = route.matches.iter().map(|m| Wanted {
                port: m.port,
                gateways: &m.gateways,
                namespace: m.source_namespace.as_deref(),
                labels: &m.source_labels,
                subnets: &[],
                rest: &m.rest,
                requests,
            });
            let wanted: Vec<_> = wanted.collect();
            let (treatment, skipped) = match treatment {
                Ok(treatment) => (treatment, false),
                Err(Unreadable { field, what }) => {
                    found.skipped(field, &what, "the route is skipped");
                    (Treatment::default(), true)
                }
            };
            let answered = treatment.answer.is_some();
            let read = match &route.delegate {
                Some(delegate) => {
                    read_delegate(&at, &wanted, delegate, route, spec.hosts.is_empty(), key, found)
                }
                None if answered => read_matches(&at, &wanted, found)
                    .map(|matches| Route::plain(at, matches, Forwarding::Answered)),
                None => read_route(&at, &wanted, &route.route, requests, key, found),
            };
            let name = route.name.clone().unwrap_or_default();
            read.map(|read| match skipped {
                true => Route { to: Forwarding::Undecidable, ..read },
                false => Route { name, treatment, ..read },
            })
        });
        let http = http.collect();
        let tcp = spec.tcp.iter().enumerate().filter_map(|(i, route)| {
            let at = format!("spec.tcp[{i}]");
            found.unsupported_rest(&at, &route.rest);
            let wanted = route.matches.iter().map(|m| Wanted {
                port: m.port,
                gateways: &m.gateways,
                namespace: m.source_namespace.as_deref(),
                labels: &m.source_labels,
                subnets: &m.destination_subnets,
                rest: &m.rest,
                requests: false,
            });
            read_route(&at, &wanted.collect::<Vec<_>>(), &route.route, false, key, found)
        });
        let tcp = tcp.collect();
        let export = export.filter(|_| !found.refused())?;
        let (kind, age) = (Kind::VirtualService, Age::of(&object.metadata));
        let text = if requests { serde_json::to_vec(&spec.http).map_or(0, |text| text.len()) } else { 0 };
        Some(Self { kind, age, export, hosts, wild, http, tcp, text })
    }
}

fn read_hosts(hosts: &[String], key: &ObjectName, found: &mut Findings) -> (Vec<Host>, Vec<WildHost>) {
    let mut resolved: Vec<Host> = Vec::new();
    let mut wild: Vec<WildHost> = Vec::new();
    for (i, host) in hosts.iter().enumerate() {
        let field = format!("spec.hosts[{i}]");
        match HostPattern::read(host, &key.namespace) {
            Some(HostPattern::One(service)) if resolved.iter().any(|host| host.service == service) => {
                found.note(field, format!("{host} stands there twice"));
            }
            Some(HostPattern::Under(suffix)) if wild.iter().any(|host| host.suffix == suffix) => {
                found.note(field, format!("{host} stands there twice"));
            }
            Some(HostPattern::One(service)) => {
                resolved.push(Host { field, service, port: None, section: None, usable: true });
            }
            Some(HostPattern::Under(suffix)) => wild.push(WildHost { field, suffix }),
            None => found
                .refuse(field, format!("{host:?} is no host; name a Service, or all hosts as *.example.com")),
        }
    }
    (resolved, wild)
}

/// The parts of a match that count.
struct Wanted<'a> {
    port: Option<u32>,
    gateways: &'a [String],
    namespace: Option<&'a str>,
    labels: &'a std::collections::BTreeMap<String, String>,
    subnets: &'a [String],
    rest: &'a crds::Rest,
    /// Tells whether a proxy looks at requests.
    requests: bool,
}

impl Wanted<'_> {
    /// The match; `None` where no connection of the mesh can match.
    fn read(&self, at: &str, found: &mut Findings) -> Option<Match> {
        if !self.gateways.is_empty() && !self.gateways.iter().any(|gateway| gateway == MESH) {
            return None;
        }
        let mut decidable = true;
        let mut request = None;
        if self.requests {
            match read_condition(at, self.rest) {
                Ok(read) => request = read,
                Err(Unreadable { field, what }) => {
                    decidable = false;
                    found.skipped(field, &what, "this match is skipped");
                }
            }
        }
        for (name, value) in self.rest.iter().filter(|_| !self.requests) {
            if name == "uri" && is_any(value) || name == "ignoreUriCase" {
                continue;
            }
            decidable = false;
            let what = "it can't be decided when a connection is made; this match is skipped";
            found.unsupported(format!("{at}.{name}"), what);
        }
        let mut to = Vec::new();
        for (i, subnet) in self.subnets.iter().enumerate() {
            match subnet.parse::<Cidr>() {
                Ok(range) => to.push(range),
                Err(fault) => {
                    decidable = false;
                    let what = format!("{fault}; this match is skipped");
                    found.refuse_as(Reason::UnsupportedValue, format!("{at}.destinationSubnets[{i}]"), what);
                }
            }
        }
        let namespace = self.namespace.filter(|namespace| !namespace.is_empty()).map(Arc::from);
        let from = From { namespace, labels: Arc::new(self.labels.clone()) };
        Some(Match { port: self.port, from, to, decidable, request })
    }
}

/// The matches; `None` where there are some, and no connection of the mesh can match.
fn read_matches(at: &str, wanted: &[Wanted<'_>], found: &mut Findings) -> Option<Vec<Match>> {
    let matches =
        wanted.iter().enumerate().map(|(i, wanted)| wanted.read(&format!("{at}.match[{i}]"), found));
    let matches: Vec<Match> = matches.collect::<Vec<_>>().into_iter().flatten().collect();
    (!matches.is_empty() || wanted.is_empty()).then_some(matches)
}

/// A route that another VirtualService decides.
fn read_delegate(
    at: &str,
    wanted: &[Wanted<'_>],
    delegate: &crds::Delegate,
    route: &crds::HttpRoute,
    is_delegate: bool,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Route> {
    let field = format!("{at}.delegate");
    found.unsupported_rest(&field, &delegate.rest);
    if is_delegate {
        // Nor does Istio follow it further; so there are no cycles.
        found.refuse(
            &field,
            "a VirtualService without hosts is one that others delegate to, and can't delegate itself",
        );
    }
    if !route.route.is_empty() {
        found.refuse(
            &field,
            "the route has destinations already, and only one of both can be given; remove one",
        );
    }
    let matches = read_matches(at, wanted, found)?;
    let namespace = delegate.namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let namespace = namespace.map_or_else(|| Arc::clone(&key.namespace), Arc::from);
    let to = Forwarding::Delegated(ObjectName::new(namespace, delegate.name.as_str()));
    Some(Route::plain(at.to_owned(), matches, to))
}

/// Tells whether every path matches.
fn is_any(uri: &serde_json::Value) -> bool {
    uri.as_object().is_some_and(|uri| {
        uri.len() == 1 && uri.get("prefix").is_some_and(|prefix| prefix == "/")
            || uri.get("regex").is_some_and(|regex| regex == ".*" || regex == "/.*")
    })
}

fn read_route(
    at: &str,
    wanted: &[Wanted<'_>],
    destinations: &[crds::RouteDestination],
    requests: bool,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Route> {
    let matches = read_matches(at, wanted, found)?;
    let field = at.to_owned();
    if destinations.is_empty() {
        found.unsupported(format!("{at}.route"), "a route without destinations is skipped");
        return Some(Route::plain(field, matches, Forwarding::Undecidable));
    }
    let single = destinations.len() == 1;
    let shares = destinations.iter().enumerate();
    let shares =
        shares.map(|(i, d)| read_share(&format!("{at}.route[{i}]"), d, (single, requests), key, found));
    let to = Forwarding::by_weight(shares.collect());
    if to == Forwarding::Shares(Vec::new()) {
        found.note(format!("{at}.route"), "no destination has a weight above 0, so connections are refused");
    }
    Some(Route::plain(field, matches, to))
}

fn read_share(
    at: &str,
    share: &crds::RouteDestination,
    (single, requests): (bool, bool),
    key: &ObjectName,
    found: &mut Findings,
) -> WeightedBackend {
    let field = format!("{at}.destination");
    let mut edits = Ok(MessageEdits::default());
    if requests {
        let mut fields = JsonFields::of_rest(at, &share.rest);
        edits = fields.object("headers").and_then(|headers| {
            let edits = headers.map_or(Ok(MessageEdits::default()), read_edits)?;
            fields.end()?;
            Ok(edits)
        });
    } else {
        found.unsupported_rest(at, &share.rest);
    }
    // A destination that stands alone gets everything: 0 can't be told from unset in Istio's own API.
    let weight =
        share.weight.filter(|&weight| !(single && weight == 0)).unwrap_or(if single { 100 } else { 0 });
    let weight = u32::try_from(weight).unwrap_or_else(|_| {
        let fault = format!("{weight} is below 0, so the destination gets no connection; weights start at 0");
        found.refuse_as(Reason::InvalidBackend, format!("{at}.weight"), fault);
        0
    });
    let (destination, edits) = match edits {
        Ok(edits) => (read_destination(&field, &share.destination, key, found), edits),
        Err(Unreadable { field, what }) => {
            found.skipped(field, &what, "the destination's share of the requests is answered with 500");
            (None, MessageEdits::default())
        }
    };
    WeightedBackend { field, destination, weight, edits }
}

/// The destination of requests that are mirrored.
pub(super) fn destination_of(
    field: &str,
    destination: &serde_json::Value,
    key: &ObjectName,
) -> Readable<Destination> {
    let destination: crds::Destination = match serde_json::from_value(destination.clone()) {
        Ok(destination) => destination,
        Err(fault) => return unreadable(field, fault.to_string()),
    };
    resolved(&destination, key).or_else(|(name, fault)| unreadable(format!("{field}.{name}"), fault))
}

/// Where a destination is; else what is wrong with which of its fields.
fn resolved(
    destination: &crds::Destination,
    key: &ObjectName,
) -> Result<Destination, (&'static str, String)> {
    let mut port = None;
    if let Some(number) = destination.port.as_ref().and_then(|selector| selector.number) {
        port = port_number(number);
        if port.is_none() {
            return Err(("port.number", format!("{number} is not a port; ports are 1 to 65535")));
        }
    }
    let Some(service) = ServiceId::of_host(&destination.host, &key.namespace) else {
        let host = &destination.host;
        return Err(("host", format!("{host:?} is no host; name a Service, or a host of a ServiceEntry")));
    };
    Ok(Destination { service, subset: destination.subset.clone().unwrap_or_default(), port })
}

/// `None` where nothing can be there, which refuses the destination's share.
fn read_destination(
    field: &str,
    destination: &crds::Destination,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Destination> {
    found.unsupported_rest(field, &destination.rest);
    let resolved = match resolved(destination, key) {
        Ok(resolved) => resolved,
        Err((name, fault)) => {
            let fault = format!("{fault}; the destination's share of the connections is refused");
            found.refuse_as(Reason::InvalidBackend, format!("{field}.{name}"), fault);
            return None;
        }
    };
    if let Some(selector) = &destination.port {
        found.unsupported_rest(&format!("{field}.port"), &selector.rest);
    }
    Some(resolved)
}
