//! What the agent wants, of each resource type, and how one wish becomes another.

use std::collections::BTreeSet;

use slotmesh_xds::{PerType, ResourceName};

const WILDCARD: &str = "*";

/// What the agent wants of one resource type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscription {
    /// All that the control plane has for this node.
    Wildcard,
    /// These names; with none, the type isn't requested at all.
    Names(BTreeSet<ResourceName>),
}

impl Default for Subscription {
    fn default() -> Self {
        Self::Names(BTreeSet::new())
    }
}

impl<N: Into<ResourceName>> FromIterator<N> for Subscription {
    fn from_iter<I: IntoIterator<Item = N>>(names: I) -> Self {
        Self::Names(names.into_iter().map(Into::into).collect())
    }
}

impl Subscription {
    /// Whether this resource is wanted.
    pub fn covers(&self, name: &ResourceName) -> bool {
        match self {
            Self::Wildcard => true,
            Self::Names(names) => names.contains(name),
        }
    }

    /// Nothing is wanted.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }

    /// The names to put into a request so that `before` becomes `self`: to subscribe to, and to
    /// unsubscribe from.
    pub(crate) fn difference(&self, before: &Self) -> (Vec<String>, Vec<String>) {
        (self.beyond(before), before.beyond(self))
    }

    /// What `self` names and `other` doesn't.
    fn beyond(&self, other: &Self) -> Vec<String> {
        match (self, other) {
            (Self::Wildcard, Self::Wildcard) => Vec::new(),
            (Self::Wildcard, Self::Names(_)) => vec![WILDCARD.to_owned()],
            (Self::Names(names), Self::Wildcard) => names.iter().map(ToString::to_string).collect(),
            (Self::Names(names), Self::Names(others)) => {
                names.difference(others).map(ToString::to_string).collect()
            }
        }
    }

    /// Something that `before` covered may not be covered any more.
    pub(crate) fn narrower_than(&self, before: &Self) -> bool {
        match (self, before) {
            (Self::Wildcard, _) => false,
            (Self::Names(_), Self::Wildcard) => true,
            (Self::Names(names), Self::Names(before)) => !before.is_subset(names),
        }
    }
}

/// What the agent wants, by resource type.
pub(crate) type Subscriptions = PerType<Subscription>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_says_what_to_subscribe_and_unsubscribe() {
        let names = |names: &[&str]| names.iter().copied().collect::<Subscription>();
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for (before, after, subscribe, unsubscribe, narrower) in [
            (names(&[]), names(&["a"]), texts(&["a"]), texts(&[]), false),
            (names(&["a", "b"]), names(&["b", "c"]), texts(&["c"]), texts(&["a"]), true),
            (Subscription::Wildcard, names(&["a"]), texts(&["a"]), texts(&["*"]), true),
            (names(&["a"]), Subscription::Wildcard, texts(&["*"]), texts(&["a"]), false),
            (Subscription::Wildcard, Subscription::Wildcard, texts(&[]), texts(&[]), false),
        ] {
            assert_eq!(after.difference(&before), (subscribe, unsubscribe), "{before:?} to {after:?}");
            assert_eq!(after.narrower_than(&before), narrower, "{before:?} to {after:?}");
        }
    }
}
