//! Classes of callers: which labels rules ask for, and which Pods have them.
//!
//! Invariant: a Pod stands here exactly when it has labels that some rule asks for; then its class is its namespace
//! with all of these. What comes or goes is found by look-ups: of a Pod by its labels, of labels by one of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    ObjectKey, ObjectName,
    model::{Class, Labels},
    relation::Relation,
};

/// Labels that a rule asks for, of callers of a namespace, or of all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ask {
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) labels: Labels,
}

impl Ask {
    /// The labels of callers of its own namespace that the object of this name asks for.
    pub(crate) fn of(object: &ObjectName, labels: Option<&Labels>) -> BTreeSet<Self> {
        let namespace = Some(object.namespace.clone());
        labels.map(|labels| Self { namespace, labels: labels.clone() }).into_iter().collect()
    }
}

/// The classes of all Pods.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    /// Labels that are asked for -> by whom.
    asked: BTreeMap<Ask, BTreeSet<ObjectKey>>,
    /// One label of what is asked for -> that.
    by_label: Relation<(String, String), Ask>,
    /// The Pods that have such labels.
    pods: HashMap<ObjectName, Arc<Class>>,
    /// Their classes, and how many Pods each has.
    sizes: BTreeMap<Arc<Class>, usize>,
    /// Labels -> the classes that have them.
    with: Relation<Labels, Arc<Class>>,
    /// The Pods whose class has changed.
    changed: BTreeSet<ObjectName>,
}

impl Classes {
    /// Somebody asks for labels; returns whether nobody did before.
    pub(crate) fn ask(&mut self, ask: Ask, by: ObjectKey) -> bool {
        let Some(label) = ask.label() else { return false };
        let by_whom = self.asked.entry(ask.clone()).or_default();
        let new = by_whom.is_empty();
        by_whom.insert(by);
        if new {
            self.by_label.link(label, ask);
        }
        new
    }

    /// Somebody doesn't ask for labels any more; returns whether nobody does.
    pub(crate) fn unask(&mut self, ask: &Ask, by: &ObjectKey) -> bool {
        let Some(by_whom) = self.asked.get_mut(ask) else { return false };
        by_whom.remove(by);
        let gone = by_whom.is_empty();
        if gone {
            self.asked.remove(ask);
            if let Some(label) = ask.label() {
                self.by_label.unlink(&label, ask);
            }
        }
        gone
    }

    /// Who asks for these labels of callers of this namespace.
    pub(crate) fn askers(&self, class: &Class) -> BTreeSet<ObjectKey> {
        let asks = class.labels.iter().flat_map(|labels| {
            [None, Some(&class.namespace)]
                .map(|namespace| Ask { namespace: namespace.cloned(), labels: Arc::clone(labels) })
        });
        asks.filter_map(|ask| self.asked.get(&ask)).flatten().cloned().collect()
    }

    /// Notes what labels a Pod has, if there is one; returns the classes that have come or gone with that.
    pub(crate) fn place(
        &mut self,
        pod: &ObjectName,
        labels: Option<&BTreeMap<String, String>>,
    ) -> Vec<Arc<Class>> {
        if self.asked.is_empty() && self.pods.is_empty() {
            return Vec::new();
        }
        let new = labels.and_then(|labels| self.class(&pod.namespace, labels)).map(Arc::new);
        if self.pods.get(pod) == new.as_ref() {
            return Vec::new();
        }
        self.changed.insert(pod.clone());
        let mut moved = Vec::new();
        if let Some(new) = &new {
            let size = self.sizes.entry(Arc::clone(new)).or_default();
            *size += 1;
            if *size == 1 {
                new.labels.iter().for_each(|labels| self.with.link(Arc::clone(labels), Arc::clone(new)));
                moved.push(Arc::clone(new));
            }
        }
        let old = match new {
            Some(new) => self.pods.insert(pod.clone(), new),
            None => self.pods.remove(pod),
        };
        if let Some(old) = old {
            let size = self.sizes.entry(Arc::clone(&old)).or_default();
            *size = size.saturating_sub(1);
            if *size == 0 {
                self.sizes.remove(&old);
                old.labels.iter().for_each(|labels| self.with.unlink(labels, &old));
                moved.push(old);
            }
        }
        moved
    }

    /// The class of callers with these labels; `None` where nobody asks for any of them.
    fn class(&self, namespace: &Arc<str>, labels: &BTreeMap<String, String>) -> Option<Class> {
        let asks = labels.iter().flat_map(|(key, value)| self.by_label.of(&(key.clone(), value.clone())));
        let has = |ask: &&Ask| {
            ask.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
                && ask.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let labels: BTreeSet<Labels> = asks.filter(has).map(|ask| Arc::clone(&ask.labels)).collect();
        (!labels.is_empty()).then(|| Class { namespace: Arc::clone(namespace), labels })
    }

    /// The classes that have these labels.
    pub(crate) fn with(&self, labels: &Labels) -> impl Iterator<Item = &Arc<Class>> {
        self.with.of(labels)
    }

    /// The class of a Pod.
    pub(crate) fn of(&self, pod: &ObjectName) -> String {
        self.pods
            .get(pod)
            .map_or_else(|| Class::of(Arc::clone(&pod.namespace)).to_string(), |class| class.to_string())
    }

    /// The Pods whose class has changed since the last call.
    pub(crate) fn take_changed(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.changed)
    }
}

impl Ask {
    /// One label of those that are asked for.
    pub(crate) fn label(&self) -> Option<(String, String)> {
        self.labels.first_key_value().map(|(key, value)| (key.clone(), value.clone()))
    }
}
