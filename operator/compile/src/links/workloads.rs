//! How endpoints and what stands behind them take part in the reverse indexes: by name, address and labels.

use std::collections::{BTreeMap, BTreeSet};

use super::{Model, Relations};
use crate::{
    Kind, ObjectName, Unit,
    model::{EndpointSlice, Pod, Workload},
    relation::Label,
};

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
