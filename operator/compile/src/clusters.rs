//! Clusters of a Service, or of a host of a ServiceEntry: one for each port, and one for each port and subset.
//!
//! How connections to a cluster are spread and bounded is said by the TrafficPolicy for the port; what it doesn't
//! say, by that for the Service; what that doesn't say, by the DestinationRules in force: of the subset, then of the
//! Service. TrafficPolicies are for Services only.

use std::collections::BTreeSet;

use slotmesh_xds::Transport;

use crate::{
    Index, Kind, ObjectKey, ObjectName, Reason, Report, ServiceId,
    backends::{Backend, backends},
    envoy,
    model::{Caller, LbPolicy, ServicePort, Target, TrafficPolicy, TrafficSettings},
    patterns::HostPattern,
    report::Findings,
    rules::Standing,
    unit::Compiled,
};

/// Compiles the clusters of a Service, and says which policies, rules and ServiceEntries for it have no effect.
pub(crate) fn compile(index: &Index, name: &ServiceId) -> Compiled {
    let host = index.host(name);
    let resources = backends(index, name).into_iter().map(|backend| {
        let mut traffic = traffic(index, name, &backend);
        if backend.port.protocol == Transport::Udp {
            // There are none to be counted.
            traffic.max_connections = None;
            traffic.outliers = None;
            traffic.rate = None;
        }
        let port = index.service(name).and_then(|service| service.port(backend.port));
        let http2 =
            port.filter(|port| index.options.proxy && port.may_have_requests()).map(|port| port.http2);
        if http2.is_none() && matches!(traffic.balance, Some(LbPolicy::RequestHash(_))) {
            // No request ever comes there.
            traffic.balance = None;
        }
        let affinity = index.service(name).map_or(0, |service| service.affinity);
        envoy::cluster(&backend.name(&host), &backend.assignment(&host), traffic, affinity, http2)
    });
    let (resources, reports) = (resources.collect(), rule_reports(index, name));
    let mut compiled = Compiled { resources, reports, ..Compiled::default() };
    compiled.reports.extend(policy_reports(index, name));
    compiled.reports.extend(limits_of_udp(index, name));
    compiled.reports.extend(entry_reports(index, name));
    compiled
}

/// How connections to a cluster are treated.
pub(crate) fn traffic(index: &Index, name: &ServiceId, backend: &Backend<'_>) -> TrafficSettings {
    let port = index.service(name).and_then(|service| service.port(backend.port));
    let policies = port.into_iter().flat_map(|port| in_force(index, name, port));
    let of_policies =
        policies.fold(TrafficSettings::default(), |before, (_, policy, _)| before.or(policy.traffic.clone()));
    of_policies.or(backend.traffic.clone())
}

/// Who says how callers choose among the localities of a cluster.
pub(crate) fn says_localities(index: &Index, name: &ServiceId, backend: &Backend<'_>) -> Option<ObjectKey> {
    let port = index.service(name).and_then(|service| service.port(backend.port));
    let mut policies = port.into_iter().flat_map(|port| in_force(index, name, port));
    let policy = policies.find(|(_, policy, _)| policy.traffic.localities.is_some());
    if let Some((name, ..)) = policy {
        return Some(ObjectKey { kind: Kind::TrafficPolicy, name: name.clone() });
    }
    let of_subset = backend.definer.filter(|rule| {
        let subset = index.rule_named(rule).and_then(|rule| rule.subsets.get(backend.subset));
        subset.is_some_and(|subset| {
            subset.policy.of(backend.port.number, TrafficSettings::default()).localities.is_some()
        })
    });
    let rule = of_subset.or(backend.ruler)?;
    Some(ObjectKey { kind: Kind::DestinationRule, name: rule.clone() })
}

type Attached<'a> = (&'a ObjectName, &'a TrafficPolicy, &'a Target);

