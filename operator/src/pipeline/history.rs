//! Changes of the last time, remembered for people: which objects were changed, and what was compiled anew because of that.
//!
//! Invariant: bounded, whatever comes: [`CHANGES`] changes, and of each the first [`NAMES`] objects and resources. An
//! event costs the copy of its object's name.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use slotmesh_compile::{Kind, ObjectKey, Source};
use slotmesh_xds::{Change, ResourceName, ResourceType, Version};

use super::stage::{Batch, Stage};
use crate::watch::{Sourced, Step};

/// Number of changes that are remembered.
const CHANGES: usize = 512;
/// Number of objects, and of resources, that are named of a change.
const NAMES: usize = 32;

/// Objects that were changed, and what was published because of that.
#[derive(Clone, Debug)]
pub struct ChangeRecord {
    /// When it was published.
    pub at: SystemTime,
    /// The objects, in the order of their events.
    pub objects: Vec<ChangedObject>,
    /// The resources that are other ones since.
    pub resources: Vec<ChangedResource>,
    /// Number of objects and resources beyond these.
    pub more: usize,
}

/// An object that was changed.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangedObject {
    /// The object.
    pub key: ObjectKey,
    /// True where it has gone.
    pub deleted: bool,
    /// Its resource version, in a cluster.
    pub resource_version: Option<String>,
    /// Where it was read, when from a file.
    pub source: Option<Source>,
}

/// A resource that is another one; without a version it has gone.
pub type ChangedResource = (ResourceType, ResourceName, Option<Version>);

/// Changes that were remembered. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    changes: VecDeque<ChangeRecord>,
    /// Of objects but Pods, whose number is another one and whose versions change without a meaning for routes.
    versions: HashMap<ObjectKey, String>,
}

impl History {
    /// All of them, oldest first.
    pub fn list(&self) -> Vec<ChangeRecord> {
        self.lock().changes.iter().cloned().collect()
    }

    /// The resource version in which an object is compiled; `None` of Pods, and where it has none.
    pub fn resource_version(&self, object: &ObjectKey) -> Option<String> {
        self.lock().versions.get(object).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first resources of a batch, and how many there are beyond these.
pub(super) fn named(changes: &[Change]) -> (Vec<ChangedResource>, usize) {
    let named = |change: &Change| match change {
        Change::Upsert(resource) => (resource.ty, resource.name.clone(), Some(resource.version)),
        Change::Remove(ty, name) => (*ty, name.clone(), None),
    };
    (changes.iter().take(NAMES).map(named).collect(), changes.len().saturating_sub(NAMES))
}

/// Remembers what comes by.
#[derive(Debug)]
pub(super) struct HistoryStage {
    history: History,
    /// Objects of the batch that is under way.
    objects: Vec<ChangedObject>,
    more: usize,
    versions: Vec<(ObjectKey, Option<String>)>,
}

impl HistoryStage {
    pub(super) fn new(history: History) -> Self {
        Self { history, objects: Vec::new(), more: 0, versions: Vec::new() }
    }

    /// Remembers the batch; where nothing came of it, only the versions of its objects.
    fn record(&mut self, changes: &[ChangedResource], more: usize) {
        let (objects, more) = (mem::take(&mut self.objects), mem::take(&mut self.more) + more);
        let mut memory = self.history.lock();
        for (key, version) in self.versions.drain(..) {
            match version {
                Some(version) => memory.versions.insert(key, version),
                None => memory.versions.remove(&key),
            };
        }
        if changes.is_empty() {
            return;
        }
        if memory.changes.len() == CHANGES {
            memory.changes.pop_front();
        }
        let resources = changes.to_vec();
        memory.changes.push_back(ChangeRecord { at: SystemTime::now(), objects, resources, more });
    }
}

impl Stage for HistoryStage {
    fn observe(&mut self, step: &Step) {
        let changed = match step {
            Step::Apply(Sourced { object, source }) => ChangedObject {
                key: object.key(),
                deleted: false,
                resource_version: object.meta().resource_version.clone(),
                source: source.clone(),
            },
            Step::Delete(key) => {
                ChangedObject { key: key.clone(), deleted: true, resource_version: None, source: None }
            }
        };
        if changed.key.kind != Kind::Pod {
            self.versions.push((changed.key.clone(), changed.resource_version.clone()));
        }
        match self.objects.iter().position(|known| known.key == changed.key) {
            Some(place) => self.objects[place] = changed,
            None if self.objects.len() < NAMES => self.objects.push(changed),
            None => self.more += 1,
        }
    }

    fn published(&mut self, batch: &Batch<'_>) {
        self.record(batch.changes, batch.more);
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_builders::service;
    use slotmesh_compile::ObjectName;

    use super::*;

    fn applied(port: i32) -> Step {
        Step::Apply(Sourced { object: service("web").port(port).build(), source: None })
    }

    fn removal(name: &str) -> Change {
        Change::Remove(ResourceType::Cluster, name.into())
    }

    #[test]
    fn what_was_changed_is_remembered_once_with_what_came_of_it() {
        let history = History::default();
        let mut stage = HistoryStage::new(history.clone());
        stage.observe(&applied(80));
        stage.observe(&applied(81));
        stage.observe(&Step::Delete(ObjectKey { kind: Kind::Pod, name: ObjectName::new("shop", "web-0") }));
        let (changes, more) = named(&[removal("a")]);
        stage.record(&changes, more);
        // Nothing came of it.
        stage.observe(&applied(82));
        stage.record(&[], 0);
        let all = history.list();
        assert_eq!(all.len(), 1);
        let objects: Vec<_> = all[0].objects.iter().map(|one| (one.key.kind, one.deleted)).collect();
        assert_eq!(objects, [(Kind::Service, false), (Kind::Pod, true)]);
        assert_eq!(all[0].resources, [(ResourceType::Cluster, "a".into(), None)]);
    }

    #[test]
    fn it_is_bounded() {
        let history = History::default();
        let mut stage = HistoryStage::new(history.clone());
        for number in 0..=CHANGES {
            for name in 0..=NAMES {
                let name = ObjectName::new("shop", format!("web-{name}").as_str());
                stage.observe(&Step::Delete(ObjectKey { kind: Kind::Service, name }));
            }
            let (changes, more) = named(&vec![removal(&number.to_string()); NAMES + 1]);
            stage.record(&changes, more);
        }
        let all = history.list();
        let first = &all[0];
        assert_eq!(
            (all.len(), first.objects.len(), first.resources.len(), first.more),
            (CHANGES, NAMES, NAMES, 2)
        );
        assert_eq!(first.resources[0].1.as_str(), "1", "the oldest goes");
    }
}
