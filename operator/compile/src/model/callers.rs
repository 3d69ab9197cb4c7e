//! Who connects, as far as rules tell callers apart: by their namespace, and by the labels that some rule asks for.
//!
//! ```text
//!  Pod (namespace, labels) --labels that rules ask for--> Class --name--> its cgroup's storage, and filter chains
//! ```
//!
//! Invariant: of two callers of one class no rule says anything different.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use slotmesh_xds::Version;

use crate::report::Findings;

/// Labels that a rule asks for, all of them.
pub(crate) type Labels = Arc<BTreeMap<String, String>>;

/// The callers of a namespace that have the same of the labels that rules ask for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Class {
    pub(crate) namespace: Arc<str>,
    /// Those that they have.
    pub(crate) labels: BTreeSet<Labels>,
}

impl Class {
    /// Those of a namespace that have none of the labels.
    pub(crate) const fn of(namespace: Arc<str>) -> Self {
        Self { namespace, labels: BTreeSet::new() }
    }
}

/// The name by which agents know it: that of the namespace, and where there are labels, a hash of them.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.namespace)?;
        if self.labels.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for labels in &self.labels {
            for (key, value) in &**labels {
                // No character of these is in a label.
                text.extend([key, "=", value, ","]);
            }
            text.push(';');
        }
        write!(f, "#{}", Version::of(text.as_bytes()))
    }
}

/// A caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller<'a> {
    /// One of whom no rule speaks.
    Anyone,
    /// One of this namespace, without any of the labels that rules ask for.
    Of(&'a Arc<str>),
    /// One of this class.
    In(&'a Class),
}

impl Caller<'_> {
    /// Its namespace, where a rule may speak of it.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Of(namespace) => Some(namespace),
            Self::In(class) => Some(&class.namespace),
        }
    }

    /// The name of its class; `None` for one of whom no rule speaks.
    pub(crate) fn class(&self) -> Option<String> {
        match self {
            Self::Anyone => None,
            Self::Of(namespace) => Some(namespace.to_string()),
            Self::In(class) => Some(class.to_string()),
        }
    }

    /// Tells whether it has these labels.
    pub(crate) fn has(&self, labels: &Labels) -> bool {
        labels.is_empty() || matches!(self, Self::In(class) if class.labels.contains(labels))
    }
}

/// Callers of which namespaces see an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Export {
    Everyone,
    /// Those of these; not none.
    Only(BTreeSet<Arc<str>>),
}

impl Export {
    /// The most namespaces that one object may name.
    const MOST: usize = 4_096;

    /// Reads `spec.exportTo` of an object of this namespace; `None` where nobody sees the object, or it is refused.
    pub(crate) fn read(export_to: &[String], namespace: &Arc<str>, found: &mut Findings) -> Option<Self> {
        if export_to.is_empty() || export_to.iter().any(|to| to == "*") {
            return Some(Self::Everyone);
        }
        if export_to.len() > Self::MOST {
            let fault = format!(
                "{} namespaces are named, and at most {} can be; \"*\" stands for all",
                export_to.len(),
                Self::MOST
            );
            found.refuse("spec.exportTo", fault);
            return None;
        }
        let named = export_to.iter().filter(|to| *to != "~");
        let named = named.map(|to| if to == "." { Arc::clone(namespace) } else { Arc::from(to.as_str()) });
        let named: BTreeSet<Arc<str>> = named.collect();
        if named.is_empty() {
            found.note("spec.exportTo", "nobody sees the object, so it has no effect");
            return None;
        }
        Some(Self::Only(named))
    }

    /// Tells whether this caller sees the object.
    pub(crate) fn sees(&self, caller: Caller<'_>) -> bool {
        match self {
            Self::Everyone => true,
            Self::Only(namespaces) => {
                caller.namespace().is_some_and(|namespace| namespaces.contains(namespace))
            }
        }
    }

    /// The namespaces that it names.
    pub(crate) fn named(&self) -> impl Iterator<Item = &Arc<str>> {
        match self {
            Self::Everyone => None,
            Self::Only(namespaces) => Some(namespaces),
        }
        .into_iter()
        .flatten()
    }
}
