//! How much the objects of a kind and namespace may make together on every node: the oldest first, until it is too much.
//!
//! Invariant: which objects fit follows from all that are there, not from the order in which they came. A change costs
//! the objects that come to fit by it, or cease to.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use crate::{Kind, ObjectKey, ObjectName, model::Age};

/// The place of an object among those of its kind and namespace.
type Rank = (Age, ObjectName);

/// The most that objects may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// One of them.
    pub(crate) object: usize,
    /// All of a kind and namespace.
    pub(crate) namespace: usize,
}

/// The bound that an object is beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beyond {
    /// It makes too much by itself.
    Object,
    /// Older ones make too much along with it.
    Namespace,
}

/// The objects of a kind and namespace.
#[derive(Debug, Default)]
struct Budget {
    costs: BTreeMap<Rank, usize>,
    /// The first that doesn't fit; none after it does.
    cut: Option<Rank>,
    /// The sum of those before it.
    used: usize,
}

/// The objects of all kinds and namespaces, and which of them fit.
#[derive(Debug, Default)]
pub(crate) struct Budgets {
    budgets: HashMap<(Kind, Arc<str>), Budget>,
    /// Age and cost of each object.
    costs: HashMap<ObjectKey, (Age, usize)>,
    /// Those that make too much by themselves. They take nothing from others.
    beyond: HashSet<ObjectKey>,
    /// The number of budgets with objects that don't fit.
    exceeded: usize,
}

impl Budgets {
    /// An object comes, changes or goes (`None`). Returns the objects that fit now and didn't, or the reverse; one that is
    /// not there fits.
    pub(crate) fn replace(
        &mut self,
        limits: Limits,
        key: &ObjectKey,
        new: Option<(Age, usize)>,
    ) -> Vec<ObjectKey> {
        if self.costs.get(key).copied() == new {
            return Vec::new();
        }
        let did_fit = self.fits(key);
        let old = match new {
            Some(new) => self.costs.insert(key.clone(), new),
            None => self.costs.remove(key),
        };
        let was_beyond = self.beyond.remove(key);
        let is_beyond = new.is_some_and(|(_, cost)| cost > limits.object);
        if is_beyond {
            self.beyond.insert(key.clone());
        }
        let place = (key.kind, Arc::clone(&key.name.namespace));
        let budget = self.budgets.entry(place.clone()).or_default();
        let before = budget.cut.clone();
        if let Some((age, _)) = old.filter(|_| !was_beyond) {
            budget.remove(&(age, key.name.clone()));
        }
        if let Some((age, cost)) = new.filter(|_| !is_beyond) {
            budget.insert((age, key.name.clone()), cost);
        }
        budget.settle(limits.namespace);
        self.exceeded -= usize::from(before.is_some());
        self.exceeded += usize::from(budget.cut.is_some());
        let moved = budget.between(before.as_ref(), budget.cut.as_ref());
        let others = moved.into_iter().filter(|name| *name != key.name);
        let mut changed: Vec<_> = others.map(|name| ObjectKey { kind: key.kind, name }).collect();
        if budget.costs.is_empty() {
            self.budgets.remove(&place);
        }
        if self.fits(key) != did_fit {
            changed.push(key.clone());
        }
        changed
    }

    /// Tells whether no object is beyond any bound, as it should be.
    pub(crate) fn all_fit(&self) -> bool {
        self.exceeded == 0 && self.beyond.is_empty()
    }

    /// Tells whether an object isn't beyond any bound.
    pub(crate) fn fits(&self, key: &ObjectKey) -> bool {
        self.beyond(key).is_none()
    }

    /// The bound that an object is beyond, if it is beyond one.
    pub(crate) fn beyond(&self, key: &ObjectKey) -> Option<Beyond> {
        if self.all_fit() {
            return None;
        }
        let (age, _) = self.costs.get(key)?;
        if self.beyond.contains(key) {
            return Some(Beyond::Object);
        }
        let budget = self.budgets.get(&(key.kind, Arc::clone(&key.name.namespace)))?;
        let (first_age, first) = budget.cut.as_ref()?;
        ((age, &key.name) >= (first_age, first)).then_some(Beyond::Namespace)
    }
}

impl Budget {
    fn is_used(&self, rank: &Rank) -> bool {
        self.cut.as_ref().is_none_or(|cut| rank < cut)
    }

    fn insert(&mut self, rank: Rank, cost: usize) {
        if self.is_used(&rank) {
            self.used = self.used.saturating_add(cost);
        }
        self.costs.insert(rank, cost);
    }

    fn remove(&mut self, rank: &Rank) {
        if let Some(cost) = self.costs.remove(rank)
            && self.is_used(rank)
        {
            self.used -= cost;
        }
    }

