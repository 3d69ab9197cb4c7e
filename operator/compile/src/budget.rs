//! How much the ServiceEntries of a namespace may make together: the oldest first, until it is too much.
//!
//! Invariant: which entries fit follows from all that are there, not from the order in which they came.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use crate::{ObjectName, model::Age};

/// The place of an entry among those of its namespace.
type Rank = (Age, ObjectName);

#[derive(Debug, Default)]
struct Budget {
    costs: BTreeMap<Rank, usize>,
    total: usize,
    /// The first that doesn't fit; none after it does.
    cut: Option<Rank>,
}

/// The ServiceEntries of all namespaces, and which of them fit.
#[derive(Debug, Default)]
pub(crate) struct Budgets(HashMap<Arc<str>, Budget>);

impl Budgets {
    /// An entry goes, and another version of it comes. Returns the entries that fit now and didn't, or the reverse.
    pub(crate) fn replace(
        &mut self,
        limit: usize,
        name: &ObjectName,
        old: Option<Age>,
        new: Option<(Age, usize)>,
    ) -> Vec<ObjectName> {
        let budget = self.0.entry(name.namespace.clone()).or_default();
        let gone = old.and_then(|age| budget.costs.remove(&(age, name.clone())));
        budget.total -= gone.unwrap_or_default();
        if let Some((age, cost)) = new {
            budget.total += cost;
            budget.costs.insert((age, name.clone()), cost);
        }
        let after = budget.cut(limit);
        let before = std::mem::replace(&mut budget.cut, after);
        let changed = match (&before, &budget.cut) {
            (before, after) if before == after => Vec::new(),
            (before, after) => budget.between(before.as_ref(), after.as_ref()),
        };
        if budget.costs.is_empty() {
            self.0.remove(&name.namespace);
        }
        changed
    }

    /// Whether an entry is among those that fit.
    pub(crate) fn fits(&self, age: Age, name: &ObjectName) -> bool {
        let cut = self.0.get(&name.namespace).and_then(|budget| budget.cut.as_ref());
        cut.is_none_or(|(first_age, first)| (age, name) < (*first_age, first))
    }
}

impl Budget {
    fn cut(&self, limit: usize) -> Option<Rank> {
        if self.total <= limit {
            return None;
        }
        let mut sum = 0;
        let over = |(_, cost): &(&Rank, &usize)| {
            sum += **cost;
            sum > limit
        };
        self.costs.iter().find(over).map(|(rank, _)| rank.clone())
    }

    /// The entries from one cut up to the other, wherever these are.
    fn between(&self, one: Option<&Rank>, other: Option<&Rank>) -> Vec<ObjectName> {
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

    use super::*;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn since(seconds: i64) -> Age {
        Age::Since(Timestamp::from_second(seconds).unwrap())
    }

    #[test]
    fn the_oldest_fit_and_the_others_take_over() {
        let mut budgets = Budgets::default();
        let come = |budgets: &mut Budgets, of: &str, age, cost| {
            budgets.replace(10, &name(of), None, Some((since(age), cost)))
        };
        assert!(come(&mut budgets, "b", 2, 6).is_empty());
        assert_eq!(come(&mut budgets, "c", 3, 6), [name("c")]);
        assert!(come(&mut budgets, "d", 4, 1).is_empty(), "it is behind one that doesn't fit");
        let fit = |budgets: &Budgets| {
            [("a", 1), ("b", 2), ("c", 3), ("d", 4)].map(|(of, age)| budgets.fits(since(age), &name(of)))
        };
        assert_eq!(fit(&budgets), [true, true, false, false]);
        assert_eq!(come(&mut budgets, "a", 1, 5), [name("b")]);
        assert_eq!(fit(&budgets), [true, false, false, false]);
        assert_eq!(budgets.replace(10, &name("b"), Some(since(2)), None), []);
        assert_eq!(budgets.replace(10, &name("c"), Some(since(3)), Some((since(3), 5))), [name("c")]);
        assert_eq!(fit(&budgets), [true, true, true, false]);
        assert_eq!(budgets.replace(10, &name("a"), Some(since(1)), None), [name("d")]);
        // Another namespace is another matter.
        let other = ObjectName::new("other", "x");
        assert!(budgets.replace(10, &other, None, Some((since(9), 10))).is_empty());
        assert!(budgets.fits(since(9), &other));
        for (of, age) in [("c", 3), ("d", 4)] {
            budgets.replace(10, &name(of), Some(since(age)), None);
        }
        budgets.replace(10, &other, Some(since(9)), None);
        assert!(budgets.0.is_empty());
    }
}
