//! Gateway API's routes and grants, as far as they are about Services (GAMMA).
//!
//! Parents, rules and backends are read each by itself: what is wrong with one takes no other out of force. A
//! backend that can't be one refuses its share of the connections.

use std::sync::Arc;

use slotmesh_crds::gateway as crds;

use super::{
    Age, Destination, Export, Forwarding, Host, Match, Read, Route, Routes, Treatment, WeightedBackend,
    gateway_requests::{read_backend_edits, read_condition, read_treatment},
    json_fields::{Readable, Unreadable, unreadable},
    port_number,
    treatment::MessageEdits,
};
use crate::{CompileOptions, Kind, ObjectName, Reason, ServiceId, object::name_fault, report::Findings};

/// The share of a destination that doesn't say.
const DEFAULT_WEIGHT: i32 = 1;

const NEEDS_A_REQUEST: &str = "it can't be decided when a connection is made; this match is skipped";

impl Read<crds::HttpRoute> for Routes {
    fn read(
        object: &crds::HttpRoute,
        key: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let crds::HttpRouteSpec { parent_refs, rules, rest } = &object.spec;
        let hosts = read_parents(parent_refs, key, found)?;
        let (kind, age) = (Kind::HttpRoute, Age::of(&object.metadata));
        let http = read_http_rules(kind, rules, rest, key, options.proxy, found);
        let text = if options.proxy { serde_json::to_vec(rules).map_or(0, |text| text.len()) } else { 0 };
        let routes = Routes { http, text, ..routes(kind, age, hosts) };
        (!found.refused()).then_some(routes)
    }
}

impl Read<crds::GrpcRoute> for Routes {
    fn read(
        object: &crds::GrpcRoute,
        key: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let crds::GrpcRouteSpec { parent_refs, rules, rest } = &object.spec;
        let hosts = read_parents(parent_refs, key, found)?;
        let (kind, age) = (Kind::GrpcRoute, Age::of(&object.metadata));
        let http = read_http_rules(kind, rules, rest, key, options.proxy, found);
        let text = if options.proxy { serde_json::to_vec(rules).map_or(0, |text| text.len()) } else { 0 };
        let routes = Routes { http, text, ..routes(kind, age, hosts) };
        (!found.refused()).then_some(routes)
    }
}

/// Routes for whoever connects to these Services, without any yet.
fn routes(kind: Kind, age: Age, hosts: Vec<Host>) -> Routes {
    let (wild, http, tcp) = (Vec::new(), Vec::new(), Vec::new());
    Routes { kind, age, export: Export::Everyone, hosts, wild, http, tcp, text: 0 }
}

/// Rules that match requests, of a route that says `rest` besides.
fn read_http_rules(
    kind: Kind,
    rules: &[crds::HttpRule],
    rest: &slotmesh_crds::Rest,
    key: &ObjectName,
    requests: bool,
    found: &mut Findings,
) -> Vec<Route> {
    for name in rest.keys() {
        let consequence =
            if name == "hostnames" { "connections are routed whatever host they ask for" } else { "" };
        found.unsupported(format!("spec.{name}"), consequence);
    }
    let rules = rules.iter().enumerate().map(|(i, rule)| {
        let at = format!("spec.rules[{i}]");
        if requests {
            return read_request_rule(kind, at, rule, key, found);
        }
        let redirects = is_redirect(&rule.rest);
        for name in rule.rest.keys() {
            let skipped = name == "filters" && redirects;
            let consequence = if skipped { "a redirect takes a request, so the rule is skipped" } else { "" };
            found.unsupported(format!("{at}.{name}"), consequence);
        }
        let matches = rule.matches.iter().enumerate().map(|(m, wanted)| {
            let path = wanted.path.as_ref().is_some_and(|path| !path.is_any()).then_some("path");
            let undecidable = path.into_iter().chain(wanted.rest.keys().map(String::as_str));
            read_match(&format!("{at}.matches[{m}]"), undecidable, found)
        });
        let matches = matches.collect();
        let to = if redirects {
            Forwarding::Undecidable
        } else {
            read_backends(&at, &rule.backend_refs, key, false, found)
        };
        Route::plain(at, matches, to)
    });
    rules.collect()
}

