//! A reverse index: many-to-many pairs, looked up from the left.
//!
//! Invariant: no left key without a right one, so memory follows what is held.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    sync::Arc,
};

/// By what nodes are looked up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Selection {
    /// Every node.
    All,
    /// The node with this name.
    Name(String),
    /// Nodes with this label and value.
    Label(String, String),
}

/// A label of the workloads of a namespace: the namespace, key and value.
pub(crate) type Label = (Arc<str>, String, String);

/// Pairs of `L` and `R`, found by `L`, in the order of `R`.
#[derive(Debug)]
pub(crate) struct Relation<L, R>(HashMap<L, BTreeSet<R>>);

impl<L, R> Default for Relation<L, R> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<L: Hash + Eq, R: Ord> Relation<L, R> {
    pub(crate) fn link(&mut self, left: L, right: R) {
        self.0.entry(left).or_default().insert(right);
    }

    pub(crate) fn unlink(&mut self, left: &L, right: &R) {
        if let Some(rights) = self.0.get_mut(left) {
            rights.remove(right);
            if rights.is_empty() {
                self.0.remove(left);
            }
        }
    }

    pub(crate) fn of<'a>(
        &'a self,
        left: &L,
    ) -> impl DoubleEndedIterator<Item = &'a R> + Clone + use<'a, L, R> {
        self.0.get(left).into_iter().flatten()
    }

    /// Those from this right one on.
    pub(crate) fn of_from<'a>(&'a self, left: &L, first: &R) -> impl Iterator<Item = &'a R> + use<'a, L, R> {
        self.0.get(left).map(|rights| rights.range::<R, _>(first..)).into_iter().flatten()
    }

    /// Every right one; one that stands on the right of several comes several times.
    pub(crate) fn all(&self) -> impl Iterator<Item = &R> {
        self.0.values().flatten()
    }

    /// Every left one.
    pub(crate) fn lefts(&self) -> impl Iterator<Item = &L> {
        self.0.keys()
    }

    pub(crate) fn first(&self, left: &L) -> Option<&R> {
        self.0.get(left).and_then(BTreeSet::first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pair_takes_the_key_along() {
        let mut relation = Relation::default();
        relation.link("a", 2);
        relation.link("a", 1);
        assert_eq!(relation.of(&"a").copied().collect::<Vec<_>>(), [1, 2]);
        relation.unlink(&"a", &1);
        assert_eq!(relation.first(&"a"), Some(&2));
        relation.unlink(&"a", &2);
        relation.unlink(&"b", &2);
        assert!(relation.0.is_empty());
    }
}
