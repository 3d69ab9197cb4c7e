//! The reverse indexes: what each kind of object takes part in, and what depends on it.
//!
//! Invariant: `link` and `unlink` of the same model cancel each other out; `touch` marks every unit
//! whose compilation reads the model, as the relations are at that moment.

mod others;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    Cidr, Kind, ObjectKey, ObjectName, ServiceId, Unit,
    classes::Ask,
    model::{
        Age, DestinationRule, EndpointSlice, NotCompiled, Pod, PortKey, Routes, Service, ServiceEntry,
        ServicePort, Workload,
    },
    patterns::{HostPattern, Suffix, reversed},
    relation::{Label, Relation, Selection},
};

/// An object that routes connections, as it stands among the others for the same Service: the first
/// counts. The kind goes before age: Istio's first, and of Gateway API's the one that says more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ranked {
    pub(crate) kind: Kind,
    pub(crate) age: Age,
    pub(crate) key: ObjectKey,
}

/// An object that wants connections to an address, as it stands among the others: the first that is in force has
/// it. Services go before ServiceEntries, and their cluster IPs before other addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Claim {
    kind: Kind,
    /// Not as a cluster IP: it was chosen by whoever wrote the Service.
    pub(crate) is_external: bool,
    age: Age,
    pub(crate) object: ObjectKey,
    /// What the connections are for.
    pub(crate) service: ServiceId,
}

/// The reverse indexes. "Service" means the name of one, or of a host; it need not exist.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    /// Address and port -> the Services and ServiceEntries that claim it, in the order in which they count.
    pub(crate) claims: Relation<(IpAddr, PortKey), Claim>,
    /// Address -> the Services that have it as a cluster IP.
    pub(crate) service_addresses: Relation<IpAddr, ObjectName>,
    /// Address -> the Services that have it as an external address.
    external_addresses: Relation<IpAddr, ObjectName>,
    /// Address -> the hosts of ServiceEntries that want it.
    entry_addresses: BTreeMap<IpAddr, BTreeSet<(ServiceId, ObjectName)>>,
    /// Host -> the addresses that ServiceEntries want for it.
    host_addresses: Relation<ServiceId, (IpAddr, ObjectName)>,
    /// Address -> the Nodes that have it.
    pub(crate) node_addresses: Relation<IpAddr, ObjectName>,
    /// Range -> the ServiceCIDRs that have it.
    pub(crate) service_ranges: Relation<Cidr, ObjectName>,
    /// How many NodePorts there are: without any, nodes' addresses matter to nobody.
    pub(crate) node_ports: usize,
    /// Range -> the Nodes whose Pods have addresses of it.
    pub(crate) pod_ranges: Relation<Cidr, ObjectName>,
    /// Host -> the ServiceEntries that have it, the oldest first.
    pub(crate) service_entries: Relation<ServiceId, (Age, ObjectName)>,
    /// Label -> (Service, by what) that selects workloads by it, among others.
    pub(crate) selecting: Relation<Label, (ServiceId, ObjectKey)>,
    /// Label -> the WorkloadEntries that carry it.
    pub(crate) workloads: Relation<Label, ObjectName>,
    /// Label -> the Pods that carry it.
    pub(crate) labelled: Relation<Label, ObjectName>,
    /// Service -> its slices.
    pub(crate) slices: Relation<ObjectName, ObjectName>,
    /// Pod -> (Service, slice) that name it.
    by_pod: Relation<ObjectName, (ObjectName, ObjectName)>,
    /// Address -> (Service, slice) that hold it.
    by_ip: Relation<IpAddr, (ObjectName, ObjectName)>,
    /// Address -> pods that have it.
    pub(crate) pods: Relation<IpAddr, ObjectName>,
    /// Service -> the objects that route its connections, in the order in which they count.
    pub(crate) routes: Relation<ServiceId, Ranked>,
    /// The same for those that name hosts by a wildcard.
    pub(crate) wild_routes: Relation<Suffix, Ranked>,
    /// Namespace -> its Sidecars, the oldest first.
    pub(crate) sidecars: BTreeMap<Arc<str>, BTreeSet<(Age, ObjectName)>>,
    /// Host, from behind -> (the Service or host, by what) that has it.
    hosts: BTreeMap<String, BTreeSet<(ServiceId, ObjectKey)>>,
    /// Namespace -> how many Pods it has.
    pub(crate) populated: BTreeMap<Arc<str>, usize>,
    /// Service -> (what is routed, by what) that send connections to it.
    destinations: Relation<ServiceId, (HostPattern, ObjectKey)>,
    /// Service -> the VirtualServices that others delegate to and that send connections to it.
    delegate_destinations: Relation<ServiceId, ObjectName>,
    /// VirtualService -> (what is routed, by what) that delegates to it.
    pub(crate) delegating: Relation<ObjectName, (HostPattern, ObjectKey)>,
    /// Service and subset -> the objects with routes that lead there.
    pub(crate) led_to: Relation<(ServiceId, String), ObjectKey>,
    /// Namespace -> (routed Service, by what) that send connections there from another namespace.
    crossing: Relation<Arc<str>, (HostPattern, ObjectKey)>,
    /// Namespace -> its ReferenceGrants.
    pub(crate) grants: Relation<Arc<str>, ObjectName>,
    /// Service -> the TrafficPolicies for it, the oldest first.
    pub(crate) policies: Relation<ServiceId, (Age, ObjectName)>,
    /// What a DestinationRule is for -> these by namespace, the oldest first.
    pub(crate) rules: Relation<HostPattern, (Arc<str>, Age, ObjectName)>,
    /// How many of them name hosts by a wildcard.
    pub(crate) wild_rules: usize,
    /// What is said to have localities -> the objects that say so.
    pub(crate) located: Relation<HostPattern, ObjectKey>,
    /// What can be said of nodes -> those of which it is true.
    pub(crate) nodes: Relation<Selection, ObjectName>,
    /// What can be said of nodes -> the SlotProfiles that look for it, the oldest first.
    pub(crate) profiles: Relation<Selection, (Age, ObjectName)>,
}