/// A rule whose requests a proxy looks at.
fn read_request_rule(
    kind: Kind,
    at: String,
    rule: &crds::HttpRule,
    key: &ObjectName,
    found: &mut Findings,
) -> Route {
    let matches = rule.matches.iter().enumerate().map(|(m, wanted)| {
        match read_condition(kind, &format!("{at}.matches[{m}]"), wanted) {
            Ok(request) => Match { request, ..Match::of_all(true) },
            Err(Unreadable { field, what }) => {
                found.skipped(field, &what, "this match is skipped");
                Match::of_all(false)
            }
        }
    });
    let matches: Vec<Match> = matches.collect();
    let prefix = |wanted: &crds::HttpRouteMatch| {
        let path = wanted.path.clone().unwrap_or_default();
        let is_prefix = path.kind.as_deref().is_none_or(|kind| kind == "PathPrefix");
        is_prefix.then(|| path.value.unwrap_or_else(|| "/".to_owned()))
    };
    let mut prefixes = rule.matches.iter().map(prefix);
    let first = prefixes.next().unwrap_or_else(|| Some("/".to_owned()));
    let prefix = first.filter(|first| prefixes.all(|other| other.as_ref() == Some(first)));
    let (treatment, to) = match read_treatment(&at, &rule.rest, prefix.as_deref(), key) {
        Ok(treatment) if treatment.answer.is_some() => (treatment, Forwarding::Answered),
        Ok(treatment) => (treatment, read_backends(&at, &rule.backend_refs, key, true, found)),
        Err(Unreadable { field, what }) => {
            found.skipped(field, &what, "the rule is skipped");
            (Treatment::default(), Forwarding::Undecidable)
        }
    };
    Route { field: at, name: rule.name.clone().unwrap_or_default(), matches, to, treatment }
}

/// Tells whether a rule answers by itself instead of leading anywhere.
fn is_redirect(rest: &slotmesh_crds::Rest) -> bool {
    let filters = rest.get("filters").and_then(serde_json::Value::as_array);
    filters.into_iter().flatten().any(|filter| filter["type"] == "RequestRedirect")
}

impl Read<crds::TcpRoute> for Routes {
    fn read(
        object: &crds::TcpRoute,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let spec = &object.spec;
        let hosts = read_parents(&spec.parent_refs, key, found)?;
        found.unsupported_rest("spec", &spec.rest);
        let tcp = read_plain_rules(&spec.rules, key, found);
        let (kind, age) = (Kind::TcpRoute, Age::of(&object.metadata));
        let routes = Routes { tcp, ..routes(kind, age, hosts) };
        (!found.refused()).then_some(routes)
    }
}

impl Read<crds::TlsRoute> for Routes {
    fn read(
        object: &crds::TlsRoute,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let crds::TlsRouteSpec { parent_refs, hostnames, rules, rest } = &object.spec;
        let hosts = read_parents(parent_refs, key, found)?;
        found.unsupported_rest("spec", rest);
        let mut tcp = read_plain_rules(rules, key, found);
        if !hostnames.is_empty() {
            let what =
                "which host a connection asks for isn't known when it is made, so the rules are skipped";
            found.unsupported("spec.hostnames", what);
            tcp.iter_mut().for_each(|rule| rule.matches = vec![Match::of_all(false)]);
        }
        let (kind, age) = (Kind::TlsRoute, Age::of(&object.metadata));
        let routes = Routes { tcp, ..routes(kind, age, hosts) };
        (!found.refused()).then_some(routes)
    }
}

