//! Subscriptions of an agent to one resource type.
//!
//! The rules are those of the incremental xDS protocol: names and the wildcard `*` are independent
//! of each other, and a first request that names nothing is a wildcard (the legacy form).

use std::collections::HashSet;

use slotmesh_xds::ResourceName;

/// A name stands for a few hundred bytes here; a peer that sends names without end is cut off.
const MAX_NAMES: usize = 1 << 18;

const WILDCARD: &str = "*";

/// The agent asked for more names than the server is ready to remember.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooManyNames {
    pub(crate) limit: usize,
}

/// The names and the wildcard that an agent is subscribed to.
#[derive(Debug, Default)]
pub(crate) struct Subscription {
    wildcard: bool,
    names: HashSet<ResourceName>,
}

/// Names that a request asks for, and names that it gives up.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The wildcard is new.
    pub(crate) wildcard: bool,
    /// The request wants an answer even if nothing is to be sent.
    pub(crate) answer: bool,
    /// Names whose state the agent wants to be told, whatever it holds: those that it subscribes to,
    /// and those that it unsubscribes from while the wildcard may still cover them.
    pub(crate) names: Vec<ResourceName>,
    /// Something that was covered before may not be covered any more.
    pub(crate) narrowed: bool,
}

impl Subscription {
    /// Tells whether the agent wants to hear of this resource.
    pub(crate) fn covers(&self, name: &ResourceName) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// Takes in the subscription part of a request. `first` is the first request of the type on the
    /// stream.
    pub(crate) fn update(
        &mut self,
        first: bool,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
    ) -> Result<Asked, TooManyNames> {
        let mut asked = Asked { answer: first || !subscribe.is_empty(), ..Asked::default() };
        let legacy_wildcard = first && subscribe.is_empty();
        for name in unsubscribe {
            if name == WILDCARD {
                asked.narrowed |= self.wildcard;
                self.wildcard = false;
            } else {
                let name = ResourceName::from(name);
                if self.names.remove(&name) {
                    asked.narrowed = true;
                    asked.names.push(name);
                }
            }
        }
        // Only what the wildcard still covers needs an answer; the agent drops the rest by itself.
        if !self.wildcard {
            asked.names.clear();
        }
        for name in subscribe {
            if name == WILDCARD {
                asked.wildcard |= !self.wildcard;
                self.wildcard = true;
            } else {
                let name = ResourceName::from(name);
                if self.names.len() >= MAX_NAMES && !self.names.contains(&name) {
                    return Err(TooManyNames { limit: MAX_NAMES });
                }
                self.names.insert(name.clone());
                asked.names.push(name);
            }
        }
        if legacy_wildcard {
            asked.wildcard = true;
            self.wildcard = true;
        }
        Ok(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn names(asked: &Asked) -> Vec<&str> {
        asked.names.iter().map(ResourceName::as_str).collect()
    }

    #[test]
    fn a_first_request_without_names_is_a_wildcard_and_a_later_one_is_not() {
        let mut legacy = Subscription::default();
        assert!(legacy.update(true, vec![], vec![]).unwrap().wildcard);
        assert!(legacy.covers(&"anything".into()));
        let later = legacy.update(false, vec![], vec![]).unwrap();
        assert_eq!(later, Asked::default());

        let mut named = Subscription::default();
        named.update(true, texts(&["a"]), vec![]).unwrap();
        named.update(false, vec![], texts(&["a"])).unwrap();
        assert!(!named.covers(&"a".into()) && !named.covers(&"b".into()));
    }

    #[test]
    fn names_and_wildcard_are_independent() {
        let mut subscription = Subscription::default();
        subscription.update(true, texts(&["*", "a"]), vec![]).unwrap();
        let asked = subscription.update(false, vec![], texts(&["*"])).unwrap();
        assert!(asked.narrowed && asked.names.is_empty());
        assert!(subscription.covers(&"a".into()) && !subscription.covers(&"b".into()));
    }

    #[test]
    fn leaving_a_name_that_the_wildcard_covers_asks_for_its_state() {
        let mut subscription = Subscription::default();
        subscription.update(true, texts(&["*", "a"]), vec![]).unwrap();
        let asked = subscription.update(false, vec![], texts(&["a", "never"])).unwrap();
        assert_eq!(names(&asked), ["a"]);
        assert!(subscription.covers(&"a".into()));
    }

    #[test]
    fn subscribing_again_asks_again() {
        let mut subscription = Subscription::default();
        subscription.update(true, texts(&["a"]), vec![]).unwrap();
        assert_eq!(names(&subscription.update(false, texts(&["a"]), vec![]).unwrap()), ["a"]);
        let both = subscription.update(false, texts(&["a"]), texts(&["a"])).unwrap();
        assert_eq!(names(&both), ["a"]);
        assert!(subscription.covers(&"a".into()));
    }

    #[test]
    fn the_number_of_names_is_bounded() {
        let mut subscription = Subscription::default();
        let many = (0..=MAX_NAMES).map(|n| n.to_string()).collect();
        assert_eq!(subscription.update(true, many, vec![]), Err(TooManyNames { limit: MAX_NAMES }));
    }
}