impl Relations {
    /// All whose routes lead to this Service.
    fn touch_routes_to(&self, service: &ServiceId, dirty: &mut BTreeSet<Unit>) {
        self.destinations.of(service).for_each(|(routed, _)| self.touch_routing(routed, dirty));
        self.delegate_destinations.of(service).for_each(|delegate| self.touch_delegating(delegate, dirty));
    }

    /// All who delegate to this VirtualService.
    fn touch_delegating(&self, delegate: &ObjectName, dirty: &mut BTreeSet<Unit>) {
        self.delegating.of(delegate).for_each(|(routed, _)| self.touch_routing(routed, dirty));
    }

    fn touch_routing(&self, pattern: &HostPattern, dirty: &mut BTreeSet<Unit>) {
        dirty.extend(self.services(pattern).into_iter().map(Unit::Routing));
    }

    /// The Services and hosts that a pattern stands for; one that is named need not exist.
    pub(crate) fn services(&self, pattern: &HostPattern) -> BTreeSet<ServiceId> {
        match pattern {
            HostPattern::One(name) => BTreeSet::from([name.clone()]),
            HostPattern::Under(suffix) => self.hosts_under(suffix).map(|(name, _)| name.clone()).collect(),
        }
    }

    /// The hosts under a wildcard, each with the object that has it.
    pub(crate) fn hosts_under(&self, suffix: &Suffix) -> impl Iterator<Item = &(ServiceId, ObjectKey)> {
        let start = suffix.reversed();
        let from = self.hosts.range(start.clone()..);
        from.take_while(move |(host, _)| host.starts_with(&start)).flat_map(|(_, names)| names)
    }