/// Rules that match every connection.
fn read_plain_rules(rules: &[crds::TcpRule], key: &ObjectName, found: &mut Findings) -> Vec<Route> {
    let rules = rules.iter().enumerate().map(|(i, rule)| {
        let field = format!("spec.rules[{i}]");
        found.unsupported_rest(&field, &rule.rest);
        let to = read_backends(&field, &rule.backend_refs, key, false, found);
        Route::plain(field, Vec::new(), to)
    });
    rules.collect()
}

/// A match, of which `undecidable` names what takes a request.
fn read_match<'a>(at: &str, undecidable: impl Iterator<Item = &'a str>, found: &mut Findings) -> Match {
    let mut decidable = true;
    for name in undecidable {
        decidable = false;
        found.unsupported(format!("{at}.{name}"), NEEDS_A_REQUEST);
    }
    Match::of_all(decidable)
}

fn is_service(group: Option<&str>, kind: Option<&str>) -> bool {
    matches!(group, Some("" | "core")) && kind == Some("Service")
}

/// The Services that the route is attached to; `None` where it is attached to none, so it is somebody else's.
/// Gateways are left to others.
fn read_parents(refs: &[crds::ParentRef], key: &ObjectName, found: &mut Findings) -> Option<Vec<Host>> {
    let mut hosts: Vec<Host> = Vec::new();
    for (i, parent) in refs.iter().enumerate() {
        let field = format!("spec.parentRefs[{i}]");
        if !is_service(parent.group.as_deref(), parent.kind.as_deref()) {
            if parent.kind.as_deref() == Some("Service") {
                let group = parent.group.as_deref().unwrap_or(crds::GATEWAY_GROUP);
                let what =
                    format!("a Service of the group {group} is meant, and there is none; write group: \"\"");
                found.unsupported(format!("{field}.group"), &what);
            }
            continue;
        }
        found.unsupported_rest(&field, &parent.rest);
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        let service = ServiceId::service(namespace, parent.name.as_str());
        let port = parent.port.map(port_number);
        let fault = if let Some(fault) = name_fault(&parent.name) {
            Some(("name", format!("the name {fault}")))
        } else if port == Some(None) {
            let number = parent.port.unwrap_or_default();
            Some(("port", format!("{number} is not a port; ports are 1 to 65535")))
        } else {
            None
        };
        let usable = fault.is_none();
        if let Some((what, fault)) = fault {
            found.refuse_at(&service, Reason::Invalid, format!("{field}.{what}"), fault);
        }
        let (port, section) = (port.flatten(), parent.section_name.clone());
        hosts.push(Host { field, service, port, section, usable });
    }
    (!hosts.is_empty()).then_some(hosts)
}

/// Where a rule leads: without backends to the Service's own endpoints.
fn read_backends(
    at: &str,
    backends: &[crds::BackendRef],
    key: &ObjectName,
    requests: bool,
    found: &mut Findings,
) -> Forwarding {
    if backends.is_empty() {
        return Forwarding::Own;
    }
    let shares = backends.iter().enumerate().map(|(i, backend)| {
        let field = format!("{at}.backendRefs[{i}]");
        let weight = backend.weight.unwrap_or(DEFAULT_WEIGHT);
        let weight = u32::try_from(weight).unwrap_or_else(|_| {
            let fault = "it is below 0, so the backend gets no connection; weights start at 0";
            found.refuse_as(Reason::InvalidBackend, format!("{field}.weight"), fault);
            0
        });
        let mut edits = MessageEdits::default();
        let mut destination = None;
        match requests.then(|| read_backend_edits(&field, &backend.rest)) {
            Some(Err(Unreadable { field, what })) => {
                found.skipped(field, &what, "the backend's share of the requests is answered with 500");
            }
            read => {
                if let Some(Ok(read)) = read {
                    edits = read;
                } else {
                    found.unsupported_rest(&field, &backend.rest);
                }
                destination = read_backend(&field, backend, key, requests, found);
            }
        }
        WeightedBackend { field, destination, weight, edits }
    });
    let to = Forwarding::by_weight(shares.collect());
    if to == Forwarding::Shares(Vec::new()) {
        let what = if requests { "requests are answered with 500" } else { "connections are refused" };
        found.note(format!("{at}.backendRefs"), format!("no backend has a weight above 0, so {what}"));
    }
    to
}

