//! What the cluster holds, by kind and name, with reverse indexes.
//!
//! ```text
//!  Pod --(name, address)--> EndpointSlice --(label)--> Service <--(host)-- DestinationRule
//!                                                        ^  ^
//!                                    (cluster IP, port) -+  +-- (hosts, destinations) -- VirtualService
//! ```
//!
//! Invariant: after each `apply` and `delete`, `dirty` has gained every [`Unit`] whose compilation
//! could come out differently, found by look-ups only. An object that says the same as before makes
//! nothing dirty.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{
    Kind, Object, ObjectKey, ObjectName, ObjectRef, Report, Severity, Source,
    model::{Age, DestinationRule, Endpoint, EndpointSlice, Pod, Service, VirtualService},
    names::name_fault,
    relation::Relation,
    report::Findings,
};

/// What is compiled as one piece.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// What reading an object found.
    Object(ObjectKey),
    /// The clusters of a Service.
    Clusters(ObjectName),
    /// The endpoint assignments of a Service.
    Endpoints(ObjectName),
    /// The listeners and route configurations of a Service.
    Routing(ObjectName),
}

/// An object in its last good version, if it ever had one.
#[derive(Debug)]
struct Entry<M> {
    good: Option<M>,
    source: Option<Source>,
}

type Entries<M> = HashMap<ObjectName, Entry<M>>;

/// The reverse indexes. "Service" means its name; it need not exist.
#[derive(Debug, Default)]
pub(crate) struct Relations {
    /// Cluster IP and port -> the Services that claim it, the oldest first.
    pub(crate) claims: Relation<(IpAddr, u16), (Age, ObjectName)>,
    /// Service -> its slices.
    slices: Relation<ObjectName, ObjectName>,
    /// Pod -> (Service, slice) that name it.
    by_pod: Relation<ObjectName, (ObjectName, ObjectName)>,
    /// Address -> (Service, slice) that hold it.
    by_ip: Relation<IpAddr, (ObjectName, ObjectName)>,
    /// Address -> pods that have it.
    pods: Relation<IpAddr, ObjectName>,
    /// Service -> the VirtualServices that name it as host, the oldest first.
    pub(crate) routes: Relation<ObjectName, (Age, ObjectName)>,
    /// Service -> (routed Service, VirtualService) that send connections to it.
    destinations: Relation<ObjectName, (ObjectName, ObjectName)>,
    /// Service -> the DestinationRules for it, the oldest first.
    pub(crate) rules: Relation<ObjectName, (Age, ObjectName)>,
}

impl Relations {
    /// All whose routes lead to this Service.
    fn touch_routes_to(&self, service: &ObjectName, dirty: &mut BTreeSet<Unit>) {
        dirty.extend(self.destinations.of(service).map(|(routed, _)| Unit::Routing(routed.clone())));
    }

    /// The assignments that may choose by this Pod's labels.
    fn touch_selection<'a>(
        &self,
        services: impl Iterator<Item = &'a (ObjectName, ObjectName)>,
        dirty: &mut BTreeSet<Unit>,
    ) {
        let with_subsets = services.filter(|(service, _)| self.rules.first(service).is_some());
        dirty.extend(with_subsets.map(|(service, _)| Unit::Endpoints(service.clone())));
    }
}

/// How a model takes part in the reverse indexes.
trait Model: PartialEq {
    fn link(&self, key: &ObjectName, to: &mut Relations);
    fn unlink(&self, key: &ObjectName, from: &mut Relations);
    /// As `unlink` and then `link` of `new`; worth its own way where most pairs stay.
    fn relink(&self, new: &Self, key: &ObjectName, relations: &mut Relations) {
        self.unlink(key, relations);
        new.link(key, relations);
    }
    /// Marks all that depends on this model.
    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>);
}

impl Service {
    fn claims(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.vips.iter().flat_map(|ip| self.ports.iter().map(|port| (*ip, port.number)))
    }
}

impl Model for Service {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.claims().for_each(|vip| to.claims.link(vip, (self.age, key.clone())));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.claims().for_each(|vip| from.claims.unlink(&vip, &(self.age, key.clone())));
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Clusters(key.clone()));
        dirty.insert(Unit::Endpoints(key.clone()));
        dirty.insert(Unit::Routing(key.clone()));
        relations.touch_routes_to(key, dirty);
        for vip in self.claims() {
            dirty.extend(relations.claims.of(&vip).map(|(_, claimant)| Unit::Routing(claimant.clone())));
        }
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
        dirty.extend(self.service.clone().map(Unit::Endpoints));
    }
}