    /// The DestinationRules of a namespace for this, the oldest first.
    pub(crate) fn rules_in<'a>(
        &'a self,
        pattern: &HostPattern,
        namespace: &str,
    ) -> impl Iterator<Item = &'a ObjectName> + use<'a> {
        let namespace: Arc<str> = Arc::from(namespace);
        let first = (namespace.clone(), Age::FIRST, ObjectName::new("", ""));
        let from = self.rules.of_from(pattern, &first);
        from.take_while(move |(of, ..)| *of == namespace).map(|(.., name)| name)
    }

    /// The objects with routes that name hosts by a wildcard which may stand for this Service or host.
    pub(crate) fn wild_routes_of(&self, service: &ServiceId) -> BTreeSet<&Ranked> {
        let hosts = [service.host(), service.external_host()];
        let suffixes = hosts.iter().flat_map(|host| Suffix::of(host)).collect::<BTreeSet<_>>();
        suffixes.into_iter().flat_map(|suffix| self.wild_routes.of(&suffix).collect::<Vec<_>>()).collect()
    }

    /// Notes a host by what ends it, or forgets it.
    fn host(&mut self, name: &ServiceId, by: &ObjectKey, is_there: bool) {
        let host = if by.kind == Kind::Service { name.host() } else { name.external_host() };
        let names = self.hosts.entry(reversed(&host)).or_default();
        if is_there {
            names.insert((name.clone(), by.clone()));
        } else {
            names.remove(&(name.clone(), by.clone()));
            if names.is_empty() {
                self.hosts.remove(&reversed(&host));
            }
        }
    }

    /// The hosts of ServiceEntries that want addresses of these, from the first to the last.
    fn touch_entries_at(&self, first: IpAddr, last: IpAddr, dirty: &mut BTreeSet<Unit>) {
        let hosts = self.entry_addresses.range(first..=last).flat_map(|(_, hosts)| hosts);
        dirty.extend(hosts.map(|(host, _)| Unit::Routing(host.clone())));
    }

    /// The assignments that may choose by this Pod's labels.
    fn touch_selection<'a>(
        &self,
        services: impl Iterator<Item = &'a (ObjectName, ObjectName)>,
        dirty: &mut BTreeSet<Unit>,
    ) {
        let named = |service: &ObjectName| {
            let service = HostPattern::One(service.clone().into());
            self.rules.first(&service).is_some() || self.located.first(&service).is_some()
        };
        let with_subsets = services.filter(|(service, _)| self.wild_rules > 0 || named(service));
        dirty.extend(with_subsets.map(|(service, _)| Unit::Endpoints(service.clone().into())));
    }
}

