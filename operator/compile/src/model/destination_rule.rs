//! DestinationRules: named subsets of a Service, and how connections to them are treated.

use std::collections::BTreeMap;

use slotmesh_crds as crds;

use super::{Age, Balance, Traffic};
use crate::{
    ObjectName, Reason,
    names::{name_fault, resolve_host},
    report::Findings,
};

/// A valid DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DestinationRule {
    pub(crate) age: Age,
    pub(crate) service: ObjectName,
    pub(crate) export: Export,
    /// Whether it has a traffic policy for the Service as a whole, whatever that says.
    pub(crate) has_policy: bool,
    /// How connections to the Service are treated, where the subset doesn't say.
    pub(crate) traffic: Traffic,
    /// The subsets by name.
    pub(crate) subsets: BTreeMap<String, Subset>,
}

/// A part of a Service's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subset {
    /// The labels that its pods carry.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) traffic: Traffic,
}

impl DestinationRule {
    /// Reads a rule; `None` when it must be refused.
    pub(crate) fn read(
        object: &crds::DestinationRule,
        key: &ObjectName,
        found: &mut Findings,
    ) -> Option<Self> {
        let spec = &object.spec;
        if spec.host.contains('*') {
            // Of those that are for the whole mesh nearly all say how sidecars encrypt, which is no matter of ours.
            if asks_for_something(spec) {
                let fault = "not supported: a rule for many hosts; name one";
                found.refuse_as(Reason::NotSupported, "spec.host", fault);
            }
            return None;
        }
        let export = Export::read(&spec.export_to, &key.namespace);
        match export {
            Some(Export::Everyone) => {}
            Some(Export::Own) => {
                found.unsupported(
                    "spec.exportTo",
                    "callers aren't told apart, so those of every namespace see the rule",
                );
            }
            Some(Export::Others) => {
                let fault = "not supported: a rule for callers of other namespaces only, because callers aren't told \
                             apart; remove the field";
                found.refuse("spec.exportTo", fault);
            }
            None => found.note("spec.exportTo", "nobody sees the rule, so it has no effect"),
        }
        if spec.rest.contains_key("workloadSelector") {
            let fault = "not supported: a rule for some callers only, because callers aren't told apart; remove the field";
            found.refuse("spec.workloadSelector", fault);
        }
        let service = resolve_host(&spec.host, &key.namespace);
        if service.is_none() {
            let fault =
                format!("{:?} isn't one host; name a Service, or a host of a ServiceEntry", spec.host);
            found.refuse("spec.host", fault);
        }
        let traffic = policy("spec.trafficPolicy", spec.traffic_policy.as_ref(), found);
        for name in spec.rest.keys().filter(|name| *name != "workloadSelector") {
            found.unsupported(format!("spec.{name}"), "");
        }
        let mut subsets = BTreeMap::new();
        for (i, subset) in spec.subsets.iter().enumerate() {
            let at = format!("spec.subsets[{i}]");
            if let Some(fault) = name_fault(&subset.name) {
                found.refuse(format!("{at}.name"), format!("the subset's name {fault}"));
            }
            let traffic = policy(&format!("{at}.trafficPolicy"), subset.traffic_policy.as_ref(), found);
            let read = Subset { labels: subset.labels.clone(), traffic };
            if subsets.insert(subset.name.clone(), read).is_some() {
                found.refuse(
                    format!("{at}.name"),
                    format!("subset {} is defined twice; remove one", subset.name),
                );
            }
            found.unsupported_rest(&at, &subset.rest);
        }
        let service = service.filter(|_| !found.refused())?;
        let has_policy = spec.traffic_policy.is_some();
        Some(Self { age: Age::of(&object.metadata), service, export: export?, has_policy, traffic, subsets })
    }
}

/// Whether a rule says anything that would act on connections.
fn asks_for_something(spec: &crds::DestinationRuleSpec) -> bool {
    let acts =
        |policy: &crds::TrafficPolicy| policy.load_balancer.is_some() || policy.connection_pool.is_some();
    !spec.subsets.is_empty() || spec.traffic_policy.as_ref().is_some_and(acts)
}