/// `None` where nothing can be there, which refuses the backend's share.
fn read_backend(
    field: &str,
    backend: &crds::BackendRef,
    key: &ObjectName,
    requests: bool,
    found: &mut Findings,
) -> Option<Destination> {
    match destination_of(backend, key) {
        Ok(destination) => Some(destination),
        Err((reason, name, fault)) => {
            let refused = if requests { "requests is answered with 500" } else { "connections is refused" };
            let fault = format!("{fault}; the backend's share of the {refused}");
            found.refuse_as(reason, format!("{field}.{name}"), fault);
            None
        }
    }
}

/// The destination of a request that is mirrored.
pub(super) fn backend_of(
    field: &str,
    backend: &serde_json::Value,
    key: &ObjectName,
) -> Readable<Destination> {
    let backend: crds::BackendRef = match serde_json::from_value(backend.clone()) {
        Ok(backend) => backend,
        Err(fault) => return unreadable(field, fault.to_string()),
    };
    destination_of(&backend, key).or_else(|(_, name, fault)| unreadable(format!("{field}.{name}"), fault))
}

/// Where a backend is; else what is wrong with which of its fields.
fn destination_of(
    backend: &crds::BackendRef,
    key: &ObjectName,
) -> Result<Destination, (Reason, &'static str, String)> {
    let refuse = |reason, name, fault| Err((reason, name, fault));
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if !is_service(Some(backend.group.as_deref().unwrap_or_default()), Some(kind)) {
        let fault = format!("connections can't go to a {kind}, only to a Service");
        return refuse(Reason::InvalidKind, "kind", fault);
    }
    if let Some(fault) = name_fault(&backend.name) {
        return refuse(Reason::InvalidBackend, "name", format!("the name {fault}"));
    }
    let port = match backend.port.map(|number| (number, port_number(number))) {
        Some((_, Some(port))) => port,
        Some((number, None)) => {
            let fault = format!("{number} is not a port; ports are 1 to 65535");
            return refuse(Reason::InvalidBackend, "port", fault);
        }
        None => {
            let fault = "it is missing; name the Service's port".to_owned();
            return refuse(Reason::InvalidBackend, "port", fault);
        }
    };
    let namespace = backend.namespace.as_deref().filter(|ns| !ns.is_empty());
    let namespace: Arc<str> = namespace.map_or_else(|| key.namespace.clone(), Arc::from);
    let service = ServiceId::service(namespace, backend.name.as_str());
    Ok(Destination { service, subset: String::new(), port: Some(port) })
}

/// A valid ReferenceGrant: whose objects may lead to which Services of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReferenceGrant {
    /// Kind and namespace.
    from: Vec<(String, String)>,
    /// The names of Services; `None` for all.
    to: Vec<Option<String>>,
}

impl Read<crds::ReferenceGrant> for ReferenceGrant {
    /// Reads a grant. What isn't about routes and Services is somebody else's.
    fn read(
        object: &crds::ReferenceGrant,
        _: &ObjectName,
        _: &CompileOptions,
        _: &mut Findings,
    ) -> Option<Self> {
        let from = object.spec.from.iter().filter(|from| from.group == crds::GATEWAY_GROUP);
        let to = object.spec.to.iter().filter(|to| is_service(Some(&to.group), Some(&to.kind)));
        Some(Self {
            from: from.map(|from| (from.kind.clone(), from.namespace.clone())).collect(),
            to: to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect(),
        })
    }
}

impl ReferenceGrant {
    /// Tells whether an object of this kind and namespace may lead to the Service of this name.
    pub(crate) fn allows(&self, kind: Kind, namespace: &str, service: &str) -> bool {
        self.from.iter().any(|(k, ns)| k == kind.as_str() && ns == namespace)
            && self.to.iter().any(|name| name.as_deref().is_none_or(|name| name == service))
    }
}
