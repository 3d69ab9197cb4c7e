//! The callers who need a listener.
//!
//! Whoever doesn't see what a listener is for is left alone there, as if it weren't there. So where nobody on a node
//! sees it, the node needn't have it.

use std::{collections::BTreeMap, sync::Arc};

/// The callers who need a listener, by namespace and class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audience {
    /// Tells whether all those need it that aren't told apart.
    pub everybody: bool,
    /// The namespaces and classes of whom the other is so. What is said of a class goes before what is said of its
    /// namespace.
    pub apart: BTreeMap<Arc<str>, bool>,
}

impl Audience {
    /// Tells whether callers of a class need it; the class of those without labels is their namespace.
    pub fn needs(&self, class: &str) -> bool {
        let of = |name: &str| self.apart.get(name).copied();
        let of_namespace = || class.split_once('#').and_then(|(namespace, _)| of(namespace));
        of(class).or_else(of_namespace).unwrap_or(self.everybody)
    }

    /// Notes whether callers of a class need it.
    pub(crate) fn note(&mut self, class: String, needs: bool) {
        if self.needs(&class) != needs {
            self.apart.insert(class.into(), needs);
        }
    }

    /// Tells whether all callers need it.
    pub(crate) fn is_all(&self) -> bool {
        self.everybody && self.apart.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_goes_before_its_namespace() {
        let mut audience = Audience { everybody: true, ..Audience::default() };
        assert!(audience.is_all());
        for (class, needs) in [("a", false), ("a#1", true), ("a#2", false), ("b", true)] {
            audience.note(class.to_owned(), needs);
        }
        assert_eq!(audience.apart.len(), 2, "what is so without it isn't noted");
        for (class, needs) in [("a", false), ("a#1", true), ("a#2", false), ("a#3", false), ("b#1", true)] {
            assert_eq!(audience.needs(class), needs, "{class}");
        }
    }
}
