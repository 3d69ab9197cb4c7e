//! How much each object makes on a node, and which are in force therefore.
//!
//! ```text
//!  EndpointSlice, Pod, WorkloadEntry --> endpoints behind a Service or host --> cost of that, and of rules for it
//!  Service, ServiceEntry --> hosts under a wildcard --> cost of those who name that
//!  cost --> Budgets --> what fits is in force; what doesn't is as if it weren't there
//! ```
//!
//! A cost is counted in parts (a listener, a cluster, an endpoint, a share of a route, a chain of some callers, a share of
//! a locality), as many as the object can make of the hosts and endpoints that there are, whatever others say of these.
//! Sets of callers' labels have a budget of their own: each may split the classes of all callers, and what tells some of
//! these apart lists each. Invariants: costs follow from the objects that are held, in force or not, so what is beyond a
//! budget changes no other's cost; and all that could come out differently is dirty after `settle`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Backing, Index};
use crate::{
    CompileOptions, Kind, ObjectKey, ObjectName, Reason, Report, ServiceId, Unit,
    budget::{Beyond, Budgets, Limits},
    links::{labels, touch_leads},
    model::{Age, DestinationRule, EndpointSlice, Export, Forwarding, Routes, Service, ServiceEntry},
    patterns::{HostPattern, Suffix},
    report::Findings,
    unit::Compiled,
};

type Labels = BTreeMap<String, String>;

/// The hosts of a Service or ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Offer {
    hosts: Vec<ServiceId>,
    /// The endpoints behind each, once for each port.
    behind: usize,
}

/// The hosts under a wildcard that some objects name.
#[derive(Debug, Default)]
struct Under {
    users: BTreeSet<ObjectKey>,
    /// Each once for each object that has it.
    hosts: usize,
    /// The endpoints behind all of them.
    behind: usize,
}

/// Counts from which costs follow.
#[derive(Debug, Default)]
pub(super) struct Amounts {
    budgets: Budgets,
    /// Those of sets of callers' labels.
    asks: Budgets,
    /// Service -> the endpoints in its slices, once for each port.
    sliced: HashMap<ObjectName, usize>,
    /// Service or ServiceEntry -> the workloads that it selects, other than those in slices.
    selected: HashMap<ObjectKey, usize>,
    offers: HashMap<ObjectKey, Offer>,
    /// Service or host -> the endpoints behind it.
    behind: HashMap<ServiceId, usize>,
    under: HashMap<Suffix, Under>,
    /// The objects whose cost is to be looked at again.
    changed: BTreeSet<ObjectKey>,
    /// The hosts of ServiceEntries of which others may say something.
    to_merge: BTreeSet<ServiceId>,
}

/// The part of an object from which amounts follow, as it was before an event.
#[derive(Debug, Default)]
pub(super) struct Former {
    labels: Option<Labels>,
    slice: Option<(ObjectName, usize)>,
    suffixes: BTreeSet<Suffix>,
    hosts: Vec<ServiceId>,
}

impl EndpointSlice {
    /// Its Service, and its endpoints, once for each port.
    fn amount(&self) -> Option<(ObjectName, usize)> {
        Some((self.service.clone()?, self.endpoints.len().saturating_mul(self.ports.len())))
    }
}

/// So many bytes of what routes say of requests are a part.
const TEXT_OF_A_PART: usize = 128;

impl Routes {
    /// The parts that they make of each host, where a delegate makes so many.
    fn cost(&self, of_delegate: impl Fn(&ObjectName) -> usize) -> usize {
        let of_route = |to: &Forwarding| match to {
            Forwarding::Shares(shares) => shares.len().max(1),
            Forwarding::Delegated(delegate) => of_delegate(delegate),
            Forwarding::Own | Forwarding::Undecidable | Forwarding::Answered => 1,
        };
        let routes = self.all().map(|route| route.matches.len().max(1).saturating_mul(of_route(&route.to)));
        let beside = callers(&self.export) + self.text / TEXT_OF_A_PART;
        routes.fold(beside, usize::saturating_add)
    }
}

impl DestinationRule {
    /// The clusters that it makes of each host, and what stands in the assignment of each.
    fn cost(&self) -> usize {
        product([1 + self.subsets.len(), 1 + self.places()]).saturating_add(callers(&self.export))
    }
}

