//! The objects of the cluster by kind and name, with reverse indexes.
//!
//! ```text
//!  Pod --(name, address)--> EndpointSlice --(label)--> Service <--(host)-- DestinationRule
//!                                                        ^  ^
//!                                    (cluster IP, port) -+  +-- (hosts, destinations) -- VirtualService
//!
//!  WorkloadEntry, Pod --(label)--> ServiceEntry --(hosts)--> taken for a Service
//! ```
//!
//! Invariant: after each `apply` and `delete`, `dirty` has gained every [`Unit`] whose compilation
//! could come out differently, found by look-ups only. An object that says the same as before makes
//! nothing dirty.

mod amounts;
mod asks;
mod enrolment;
mod objects;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use self::objects::{Effects, Entries, Objects, Origin};
use crate::{
    CompileOptions, Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, ServiceId, Source, Unit,
    classes::Classes,
    links::Relations,
    model::{
        DestinationRule, Endpoint, EndpointSlice, Export, Node, Place, Pod, PortKey, Routes, Service,
        ServiceEntry, SlotProfile, TrafficPolicy, Workload,
    },
    names::not_found,
    object::name_fault,
    relation::{Label, Relation},
    report::Findings,
};

/// The objects of the cluster.
#[derive(Debug, Default)]
pub struct Index {
    objects: Objects,
    /// Hosts of several ServiceEntries, as these say together.
    merged: HashMap<ServiceId, Service>,
    pub(crate) enrolled: enrolment::Enrolled,
    amounts: amounts::Amounts,
    pub(crate) relations: Relations,
    pub(crate) classes: Classes,
    pub(crate) options: CompileOptions,
}

impl Index {
    /// An index without objects.
    pub fn new(options: CompileOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Adds the object or replaces its previous version, and adds all that depends on it to `dirty`.
    /// Returns what is to be said about the object itself.
    ///
    /// A refused object is as if it weren't there, whatever it said before.
    pub fn apply(
        &mut self,
        object: &Object,
        source: Option<Source>,
        dirty: &mut BTreeSet<Unit>,
    ) -> Vec<Report> {
        let key = object.key();
        let name = &key.name;
        let mut found = Findings::new(ObjectRef::new(&key, source.clone()));
        for (field, text) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
            let named = field == "metadata.name" || key.kind.is_namespaced();
            if let Some(fault) = named.then(|| name_fault(text)).flatten() {
                found.refuse(field, format!("the name {fault}"));
            }
        }
        if name.namespace.contains('.') {
            found.refuse("metadata.namespace", "the name of a namespace has no '.'");
        }
        let named = !found.refused();
        let former = self.former(&key);
        let asked = self.asks_of(&key);
        let candidate = self.candidate_of(&key);
        let had_node_ports = self.relations.node_ports > 0;
        let origin = Origin { source, generation: object.meta().generation };
        let mut effects = Effects { relations: &mut self.relations, dirty };
        let refused =
            self.objects.apply((object, name, named), origin, &self.options, &mut found, &mut effects);
        self.measure(&key, former);
        self.classify(&key, &asked, dirty);
        self.enrol(&key, candidate.as_ref(), dirty);
        self.note_nodes(had_node_ports, dirty);
        if refused {
            for report in found.reports.iter_mut().filter(|report| report.is_of_the_whole()) {
                report.message.push_str("; the object is not in force");
            }
        }
        found.reports
    }

    /// Removes the object, and adds all that depended on it to `dirty`.
    pub fn delete(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Unit>) {
        let former = self.former(key);
        let asked = self.asks_of(key);
        let candidate = self.candidate_of(key);
        let had_node_ports = self.relations.node_ports > 0;
        self.objects.delete(key, &mut Effects { relations: &mut self.relations, dirty });
        self.measure(key, former);
        self.classify(key, &asked, dirty);
        self.enrol(key, candidate.as_ref(), dirty);
        self.note_nodes(had_node_ports, dirty);
    }

    /// With the first NodePort the addresses of all nodes matter, and with the last one they matter no more.
    fn note_nodes(&self, had_node_ports: bool, dirty: &mut BTreeSet<Unit>) {
        if had_node_ports != (self.relations.node_ports > 0) {
            dirty.extend(self.relations.node_addresses.all().cloned().map(Unit::Node));
        }
    }

    /// The addresses of a node that no other one has, where there are NodePorts.
    pub(crate) fn addresses_of_node(&self, name: &ObjectName) -> Vec<IpAddr> {
        let node = self.objects.nodes.get(name);
        let known =
            node.filter(|_| self.relations.node_ports > 0).into_iter().flat_map(|node| &node.internal);
        known.copied().filter(|ip| self.relations.node_addresses.first(ip) == Some(name)).collect()
    }

