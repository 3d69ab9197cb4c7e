//! How grants, policies, Sidecars, nodes and SlotProfiles take part in the reverse indexes.

use std::{collections::BTreeSet, sync::Arc};

use super::{Model, Relations};
use crate::{
    Cidr, Kind, ObjectKey, ObjectName, Unit,
    classes::Ask,
    model::{Node, Place, ReferenceGrant, ServiceRanges, Sidecar, SlotProfile, Target, TrafficPolicy},
    patterns::{HostPattern, Suffix},
};

impl Model for ReferenceGrant {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        to.grants.link(key.namespace.clone(), key.clone());
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        from.grants.unlink(&key.namespace, key);
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        let routed = relations.crossing.of(&key.namespace).map(|(routed, _)| routed);
        routed.for_each(|routed| relations.touch_routing(routed, dirty));
    }
}

fn policy_key(name: &ObjectName) -> ObjectKey {
    ObjectKey { kind: Kind::TrafficPolicy, name: name.clone() }
}

impl Model for TrafficPolicy {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        for target in &self.targets {
            to.policies.link(target.service.clone(), (self.age, key.clone()));
            if self.traffic.localities.is_some() {
                to.located.link(HostPattern::One(target.service.clone()), policy_key(key));
            }
        }
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        for target in &self.targets {
            from.policies.unlink(&target.service, &(self.age, key.clone()));
            from.located.unlink(&HostPattern::One(target.service.clone()), &policy_key(key));
        }
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        for Target { service, .. } in &self.targets {
            dirty.insert(Unit::Clusters(service.clone()));
            // Where none of those for it says anything of localities, endpoints are what they are.
            if relations.located.first(&HostPattern::One(service.clone())).is_some() {
                dirty.insert(Unit::Endpoints(service.clone()));
            }
        }
    }
}

impl Model for Sidecar {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        to.sidecars.entry(key.namespace.clone()).or_default().insert((self.age, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        if let Some(sidecars) = from.sidecars.get_mut(&key.namespace) {
            sidecars.remove(&(self.age, key.clone()));
            if sidecars.is_empty() {
                from.sidecars.remove(&key.namespace);
            }
        }
    }

    /// Marks all Services: what somebody sees of any may be something else.
    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        relations.touch_routing(&HostPattern::Under(Suffix(Arc::from(""))), dirty);
    }

    fn asks(&self, key: &ObjectName) -> BTreeSet<Ask> {
        Ask::of(key, self.callers.as_ref())
    }

    /// Of all hosts, where it takes some from sight.
    fn wildcards(&self) -> BTreeSet<Suffix> {
        self.named().map(|_| Suffix(Arc::from(""))).into_iter().collect()
    }
}

impl Model for Node {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.selections(key).for_each(|selection| to.nodes.link(selection, key.clone()));
        self.addresses.iter().for_each(|ip| to.node_addresses.link(*ip, key.clone()));
        self.pod_ranges.iter().for_each(|range| to.pod_ranges.link(*range, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.selections(key).for_each(|selection| from.nodes.unlink(&selection, key));
        self.addresses.iter().for_each(|ip| from.node_addresses.unlink(ip, key));
        self.pod_ranges.iter().for_each(|range| from.pod_ranges.unlink(range, key));
    }

    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Settings(key.clone()));
        if self.place() != Place::default() {
            // Endpoints on it are where it is.
            let located = relations.located.lefts().flat_map(|pattern| relations.services(pattern));
            dirty.extend(located.map(Unit::Endpoints));
        }
        if relations.node_ports > 0 {
            dirty.insert(Unit::Node(key.clone()));
            // The first of those that have an address has it.
            let others = self.addresses.iter().flat_map(|ip| relations.node_addresses.of(ip));
            dirty.extend(others.cloned().map(Unit::Node));
        }
        for (first, last) in
            self.addresses.iter().map(|ip| (*ip, *ip)).chain(self.pod_ranges.iter().map(Cidr::ends))
        {
            relations.touch_entries_at(first, last, dirty);
        }
        for selection in self.selections(key) {
            let profiles = relations.profiles.of(&selection);
            dirty.extend(profiles.map(|(_, profile)| Unit::Profile(profile.clone())));
        }
    }
}

impl Model for ServiceRanges {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        self.0.iter().for_each(|range| to.service_ranges.link(*range, key.clone()));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        self.0.iter().for_each(|range| from.service_ranges.unlink(range, key));
    }

    fn touch(&self, _: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        for (first, last) in self.0.iter().map(Cidr::ends) {
            relations.touch_entries_at(first, last, dirty);
        }
    }
}

impl Model for SlotProfile {
    fn link(&self, key: &ObjectName, to: &mut Relations) {
        let selections = self.selections().into_iter();
        selections.for_each(|selection| to.profiles.link(selection, (self.age, key.clone())));
    }

    fn unlink(&self, key: &ObjectName, from: &mut Relations) {
        let selections = self.selections().into_iter();
        selections.for_each(|selection| from.profiles.unlink(&selection, &(self.age, key.clone())));
    }

    /// A node that this profile selects may have been, or become, another's. Which others select it
    /// isn't looked up: there are few profiles.
    fn touch(&self, key: &ObjectName, relations: &Relations, dirty: &mut BTreeSet<Unit>) {
        dirty.insert(Unit::Profile(key.clone()));
        for selection in self.selections() {
            dirty.extend(relations.nodes.of(&selection).map(|node| Unit::Settings(node.clone())));
        }
        dirty.extend(relations.profiles.all().map(|(_, profile)| Unit::Profile(profile.clone())));
    }
}
