//! Gateway API's routes and grants, as far as they are about Services (GAMMA).

use std::sync::Arc;

use slotmesh_crds::gateway as crds;

use super::{Age, Host, Match, Route, Routes, Share, port_number};
use crate::{Kind, ObjectName, names::name_fault, report::Findings};

/// The share of a destination that doesn't say.
const DEFAULT_WEIGHT: i32 = 1;

/// Reads an HTTPRoute; `None` when it must be refused.
pub(crate) fn read_http(object: &crds::HttpRoute, key: &ObjectName, found: &mut Findings) -> Option<Routes> {
    let spec = &object.spec;
    for name in spec.rest.keys() {
        let consequence =
            if name == "hostnames" { "connections are routed whatever host they ask for" } else { "" };
        found.unsupported(format!("spec.{name}"), consequence);
    }
    let hosts = read_parents(&spec.parent_refs, key, found);
    let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
        let at = format!("spec.rules[{i}]");
        found.unsupported_rest(&at, &rule.rest);
        let matches = rule.matches.iter().enumerate().map(|(m, wanted)| {
            let at = format!("{at}.matches[{m}]");
            let path = wanted.path.as_ref().is_some_and(|path| !path.is_any()).then_some("path");
            let undecidable: Vec<_> =
                path.into_iter().chain(wanted.rest.keys().map(String::as_str)).collect();
            for name in &undecidable {
                let why = "it can't be decided when a connection is made; this match is skipped";
                found.unsupported(format!("{at}.{name}"), why);
            }
            Match { port: None, decidable: undecidable.is_empty() }
        });
        let matches = matches.collect();
        read_rule(&at, matches, &rule.backend_refs, key, found)
    });
    let http = rules.collect();
    let (kind, age) = (Kind::HttpRoute, Age::of(&object.metadata));
    let routes = Routes { kind, age, hosts, http, tcp: Vec::new() };
    (!found.refused()).then_some(routes)
}

/// Reads a TCPRoute; `None` when it must be refused.
pub(crate) fn read_tcp(object: &crds::TcpRoute, key: &ObjectName, found: &mut Findings) -> Option<Routes> {
    let spec = &object.spec;
    found.unsupported_rest("spec", &spec.rest);
    let hosts = read_parents(&spec.parent_refs, key, found);
    let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
        let at = format!("spec.rules[{i}]");
        found.unsupported_rest(&at, &rule.rest);
        read_rule(&at, Vec::new(), &rule.backend_refs, key, found)
    });
    let tcp = rules.collect();
    let (kind, age) = (Kind::TcpRoute, Age::of(&object.metadata));
    let routes = Routes { kind, age, hosts, http: Vec::new(), tcp };
    (!found.refused()).then_some(routes)
}

fn is_service(group: Option<&str>, kind: Option<&str>) -> bool {
    matches!(group, Some("" | "core")) && kind == Some("Service")
}

/// The Services that the route is attached to. Gateways are left to others.
fn read_parents(refs: &[crds::ParentRef], key: &ObjectName, found: &mut Findings) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::new();
    for (i, parent) in refs.iter().enumerate() {
        let field = format!("spec.parentRefs[{i}]");
        if !is_service(parent.group.as_deref(), parent.kind.as_deref()) {
            let kind = parent.kind.as_deref().unwrap_or("Gateway");
            found.note(format!("{field}.kind"), format!("a {kind} is left alone; slotmesh acts on Services"));
            continue;
        }
        found.unsupported_rest(&field, &parent.rest);
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        if namespace != &*key.namespace {
            // It would be for callers of the route's namespace only, which aren't told apart yet.
            let fault = format!(
                "not supported: a Service of another namespace, {namespace}, because the route would act on callers \
                 of every namespace; attach it to Services of {}",
                key.namespace
            );
            found.refuse(format!("{field}.namespace"), fault);
            continue;
        }
        if let Some(fault) = name_fault(&parent.name) {
            found.refuse(format!("{field}.name"), format!("the name {fault}"));
            continue;
        }
        let port = match parent.port {
            None => None,
            Some(number) => match port_number(number) {
                Some(port) => Some(port),
                None => {
                    found.refuse(
                        format!("{field}.port"),
                        format!("{number} is not a port; ports are 1 to 65535"),
                    );
                    continue;
                }
            },
        };
        let service = ObjectName::new(key.namespace.clone(), parent.name.as_str());
        hosts.push(Host { field, service, port, section: parent.section_name.clone() });
    }
    if hosts.is_empty() && !found.refused() {
        found.note("spec.parentRefs", "no Service is named, so the route has no effect in the mesh");
    }
    hosts
}