/// How many namespaces are told apart.
fn callers(export: &Export) -> usize {
    export.named().count()
}

/// The product, where it is a number.
fn product(of: impl IntoIterator<Item = usize>) -> usize {
    of.into_iter().fold(1, usize::saturating_mul)
}

impl CompileOptions {
    /// The bounds of an object.
    fn limits(&self, key: &ObjectKey) -> Limits {
        if key.name.namespace == self.root_namespace {
            return Limits { object: usize::MAX, namespace: usize::MAX };
        }
        match key.kind {
            Kind::ServiceEntry => {
                Limits { object: self.max_entry_endpoints, namespace: self.max_namespace_endpoints }
            }
            _ => Limits { object: self.max_object_parts, namespace: self.max_namespace_parts },
        }
    }

    /// The bounds of the sets of callers' labels that an object asks for.
    fn label_limits(&self, key: &ObjectKey) -> Limits {
        if key.name.namespace == self.root_namespace {
            return Limits { object: usize::MAX, namespace: usize::MAX };
        }
        Limits { object: self.max_object_label_sets, namespace: self.max_namespace_label_sets }
    }
}

impl Index {
    /// Tells whether an object isn't beyond any bound.
    pub(crate) fn fits(&self, key: &ObjectKey) -> bool {
        self.amounts.budgets.fits(key) && self.amounts.asks.fits(key)
    }

    /// As [`fits`](Self::fits).
    pub(super) fn has_room(&self, kind: Kind, name: &ObjectName) -> bool {
        let all_fit = self.amounts.budgets.all_fit() && self.amounts.asks.all_fit();
        all_fit || self.fits(&ObjectKey { kind, name: name.clone() })
    }

    /// The report about an object that is beyond a bound.
    pub(crate) fn beyond_budget(&self, key: &ObjectKey) -> Compiled {
        let (kind, namespace) = (key.kind, &key.name.namespace);
        let of_parts = self.amounts.budgets.beyond(key);
        let Some(beyond) = of_parts.or_else(|| self.amounts.asks.beyond(key)) else {
            return Compiled::default();
        };
        let (limits, what, does, flag) = match kind {
            _ if of_parts.is_none() => {
                let flags = ["--max-object-label-sets", "--max-namespace-label-sets"];
                (self.options.label_limits(key), "sets of callers' labels", "ask for", flags)
            }
            Kind::ServiceEntry => {
                let flags = ["--max-entry-endpoints", "--max-namespace-endpoints"];
                (self.options.limits(key), "endpoints on each node", "make", flags)
            }
            _ => {
                let flags = ["--max-object-parts", "--max-namespace-parts"];
                (self.options.limits(key), "parts on each node", "make", flags)
            }
        };
        let (field, fault, remedy) = match beyond {
            Beyond::Object => (
                "spec",
                format!("the object may {does} at most {} {what}, and is beyond that", limits.object),
                format!("make it smaller or several of it, or raise {}", flag[0]),
            ),
            Beyond::Namespace => (
                "metadata.namespace",
                format!(
                    "all {kind} objects of namespace {namespace} may {does} at most {} {what} together, and are beyond that; \
                     older ones go before",
                    limits.namespace
                ),
                format!("remove some, or raise {}", flag[1]),
            ),
        };
        let now = match kind {
            Kind::Service => {
                "connections to it are left to kube-proxy, and routes that lead to it refuse its share"
            }
            Kind::ServiceEntry => {
                "connections to its addresses are left alone, and routes that lead to its hosts refuse their share"
            }
            Kind::DestinationRule => {
                "connections are treated as if it weren't there, and routes that lead to its subsets refuse their share"
            }
            Kind::Sidecar => "its callers see what they would see without it",
            _ => "connections go as if it weren't there",
        };
        let mut found = Findings::new(self.object_ref(kind, &key.name));
        let fault = format!("{fault}; the object is not in force: {now}; {remedy}");
        found.refuse_as(Reason::OverBudget, field, fault);
        let reports: Vec<Report> = found.reports;
        Compiled { reports, left: kind == Kind::Service, ..Compiled::default() }
    }