fn policy(at: &str, policy: Option<&crds::TrafficPolicy>, found: &mut Findings) -> Traffic {
    let mut traffic = Traffic::default();
    let Some(policy) = policy else { return traffic };
    found.unsupported_rest(at, &policy.rest);
    if let Some(balancer) = &policy.load_balancer {
        traffic.balance = balance(&format!("{at}.loadBalancer"), balancer, found);
    }
    if let Some(pool) = &policy.connection_pool {
        found.unsupported_rest(&format!("{at}.connectionPool"), &pool.rest);
        if let Some(tcp) = &pool.tcp {
            let at = format!("{at}.connectionPool.tcp");
            found.unsupported_rest(&at, &tcp.rest);
            // 0 and unset are the same in Istio's own API.
            match tcp.max_connections.map(u32::try_from) {
                None | Some(Ok(0)) => {}
                Some(Ok(most)) => traffic.max_connections = Some(most),
                Some(Err(_)) => found.refuse(format!("{at}.maxConnections"), "it is below 0"),
            }
        }
    }
    traffic
}

fn balance(at: &str, balancer: &crds::LoadBalancer, found: &mut Findings) -> Option<Balance> {
    found.unsupported_rest(at, &balancer.rest);
    let simple = match balancer.simple.as_deref() {
        None | Some("" | "UNSPECIFIED") => None,
        Some("RANDOM") => Some(Balance::Random),
        Some("ROUND_ROBIN") => Some(Balance::RoundRobin),
        // The older name is still allowed.
        Some("LEAST_REQUEST" | "LEAST_CONN") => Some(Balance::LeastConnections),
        Some(other) => {
            let consequence = format!("{other} is not there yet, RANDOM is used instead");
            found.unsupported(format!("{at}.simple"), &consequence);
            None
        }
    };
    let Some(hash) = &balancer.consistent_hash else { return simple };
    let at = format!("{at}.consistentHash");
    if simple.is_some() {
        found.refuse(&at, "it excludes simple; remove one of them");
    }
    let by_source = hash.use_source_ip == Some(true);
    let is_size = |name: &str| matches!(name, "minimumRingSize" | "ringHash" | "maglev");
    if !by_source && hash.rest.keys().all(|name| is_size(name)) {
        found.refuse(&at, "it names nothing to hash; set useSourceIp");
    }
    for name in hash.rest.keys() {
        let consequence = match name.as_str() {
            name if is_size(name) => "the size of the table follows from the endpoints",
            _ if by_source => "only the source is hashed",
            _ => "a connection has no request that could be hashed, RANDOM is used instead",
        };
        found.unsupported(format!("{at}.{name}"), consequence);
    }
    by_source.then_some(Balance::ConsistentHash)
}

/// Callers of which namespaces see an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    Everyone,
    /// Those of the object's own namespace, and perhaps of some others.
    Own,
    /// Not those of the object's own namespace.
    Others,
}

impl Export {
    /// `None` where nobody sees the object.
    pub(super) fn read(export_to: &[String], namespace: &str) -> Option<Self> {
        let names = |wanted: &str| export_to.iter().any(|to| to == wanted);
        if export_to.is_empty() || names("*") {
            Some(Self::Everyone)
        } else if names(".") || names(namespace) {
            Some(Self::Own)
        } else {
            export_to.iter().any(|to| to != "~").then_some(Self::Others)
        }
    }
}

/// One node serves callers of all namespaces, and what each of them may see isn't told apart yet. Returns whether
/// anybody sees the object.
pub(super) fn refuse_export(export_to: &[String], key: &ObjectName, found: &mut Findings) -> bool {
    match Export::read(export_to, &key.namespace) {
        Some(Export::Everyone) => true,
        Some(Export::Own | Export::Others) => {
            found.refuse(
                "spec.exportTo",
                "not supported: field spec.exportTo other than [\"*\"], because every namespace would see the \
                 object; remove the field",
            );
            true
        }
        None => {
            found.note("spec.exportTo", "nobody sees the object, so it has no effect");
            false
        }
    }
}