/// The way in which a model takes part in the reverse indexes, and what it asks of others.
pub(crate) trait Model {
    fn link(&self, key: &ObjectName, to: &mut Relations);
    fn unlink(&self, key: &ObjectName, from: &mut Relations);
    /// As `unlink` and then `link` of `new`; worth its own way where most pairs stay.
    fn relink(&self, new: &Self, key: &ObjectName, relations: &mut Relations)
    where
        Self: Sized,
    {
        self.unlink(key, relations);
        new.link(key, relations);
    }
    /// Marks all that depends on this model.
    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>);
    /// The routes, where it is some.
    fn routes(&self) -> Option<&Routes> {
        None
    }
    /// The Services and subsets to which it leads.
    fn leads_to(&self) -> BTreeSet<(ServiceId, String)> {
        BTreeSet::new()
    }
    /// The labels of callers that it asks for.
    fn asks(&self, _key: &ObjectName) -> BTreeSet<Ask> {
        BTreeSet::new()
    }
    /// The wildcards by which its cost follows from hosts that it doesn't name.
    fn wildcards(&self) -> BTreeSet<Suffix> {
        BTreeSet::new()
    }
    /// The labels of a workload, by which others select it.
    fn workload_labels(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Model for NotCompiled {
    fn link(&self, _: &ObjectName, _: &mut Relations) {}

    fn unlink(&self, _: &ObjectName, _: &mut Relations) {}

    fn touch(&self, _: &ObjectName, _: &Relations, _: &mut BTreeSet<Unit>) {}
}

/// Marks what depends on how a model leads elsewhere than the one before it: which clusters there are depends on
/// that, and not on weights.
pub(crate) fn touch_leads<M: Model + ?Sized>(old: Option<&M>, new: Option<&M>, dirty: &mut BTreeSet<Unit>) {
    let [old, new] = [old, new].map(|model| model.map(Model::leads_to).unwrap_or_default());
    for (service, _) in old.symmetric_difference(&new) {
        dirty.insert(Unit::Clusters(service.clone()));
        dirty.insert(Unit::Endpoints(service.clone()));
    }
}

impl Service {
    /// All addresses; whether it is an external one.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        let external = self.external.iter().map(|(ip, _)| (*ip, true));
        self.vips.iter().map(|ip| (*ip, false)).chain(external)
    }

    fn claims(&self) -> impl Iterator<Item = ((IpAddr, PortKey), bool)> {
        let at = |ip| self.ports.iter().map(move |port| (ip, port.key));
        let all =
            self.addresses().flat_map(move |(ip, is_external)| at(ip).map(move |vip| (vip, is_external)));
        all.chain(self.ports.iter().flat_map(|port| self.node_ports(port)).map(|vip| (vip, true)))
    }

    /// The NodePorts of a port, each with the address that stands for all nodes' of a family.
    pub(crate) fn node_ports(&self, port: &ServicePort) -> impl Iterator<Item = (IpAddr, PortKey)> + use<> {
        let key = port.node_port.map(|number| PortKey { number, protocol: port.key.protocol });
        let families = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let has = families.map(|all| self.vips.iter().any(|vip| vip.is_ipv4() == all.is_ipv4()));
        let families = families.into_iter().zip(has).filter_map(|(all, has)| has.then_some(all));
        key.into_iter().flat_map(move |key| families.clone().map(move |all| (all, key)))
    }

    /// How many NodePorts it has.
    fn count_node_ports(&self) -> usize {
        self.ports.iter().flat_map(|port| self.node_ports(port)).count()
    }

    fn claim(&self, name: &ServiceId, by: &ObjectKey, is_external: bool) -> Claim {
        Claim { kind: by.kind, is_external, age: self.age, object: by.clone(), service: name.clone() }
    }

    /// One label that each workload of its namespace has which it selects.
    pub(crate) fn selection(&self, namespace: &Arc<str>) -> Option<Label> {
        let (key, value) = self.selector.first_key_value()?;
        Some((namespace.clone(), key.clone(), value.clone()))
    }

    /// `by` is the object that says so.
    fn link_as(&self, name: &ServiceId, by: &ObjectKey, to: &mut Relations) {
        to.host(name, by, true);
        to.node_ports += self.count_node_ports();
        for (vip, is_external) in self.claims() {
            to.claims.link(vip, self.claim(name, by, is_external));
        }
        self.external.iter().for_each(|(ip, _)| to.external_addresses.link(*ip, by.name.clone()));
        for ip in &self.vips {
            if by.kind == Kind::Service {
                to.service_addresses.link(*ip, by.name.clone());
            } else {
                to.entry_addresses.entry(*ip).or_default().insert((name.clone(), by.name.clone()));
                to.host_addresses.link(name.clone(), (*ip, by.name.clone()));
            }
        }
        if let Some(label) = self.selection(&by.name.namespace) {
            to.selecting.link(label, (name.clone(), by.clone()));
        }
    }

    fn unlink_as(&self, name: &ServiceId, by: &ObjectKey, from: &mut Relations) {
        from.host(name, by, false);
        from.node_ports -= self.count_node_ports();
        for (vip, is_external) in self.claims() {
            from.claims.unlink(&vip, &self.claim(name, by, is_external));
        }
        self.external.iter().for_each(|(ip, _)| from.external_addresses.unlink(ip, &by.name));
        for ip in &self.vips {
            if by.kind == Kind::Service {
                from.service_addresses.unlink(ip, &by.name);
                continue;
            }
            from.host_addresses.unlink(name, &(*ip, by.name.clone()));
            if let Some(hosts) = from.entry_addresses.get_mut(ip) {
                hosts.remove(&(name.clone(), by.name.clone()));
                if hosts.is_empty() {
                    from.entry_addresses.remove(ip);
                }
            }
        }
        if let Some(label) = self.selection(&by.name.namespace) {
            from.selecting.unlink(&label, &(name.clone(), by.clone()));
        }
    }

    /// Marks all that depends on it under this name.
    fn touch_as(&self, key: &ServiceId, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Clusters(key.clone()));
        dirty.insert(Unit::Endpoints(key.clone()));
        dirty.insert(Unit::Routing(key.clone()));
        relations.touch_routes_to(key, dirty);
        for (vip, _) in self.claims() {
            dirty.extend(relations.claims.of(&vip).map(|claim| Unit::Routing(claim.service.clone())));
        }
        // Where it has a cluster IP, no other Service has it as an external address, on any port.
        for ip in &self.vips {
            dirty
                .extend(relations.external_addresses.of(ip).map(|other| Unit::Routing(other.clone().into())));
        }
        // Whether others have the addresses of ServiceEntries depends on whether these are in force.
        let of_host = relations.host_addresses.of(key).map(|(ip, _)| *ip);
        for ip in self.vips.iter().copied().chain(of_host) {
            relations.touch_entries_at(ip, ip, dirty);
        }
    }
}

fn service_key(name: &ObjectName) -> ObjectKey {
    ObjectKey { kind: Kind::Service, name: name.clone() }
}

impl Model for Service {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.link_as(&ServiceId::from(key.clone()), &service_key(key), to);
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.unlink_as(&ServiceId::from(key.clone()), &service_key(key), from);
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        self.touch_as(&ServiceId::from(key.clone()), relations, dirty);
    }
}