fn read_rule(
    at: &str,
    matches: Vec<Match>,
    backends: &[crds::BackendRef],
    key: &ObjectName,
    found: &mut Findings,
) -> Route {
    if backends.is_empty() {
        found.unsupported(format!("{at}.backendRefs"), "a rule without backends is skipped");
    }
    let shares: Vec<Share> = backends
        .iter()
        .enumerate()
        .filter_map(|(i, backend)| read_backend(&format!("{at}.backendRefs[{i}]"), backend, key, found))
        .collect();
    let total: u64 = shares.iter().map(|s| u64::from(s.weight)).sum();
    if !backends.is_empty() && total == 0 && shares.len() == backends.len() {
        let fault = "the weights sum to 0, so no backend could be chosen; give at least one a weight above 0";
        found.refuse(format!("{at}.backendRefs"), fault);
    }
    if total > u64::from(u32::MAX) {
        found.refuse(format!("{at}.backendRefs"), format!("the weights sum to {total}, above {}", u32::MAX));
    }
    Route { matches, shares: shares.into_iter().filter(|s| s.weight > 0).collect() }
}

fn read_backend(
    field: &str,
    backend: &crds::BackendRef,
    key: &ObjectName,
    found: &mut Findings,
) -> Option<Share> {
    found.unsupported_rest(field, &backend.rest);
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if !is_service(Some(backend.group.as_deref().unwrap_or_default()), Some(kind)) {
        found.refuse(
            format!("{field}.kind"),
            format!("connections can't go to a {kind}; a Service can be named"),
        );
        return None;
    }
    if let Some(fault) = name_fault(&backend.name) {
        found.refuse(format!("{field}.name"), format!("the name {fault}"));
        return None;
    }
    let Ok(weight) = u32::try_from(backend.weight.unwrap_or(DEFAULT_WEIGHT)) else {
        found.refuse(format!("{field}.weight"), "it is below 0; weights start at 0");
        return None;
    };
    let port = backend.port.map(|number| (number, port_number(number)));
    let port = match port {
        Some((number, None)) => {
            found.refuse(format!("{field}.port"), format!("{number} is not a port; ports are 1 to 65535"));
            return None;
        }
        Some((_, port)) => port,
        None => {
            found.refuse(format!("{field}.port"), "it is missing; name the Service's port");
            return None;
        }
    };
    let namespace = backend.namespace.as_deref().filter(|ns| !ns.is_empty());
    let namespace: Arc<str> = namespace.map_or_else(|| key.namespace.clone(), Arc::from);
    let service = ObjectName::new(namespace, backend.name.as_str());
    Some(Share { field: field.to_owned(), service, subset: String::new(), port, weight })
}

/// A valid ReferenceGrant: whose objects may lead to which Services of its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReferenceGrant {
    /// Kind and namespace.
    from: Vec<(String, String)>,
    /// The names of Services; `None` for all.
    to: Vec<Option<String>>,
}

impl ReferenceGrant {
    /// Reads a grant. What isn't about routes and Services is somebody else's.
    pub(crate) fn read(object: &crds::ReferenceGrant) -> Self {
        let from = object.spec.from.iter().filter(|from| from.group == crds::GATEWAY_GROUP);
        let to = object.spec.to.iter().filter(|to| is_service(Some(&to.group), Some(&to.kind)));
        Self {
            from: from.map(|from| (from.kind.clone(), from.namespace.clone())).collect(),
            to: to.map(|to| to.name.clone().filter(|name| !name.is_empty())).collect(),
        }
    }

    /// Whether an object of this kind and namespace may lead to the Service of this name.
    pub(crate) fn allows(&self, kind: Kind, namespace: &str, service: &str) -> bool {
        self.from.iter().any(|(k, ns)| k == kind.as_str() && ns == namespace)
            && self.to.iter().any(|name| name.as_deref().is_none_or(|name| name == service))
    }
}