impl Model for Pod {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.ips.iter().for_each(|ip| to.pods.link(*ip, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.ips.iter().for_each(|ip| from.pods.unlink(ip, key));
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        relations.touch_selection(relations.by_pod.of(key), dirty);
        for ip in &self.ips {
            relations.touch_selection(relations.by_ip.of(ip), dirty);
        }
    }
}

impl Model for VirtualService {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        for (_, host) in &self.hosts {
            to.routes.link(host.clone(), (self.age, key.clone()));
            for service in self.destinations() {
                to.destinations.link(service.clone(), (host.clone(), key.clone()));
            }
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        for (_, host) in &self.hosts {
            from.routes.unlink(host, &(self.age, key.clone()));
            let pair = (host.clone(), key.clone());
            self.destinations().for_each(|service| from.destinations.unlink(service, &pair));
        }
    }

    fn touch(&self, _: &ObjectName, _: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.extend(self.hosts.iter().map(|(_, host)| Unit::Routing(host.clone())));
    }
}

impl Model for DestinationRule {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        to.rules.link(self.service.clone(), (self.age, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        from.rules.unlink(&self.service, &(self.age, key.clone()));
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Clusters(self.service.clone()));
        dirty.insert(Unit::Endpoints(self.service.clone()));
        relations.touch_routes_to(&self.service, dirty);
    }
}

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
    virtual_services: Entries<VirtualService>,
    rules: Entries<DestinationRule>,
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
        let key = object.key();
        let name = &key.name;
        let mut found = Findings::new(ObjectRef::new(&key, source.clone()));
        for (field, text) in [("metadata.name", &name.name), ("metadata.namespace", &name.namespace)] {
            if let Some(fault) = name_fault(text) {
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
                let vacant = || Entry { good: None, source: None };
                let entry = self.$entries.entry(name.clone()).or_insert_with(vacant);
                put(entry, name, read, source, &mut self.relations, dirty);
                refused.then_some(entry.good.is_some())
            }};
        }
        let refused_with_good = match object {
            Object::Service(o) => put!(services, Service::read(o, &mut found)),
            Object::EndpointSlice(o) => put!(slices, EndpointSlice::read(o, name, &mut found)),
            Object::Pod(o) => put!(pods, Some(Pod::read(o))),
            Object::VirtualService(o) => put!(virtual_services, VirtualService::read(o, name, &mut found)),
            Object::DestinationRule(o) => put!(rules, DestinationRule::read(o, name, &mut found)),
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
            Kind::VirtualService => take(&mut self.virtual_services, name, relations, dirty),
            Kind::DestinationRule => take(&mut self.rules, name, relations, dirty),
        }
    }

    pub(crate) fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)?.good.as_ref()
    }

    pub(crate) fn virtual_service(&self, name: &ObjectName) -> Option<&VirtualService> {
        self.virtual_services.get(name)?.good.as_ref()
    }

    /// The DestinationRule in force for a Service: the oldest.
    pub(crate) fn rule(&self, service: &ObjectName) -> Option<&DestinationRule> {
        let (_, name) = self.relations.rules.first(service)?;
        self.rules.get(name)?.good.as_ref()
    }

    pub(crate) fn slices(&self, service: &ObjectName) -> impl Iterator<Item = (&ObjectName, &EndpointSlice)> {
        let names = self.relations.slices.of(service);
        names.filter_map(|name| Some((name, self.slices.get(name)?.good.as_ref()?)))
    }

    /// The Pod behind an endpoint of a slice in `namespace`: the one that the slice names, else one
    /// with its address.
    pub(crate) fn pod(&self, namespace: &str, endpoint: &Endpoint) -> Option<&Pod> {
        let good = |name: &ObjectName| self.pods.get(name)?.good.as_ref();
        endpoint.pod.as_ref().and_then(good).or_else(|| {
            self.relations.pods.of(&endpoint.ip).find(|name| &*name.namespace == namespace).and_then(good)
        })
    }

    pub(crate) fn object_ref(&self, kind: Kind, name: &ObjectName) -> ObjectRef {
        let source = match kind {
            Kind::Service => self.services.get(name).and_then(|e| e.source.clone()),
            Kind::EndpointSlice => self.slices.get(name).and_then(|e| e.source.clone()),
            Kind::Pod => self.pods.get(name).and_then(|e| e.source.clone()),
            Kind::VirtualService => self.virtual_services.get(name).and_then(|e| e.source.clone()),
            Kind::DestinationRule => self.rules.get(name).and_then(|e| e.source.clone()),
        };
        ObjectRef::new(&ObjectKey { kind, name: name.clone() }, source)
    }
}
