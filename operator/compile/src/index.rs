//! What the cluster holds, by kind and name, with reverse indexes.
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

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity, Source,
    links::{Model, Relations},
    model::{
        DestinationRule, Endpoint, EndpointSlice, Node, Pod, ReferenceGrant, Routes, Service, ServiceEntry,
        SlotProfile, TrafficPolicy, Workload, read_http, read_tcp, read_virtual_service,
    },
    names::name_fault,
    relation::{Label, Relation},
    report::Findings,
};

/// What is compiled as one piece.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// What reading an object found.
    Object(ObjectKey),
    /// The clusters of a Service, or of a host of a ServiceEntry.
    Clusters(ObjectName),
    /// The endpoint assignments of one.
    Endpoints(ObjectName),
    /// The listeners and route configurations of one.
    Routing(ObjectName),
    /// The settings of the slots of a node.
    Settings(ObjectName),
    /// On which nodes a SlotProfile is in force.
    Profile(ObjectName),
}

/// An object in its last good version, if it ever had one.
#[derive(Debug)]
struct Entry<M> {
    good: Option<M>,
    source: Option<Source>,
    /// The `metadata.generation` that was read last, good or not.
    generation: Option<i64>,
}

type Entries<M> = HashMap<ObjectName, Entry<M>>;

fn put<M: Model>(
    entry: &mut Entry<M>,
    key: &ObjectName,
    read: Option<M>,
    source: Option<Source>,
    relations: &mut Relations,
    dirty: &mut BTreeSet<Unit>,
) {
    let moved = entry.source != source;
    entry.source = source;
    match read {
        Some(new) if entry.good.as_ref() != Some(&new) => {
            match &entry.good {
                Some(old) => {
                    old.touch(key, relations, dirty);
                    old.relink(&new, key, relations);
                }
                None => new.link(key, relations),
            }
            new.touch(key, relations, dirty);
            entry.good = Some(new);
        }
        // Reports name the source.
        _ if moved => {
            if let Some(good) = &entry.good {
                good.touch(key, relations, dirty);
            }
        }
        _ => {}
    }
}

fn take<M: Model>(
    entries: &mut Entries<M>,
    key: &ObjectName,
    relations: &mut Relations,
    dirty: &mut BTreeSet<Unit>,
) {
    if let Some(old) = entries.remove(key).and_then(|entry| entry.good) {
        old.touch(key, relations, dirty);
        old.unlink(key, relations);
    }
}

/// The objects of the cluster.
#[derive(Debug, Default)]
pub struct Index {
    services: Entries<Service>,
    slices: Entries<EndpointSlice>,
    pods: Entries<Pod>,
    virtual_services: Entries<Routes>,
    http_routes: Entries<Routes>,
    tcp_routes: Entries<Routes>,
    grants: Entries<ReferenceGrant>,
    policies: Entries<TrafficPolicy>,
    rules: Entries<DestinationRule>,
    service_entries: Entries<ServiceEntry>,
    workloads: Entries<Workload>,
    nodes: Entries<Node>,
    profiles: Entries<SlotProfile>,
    pub(crate) relations: Relations,
}