    /// Moves the cut to where it belongs.
    fn settle(&mut self, limit: usize) {
        while self.used > limit {
            let end = self.cut.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let Some((rank, cost)) = self.costs.range((Bound::Unbounded, end)).next_back() else { return };
            self.used -= cost;
            self.cut = Some(rank.clone());
        }
        while let Some(cut) = self.cut.take() {
            let mut rest = self.costs.range(cut..);
            let Some((rank, cost)) = rest.next() else { return };
            if self.used + cost > limit {
                self.cut = Some(rank.clone());
                return;
            }
            self.used += cost;
            self.cut = rest.next().map(|(rank, _)| rank.clone());
        }
    }

    /// The objects from one cut up to the other, wherever these are.
    fn between(&self, one: Option<&Rank>, other: Option<&Rank>) -> Vec<ObjectName> {
        if one == other {
            return Vec::new();
        }
        let first = [one, other].into_iter().flatten().min();
        let last = one.zip(other).map(|(one, other)| one.max(other));
        let Some(first) = first else { return Vec::new() };
        let end = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.costs.range((Bound::Included(first), end)).map(|((_, name), _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { object: 9, namespace: 10 };

    fn key(namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { kind: Kind::ServiceEntry, name: ObjectName::new(namespace, name) }
    }

    fn since(seconds: i64) -> Age {
        Age::Since(Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn the_oldest_fit_and_the_others_take_over() {
        let mut budgets = Budgets::default();
        let come = |budgets: &mut Budgets, of: &str, age, cost| {
            let moved = budgets.replace(LIMITS, &key("shop", of), Some((since(age), cost)));
            moved.iter().map(|key| key.name.name.to_string()).collect::<Vec<_>>()
        };
        let fit = |budgets: &Budgets| ["a", "b", "c", "d"].map(|of| budgets.fits(&key("shop", of)));
        assert!(come(&mut budgets, "b", 2, 6).is_empty());
        assert_eq!(come(&mut budgets, "c", 3, 6), ["c"]);
        assert_eq!(come(&mut budgets, "d", 4, 1), ["d"]);
        assert_eq!(fit(&budgets), [true, true, false, false], "d is behind one that doesn't fit");
        assert_eq!(come(&mut budgets, "a", 1, 5), ["b"]);
        assert_eq!(fit(&budgets), [true, false, false, false]);
        assert_eq!(budgets.replace(LIMITS, &key("shop", "b"), None), [key("shop", "b")]);
        assert_eq!(come(&mut budgets, "c", 3, 5), ["c"]);
        assert_eq!(fit(&budgets), [true, true, true, false]);
        assert_eq!(budgets.replace(LIMITS, &key("shop", "a"), None), [key("shop", "d")]);
        // One that makes too much by itself takes nothing from others, here or elsewhere.
        assert_eq!(come(&mut budgets, "a", 1, 10), ["a"]);
        assert_eq!(budgets.beyond(&key("shop", "a")), Some(Beyond::Object));
        assert_eq!(fit(&budgets), [false, true, true, true]);
        assert!(budgets.replace(LIMITS, &key("other", "x"), Some((since(9), 9))).is_empty());
        assert_eq!(budgets.beyond(&key("other", "x")), None);
        for of in [key("shop", "a"), key("shop", "c"), key("shop", "d"), key("other", "x")] {
            budgets.replace(LIMITS, &of, None);
        }
        assert!(budgets.budgets.is_empty() && budgets.costs.is_empty() && budgets.all_fit());
    }

    proptest! {
        #[test]
        fn any_history_ends_as_what_is_left_says(
            events in prop::collection::vec((0..6_usize, prop::option::of((0..3_i64, 1..12_usize))), 0..40),
        ) {
            let names = ["a", "b", "c", "d", "e", "f"];
            let mut budgets = Budgets::default();
            let mut left = BTreeMap::new();
            for (i, new) in events {
                let of = key("shop", names[i]);
                let new = new.map(|(age, cost)| (since(age), cost));
                let fit = |budgets: &Budgets| names.map(|name| budgets.fits(&key("shop", name)));
                let before = fit(&budgets);
                let moved = budgets.replace(LIMITS, &of, new);
                let after = fit(&budgets);
                for (n, name) in names.iter().enumerate() {
                    prop_assert_eq!(before[n] != after[n], moved.contains(&key("shop", name)), "{}", name);
                }
                match new {
                    Some(new) => drop(left.insert(i, new)),
                    None => drop(left.remove(&i)),
                }
            }
            let some_do_not = names.iter().any(|name| !budgets.fits(&key("shop", name)));
            prop_assert_eq!(budgets.all_fit(), !some_do_not);
            let mut ranked: Vec<_> = left.iter().map(|(i, (age, cost))| (*age, names[*i], *cost)).collect();
            ranked.sort_unstable();
            let mut sum = 0;
            for (_, name, cost) in ranked {
                sum += if cost > LIMITS.object { 0 } else { cost };
                let fits = cost <= LIMITS.object && sum <= LIMITS.namespace;
                prop_assert_eq!(budgets.fits(&key("shop", name)), fits, "{}", name);
            }
        }
    }
}