impl Model for ServiceEntry {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        let by = ObjectKey { kind: Kind::ServiceEntry, name: key.clone() };
        for host in &self.hosts {
            to.service_entries.link(host.name.clone(), (self.age, key.clone()));
            host.service.link_as(&host.name, &by, to);
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        let by = ObjectKey { kind: Kind::ServiceEntry, name: key.clone() };
        for host in &self.hosts {
            from.service_entries.unlink(&host.name, &(self.age, key.clone()));
            host.service.unlink_as(&host.name, &by, from);
        }
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        self.hosts.iter().for_each(|host| host.service.touch_as(&host.name, relations, dirty));
    }
}

/// The labels of a workload, as they are looked up.
pub(crate) fn labels<'a>(
    key: &'a ObjectName,
    labels: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = Label> + use<'a> {
    labels.iter().map(|(name, value)| (key.namespace.clone(), name.clone(), value.clone()))
}

impl Model for Workload {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        labels(key, &self.labels).for_each(|label| to.workloads.link(label, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        labels(key, &self.labels).for_each(|label| from.workloads.unlink(&label, key));
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        for label in labels(key, &self.labels) {
            let by = relations.selecting.of(&label);
            dirty.extend(by.map(|(service, _)| Unit::Endpoints(service.clone())));
        }
    }

    fn workload_labels(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.labels)
    }
}

impl EndpointSlice {
    fn pods(&self) -> BTreeSet<&ObjectName> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref()).collect()
    }
}

impl Model for EndpointSlice {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        let Some(service) = &self.service else { return };
        to.slices.link(service.clone(), key.clone());
        for endpoint in &self.endpoints {
            to.by_ip.link(endpoint.ip, (service.clone(), key.clone()));
            if let Some(pod) = &endpoint.pod {
                to.by_pod.link(pod.clone(), (service.clone(), key.clone()));
            }
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        let Some(service) = &self.service else { return };
        from.slices.unlink(service, key);
        let pair = (service.clone(), key.clone());
        for endpoint in &self.endpoints {
            from.by_ip.unlink(&endpoint.ip, &pair);
            if let Some(pod) = &endpoint.pod {
                from.by_pod.unlink(pod, &pair);
            }
        }
    }

    /// One endpoint more costs one pair, not all of the slice: each pair is a few cache misses.
    fn relink(&self, new: &Self, key: &ObjectName, relations: &mut Relations) {
        let Some(service) = self.service.as_ref().filter(|_| self.service == new.service) else {
            self.unlink(key, relations);
            return new.link(key, relations);
        };
        let pair = (service.clone(), key.clone());
        let ips = |slice: &Self| slice.endpoints.iter().map(|e| e.ip).collect::<BTreeSet<_>>();
        let (before, after) = (ips(self), ips(new));
        before.difference(&after).for_each(|ip| relations.by_ip.unlink(ip, &pair));
        after.difference(&before).for_each(|ip| relations.by_ip.link(*ip, pair.clone()));
        let (before, after) = (self.pods(), new.pods());
        before.difference(&after).for_each(|pod| relations.by_pod.unlink(pod, &pair));
        after.difference(&before).for_each(|pod| relations.by_pod.link((*pod).clone(), pair.clone()));
    }

    fn touch(&self, _: &ObjectName, _: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.extend(self.service.clone().map(|service| Unit::Endpoints(service.into())));
    }
}

impl Model for Pod {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        *to.populated.entry(key.namespace.clone()).or_default() += 1;
        self.ips.iter().for_each(|ip| to.pods.link(*ip, key.clone()));
        labels(key, &self.labels).for_each(|label| to.labelled.link(label, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        if let Some(count) = from.populated.get_mut(&key.namespace) {
            *count -= 1;
            if *count == 0 {
                from.populated.remove(&key.namespace);
            }
        }
        self.ips.iter().for_each(|ip| from.pods.unlink(ip, key));
        labels(key, &self.labels).for_each(|label| from.labelled.unlink(&label, key));
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        relations.touch_selection(relations.by_pod.of(key), dirty);
        for ip in &self.ips {
            relations.touch_entries_at(*ip, *ip, dirty);
            relations.touch_selection(relations.by_ip.of(ip), dirty);
        }
        // Services have slices, which say the rest.
        for label in labels(key, &self.labels) {
            let by = relations.selecting.of(&label).filter(|(_, by)| by.kind == Kind::ServiceEntry);
            dirty.extend(by.map(|(service, _)| Unit::Endpoints(service.clone())));
        }
    }

    fn workload_labels(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.labels)
    }
}

impl Routes {
    /// How the object with these routes stands among those for a Service.
    fn ranked(&self, key: &ObjectName) -> Ranked {
        let key = ObjectKey { kind: self.kind, name: key.clone() };
        Ranked { kind: self.kind, age: self.age, key }
    }
}

