//! Clusters of a Service, or of a host of a ServiceEntry: one for each port, and one for each port and subset.
//!
//! How connections to a cluster are spread and bounded is said by the TrafficPolicy in force for the
//! port; what it doesn't say, by the DestinationRule: of the subset, then of the Service. TrafficPolicies are for
//! Services only.

use crate::{
    Index, Kind, ObjectName, Reason, Report,
    compiler::Compiled,
    envoy,
    model::{ServicePort, Target, TrafficPolicy},
    names::{absent, cluster_name},
    report::Findings,
};

/// All (port, subset) of a Service for which there is a cluster, the empty subset first.
///
/// This alone decides which clusters exist: assignments are made for the same pairs and routes
/// lead to them.
pub(crate) fn backends<'a>(
    index: &'a Index,
    name: &'a ObjectName,
) -> impl Iterator<Item = (u16, &'a str)> + use<'a> {
    let ports = index.service(name).into_iter().flat_map(|service| &service.ports);
    ports.flat_map(move |port| {
        let subsets = index.rule(name).into_iter().flat_map(|rule| rule.subsets.keys());
        std::iter::once("").chain(subsets.map(String::as_str)).map(|subset| (port.number, subset))
    })
}

/// Compiles the clusters of a Service, and says which policies, rules and ServiceEntries for it have no effect.
pub(crate) fn compile(index: &Index, name: &ObjectName) -> Compiled {
    let rule = index.rule(name);
    let of_rule = rule.map(|rule| rule.traffic).unwrap_or_default();
    let host = index.host(name);
    let resources = backends(index, name).map(|(port, subset)| {
        let port_name = index.service(name).and_then(|service| service.port(port));
        let policy = port_name.and_then(|port| in_force(index, name, port));
        let of_policy = policy.map(|(_, policy, _)| policy.traffic).unwrap_or_default();
        let of_subset = rule.and_then(|rule| rule.subsets.get(subset)).map(|s| s.traffic).unwrap_or_default();
        envoy::cluster(&cluster_name(&host, port, subset), of_policy.or(of_subset).or(of_rule))
    });
    let mut compiled = Compiled { resources: resources.collect(), reports: rule_reports(index, name) };
    compiled.reports.extend(policy_reports(index, name));
    compiled.reports.extend(entry_reports(index, name));
    compiled
}

type Attached<'a> = (&'a ObjectName, &'a TrafficPolicy, &'a Target);

/// The policies for a Service with their targets, the oldest first.
fn attached<'a>(index: &'a Index, name: &'a ObjectName) -> impl Iterator<Item = Attached<'a>> {
    let policies = index.relations.policies.of(name).map(|(_, policy)| policy);
    policies.filter_map(|key| Some((key, index.policy(key)?))).flat_map(move |(key, policy)| {
        policy.targets.iter().filter(move |t| t.service == *name).map(move |target| (key, policy, target))
    })
}

/// The policy in force for a port: one for this port goes before one for all.
fn in_force<'a>(index: &'a Index, name: &'a ObjectName, port: &ServicePort) -> Option<Attached<'a>> {
    index.service_for(Kind::TrafficPolicy, name)?;
    let for_port = attached(index, name).find(|(.., target)| target.port.as_ref() == Some(&port.name));
    for_port.or_else(|| attached(index, name).find(|(.., target)| target.port.is_none()))
}

/// The policies that have no effect on this Service.
fn policy_reports(index: &Index, name: &ObjectName) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut say = |key: &ObjectName, reason: Reason, field: String, message: String| {
        let mut found = Findings::new(index.object_ref(Kind::TrafficPolicy, key));
        found.refuse_as(reason, field, message);
        reports.extend(found.reports.into_iter().map(|r| Report { at: Some(name.clone()), ..r }));
    };
    let mut first: Vec<Attached<'_>> = Vec::new();
    for (key, policy, target) in attached(index, name) {
        let Some(service) = index.service_for(Kind::TrafficPolicy, name) else {
            let fault = format!("there is no Service {name}; the policy takes effect when it appears");
            say(key, Reason::TargetNotFound, format!("{}.name", target.field), fault);
            continue;
        };
        if let Some(port) =
            target.port.as_ref().filter(|port| !service.ports.iter().any(|p| p.name == **port))
        {
            let has = service.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            let fault = format!("Service {name} has no TCP port named {port} (it has {has})");
            say(key, Reason::TargetNotFound, format!("{}.sectionName", target.field), fault);
            continue;
        }
        match first.iter().find(|(.., earlier)| earlier.port == target.port) {
            Some((winner, ..)) => {
                let winner = index.object_ref(Kind::TrafficPolicy, winner);
                let what = target.port.as_ref().map_or(String::new(), |port| format!(", port {port},"));
                let fault = format!(
                    "Service {name}{what} already has {winner}, which is older or first by name; this policy has no \
                     effect on it for as long; put both into one"
                );
                say(key, Reason::Conflicted, target.field.clone(), fault);
            }
            None => first.push((key, policy, target)),
        }
    }
    reports
}

fn rule_reports(index: &Index, name: &ObjectName) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut rules = index.relations.rules.of(name).map(|(_, rule)| rule);
    let Some(first) = rules.next() else { return reports };
    if index.service(name).is_none() {
        let mut found = Findings::new(index.object_ref(Kind::DestinationRule, first));
        found.refuse_as(
            Reason::TargetNotFound,
            "spec.host",
            format!("{}; the rule takes effect when it appears", absent(name)),
        );
        reports.append(&mut found.reports);
    }
    for loser in rules {
        let mut found = Findings::new(index.object_ref(Kind::DestinationRule, loser));
        let winner = index.object_ref(Kind::DestinationRule, first);
        found.refuse_as(
            Reason::Conflicted,
            "spec.host",
            format!(
                "{} already has {winner}, which is older or first by name; this rule has no effect for as long; put \
                 the subsets of both into one",
                index.called(name)
            ),
        );
        reports.append(&mut found.reports);
    }
    reports
}

/// The ServiceEntries that have no effect on this host, because it is another's.
fn entry_reports(index: &Index, name: &ObjectName) -> Vec<Report> {
    let Some(provider) = index.provider(name) else { return Vec::new() };
    let entries = index.relations.service_entries.of(name).map(|(_, entry)| entry);
    let losers = entries.filter(|entry| provider.kind == Kind::Service || provider.name != **entry);
    let report = |loser: &ObjectName| {
        let hosts = index.service_entry(loser).into_iter().flat_map(|entry| &entry.hosts);
        let field = hosts.filter(|host| host.name == *name).map(|host| host.field.as_str()).next();
        let mut found = Findings::new(index.object_ref(Kind::ServiceEntry, loser));
        let winner = index.object_ref(provider.kind, &provider.name);
        let why = match provider.kind {
            Kind::Service => "a Service goes before",
            _ => "which is older or first by name",
        };
        let fault = format!(
            "the host already is that of {winner}, {why}; this object has no effect on it for as long; remove it from \
             one of them"
        );
        found.refuse_as(Reason::Conflicted, field.unwrap_or("spec.hosts"), fault);
        found
            .reports
            .into_iter()
            .map(|report| Report { at: Some(name.clone()), ..report })
            .collect::<Vec<_>>()
    };
    losers.flat_map(report).collect()
}