/// The policies for a Service with their targets, the oldest first.
fn attached<'a>(index: &'a Index, name: &'a ServiceId) -> impl Iterator<Item = Attached<'a>> {
    let policies = index.relations.policies.of(name).map(|(_, policy)| policy);
    policies.filter_map(|key| Some((key, index.policy(key)?))).flat_map(move |(key, policy)| {
        policy.targets.iter().filter(move |t| t.service == *name).map(move |target| (key, policy, target))
    })
}

/// The policies in force for a port: one for this port, then one for all.
fn in_force<'a>(
    index: &'a Index,
    name: &'a ServiceId,
    port: &ServicePort,
) -> impl Iterator<Item = Attached<'a>> {
    let exists = index.service_for(Kind::TrafficPolicy, name).is_some();
    let first = |wanted: Option<&String>| {
        attached(index, name).find(|(.., target)| exists && target.port.as_ref() == wanted)
    };
    [first(Some(&port.name)), first(None)].into_iter().flatten()
}

/// The names of the clusters for which a policy with this target is in force.
pub(crate) fn of_policy(index: &Index, policy: &ObjectName, target: &Target) -> BTreeSet<String> {
    let (name, host) = (&target.service, index.host(&target.service));
    let own = |port: crate::model::PortKey| {
        let port = index.service(name).and_then(|service| service.port(port));
        let mut in_force = port.into_iter().flat_map(|port| in_force(index, name, port));
        in_force.any(|(key, _, by)| key == policy && by == target)
    };
    let own = backends(index, name).into_iter().filter(|backend| own(backend.port));
    own.map(|backend| backend.name(&host)).collect()
}