impl Index {
    /// Adds the object or replaces its previous version, and adds all that depends on it to `dirty`.
    /// Returns what is to be said about the object itself.
    ///
    /// A refused object leaves its last good version in place.
    pub fn apply(
        &mut self,
        object: &Object,
        source: Option<Source>,
        dirty: &mut BTreeSet<Unit>,
    ) -> Vec<Report> {
        // What takes part is decided elsewhere.
        if matches!(object, Object::Namespace(_)) {
            return Vec::new();
        }
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
        macro_rules! put {
            ($entries:ident, $read:expr) => {{
                let read = if named { $read } else { None };
                let refused = read.is_none();
                let vacant = || Entry { good: None, source: None, generation: None };
                let entry = self.$entries.entry(name.clone()).or_insert_with(vacant);
                entry.generation = object.meta().generation;
                put(entry, name, read, source, &mut self.relations, dirty);
                refused.then_some(entry.good.is_some())
            }};
        }
        let refused_with_good = match object {
            Object::Service(o) => put!(services, Service::read(o, &mut found)),
            Object::EndpointSlice(o) => put!(slices, EndpointSlice::read(o, name, &mut found)),
            Object::Pod(o) => put!(pods, Some(Pod::read(o))),
            Object::Namespace(_) => None,
            Object::Node(o) => put!(nodes, Some(Node::read(o))),
            Object::VirtualService(o) => put!(virtual_services, read_virtual_service(o, name, &mut found)),
            Object::HttpRoute(o) => put!(http_routes, read_http(o, name, &mut found)),
            Object::TcpRoute(o) => put!(tcp_routes, read_tcp(o, name, &mut found)),
            Object::ReferenceGrant(o) => put!(grants, Some(ReferenceGrant::read(o))),
            Object::TrafficPolicy(o) => put!(policies, TrafficPolicy::read(o, name, &mut found)),
            Object::DestinationRule(o) => put!(rules, DestinationRule::read(o, name, &mut found)),
            Object::ServiceEntry(o) => put!(service_entries, ServiceEntry::read(o, &mut found)),
            Object::WorkloadEntry(o) => put!(workloads, Workload::read(&o.spec, "spec", &mut found)),
            Object::SlotProfile(o) => put!(profiles, SlotProfile::read(o, name, &mut found)),
        };
        if let Some(with_good) = refused_with_good {
            let consequence = if with_good {
                "; the object's last good version stays in force"
            } else {
                "; the object is not in force"
            };
            for report in found.reports.iter_mut().filter(|r| r.severity == Severity::Refused) {
                report.message.push_str(consequence);
            }
        }
        found.reports
    }

    /// Removes the object with its last good version, and adds all that depended on it to `dirty`.
    pub fn delete(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Unit>) {
        let (name, relations) = (&key.name, &mut self.relations);
        match key.kind {
            Kind::Service => take(&mut self.services, name, relations, dirty),
            Kind::EndpointSlice => take(&mut self.slices, name, relations, dirty),
            Kind::Pod => take(&mut self.pods, name, relations, dirty),
            Kind::Namespace => {}
            Kind::Node => take(&mut self.nodes, name, relations, dirty),
            Kind::VirtualService => take(&mut self.virtual_services, name, relations, dirty),
            Kind::HttpRoute => take(&mut self.http_routes, name, relations, dirty),
            Kind::TcpRoute => take(&mut self.tcp_routes, name, relations, dirty),
            Kind::ReferenceGrant => take(&mut self.grants, name, relations, dirty),
            Kind::TrafficPolicy => take(&mut self.policies, name, relations, dirty),
            Kind::DestinationRule => take(&mut self.rules, name, relations, dirty),
            Kind::ServiceEntry => take(&mut self.service_entries, name, relations, dirty),
            Kind::WorkloadEntry => take(&mut self.workloads, name, relations, dirty),
            Kind::SlotProfile => take(&mut self.profiles, name, relations, dirty),
        }
    }

