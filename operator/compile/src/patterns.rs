//! Hosts that Istio's objects name: one, or all that end alike.
//!
//! Invariant: a wildcard stands for whatever is in front of its suffix; `*` for every host.

use std::{fmt, sync::Arc};

use crate::ServiceId;

/// The end of all hosts of a wildcard: `*.example.com` is `.example.com`, `*` is nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Suffix(pub(crate) Arc<str>);

/// The hosts that a field names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum HostPattern {
    /// A Service, or a host of ServiceEntries.
    One(ServiceId),
    /// All that end so.
    Under(Suffix),
}

impl HostPattern {
    /// The meaning of `host` for an object in `namespace`; `None` where it can't be a host.
    pub(crate) fn read(host: &str, namespace: &str) -> Option<Self> {
        match host.strip_suffix('.').unwrap_or(host).strip_prefix('*') {
            None => ServiceId::of_host(host, namespace).map(Self::One),
            Some(rest)
                if rest.is_empty() || (rest.starts_with('.') && !rest.contains('*') && rest.len() > 1) =>
            {
                Some(Self::Under(Suffix(Arc::from(rest))))
            }
            Some(_) => None,
        }
    }

    /// The name that stands in a report for the Service.
    pub(crate) fn shown(&self) -> ServiceId {
        match self {
            Self::One(name) => name.clone(),
            Self::Under(suffix) => ServiceId::Host(suffix.to_string().into()),
        }
    }
}

impl fmt::Display for Suffix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "*{}", self.0)
    }
}

impl Suffix {
    /// The wildcards that stand for a host, the narrowest first.
    pub(crate) fn of(host: &str) -> impl Iterator<Item = Self> {
        let dots = host.match_indices('.').map(|(at, _)| &host[at..]);
        dots.chain([""]).map(|rest| Self(Arc::from(rest)))
    }

    /// The text that those of its hosts begin with when they are read from behind.
    pub(crate) fn reversed(&self) -> String {
        reversed(&self.0)
    }
}

/// A host from behind, so that those that end alike stand together.
pub(crate) fn reversed(host: &str) -> String {
    host.chars().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_are_told_from_hosts() {
        let read = |host: &str| HostPattern::read(host, "shop").map(|pattern| pattern.shown().to_string());
        for (host, shown) in [
            ("web", Some("shop/web")),
            ("*", Some("*")),
            ("*.shop.svc.cluster.local", Some("*.shop.svc.cluster.local")),
            ("*.example.com.", Some("*.example.com")),
            ("*web.example.com", None),
            ("*.*.com", None),
            ("*.", Some("*")),
            ("a*.example.com", None),
            ("", None),
        ] {
            assert_eq!(read(host).as_deref(), shown, "{host}");
        }
    }

    #[test]
    fn the_narrowest_wildcard_comes_first() {
        let of: Vec<_> = Suffix::of("web.shop.svc").map(|suffix| suffix.to_string()).collect();
        assert_eq!(of, ["*.shop.svc", "*.svc", "*"]);
    }
}