    /// To be called before an event changes the object.
    pub(super) fn former(&self, key: &ObjectKey) -> Former {
        let name = &key.name;
        let labels = self.objects.model(key).and_then(|model| model.workload_labels());
        let slice = Some(name).filter(|_| key.kind == Kind::EndpointSlice);
        let slice = slice.and_then(|name| self.objects.slices.get(name)?.amount());
        let hosts = match key.kind {
            Kind::ServiceEntry => self.amounts.offers.get(key).map(|offer| offer.hosts.clone()),
            _ => None,
        };
        let hosts = hosts.unwrap_or_default();
        Former { labels: labels.cloned(), slice, suffixes: self.suffixes_of(key), hosts }
    }

    /// After an object came, changed or went: what follows for amounts.
    pub(super) fn measure(&mut self, key: &ObjectKey, former: Former) {
        let now = self.former(key);
        match key.kind {
            Kind::EndpointSlice if former.slice != now.slice => {
                for (slice, comes) in [(former.slice, false), (now.slice, true)] {
                    let Some((service, amount)) = slice else { continue };
                    let sliced = self.amounts.sliced.entry(service.clone()).or_default();
                    *sliced = if comes { *sliced + amount } else { *sliced - amount };
                    if *sliced == 0 {
                        self.amounts.sliced.remove(&service);
                    }
                    self.offer(&ObjectKey { kind: Kind::Service, name: service });
                }
            }
            Kind::Pod | Kind::WorkloadEntry if former.labels != now.labels => {
                self.select(key, [former.labels.as_ref(), now.labels.as_ref()]);
            }
            Kind::Service | Kind::ServiceEntry => {
                self.count_selected(key);
                self.offer(key);
                self.amounts.to_merge.extend(former.hosts);
                if key.kind == Kind::ServiceEntry {
                    let offer = self.amounts.offers.get(key);
                    let hosts = offer.map(|offer| offer.hosts.clone()).unwrap_or_default();
                    self.amounts.to_merge.extend(hosts);
                }
            }
            _ => {}
        }
        for gone in former.suffixes.difference(&now.suffixes) {
            if let Some(under) = self.amounts.under.get_mut(gone) {
                under.users.remove(key);
                if under.users.is_empty() {
                    self.amounts.under.remove(gone);
                }
            }
        }
        for suffix in now.suffixes.difference(&former.suffixes) {
            if !self.amounts.under.contains_key(suffix) {
                let mut under = Under::default();
                for (_, by) in self.relations.hosts_under(suffix) {
                    under.hosts += 1;
                    under.behind += self.amounts.offers.get(by).map_or(0, |offer| offer.behind);
                }
                self.amounts.under.insert(suffix.clone(), under);
            }
            if let Some(under) = self.amounts.under.get_mut(suffix) {
                under.users.insert(key.clone());
            }
        }
        if key.kind.spec().has_parts {
            self.amounts.changed.insert(key.clone());
        }
        if key.kind == Kind::VirtualService {
            let delegating = self.relations.delegating.of(&key.name).map(|(_, by)| by);
            self.amounts.changed.extend(delegating.cloned());
        }
    }

    /// The wildcards by which an object's cost follows from hosts that it doesn't name.
    fn suffixes_of(&self, key: &ObjectKey) -> BTreeSet<Suffix> {
        self.objects.model(key).map(|model| model.wildcards()).unwrap_or_default()
    }

    /// The labels of a workload have changed: who selects it, or doesn't any more.
    fn select(&mut self, key: &ObjectKey, [before, after]: [Option<&Labels>; 2]) {
        let asked = [before, after].into_iter().flatten().flat_map(|of| labels(&key.name, of));
        let asked: BTreeSet<_> = asked.collect();
        let mut by: BTreeSet<ObjectKey> = BTreeSet::new();
        for label in &asked {
            let selecting = self.relations.selecting.of(label).map(|(_, by)| by);
            by.extend(selecting.filter(|by| key.kind != Kind::Pod || by.kind != Kind::Service).cloned());
        }
        for by in by {
            let Some(service) = self.held_offer(&by) else { continue };
            let is_in = |labels: Option<&Labels>| {
                let has = |labels: &Labels| service.selector.iter().all(|(k, v)| labels.get(k) == Some(v));
                labels.is_some_and(has)
            };
            let (was, is) = (is_in(before), is_in(after));
            if was == is {
                continue;
            }
            let selected = self.amounts.selected.entry(by.clone()).or_default();
            *selected = if is { *selected + 1 } else { selected.saturating_sub(1) };
            if *selected == 0 {
                self.amounts.selected.remove(&by);
            }
            self.offer(&by);
        }
    }