    /// What connections are made to under this name: a Service, or a host of the oldest ServiceEntry that
    /// has it.
    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.own_service(name).or_else(|| {
            let hosts = &self.service_entry_of(name)?.1.hosts;
            hosts.iter().find(|host| host.name == *name).map(|host| &host.service)
        })
    }

    /// As [`service`](Self::service), for objects of this kind: only Istio's know hosts of ServiceEntries.
    pub(crate) fn service_for(&self, kind: Kind, name: &ObjectName) -> Option<&Service> {
        match kind {
            Kind::VirtualService | Kind::DestinationRule => self.service(name),
            _ => self.own_service(name),
        }
    }

    /// The Service of this name, if it is one.
    fn own_service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)?.good.as_ref()
    }

    /// The ServiceEntry in force for a host.
    fn service_entry_of(&self, host: &ObjectName) -> Option<(&ObjectName, &ServiceEntry)> {
        let (_, name) = self.relations.service_entries.first(host)?;
        Some((name, self.service_entry(name)?))
    }

    pub(crate) fn service_entry(&self, name: &ObjectName) -> Option<&ServiceEntry> {
        self.service_entries.get(name)?.good.as_ref()
    }

    /// The Service or ServiceEntry that [`service`](Self::service) is of.
    pub(crate) fn provider(&self, name: &ObjectName) -> Option<ObjectKey> {
        let (kind, object) = match self.own_service(name) {
            Some(_) => (Kind::Service, name),
            None => (Kind::ServiceEntry, self.service_entry_of(name)?.0),
        };
        Some(ObjectKey { kind, name: object.clone() })
    }

    /// The host name by which resources are called.
    pub(crate) fn host(&self, name: &ObjectName) -> String {
        match self.provider(name) {
            Some(provider) if provider.kind == Kind::ServiceEntry => name.external_host(),
            _ => name.host(),
        }
    }

    /// What users are told of [`service`](Self::service).
    pub(crate) fn called(&self, name: &ObjectName) -> String {
        match self.provider(name) {
            Some(provider) if provider.kind == Kind::ServiceEntry => format!("host {}", name.external_host()),
            _ if name.namespace.is_empty() => format!("host {name}"),
            _ => format!("Service {name}"),
        }
    }

    /// The routes of an object of a kind that has some.
    pub(crate) fn routes(&self, key: &ObjectKey) -> Option<&Routes> {
        let entries = match key.kind {
            Kind::VirtualService => &self.virtual_services,
            Kind::HttpRoute => &self.http_routes,
            Kind::TcpRoute => &self.tcp_routes,
            _ => return None,
        };
        entries.get(&key.name)?.good.as_ref()
    }

    /// Whether this object may send connections to the Service: one of its own namespace, or one that a
    /// ReferenceGrant there lets it. Istio's objects may send connections to all.
    pub(crate) fn permits(&self, by: &ObjectKey, service: &ObjectName) -> bool {
        let (kind, namespace) = (by.kind, &by.name.namespace);
        let mut grants = self.relations.grants.of(&service.namespace);
        let allows = |grant: &ObjectName| {
            let grant = self.grants.get(grant).and_then(|entry| entry.good.as_ref());
            grant.is_some_and(|grant| grant.allows(kind, namespace, &service.name))
        };
        kind == Kind::VirtualService || *namespace == service.namespace || grants.any(allows)
    }

    pub(crate) fn policy(&self, name: &ObjectName) -> Option<&TrafficPolicy> {
        self.policies.get(name)?.good.as_ref()
    }

    pub(crate) fn rule_named(&self, name: &ObjectName) -> Option<&DestinationRule> {
        self.rules.get(name)?.good.as_ref()
    }

    /// The DestinationRule in force for a Service: the oldest.
    pub(crate) fn rule(&self, service: &ObjectName) -> Option<&DestinationRule> {
        let (_, name) = self.relations.rules.first(service)?;
        self.rules.get(name)?.good.as_ref()
    }

    pub(crate) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = (&ObjectName, &EndpointSlice)> {
        let own = self.own_service(service).map(|_| self.relations.slices.of(service));
        own.into_iter().flatten().filter_map(|name| Some((name, self.slices.get(name)?.good.as_ref()?)))
    }

    /// The Pod behind an endpoint of a slice in `namespace`: the one that the slice names, else one
    /// with its address.
    pub(crate) fn pod(&self, namespace: &str, endpoint: &Endpoint) -> Option<&Pod> {
        let good = |name: &ObjectName| self.pods.get(name)?.good.as_ref();
        endpoint.pod.as_ref().and_then(good).or_else(|| {
            self.relations.pods.of(&endpoint.ip).find(|name| &*name.namespace == namespace).and_then(good)
        })
    }

    /// The endpoints that the ServiceEntry of a host names itself.
    pub(crate) fn named_workloads(&self, name: &ObjectName) -> &[Workload] {
        let entry = if self.own_service(name).is_none() { self.service_entry_of(name) } else { None };
        entry.map_or(&[], |(_, entry)| &entry.endpoints)
    }

    /// The WorkloadEntries that a Service or ServiceEntry selects.
    pub(crate) fn selected_workloads(&self, name: &ObjectName) -> Vec<(&ObjectName, &Workload)> {
        self.selected(name, &self.relations.workloads, &self.workloads, |workload| &workload.labels)
    }

    /// The Pods that a ServiceEntry selects; those of a Service stand in its slices.
    pub(crate) fn selected_pods(&self, name: &ObjectName) -> Vec<(&ObjectName, &Pod)> {
        match self.own_service(name) {
            Some(_) => Vec::new(),
            None => self.selected(name, &self.relations.labelled, &self.pods, |pod| &pod.labels),
        }
    }

    fn selected<'a, M>(
        &'a self,
        name: &ObjectName,
        labelled: &'a Relation<Label, ObjectName>,
        entries: &'a Entries<M>,
        labels: impl Fn(&M) -> &BTreeMap<String, String>,
    ) -> Vec<(&'a ObjectName, &'a M)> {
        let (Some(service), Some(provider)) = (self.service(name), self.provider(name)) else {
            return Vec::new();
        };
        let Some(label) = service.selection(&provider.name.namespace) else { return Vec::new() };
        let good = |name: &'a ObjectName| Some((name, entries.get(name)?.good.as_ref()?));
        let all = labelled.of(&label).filter_map(good);
        all.filter(|(_, model)| {
            let has = labels(model);
            service.selector.iter().all(|(key, value)| has.get(key) == Some(value))
        })
        .collect()
    }

    pub(crate) fn profile(&self, name: &ObjectName) -> Option<&SlotProfile> {
        self.profiles.get(name)?.good.as_ref()
    }

    /// The SlotProfile in force for a node: the oldest that selects it.
    pub(crate) fn profile_of(&self, name: &ObjectName) -> Option<&ObjectName> {
        let node = self.nodes.get(name)?.good.as_ref()?;
        let selects = |profile: &ObjectName| self.profile(profile).is_some_and(|p| p.selects(name, node));
        let oldest = |selection| self.relations.profiles.of(&selection).find(|(_, profile)| selects(profile));
        node.selections(name).filter_map(oldest).min().map(|(_, profile)| profile)
    }

    /// The nodes that a SlotProfile selects.
    pub(crate) fn nodes_of(&self, name: &ObjectName) -> Vec<&ObjectName> {
        let Some(profile) = self.profile(name) else { return Vec::new() };
        let selected = |name: &&ObjectName| {
            let node = self.nodes.get(*name).and_then(|entry| entry.good.as_ref());
            node.is_some_and(|node| profile.selects(name, node))
        };
        let selections = profile.selections();
        selections.iter().flat_map(|s| self.relations.nodes.of(s)).filter(selected).collect()
    }

    /// Where the object was read, and the generation that was read last; `None` where it isn't held.
    fn read_of(&self, kind: Kind, name: &ObjectName) -> Option<(Option<Source>, Option<i64>)> {
        macro_rules! of {
            ($entries:ident) => {
                self.$entries.get(name).map(|entry| (entry.source.clone(), entry.generation))
            };
        }
        match kind {
            Kind::Service => of!(services),
            Kind::EndpointSlice => of!(slices),
            Kind::Pod => of!(pods),
            Kind::Namespace => None,
            Kind::Node => of!(nodes),
            Kind::VirtualService => of!(virtual_services),
            Kind::DestinationRule => of!(rules),
            Kind::HttpRoute => of!(http_routes),
            Kind::TcpRoute => of!(tcp_routes),
            Kind::ReferenceGrant => of!(grants),
            Kind::ServiceEntry => of!(service_entries),
            Kind::WorkloadEntry => of!(workloads),
            Kind::TrafficPolicy => of!(policies),
            Kind::SlotProfile => of!(profiles),
        }
    }

    /// The generation of the object that was read last; `None` where the object isn't held.
    pub(crate) fn generation(&self, key: &ObjectKey) -> Option<Option<i64>> {
        self.read_of(key.kind, &key.name).map(|(_, generation)| generation)
    }

    pub(crate) fn object_ref(&self, kind: Kind, name: &ObjectName) -> ObjectRef {
        let source = self.read_of(kind, name).and_then(|(source, _)| source);
        ObjectRef::new(&ObjectKey { kind, name: name.clone() }, source)
    }
}
