//! Pods that take part: what follows where one of them, or a namespace, says something else than before.
//!
//! Invariant: a Pod whose workload could come out differently is dirty. One Pod costs one look-up; a namespace costs its
//! Pods; one that claims to be a static pod costs those that claim to be the same.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use slotmesh_xds::{ResourceName, Workload};

use super::Index;
use crate::{EnrolmentMode, Kind, ObjectKey, ObjectName, Unit, model::Candidate, relation::Relation};

/// Who may take part.
#[derive(Debug, Default)]
pub(crate) struct Enrolled {
    /// Namespaces that take part.
    namespaces: HashSet<Arc<str>>,
    /// Pods that take part if their namespace does, and nothing stands against it.
    candidates: BTreeSet<ObjectName>,
    /// The static pods that say to be one resource, since when; the oldest is it.
    claims: Relation<ResourceName, (i64, ObjectName)>,
}

impl Enrolled {
    /// A namespace takes part from now on, or no longer.
    fn namespace(&mut self, name: &str, takes_part: bool, dirty: &mut BTreeSet<Unit>) {
        let changed =
            if takes_part { self.namespaces.insert(name.into()) } else { self.namespaces.remove(name) };
        if changed {
            let pods = self.candidates.range(ObjectName::new(name, "")..);
            dirty.extend(pods.take_while(|pod| &*pod.namespace == name).cloned().map(Unit::Workload));
        }
    }

    /// A static pod says to be a resource, or does so no longer: others may be it from now on.
    fn claim(&mut self, pod: &ObjectName, candidate: &Candidate, holds: bool, dirty: &mut BTreeSet<Unit>) {
        let Some(since) = candidate.static_since else { return };
        let resource = candidate.resource_name();
        dirty.extend(self.claims.of(&resource).map(|(_, pod)| Unit::Workload(pod.clone())));
        if holds {
            self.claims.link(resource, (since, pod.clone()));
        } else {
            self.claims.unlink(&resource, &(since, pod.clone()));
        }
    }
}

impl Candidate {
    fn resource_name(&self) -> ResourceName {
        let (node, uid) = (self.node.to_string(), self.uid.to_string());
        Workload { node, uid, ..Workload::default() }.resource_name()
    }
}

impl Index {
    /// The Pod of a key, as one that could take part.
    pub(super) fn candidate_of(&self, key: &ObjectKey) -> Option<Candidate> {
        (key.kind == Kind::Pod).then(|| self.candidate(&key.name)).flatten().cloned()
    }

    fn candidate(&self, pod: &ObjectName) -> Option<&Candidate> {
        self.objects.pods.get(pod)?.candidate.as_deref()
    }

    /// After an object came, changed or went: what follows for the workloads. `before` is what the Pod of this key was.
    pub(super) fn enrol(&mut self, key: &ObjectKey, before: Option<&Candidate>, dirty: &mut BTreeSet<Unit>) {
        if key.kind == Kind::Namespace {
            let takes_part = self.objects.namespaces.get(&key.name).is_some_and(|held| held.takes_part);
            return self.enrolled.namespace(&key.name.name, takes_part, dirty);
        }
        let now = self.candidate_of(key);
        if before == now.as_ref() {
            return;
        }
        if let Some(before) = before {
            self.enrolled.claim(&key.name, before, false, dirty);
        }
        match &now {
            Some(now) => {
                self.enrolled.claim(&key.name, now, true, dirty);
                self.enrolled.candidates.insert(key.name.clone());
            }
            None => _ = self.enrolled.candidates.remove(&key.name),
        }
        dirty.insert(Unit::Workload(key.name.clone()));
    }

    /// The workloads of the Pods whose class as callers has changed.
    pub(crate) fn reclassify(&mut self, dirty: &mut BTreeSet<Unit>) {
        let changed = self.classes.take_changed();
        match &self.options.enrolment {
            EnrolmentMode::Nobody => {}
            EnrolmentMode::ByLabel => {
                let candidates = changed.into_iter().filter(|pod| self.enrolled.candidates.contains(pod));
                dirty.extend(candidates.map(Unit::Workload));
            }
            EnrolmentMode::Callers { .. } => dirty.extend(changed.into_iter().map(Unit::Workload)),
        }
    }

    /// The Pod as one that could take part, where its namespace does.
    pub(crate) fn enrolled(&self, pod: &ObjectName) -> Option<&Candidate> {
        self.candidate(pod).filter(|_| self.enrolled.namespaces.contains(&pod.namespace))
    }

    /// Tells whether an older static pod says to be the same resource.
    pub(crate) fn is_another(&self, pod: &ObjectName, candidate: &Candidate) -> bool {
        let oldest = |candidate: &Candidate| self.enrolled.claims.first(&candidate.resource_name());
        candidate.static_since.is_some() && oldest(candidate).is_some_and(|(_, oldest)| oldest != pod)
    }
}