/// The policies that have no effect on this Service.
fn policy_reports(index: &Index, name: &ServiceId) -> Vec<Report> {
    let mut reports = Vec::new();
    let mut say = |key: &ObjectName, reason: Reason, field: String, message: String| {
        let mut found = Findings::new(index.object_ref(Kind::TrafficPolicy, key));
        found.refuse_as(reason, field, message);
        reports.extend(found.reports.into_iter().map(|r| Report { at: Some(name.clone()), ..r }));
    };
    let mut first: Vec<Attached<'_>> = Vec::new();
    for (key, policy, target) in attached(index, name) {
        let Some(service) = index.service_for(Kind::TrafficPolicy, name) else {
            let fault = match index.service(name) {
                Some(_) => format!("there is no Service {name}"),
                None => index.not_found(name),
            };
            let fault = format!("{fault}; the policy takes effect when it appears");
            say(key, Reason::TargetNotFound, format!("{}.name", target.field), fault);
            continue;
        };
        if let Some(port) =
            target.port.as_ref().filter(|port| !service.ports.iter().any(|p| p.name == **port))
        {
            let has = service.ports.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
            let fault = format!("Service {name} has no port named {port} (it has {has})");
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

/// The policies that bound connections to UDP ports only: there are none.
fn limits_of_udp(index: &Index, name: &ServiceId) -> Vec<Report> {
    let Some(service) = index.service_for(Kind::TrafficPolicy, name) else { return Vec::new() };
    let mut reports = Vec::new();
    for (key, policy, target) in attached(index, name) {
        let covers = |port: &&ServicePort| target.port.as_ref().is_none_or(|name| *name == port.name);
        let mut protocols = service.ports.iter().filter(covers).map(|port| port.key.protocol).peekable();
        let is_udp = protocols.peek().is_some() && protocols.all(|protocol| protocol == Transport::Udp);
        let said = [
            ("spec.maxConnections", policy.traffic.max_connections.is_some()),
            ("spec.outlierDetection", policy.traffic.outliers.is_some()),
            ("spec.newConnections", policy.traffic.rate.is_some()),
        ];
        for (field, _) in said.into_iter().filter(|(_, is_said)| is_udp && *is_said) {
            let mut found = Findings::new(index.object_ref(Kind::TrafficPolicy, key));
            found.unsupported(field, "UDP has no connections that could be counted");
            reports.extend(found.reports.into_iter().map(|r| Report { at: Some(name.clone()), ..r }));
        }
    }
    reports
}

/// Reports about rules for a Service, or parts of them, that have no effect.
fn rule_reports(index: &Index, name: &ServiceId) -> Vec<Report> {
    let mut reports = Vec::new();
    let all = index.relations.rules.of(&HostPattern::One(name.clone())).map(|(.., rule)| rule);
    let exists = index.service(name).is_some();
    for rule in all.filter(|rule| index.rule_named(rule).is_some()) {
        let mut found = Findings::new(index.object_ref(Kind::DestinationRule, rule));
        if !exists {
            let fault = format!("{}; the rule takes effect when it appears", index.not_found(name));
            found.refuse_as(Reason::TargetNotFound, "spec.host", fault);
            reports.append(&mut found.reports);
            continue;
        }
        match index.standing(name, rule) {
            Standing::InForce => behind_older(index, name, rule, &mut found),
            Standing::Behind(first) => {
                let first = index.object_ref(Kind::DestinationRule, first);
                let fault = format!(
                    "for all callers of {} that see this rule {first} goes before; it has no effect for as long",
                    index.display_name(name)
                );
                found.refuse_as(Reason::Conflicted, "metadata.namespace", fault);
            }
            Standing::Unused => {
                let what = "no caller that it is for is known, so the rule has no effect for as long";
                found.note("spec", what);
            }
        }
        reports.append(&mut found.reports);
    }
    reports
}

/// Notes what older rules of the namespace say already, to all who see this one.
fn behind_older(index: &Index, name: &ServiceId, rule: &ObjectName, found: &mut Findings) {
    let Some(model) = index.rule_named(rule) else { return };
    let own = index.own_rules(name);
    let namespace = Caller::Of(&rule.namespace);
    let rules = if own.names().contains(&rule) { own } else { index.rules(name, namespace) };
    if !rules.names().contains(&rule) {
        // It is for some callers only.
        return;
    }
    if let Some((first, _)) = rules.policy().filter(|(first, _)| model.has_policy && *first != rule) {
        let first = index.object_ref(Kind::DestinationRule, first);
        found.unsupported(
            "spec.trafficPolicy",
            &format!("that of {first}, which is older or first by name, counts"),
        );
    }
    for subset in model.subsets.keys() {
        if let Some(first) = rules.definer(subset).filter(|first| *first != rule) {
            let first = index.object_ref(Kind::DestinationRule, first);
            let what = format!("subset {subset} of {first}, which is older or first by name, counts");
            found.unsupported("spec.subsets", &what);
        }
    }
}

/// The ServiceEntries that have no effect on this host, because it is that of a Service or of another namespace.
fn entry_reports(index: &Index, name: &ServiceId) -> Vec<Report> {
    let entries = index.relations.service_entries.of(name).map(|(_, entry)| entry);
    // Of others something else is said.
    let entries =
        entries.filter(|entry| index.fits(&ObjectKey { kind: Kind::ServiceEntry, name: (*entry).clone() }));
    let mut reports = Vec::new();
    for entry in entries {
        let hosts = index.service_entry(entry).into_iter().flat_map(|entry| &entry.hosts);
        let field = hosts.filter(|host| host.name == *name).map(|host| host.field.as_str()).next();
        let mut found = Findings::new(index.object_ref(Kind::ServiceEntry, entry));
        match index.provider(name) {
            Some(provider)
                if provider.kind == Kind::Service || provider.name.namespace != entry.namespace =>
            {
                let why = match provider.kind {
                    Kind::Service => "a Service goes before",
                    _ => "which is of another namespace, and older or first by name",
                };
                let winner = index.object_ref(provider.kind, &provider.name);
                let fault = format!(
                    "the host already is that of {winner}, {why}; this object has no effect on it for as long; remove it \
                     from one of them"
                );
                found.refuse_at(name, Reason::Conflicted, field.unwrap_or("spec.hosts"), fault);
            }
            _ => {}
        }
        reports.append(&mut found.reports);
    }
    reports
}
