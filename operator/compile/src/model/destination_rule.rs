//! DestinationRules: named subsets of a Service, how connections to them are treated, and for whom.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
};

use slotmesh_crds as crds;

use super::{
    Age, Export, HashedPart, Labels, LbPolicy, Localities, Outliers, Policy, Read, TrafficSettings,
    json_fields::{JsonFields, Readable, Unreadable, unreadable},
    locality, port_number,
};
use crate::{CompileOptions, ObjectName, object::name_fault, patterns::HostPattern, report::Findings};

const SIZE_FOLLOWS: &str = "the size of the table follows from the endpoints";

/// A valid DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DestinationRule {
    pub(crate) age: Age,
    /// The Services that it is for.
    pub(crate) host: HostPattern,
    pub(crate) export: Export,
    /// The labels of the callers of its namespace that it is for; `None` where it is for all that see it.
    pub(crate) callers: Option<Labels>,
    /// Tells whether it has a traffic policy for the Service as a whole, whatever that says.
    pub(crate) has_policy: bool,
    /// How connections to the Service are treated, where the subset doesn't say.
    pub(crate) policy: Policy,
    /// The subsets by name.
    pub(crate) subsets: BTreeMap<String, Subset>,
}

/// A part of a Service's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subset {
    /// The labels that its pods carry.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) policy: Policy,
}

impl Read<crds::DestinationRule> for DestinationRule {
    /// Reads a rule; `None` when it must be refused.
    fn read(
        object: &crds::DestinationRule,
        key: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let requests = options.proxy;
        let spec = &object.spec;
        let host = HostPattern::read(&spec.host, &key.namespace);
        // Of those that are for the whole mesh nearly all say how sidecars encrypt, which is no matter of ours.
        if matches!(host, Some(HostPattern::Under(_))) && !asks_for_something(spec) {
            return None;
        }
        if host.is_none() {
            let fault = format!("{:?} is no host; name a Service, or a host of a ServiceEntry", spec.host);
            found.refuse("spec.host", fault);
        }
        let export = Export::read(&spec.export_to, &key.namespace, found);
        let callers = spec.workload_selector.as_ref().map(|selector| {
            let at = "spec.workloadSelector";
            found.unsupported_rest(at, &selector.rest);
            if selector.match_labels.is_empty() {
                found.refuse(
                    format!("{at}.matchLabels"),
                    "no label is given; name one that the callers carry",
                );
            }
            Arc::new(selector.match_labels.clone())
        });
        let policy = read_policy("spec.trafficPolicy", spec.traffic_policy.as_ref(), requests, found);
        found.unsupported_rest("spec", &spec.rest);
        let mut subsets = BTreeMap::new();
        for (i, subset) in spec.subsets.iter().enumerate() {
            let at = format!("spec.subsets[{i}]");
            if let Some(fault) = name_fault(&subset.name) {
                found.refuse(format!("{at}.name"), format!("the subset's name {fault}"));
            }
            let policy = subset.traffic_policy.as_ref();
            let policy = read_policy(&format!("{at}.trafficPolicy"), policy, requests, found);
            let read = Subset { labels: subset.labels.clone(), policy };
            if subsets.insert(subset.name.clone(), read).is_some() {
                found.refuse(
                    format!("{at}.name"),
                    format!("subset {} is defined twice; remove one", subset.name),
                );
            }
            found.unsupported_rest(&at, &subset.rest);
        }
        let host = host.filter(|_| !found.refused())?;
        let has_policy = spec.traffic_policy.is_some();
        let age = Age::of(&object.metadata);
        Some(Self { age, host, export: export?, callers, has_policy, policy, subsets })
    }
}

impl DestinationRule {
    /// Tells whether it matters for it where nodes are.
    pub(crate) fn has_localities(&self) -> bool {
        let has = |traffic: &TrafficSettings| traffic.localities.is_some() || traffic.fails_over;
        let policies = [&self.policy].into_iter().chain(self.subsets.values().map(|subset| &subset.policy));
        policies.into_iter().any(|policy| has(&policy.all) || policy.ports.values().any(has))
    }

    /// How much it says of localities, at the most, in the assignments of each of its clusters.
    pub(crate) fn places(&self) -> usize {
        let policies = [&self.policy].into_iter().chain(self.subsets.values().map(|subset| &subset.policy));
        policies
            .map(|policy| {
                policy.all.places() + policy.ports.values().map(TrafficSettings::places).sum::<usize>()
            })
            .sum()
    }