    /// Puts together what ServiceEntries say of a host.
    fn merge(&mut self, host: &ServiceId) {
        let parts: Vec<&Service> = self.parts(host).map(|(_, _, service)| service).collect();
        if let [first, _, ..] = parts[..] {
            let merged = parts.iter().skip(1).fold(first.clone(), |merged, part| merged.merge(part));
            self.merged.insert(host.clone(), merged);
        } else {
            self.merged.remove(host);
        }
    }

    /// The Service of this name, or what ServiceEntries say of the host.
    pub(crate) fn service(&self, name: &ServiceId) -> Option<&Service> {
        let part = || self.parts(name).next().map(|(_, _, service)| service);
        self.own_service(name).or_else(|| self.merged.get(name)).or_else(part)
    }

    /// ServiceEntries of a host, and what each says of it, the oldest first: those of the namespace of the oldest, which are merged by
    /// address and port. Others have no effect on it.
    fn parts(&self, host: &ServiceId) -> impl Iterator<Item = (&ObjectName, &ServiceEntry, &Service)> {
        let entries = self.relations.service_entries.of(host).map(|(_, entry)| entry);
        let owner = self.service_entry_of(host).map(|(first, _)| &first.namespace);
        entries.filter(move |entry| Some(&entry.namespace) == owner).filter_map(|name| {
            let entry = self.service_entry(name).filter(|_| self.has_room(Kind::ServiceEntry, name))?;
            let of_host = entry.hosts.iter().find(|of| of.name == *host)?;
            Some((name, entry, &of_host.service))
        })
    }

    /// Tells whether a route names this subset of a Service; the empty one is all of it.
    pub(crate) fn is_led_to(&self, name: &ServiceId, subset: &str) -> bool {
        self.relations.led_to.of(&(name.clone(), subset.to_owned())).any(|by| self.fits(by))
    }

    /// Places at which a port is reached: its addresses and NodePorts, each with the object that names it.
    pub(crate) fn places(&self, name: &ServiceId, port: PortKey) -> Vec<(IpAddr, PortKey, ObjectKey)> {
        let mut places: Vec<_> =
            self.addresses(name, port).into_iter().map(|(ip, by)| (ip, port, by)).collect();
        for backing in self.backings(name) {
            if let Some(of) = backing.service.port(port) {
                places.extend(backing.service.node_ports(of).map(|(ip, at)| (ip, at, backing.by.clone())));
            }
        }
        places
    }

    /// The addresses of a port, each with the object that names it.
    pub(crate) fn addresses(&self, name: &ServiceId, port: PortKey) -> Vec<(IpAddr, ObjectKey)> {
        let mut addresses = Vec::new();
        for backing in self.backings(name) {
            if backing.service.port(port).is_some() {
                addresses.extend(backing.service.addresses().map(|(ip, _)| (ip, backing.by.clone())));
            }
        }
        addresses
    }

