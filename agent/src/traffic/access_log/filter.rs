//! The choice of connections that are logged: `KEY=VALUE` and `KEY!=VALUE`, separated by commas. All must hold; of several values of
//! one key with `=`, one.

use std::str::FromStr;

use super::form::Entry;

/// A field by which connections are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    SourceNamespace,
    SourceWorkload,
    SourcePod,
    DestinationNamespace,
    DestinationService,
    Ending,
}

impl Key {
    const ALL: [(&'static str, Self); 6] = [
        ("source_namespace", Self::SourceNamespace),
        ("source_workload", Self::SourceWorkload),
        ("source_pod", Self::SourcePod),
        ("destination_namespace", Self::DestinationNamespace),
        ("destination_service", Self::DestinationService),
        ("ending", Self::Ending),
    ];

    fn is(self, entry: &Entry<'_>, value: &str) -> bool {
        match self {
            Self::SourceNamespace => entry.source_namespace == value,
            Self::SourceWorkload => entry.source_workload == value,
            Self::SourcePod => entry.source_pod == value,
            Self::DestinationNamespace => entry.destination.namespace == value,
            // By its name, or by its whole host.
            Self::DestinationService => entry.destination.name == value || entry.destination.host == value,
            Self::Ending => entry.ending == value,
        }
    }
}

/// A choice of connections. The empty one is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Term {
    key: Key,
    is_not: bool,
    value: String,
}

/// An expression that chooses nothing, as nobody knows what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither `=` nor `!=`.
    #[error("{0:?} is neither KEY=VALUE nor KEY!=VALUE")]
    Form(String),
    /// There is no such field.
    #[error(
        "no key {0:?}; there are source_namespace, source_workload, source_pod, destination_namespace, \
         destination_service and ending"
    )]
    Key(String),
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let term = |text: &str| {
            let form = || FilterError::Form(text.to_owned());
            let (key, value) = text.split_once('=').ok_or_else(form)?;
            let (key, is_not) = key.strip_suffix('!').map_or((key, false), |key| (key, true));
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() || value.is_empty() {
                return Err(form());
            }
            let key = Key::ALL.into_iter().find(|(name, _)| *name == key);
            let (_, key) = key.ok_or_else(|| {
                FilterError::Key(text.split(['!', '=']).next().unwrap_or(text).trim().to_owned())
            })?;
            Ok(Term { key, is_not, value: value.to_owned() })
        };
        let terms = text.split(',').map(str::trim).filter(|text| !text.is_empty());
        Ok(Self { terms: terms.map(term).collect::<Result<_, _>>()? })
    }
}

impl Filter {
    /// Tells a connection that is logged.
    pub(super) fn lets(&self, entry: &Entry<'_>) -> bool {
        self.terms.iter().all(|term| {
            if term.is_not {
                return !term.key.is(entry, &term.value);
            }
            let mut same = self.terms.iter().filter(|other| !other.is_not && other.key == term.key);
            same.any(|other| other.key.is(entry, &other.value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::form::tests::entry, *};

    #[test]
    fn all_keys_must_hold_and_one_of_the_values_of_each() {
        let is_let = |text: &str| {
            let filter: Filter = text.parse().unwrap();
            filter.lets(&entry())
        };
        for text in [
            "",
            "source_namespace=shop",
            "source_namespace=other,source_namespace=shop",
            "destination_service=web, destination_namespace=shop",
            "destination_service=web.shop.svc.cluster.local",
            "source_workload=cart,ending!=reset",
            "source_pod=cart-7d9f8c6b54-x2x4z",
        ] {
            assert!(is_let(text), "{text}");
        }
        for text in [
            "source_namespace=other",
            "source_namespace=shop,destination_service=db",
            "ending!=closed",
            "source_namespace=shop,source_namespace!=shop",
        ] {
            assert!(!is_let(text), "{text}");
        }
    }

    #[test]
    fn what_nobody_understands_is_refused_by_name() {
        let refused = |text: &str| text.parse::<Filter>().unwrap_err().to_string();
        assert!(refused("shop").contains("\"shop\" is neither"));
        assert!(refused("namespace=shop").contains("no key \"namespace\""));
        assert!(refused("ending=").contains("\"ending=\" is neither"));
        assert!(refused("source_namespace=a,endin!=reset").contains("no key \"endin\""));
    }
}