    /// The most of its subsets that an endpoint can be in. Those that ask for other values of the same labels share none.
    pub(crate) fn overlap(&self) -> usize {
        let mut alike: BTreeMap<&BTreeMap<String, String>, usize> = BTreeMap::new();
        for subset in self.subsets.values() {
            *alike.entry(&subset.labels).or_default() += 1;
        }
        let mut by_keys: BTreeMap<Vec<&String>, usize> = BTreeMap::new();
        for (labels, count) in alike {
            let most = by_keys.entry(labels.keys().collect()).or_default();
            *most = count.max(*most);
        }
        by_keys.into_values().sum()
    }
}

/// Tells whether a rule says anything that would act on connections.
fn asks_for_something(spec: &crds::DestinationRuleSpec) -> bool {
    let acts = |policy: &crds::TrafficPolicy| {
        let of_ports = policy.port_level_settings.iter();
        policy.load_balancer.is_some()
            || policy.connection_pool.is_some()
            || policy.outlier_detection.is_some()
            || of_ports.into_iter().any(|of| {
                of.load_balancer.is_some() || of.connection_pool.is_some() || of.outlier_detection.is_some()
            })
    };
    !spec.subsets.is_empty() || spec.traffic_policy.as_ref().is_some_and(acts)
}

fn read_policy(
    at: &str,
    policy: Option<&crds::TrafficPolicy>,
    requests: bool,
    found: &mut Findings,
) -> Policy {
    let Some(policy) = policy else { return Policy::default() };
    found.unsupported_rest(at, &policy.rest);
    let balancer = policy.load_balancer.as_ref().map(|balancer| (balancer, requests));
    let outliers = policy.outlier_detection.as_ref();
    let all = read_traffic(at, balancer, policy.connection_pool.as_ref(), outliers, found);
    let mut ports = BTreeMap::new();
    for (i, of_port) in policy.port_level_settings.iter().enumerate() {
        let crds::PortTrafficPolicy { port, load_balancer, connection_pool, outlier_detection, rest } =
            of_port;
        let at = format!("{at}.portLevelSettings[{i}]");
        found.unsupported_rest(&at, rest);
        let outliers = outlier_detection.as_ref();
        let balancer = load_balancer.as_ref().map(|balancer| (balancer, requests));
        let traffic = read_traffic(&at, balancer, connection_pool.as_ref(), outliers, found);
        match port.as_ref().and_then(|port| port.number).map(|number| (number, port_number(number))) {
            Some((number, Some(port))) => match ports.entry(port) {
                Entry::Vacant(entry) => _ = entry.insert(traffic),
                // The first counts, as Istio has it.
                Entry::Occupied(_) => {
                    found.note(
                        format!("{at}.port"),
                        format!("port {number} stands there twice; the first counts"),
                    );
                }
            },
            Some((number, None)) => {
                let fault = format!("{number} is not a port; ports are 1 to 65535");
                found.refuse(format!("{at}.port.number"), fault);
            }
            None => {
                found.refuse(format!("{at}.port"), "it is missing; name the Service's port by its number")
            }
        }
    }
    Policy { all, ports }
}