    /// The objects that a Service, or a host of ServiceEntries, is made of.
    pub(crate) fn backings(&self, name: &ServiceId) -> Vec<Backing<'_>> {
        let key = |kind, name: &ObjectName| ObjectKey { kind, name: name.clone() };
        match name.object().zip(self.own_service(name)) {
            Some((name, service)) => vec![Backing { by: key(Kind::Service, name), service, endpoints: &[] }],
            None => {
                let parts = self.parts(name).map(|(entry_name, entry, service)| {
                    let by = key(Kind::ServiceEntry, entry_name);
                    Backing { by, service, endpoints: &entry.endpoints }
                });
                parts.collect()
            }
        }
    }

    /// As [`service`](Self::service), for objects of this kind: only Istio's know hosts of ServiceEntries.
    pub(crate) fn service_for(&self, kind: Kind, name: &ServiceId) -> Option<&Service> {
        match kind {
            Kind::VirtualService | Kind::DestinationRule => self.service(name),
            _ => self.own_service(name),
        }
    }

    /// The Service of this name, if it is one.
    pub(crate) fn own_service(&self, name: &ServiceId) -> Option<&Service> {
        let name = name.object()?;
        self.objects.services.get(name).filter(|_| self.has_room(Kind::Service, name))
    }

    /// The first of the ServiceEntries in force for a host.
    fn service_entry_of(&self, host: &ServiceId) -> Option<(&ObjectName, &ServiceEntry)> {
        let entries = self.relations.service_entries.of(host).map(|(_, entry)| entry);
        let mut entries = entries.filter(|name| self.has_room(Kind::ServiceEntry, name));
        entries.find_map(|name| Some((name, self.service_entry(name)?)))
    }

    /// A ServiceEntry, in force or not.
    pub(crate) fn service_entry(&self, name: &ObjectName) -> Option<&ServiceEntry> {
        self.objects.service_entries.get(name)
    }

    /// The Service or ServiceEntry that [`service`](Self::service) is of.
    pub(crate) fn provider(&self, name: &ServiceId) -> Option<ObjectKey> {
        let (kind, object) = match name.object().filter(|_| self.own_service(name).is_some()) {
            Some(service) => (Kind::Service, service),
            None => (Kind::ServiceEntry, self.service_entry_of(name)?.0),
        };
        Some(ObjectKey { kind, name: object.clone() })
    }

    /// The host name by which resources are called.
    pub(crate) fn host(&self, name: &ServiceId) -> String {
        match self.provider(name) {
            Some(provider) if provider.kind == Kind::ServiceEntry => name.external_host(),
            _ => name.host(),
        }
    }

    /// The text for users where [`service`](Self::service) has nothing.
    pub(crate) fn not_found(&self, name: &ServiceId) -> String {
        let held = name.object().is_some_and(|name| self.objects.services.get(name).is_some());
        let entry = self.relations.service_entries.first(name).map(|(_, entry)| entry);
        match (held, entry) {
            (true, _) => format!("Service {name} is beyond what it, or its namespace, may make"),
            (false, Some(entry)) if !self.has_room(Kind::ServiceEntry, entry) => {
                format!("ServiceEntry {entry} is beyond what it, or its namespace, may make")
            }
            _ => not_found(name),
        }
    }

    /// The name by which users are told of [`service`](Self::service).
    pub(crate) fn display_name(&self, name: &ServiceId) -> String {
        match self.provider(name) {
            Some(provider) if provider.kind == Kind::ServiceEntry => format!("host {}", name.external_host()),
            _ => match name {
                ServiceId::Host(host) => format!("host {host}"),
                ServiceId::Service(name) => format!("Service {name}"),
            },
        }
    }

    /// A VirtualService, with its key.
    pub(crate) fn virtual_service(&self, name: &ObjectName) -> Option<(ObjectKey, &Routes)> {
        let key = ObjectKey { kind: Kind::VirtualService, name: name.clone() };
        let routes = self.routes(&key)?;
        Some((key, routes))
    }

    /// Who sees the ServiceEntries of a host, where it is one.
    pub(crate) fn exports(&self, name: &ServiceId) -> impl Iterator<Item = &Export> {
        let is_service = self.own_service(name).is_some();
        self.parts(name).filter(move |_| !is_service).map(|(_, entry, _)| &entry.export)
    }

    /// Who sees an object that has addresses; `None` where everybody does.
    pub(crate) fn export_of(&self, by: &ObjectKey) -> Option<&Export> {
        let entry = Some(&by.name).filter(|_| by.kind == Kind::ServiceEntry);
        entry.and_then(|name| self.service_entry(name)).map(|entry| &entry.export)
    }

    /// The routes of an object of a kind that has some, where it is in force.
    pub(crate) fn routes(&self, key: &ObjectKey) -> Option<&Routes> {
        self.held_routes(key).filter(|_| self.fits(key))
    }

    /// The same, in force or not.
    fn held_routes(&self, key: &ObjectKey) -> Option<&Routes> {
        self.objects.model(key)?.routes()
    }

    /// Tells whether this object may send connections to the Service. In a mesh every object may, as GEP-1294 has it; where
    /// the installation asks for grants, one of another namespace may where a ReferenceGrant there lets it. Istio's
    /// objects know no grants.
    pub(crate) fn permits(&self, by: &ObjectKey, service: &ObjectName) -> bool {
        let (kind, namespace) = (by.kind, &by.name.namespace);
        let mut grants = self.relations.grants.of(&service.namespace);
        let allows = |grant: &ObjectName| {
            let grant = self.objects.grants.get(grant);
            grant.is_some_and(|grant| grant.allows(kind, namespace, &service.name))
        };
        !self.options.require_grants
            || kind == Kind::VirtualService
            || *namespace == service.namespace
            || grants.any(allows)
    }

    pub(crate) fn policy(&self, name: &ObjectName) -> Option<&TrafficPolicy> {
        self.objects.policies.get(name).filter(|_| self.has_room(Kind::TrafficPolicy, name))
    }

    pub(crate) fn rule_named(&self, name: &ObjectName) -> Option<&DestinationRule> {
        self.held_rule(name).filter(|_| self.has_room(Kind::DestinationRule, name))
    }

    /// A DestinationRule, in force or not.
    fn held_rule(&self, name: &ObjectName) -> Option<&DestinationRule> {
        self.objects.rules.get(name)
    }

    pub(crate) fn slices(&self, service: &ServiceId) -> impl Iterator<Item = (&ObjectName, &EndpointSlice)> {
        let own = service.object().filter(|_| self.own_service(service).is_some());
        let own = own.map(|name| self.relations.slices.of(name));
        own.into_iter().flatten().filter_map(|name| Some((name, self.objects.slices.get(name)?)))
    }

    /// The field by which a Service asks for what isn't known here: connections to it are left to kube-proxy.
    pub(crate) fn left_to_kube_proxy(&self, name: &ServiceId) -> Option<&'static str> {
        self.own_service(name)?.left
    }

    /// The Pod behind an endpoint of a slice in `namespace`: the one that the slice names, else one
    /// with its address.
    pub(crate) fn pod(&self, namespace: &str, endpoint: &Endpoint) -> Option<&Pod> {
        let good = |name: &ObjectName| self.objects.pods.get(name);
        endpoint.pod.as_ref().and_then(good).or_else(|| {
            self.relations.pods.of(&endpoint.ip).find(|name| &*name.namespace == namespace).and_then(good)
        })
    }

    /// The WorkloadEntries that a Service or ServiceEntry selects.
    pub(crate) fn selected_workloads(&self, backing: &Backing<'_>) -> Vec<(&ObjectName, &Workload)> {
        selected(backing, &self.relations.workloads, &self.objects.workloads, |workload| &workload.labels)
    }

    /// The Pods that a ServiceEntry selects; those of a Service stand in its slices.
    pub(crate) fn selected_pods(&self, backing: &Backing<'_>) -> Vec<(&ObjectName, &Pod)> {
        match backing.by.kind {
            Kind::Service => Vec::new(),
            _ => selected(backing, &self.relations.labelled, &self.objects.pods, |pod| &pod.labels),
        }
    }

    pub(crate) fn profile(&self, name: &ObjectName) -> Option<&SlotProfile> {
        self.objects.profiles.get(name)
    }

    /// The SlotProfile in force for a node: the oldest that selects it.
    pub(crate) fn profile_of(&self, name: &ObjectName) -> Option<&ObjectName> {
        let node = self.objects.nodes.get(name)?;
        let selects = |profile: &ObjectName| self.profile(profile).is_some_and(|p| p.selects(name, node));
        let oldest = |selection| self.relations.profiles.of(&selection).find(|(_, profile)| selects(profile));
        node.selections(name).filter_map(oldest).min().map(|(_, profile)| profile)
    }

    /// Where a node is.
    pub(crate) fn place_of(&self, node: &str) -> Place<'_> {
        let node = self.objects.nodes.get(&ObjectName::new("", node));
        node.map(Node::place).unwrap_or_default()
    }

    /// The nodes that a SlotProfile selects.
    pub(crate) fn nodes_of(&self, name: &ObjectName) -> Vec<&ObjectName> {
        let Some(profile) = self.profile(name) else { return Vec::new() };
        let selected = |name: &&ObjectName| {
            let node = self.objects.nodes.get(name);
            node.is_some_and(|node| profile.selects(name, node))
        };
        let selections = profile.selections();
        selections.iter().flat_map(|s| self.relations.nodes.of(s)).filter(selected).collect()
    }

    /// The generation of the object that was read last; `None` where the object isn't held.
    pub(crate) fn generation(&self, key: &ObjectKey) -> Option<Option<i64>> {
        self.objects.origin(key.kind, &key.name).map(|origin| origin.generation)
    }

    pub(crate) fn object_ref(&self, kind: Kind, name: &ObjectName) -> ObjectRef {
        let source = self.objects.origin(kind, name).and_then(|origin| origin.source.clone());
        ObjectRef::new(&ObjectKey { kind, name: name.clone() }, source)
    }
}

/// An object that a Service, or a host of ServiceEntries, is made of.
#[derive(Debug)]
pub(crate) struct Backing<'a> {
    pub(crate) by: ObjectKey,
    pub(crate) service: &'a Service,
    /// The endpoints that it names itself.
    pub(crate) endpoints: &'a [Workload],
}

/// Those of the entries that an object selects by labels.
fn selected<'a, M>(
    backing: &Backing<'_>,
    labelled: &'a Relation<Label, ObjectName>,
    entries: &'a Entries<M>,
    labels: impl Fn(&M) -> &BTreeMap<String, String>,
) -> Vec<(&'a ObjectName, &'a M)> {
    let service = backing.service;
    let Some(label) = service.selection(&backing.by.name.namespace) else { return Vec::new() };
    let good = |name: &'a ObjectName| Some((name, entries.get(name)?));
    let all = labelled.of(&label).filter_map(good);
    all.filter(|(_, model)| {
        let has = labels(model);
        service.selector.iter().all(|(key, value)| has.get(key) == Some(value))
    })
    .collect()
}
