//! How routes and DestinationRules take part in the reverse indexes: whose connections they are for, and where they
//! lead.

use std::collections::BTreeSet;

use super::{Model, Ranked, Relations};
use crate::{
    Kind, ObjectKey, ObjectName, ServiceId, Unit,
    classes::Ask,
    model::{DestinationRule, Routes},
    patterns::{HostPattern, Suffix},
};

impl Routes {
    /// How the object with these routes stands among those for a Service.
    fn ranked(&self, key: &ObjectName) -> Ranked {
        let key = ObjectKey { kind: self.kind, name: key.clone() };
        Ranked { kind: self.kind, age: self.age, key }
    }
}

impl Routes {
    /// The hosts whose connections it routes.
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