/// `balancer`: with whether a proxy looks at requests.
fn read_traffic(
    at: &str,
    balancer: Option<(&crds::LoadBalancer, bool)>,
    pool: Option<&crds::ConnectionPool>,
    outliers: Option<&crds::OutlierDetection>,
    found: &mut Findings,
) -> TrafficSettings {
    let mut traffic = TrafficSettings { fails_over: outliers.is_some(), ..TrafficSettings::default() };
    traffic.outliers =
        outliers.map(|outliers| Outliers::of_rule(&format!("{at}.outlierDetection"), outliers, found));
    if let Some((balancer, requests)) = balancer {
        traffic.balance = balance(&format!("{at}.loadBalancer"), balancer, requests, found);
        let setting = balancer.locality_lb_setting.as_ref();
        let at = format!("{at}.loadBalancer.localityLbSetting");
        traffic.localities = setting.map(|setting| localities(&at, setting, traffic.fails_over, found));
    }
    if let Some(pool) = pool {
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

/// `fails_over`: whether the same policy has outlier detection.
fn localities(
    at: &str,
    setting: &crds::LocalityLbSetting,
    fails_over: bool,
    found: &mut Findings,
) -> Localities {
    let crds::LocalityLbSetting { enabled, distribute, failover, failover_priority, rest } = setting;
    found.unsupported_rest(at, rest);
    distribute
        .iter()
        .enumerate()
        .for_each(|(i, one)| found.unsupported_rest(&format!("{at}.distribute[{i}]"), &one.rest));
    failover
        .iter()
        .enumerate()
        .for_each(|(i, one)| found.unsupported_rest(&format!("{at}.failover[{i}]"), &one.rest));
    let said = locality::Said {
        distribute: distribute.iter().map(|one| (one.from.as_str(), &one.to)).collect(),
        failover: failover.iter().map(|one| (one.from.as_str(), one.to.as_str())).collect(),
        priority: failover_priority,
    };
    let policy = said.read(at, found);
    if *enabled == Some(false) {
        return Localities::Alike;
    }
    let always = !policy.distribute.is_empty();
    if !always && !fails_over {
        let what =
            "endpoints of all localities are used alike where there is no outlierDetection, too: as in Istio";
        found.note(at, what);
    }
    Localities::By { policy: policy.into(), always }
}

fn balance(
    at: &str,
    balancer: &crds::LoadBalancer,
    requests: bool,
    found: &mut Findings,
) -> Option<LbPolicy> {
    found.unsupported_rest(at, &balancer.rest);
    let simple = match balancer.simple.as_deref() {
        None | Some("" | "UNSPECIFIED") => None,
        Some("RANDOM") => Some(LbPolicy::Random),
        Some("ROUND_ROBIN") => Some(LbPolicy::RoundRobin),
        // The older name is still allowed.
        Some("LEAST_REQUEST" | "LEAST_CONN") => Some(LbPolicy::LeastConnections),
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
    if requests && !by_source {
        let parts = hash.rest.iter().filter(|(name, _)| !is_size(name));
        let parts: crds::Rest = parts.map(|(name, value)| (name.clone(), value.clone())).collect();
        for name in hash.rest.keys().filter(|name| is_size(name)) {
            found.unsupported(format!("{at}.{name}"), SIZE_FOLLOWS);
        }
        return match hashed_part(&at, &parts) {
            Ok(part) => part.map(LbPolicy::RequestHash),
            Err(Unreadable { field, what }) => {
                found.skipped(field, &what, "RANDOM is used instead");
                None
            }
        };
    }
    for name in hash.rest.keys() {
        let consequence = match name.as_str() {
            name if is_size(name) => SIZE_FOLLOWS,
            _ if by_source => "only the source is hashed",
            _ => "a connection has no request that could be hashed, RANDOM is used instead",
        };
        found.unsupported(format!("{at}.{name}"), consequence);
    }
    by_source.then_some(LbPolicy::ConsistentHash)
}

/// Reads which part of a request is hashed; `None` where none is named.
fn hashed_part(at: &str, rest: &crds::Rest) -> Readable<Option<HashedPart>> {
    let mut fields = JsonFields::of_rest(at, rest);
    let mut parts = Vec::new();
    let named = |field: String, name: &str| match name.is_empty() {
        true => unreadable(field, "it is empty"),
        false => Ok(name.to_owned()),
    };
    let field = fields.path("httpHeaderName");
    if let Some(name) = fields.text("httpHeaderName")? {
        parts.push(HashedPart::Header(named(field, name)?.to_ascii_lowercase()));
    }
    let field = fields.path("httpQueryParameterName");
    if let Some(name) = fields.text("httpQueryParameterName")? {
        parts.push(HashedPart::Query(named(field, name)?));
    }
    if let Some(mut cookie) = fields.object("httpCookie")? {
        let field = cookie.path("name");
        let name = named(field, cookie.text("name")?.unwrap_or_default())?;
        let path = cookie.text("path")?.unwrap_or_default().to_owned();
        let ttl = cookie.time("ttl")?;
        let mut attributes = Vec::new();
        for mut one in cookie.objects("attributes")? {
            let field = one.path("name");
            let name = named(field, one.text("name")?.unwrap_or_default())?;
            attributes.push((name, one.text("value")?.unwrap_or_default().to_owned()));
            one.end()?;
        }
        cookie.end()?;
        parts.push(HashedPart::Cookie { name, path, ttl, attributes });
    }
    fields.end()?;
    match <[_; 1]>::try_from(parts) {
        Ok([part]) => Ok(Some(part)),
        Err(parts) if parts.is_empty() => Ok(None),
        Err(_) => unreadable(at, "only one thing can be hashed"),
    }
}