    /// A Service, or what a ServiceEntry makes of each host.
    fn held_offer(&self, by: &ObjectKey) -> Option<&Service> {
        match by.kind {
            Kind::Service => self.objects.services.get(&by.name),
            _ => self.service_entry(&by.name)?.hosts.first().map(|host| &host.service),
        }
    }

    /// Counts the workloads that a Service or ServiceEntry selects.
    fn count_selected(&mut self, by: &ObjectKey) {
        let count = self.held_offer(by).filter(|service| !service.selector.is_empty()).map(|service| {
            let backing = Backing { by: by.clone(), service, endpoints: &[] };
            self.selected_workloads(&backing).len() + self.selected_pods(&backing).len()
        });
        match count.filter(|count| *count > 0) {
            Some(count) => drop(self.amounts.selected.insert(by.clone(), count)),
            None => drop(self.amounts.selected.remove(by)),
        }
    }

    /// Notes what a Service or ServiceEntry has now, and whose cost follows from it.
    fn offer(&mut self, by: &ObjectKey) {
        let selected = || self.amounts.selected.get(by).copied().unwrap_or_default();
        let new = match by.kind {
            Kind::Service => self.held_offer(by).map(|service| {
                let sliced = self.amounts.sliced.get(&by.name).copied().unwrap_or_default();
                let behind = sliced + product([service.ports.len(), selected()]);
                Offer { hosts: vec![ServiceId::from(by.name.clone())], behind }
            }),
            _ => self.service_entry(&by.name).map(|entry| {
                let ports = entry.hosts.first().map_or(0, |host| host.service.ports.len());
                let hosts = entry.hosts.iter().map(|host| host.name.clone()).collect();
                Offer { hosts, behind: product([ports, entry.endpoints.len() + selected()]) }
            }),
        };
        let old = match &new {
            Some(new) => self.amounts.offers.insert(by.clone(), new.clone()),
            None => self.amounts.offers.remove(by),
        };
        if old == new {
            return;
        }
        self.amounts.changed.insert(by.clone());
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let hosts: BTreeSet<&ServiceId> = old.hosts.iter().chain(&new.hosts).collect();
        for host in hosts {
            let [was, is] = [&old, &new].map(|of| of.hosts.contains(host).then_some(of.behind));
            self.amounts.shift(by, host, [was, is]);
            let rules = self.relations.rules.of(&HostPattern::One(host.clone()));
            let rules = rules.map(|(.., name)| ObjectKey { kind: Kind::DestinationRule, name: name.clone() });
            self.amounts.changed.extend(rules);
        }
    }

    /// Finds which objects fit now, and adds what follows from it to `dirty`. To be called before anything is compiled.
    pub(crate) fn settle(&mut self, dirty: &mut BTreeSet<Unit>) {
        while let Some(key) = self.amounts.changed.pop_first() {
            let cost = self.cost(&key);
            let mut changed = self.amounts.budgets.replace(self.options.limits(&key), &key, cost);
            let asked = cost.map(|(age, _)| (age, self.held_asks(&key).len())).filter(|(_, sets)| *sets > 0);
            changed.extend(self.amounts.asks.replace(self.options.label_limits(&key), &key, asked));
            for changed in changed {
                self.turn(&changed, dirty);
            }
            if !self.fits(&key) {
                // Its source may be another one.
                dirty.insert(Unit::Budget(key));
            }
        }
        for host in std::mem::take(&mut self.amounts.to_merge) {
            self.merge(&host);
        }
    }

    /// An object comes into force, or out of it.
    fn turn(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Unit>) {
        if let Some(model) = self.objects.model(key) {
            touch_leads(Some(model), None, dirty);
            model.touch(&key.name, &self.relations, dirty);
        }
        if let Some(entry) = self.service_entry(&key.name).filter(|_| key.kind == Kind::ServiceEntry) {
            let hosts: Vec<_> = entry.hosts.iter().map(|host| host.name.clone()).collect();
            self.amounts.to_merge.extend(hosts);
        }
        let asked = if self.fits(key) { BTreeSet::new() } else { self.held_asks(key) };
        self.classify(key, &asked, dirty);
        dirty.insert(Unit::Budget(key.clone()));
    }

