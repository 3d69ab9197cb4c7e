//! Callers that objects tell apart: by labels, from which the classes of Pods follow, and Sidecars.

use std::{collections::BTreeSet, sync::Arc};

use super::Index;
use crate::{
    Kind, ObjectKey, ObjectName, ServiceId, Unit,
    classes::Ask,
    model::{Caller, Class, Sidecar},
};

impl Index {
    /// The labels of callers that an object asks for, where it is in force.
    pub(super) fn asks_of(&self, key: &ObjectKey) -> BTreeSet<Ask> {
        if self.fits(key) { self.held_asks(key) } else { BTreeSet::new() }
    }

    /// The same, in force or not.
    pub(super) fn held_asks(&self, key: &ObjectKey) -> BTreeSet<Ask> {
        self.objects.model(key).map(|model| model.asks(&key.name)).unwrap_or_default()
    }

    /// After an object came, changed or went: what follows for the classes of Pods, and from these.
    pub(super) fn classify(&mut self, key: &ObjectKey, before: &BTreeSet<Ask>, dirty: &mut BTreeSet<Unit>) {
        let after = self.asks_of(key);
        let mut pods = BTreeSet::new();
        for ask in before.difference(&after) {
            if self.classes.unask(ask, key) {
                pods.extend(self.pods_with(ask));
            }
        }
        for ask in after.difference(before) {
            if self.classes.ask(ask.clone(), key.clone()) {
                pods.extend(self.pods_with(ask));
            }
        }
        if key.kind == Kind::Pod {
            pods.insert(key.name.clone());
        }
        let mut askers = BTreeSet::new();
        for pod in pods {
            let labels = self.objects.pods.get(&pod).map(|pod| &pod.labels);
            for class in self.classes.place(&pod, labels) {
                askers.extend(self.classes.askers(&class));
            }
        }
        for asker in askers {
            if let Some(model) = self.objects.model(&asker).filter(|_| self.fits(&asker)) {
                model.touch(&asker.name, &self.relations, dirty);
            }
        }
    }

    /// The Pods that may have these labels.
    fn pods_with(&self, ask: &Ask) -> BTreeSet<ObjectName> {
        let Some((key, value)) = ask.label() else { return BTreeSet::new() };
        let all = self.relations.populated.keys().filter(|_| ask.namespace.is_none());
        let namespaces = ask.namespace.iter().chain(all);
        let labels = namespaces.map(|namespace| (namespace.clone(), key.clone(), value.clone()));
        labels.flat_map(|label| self.relations.labelled.of(&label).cloned().collect::<Vec<_>>()).collect()
    }

    fn sidecar(&self, name: &ObjectName) -> Option<&Sidecar> {
        self.held_sidecar(name).filter(|_| self.has_room(Kind::Sidecar, name))
    }

    /// A Sidecar, in force or not.
    pub(super) fn held_sidecar(&self, name: &ObjectName) -> Option<&Sidecar> {
        self.objects.sidecars.get(name)
    }

    /// The Sidecar in force for a caller: of its namespace the oldest that chooses it, else the oldest for all; else the
    /// oldest for all of the root namespace.
    pub(crate) fn sidecar_of(&self, caller: Caller<'_>) -> Option<&Sidecar> {
        if self.relations.sidecars.is_empty() {
            return None;
        }
        let of = |namespace: &str| {
            let names = self.relations.sidecars.get(namespace).into_iter().flatten();
            names.filter_map(|(_, name)| self.sidecar(name))
        };
        let own = caller.namespace().and_then(|namespace| {
            let chosen =
                of(namespace).find(|one| one.callers.as_ref().is_some_and(|labels| caller.has(labels)));
            chosen.or_else(|| of(namespace).find(|one| one.callers.is_none()))
        });
        own.or_else(|| of(&self.options.root_namespace).find(|one| one.callers.is_none()))
    }

    /// The callers who may see something else of a Service than the rest.
    pub(crate) fn with_sidecars(&self, service: &ServiceId) -> (BTreeSet<Arc<str>>, BTreeSet<Arc<Class>>) {
        let (mut namespaces, mut classes) = (BTreeSet::new(), BTreeSet::new());
        for (namespace, sidecars) in &self.relations.sidecars {
            namespaces.insert(namespace.clone());
            if **namespace == *self.options.root_namespace {
                // To its own namespace's callers a Service may be another thing.
                namespaces.extend(self.provider(service).map(|provider| provider.name.namespace));
            }
            let chosen = sidecars.iter().filter_map(|(_, name)| self.sidecar(name)?.callers.as_ref());
            let with = chosen.flat_map(|labels| self.classes.with(labels));
            classes.extend(with.filter(|class| class.namespace == *namespace).cloned());
        }
        (namespaces, classes)
    }
}