impl Routes {
    /// What it routes.
    fn patterns(&self) -> impl Iterator<Item = HostPattern> {
        let wild = self.wild.iter().map(|host| HostPattern::Under(host.suffix.clone()));
        self.hosts.iter().map(|host| HostPattern::One(host.service.clone())).chain(wild)
    }
}

impl Model for Routes {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        let by = self.ranked(key);
        self.leads_to().into_iter().for_each(|target| to.led_to.link(target, by.key.clone()));
        self.hosts.iter().for_each(|host| to.routes.link(host.service.clone(), by.clone()));
        self.wild.iter().for_each(|host| to.wild_routes.link(host.suffix.clone(), by.clone()));
        for pattern in self.patterns() {
            let pair = (pattern, by.key.clone());
            for destination in self.destinations() {
                let to_service = &destination.service;
                to.destinations.link(to_service.clone(), pair.clone());
                if *to_service.namespace() != key.namespace {
                    to.crossing.link(to_service.namespace().clone(), pair.clone());
                }
            }
            self.delegates().for_each(|delegate| to.delegating.link(delegate.clone(), pair.clone()));
        }
        if self.is_delegate() {
            for destination in self.destinations() {
                to.delegate_destinations.link(destination.service.clone(), key.clone());
            }
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        let by = self.ranked(key);
        self.leads_to().iter().for_each(|target| from.led_to.unlink(target, &by.key));
        self.hosts.iter().for_each(|host| from.routes.unlink(&host.service, &by));
        self.wild.iter().for_each(|host| from.wild_routes.unlink(&host.suffix, &by));
        for pattern in self.patterns() {
            let pair = (pattern, by.key.clone());
            for destination in self.destinations() {
                from.destinations.unlink(&destination.service, &pair);
                from.crossing.unlink(destination.service.namespace(), &pair);
            }
            self.delegates().for_each(|delegate| from.delegating.unlink(delegate, &pair));
        }
        if self.is_delegate() {
            for destination in self.destinations() {
                from.delegate_destinations.unlink(&destination.service, key);
            }
        }
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        self.patterns().for_each(|pattern| relations.touch_routing(&pattern, dirty));
        if self.is_delegate() {
            relations.touch_delegating(key, dirty);
        }
    }

    fn routes(&self) -> Option<&Routes> {
        Some(self)
    }

    fn leads_to(&self) -> BTreeSet<(ServiceId, String)> {
        let to = self.destinations();
        to.map(|destination| (destination.service.clone(), destination.subset.clone())).collect()
    }

    fn asks(&self, _: &ObjectName) -> BTreeSet<Ask> {
        let from = self.all().flat_map(|route| &route.matches).map(|m| &m.from);
        let asked = from.filter(|from| !from.labels.is_empty());
        asked.map(|from| Ask { namespace: from.namespace.clone(), labels: from.labels.clone() }).collect()
    }

    fn wildcards(&self) -> BTreeSet<Suffix> {
        self.wild.iter().map(|host| host.suffix.clone()).collect()
    }
}

impl Model for DestinationRule {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        to.rules.link(self.host.clone(), (key.namespace.clone(), self.age, key.clone()));
        to.wild_rules += usize::from(matches!(self.host, HostPattern::Under(_)));
        if self.has_localities() {
            let by = ObjectKey { kind: Kind::DestinationRule, name: key.clone() };
            to.located.link(self.host.clone(), by);
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        from.rules.unlink(&self.host, &(key.namespace.clone(), self.age, key.clone()));
        from.wild_rules -= usize::from(matches!(self.host, HostPattern::Under(_)));
        if self.has_localities() {
            let by = ObjectKey { kind: Kind::DestinationRule, name: key.clone() };
            from.located.unlink(&self.host, &by);
        }
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        for service in relations.services(&self.host) {
            relations.touch_routes_to(&service, dirty);
            dirty.insert(Unit::Clusters(service.clone()));
            dirty.insert(Unit::Endpoints(service.clone()));
            dirty.insert(Unit::Routing(service));
        }
    }

    fn asks(&self, key: &ObjectName) -> BTreeSet<Ask> {
        Ask::of(key, self.callers.as_ref())
    }

    fn wildcards(&self) -> BTreeSet<Suffix> {
        match &self.host {
            HostPattern::Under(suffix) => BTreeSet::from([suffix.clone()]),
            HostPattern::One(_) => BTreeSet::new(),
        }
    }
}