    /// The age and cost of an object; `None` of what makes nothing.
    fn cost(&self, key: &ObjectKey) -> Option<(Age, usize)> {
        let name = &key.name;
        let under = |suffix: &Suffix| {
            let under = self.amounts.under.get(suffix);
            under.map_or((0, 0), |under| (under.hosts, under.behind))
        };
        let (age, cost) = match key.kind {
            Kind::Service => {
                let service = self.objects.services.get(name)?;
                let listeners = service.addresses().count();
                let behind = self.amounts.offers.get(key).map_or(0, |offer| offer.behind);
                (service.age, product([service.ports.len(), listeners + 1]).saturating_add(behind))
            }
            Kind::ServiceEntry => {
                let entry = self.service_entry(name)?;
                (entry.age, self.entry_cost(key, entry))
            }
            Kind::DestinationRule => {
                let rule = self.held_rule(name)?;
                let (hosts, behind) = match &rule.host {
                    HostPattern::One(host) => (1, self.amounts.behind.get(host).copied().unwrap_or_default()),
                    HostPattern::Under(suffix) => under(suffix),
                };
                let endpoints = product([rule.overlap(), behind]);
                (rule.age, product([hosts, rule.cost()]).saturating_add(endpoints))
            }
            Kind::TrafficPolicy => {
                let policy = self.objects.policies.get(name)?;
                (policy.age, product([policy.targets.len(), 1 + policy.traffic.places()]))
            }
            Kind::Sidecar => {
                let sidecar = self.held_sidecar(name)?;
                let named = sidecar.named().unwrap_or_default();
                let hosts = if sidecar.named().is_some() { under(&Suffix("".into())).0 } else { 0 };
                (sidecar.age, named.saturating_add(hosts))
            }
            _ => {
                let routes = self.held_routes(key)?;
                let wild = routes.wild.iter().map(|host| under(&host.suffix).0);
                let hosts = wild.fold(routes.hosts.len(), usize::saturating_add);
                let of_delegate = |name: &ObjectName| {
                    let delegate = ObjectKey { kind: Kind::VirtualService, name: name.clone() };
                    // It delegates no further.
                    self.held_routes(&delegate).map_or(1, |routes| routes.cost(|_| 1))
                };
                (routes.age, product([hosts.max(1), routes.cost(of_delegate)]))
            }
        };
        Some((age, cost.max(1)))
    }

    /// The endpoints of a ServiceEntry, or its listeners, whichever are more.
    fn entry_cost(&self, key: &ObjectKey, entry: &ServiceEntry) -> usize {
        let ports = entry.hosts.first().map_or(0, |host| host.service.ports.len());
        let behind = self.amounts.offers.get(key).map_or(0, |offer| offer.behind);
        let addresses = entry.hosts.iter().map(|host| host.service.vips.len()).sum::<usize>();
        let listeners = product([addresses, ports, 1 + callers(&entry.export)]);
        product([entry.hosts.len(), behind.max(ports)]).max(listeners)
    }
}

impl Amounts {
    /// Of a host of an object there are other endpoints than before; `None` where there is no such host.
    fn shift(&mut self, by: &ObjectKey, host: &ServiceId, [was, is]: [Option<usize>; 2]) {
        let moved = |sum: &mut usize| *sum = *sum + is.unwrap_or_default() - was.unwrap_or_default();
        let behind = self.behind.entry(host.clone()).or_default();
        moved(behind);
        if *behind == 0 {
            self.behind.remove(host);
        }
        if self.under.is_empty() {
            return;
        }
        let text = if by.kind == Kind::Service { host.host() } else { host.external_host() };
        for suffix in Suffix::of(&text) {
            let Some(under) = self.under.get_mut(&suffix) else { continue };
            moved(&mut under.behind);
            let comes_or_goes = was.is_some() != is.is_some();
            match (was, is) {
                (None, Some(_)) => under.hosts += 1,
                (Some(_), None) => under.hosts -= 1,
                _ => {}
            }
            let users = under.users.iter();
            self.changed
                .extend(users.filter(|user| comes_or_goes || user.kind == Kind::DestinationRule).cloned());
        }
    }
}
