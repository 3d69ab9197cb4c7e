//! The reverse indexes: what each kind of object takes part in, and what depends on it.
//!
//! Invariant: `link` and `unlink` of the same model cancel each other out; `touch` marks every unit
//! whose compilation reads the model, as the relations are at that moment.

mod others;
mod rules;
mod services;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

pub(crate) use self::workloads::labels;
use crate::{
    Cidr, Kind, ObjectKey, ObjectName, ServiceId, Unit,
    classes::Ask,
    model::{Age, Namespace, PortKey, Routes},
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
    /// The Service or host that the connections are for.
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
    /// The host of a DestinationRule -> these by namespace, the oldest first.
    pub(crate) rules: Relation<HostPattern, (Arc<str>, Age, ObjectName)>,
    /// How many of them name hosts by a wildcard.
    pub(crate) wild_rules: usize,
    /// The hosts that have localities -> the objects that say so.
    pub(crate) located: Relation<HostPattern, ObjectKey>,
    /// A label or name -> the nodes that have it.
    pub(crate) nodes: Relation<Selection, ObjectName>,
    /// A label or name -> the SlotProfiles that look for nodes with it, the oldest first.
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

impl Model for Namespace {
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
