//! Which clusters there are of a Service, or of a host of a ServiceEntry, and which one a caller gets.
//!
//! There is one for each port and for each port and subset to which an address or a route leads. Where DestinationRules
//! say something else to some callers, there is one more for these, called after the rules that say so: callers who are
//! told the same share it. Endpoints are the same for all clusters of a port whose subsets have the same labels, so
//! they stand once; but where callers choose among localities in another way.
//!
//! This alone decides which clusters exist: assignments are made for the same ones, and routes lead to them. What
//! nobody can connect to costs no node anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use prost::Message as _;
use slotmesh_xds::{Transport, Version};

use crate::{
    Index, ObjectName, ServiceId,
    model::{Caller, PortKey, TrafficSettings},
    names::cluster_name,
    rules::Rules,
};

/// The rules that make a cluster another than the one that callers of the Service's own namespace get: the one that
/// defines its subset, and the one whose traffic policy counts.
pub(crate) type Scope<'a> = (Option<&'a ObjectName>, Option<&'a ObjectName>);

/// A cluster of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Backend<'a> {
    pub(crate) port: PortKey,
    /// Empty for the whole.
    pub(crate) subset: &'a str,
    /// Where other rules count than for callers of the Service's own namespace, and say something else.
    scope: Option<Scope<'a>>,
    /// The rule that defines the subset.
    pub(crate) definer: Option<&'a ObjectName>,
    /// Labels of its endpoints; `None` for all of them.
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
    /// Tells whether callers of the Service's own namespace have a subset of this name with other labels, or none.
    differs: bool,
    /// Tells whether these choose among localities in another way.
    is_elsewhere: bool,
    /// How rules have its connections treated.
    pub(crate) traffic: TrafficSettings,
    /// The rule whose traffic policy counts for the Service as a whole.
    pub(crate) ruler: Option<&'a ObjectName>,
}

impl<'a> Backend<'a> {
    /// The cluster of a port and subset by these rules; `None` where they don't define the subset.
    fn new(port: PortKey, subset: &'a str, rules: &Rules<'a>, own: &Rules<'a>) -> Option<Self> {
        let of = |rules: &Rules<'a>| (rules.definer(subset), rules.policy().map(|(name, _)| name));
        let definer = rules.definer(subset);
        if !subset.is_empty() && definer.is_none() {
            return None;
        }
        let labels = rules.subset(subset).map(|subset| &subset.labels).filter(|_| !subset.is_empty());
        let of_own = own.subset(subset).map(|subset| &subset.labels).filter(|_| !subset.is_empty());
        let traffic = rules.traffic(port.number, subset);
        let differs = labels != of_own;
        // Other rules that say the same make no other cluster.
        let of_own = own.traffic(port.number, subset);
        let is_other = differs || traffic != of_own;
        let is_elsewhere = traffic.locality_policy() != of_own.locality_policy();
        let scope = Some(of(rules)).filter(|scope| is_other && *scope != of(own));
        let ruler = rules.policy().map(|(name, _)| name);
        Some(Self { port, subset, scope, definer, labels, differs, is_elsewhere, traffic, ruler })
    }

    /// The name of the cluster.
    pub(crate) fn name(&self, host: &str) -> String {
        let name = cluster_name(host, self.port, self.subset);
        let Some((definer, policy)) = self.scope else { return name };
        let of = |rule: Option<&ObjectName>| rule.map(ToString::to_string).unwrap_or_default();
        format!("{name}|{}|{}", of(definer), of(policy))
    }

    /// The name of its assignment.
    pub(crate) fn assignment(&self, host: &str) -> String {
        if !self.differs && !self.is_elsewhere {
            return cluster_name(host, self.port, self.subset);
        }
        let mut text = String::new();
        self.labels.into_iter().flatten().for_each(|(key, value)| text.extend([key, "=", value, ","]));
        let mut text = text.into_bytes();
        text.extend(self.traffic.locality_policy().iter().flat_map(|policy| policy.encode_to_vec()));
        cluster_name(host, self.port, &format!("~{}", Version::of(&text)))
    }
}

/// All clusters of a Service, in the order of ports, the whole before subsets.
pub(crate) fn backends<'a>(index: &'a Index, name: &ServiceId) -> Vec<Backend<'a>> {
    let Some(service) = index.service(name) else { return Vec::new() };
    let own = index.own_rules(name);
    let mut views = vec![own.clone()];
    let mut seen = BTreeSet::from([own.names()]);
    let apart = index.apart(name);
    let callers = [Caller::Anyone].into_iter().chain(apart.namespaces.iter().map(Caller::Of));
    for caller in callers.chain(apart.classes.iter().map(|class| Caller::In(class))) {
        let rules = index.rules(name, caller);
        if seen.insert(rules.names()) {
            views.push(rules);
        }
    }
    let mut all = BTreeMap::new();
    for port in service.ports.iter().map(|port| port.key) {
        // No route is for UDP, so none leads to a UDP port.
        let is_led_to = |subset: &str| port.protocol == Transport::Tcp && index.is_led_to(name, subset);
        let whole = is_led_to("") || !index.addresses(name, port).is_empty();
        for view in &views {
            let subsets = view.subsets().into_keys().filter(|subset| is_led_to(subset));
            for subset in Some("").filter(|_| whole).into_iter().chain(subsets) {
                if let Some(backend) = Backend::new(port, subset, view, &own) {
                    all.entry((port, subset, backend.scope)).or_insert(backend);
                }
            }
        }
    }
    all.into_values().collect()
}

/// The cluster of a port and subset that a caller gets by a route of the namespace `author`; `None` where no rule
/// defines the subset, neither among those for the caller nor among those for callers of that namespace.
pub(crate) fn backend<'a>(
    index: &'a Index,
    name: &ServiceId,
    (port, subset): (PortKey, &'a str),
    caller: Caller<'_>,
    author: &Arc<str>,
) -> Option<Backend<'a>> {
    let own = index.own_rules(name);
    let by = |caller| Backend::new(port, subset, &index.rules(name, caller), &own);
    by(caller).or_else(|| by(Caller::Of(author)))
}
