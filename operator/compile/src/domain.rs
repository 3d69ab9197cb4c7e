//! The DNS domain of the cluster: what ends the host names of Services.
//!
//! Invariant: it is one for the life of the process. Names of resources contain it, so all that is compiled would be
//! something else with another one.

use std::{fmt, str::FromStr, sync::OnceLock};

use crate::object::name_fault;

/// Where nobody says otherwise.
const DEFAULT: &str = "cluster.local";

static DOMAIN: OnceLock<ClusterDomain> = OnceLock::new();

/// The DNS domain of a cluster, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterDomain(String);

impl Default for ClusterDomain {
    fn default() -> Self {
        Self(DEFAULT.to_owned())
    }
}

impl fmt::Display for ClusterDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why something is no [`ClusterDomain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidDomain(String);

impl fmt::Display for InvalidDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the domain {}; write it as in resolv.conf, such as {DEFAULT}", self.0)
    }
}

impl std::error::Error for InvalidDomain {}

impl FromStr for ClusterDomain {
    type Err = InvalidDomain;

    fn from_str(text: &str) -> Result<Self, InvalidDomain> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if let Some(fault) = name_fault(text) {
            return Err(InvalidDomain(fault));
        }
        match text.split('.').any(str::is_empty) {
            true => Err(InvalidDomain("has an empty part".to_owned())),
            false => Ok(Self(text.to_owned())),
        }
    }
}

impl ClusterDomain {
    /// The domain that a pod's resolv.conf tells: kubelet writes `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN` into its search
    /// list.
    pub fn of_resolv_conf(text: &str) -> Option<Self> {
        let mut searches = text.lines().filter_map(|line| line.trim().strip_prefix("search"));
        // The last one counts.
        let search = searches.rfind(|list| list.starts_with(char::is_whitespace))?;
        search.split_whitespace().find_map(|domain| domain.strip_prefix("svc.")?.parse().ok())
    }

    /// Makes this the domain of all that is compiled by this process, unless there is one already. To be called before
    /// anything is.
    pub fn set(self) {
        // The first one counts; see the module's comment.
        drop(DOMAIN.set(self));
    }
}

/// The domain in force.
pub(crate) fn cluster_domain() -> &'static str {
    DOMAIN.get().map_or(DEFAULT, |domain| &domain.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_resolver_tells_the_domain() {
        let of = |text: &str| ClusterDomain::of_resolv_conf(text).map(|domain| domain.to_string());
        let pod = "search shop.svc.k8s.example.org svc.k8s.example.org k8s.example.org corp.example\nnameserver 10.96.0.10\n";
        assert_eq!(of(pod).as_deref(), Some("k8s.example.org"));
        assert_eq!(of(&format!("search a.example\n{pod}")).as_deref(), Some("k8s.example.org"));
        // Of a machine, or of a pod with dnsPolicy Default, it tells nothing.
        for none in ["", "search corp.example example\n", "nameserver 10.0.0.1\n", "searching svc.x\n"] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        assert!("K8s.local".parse::<ClusterDomain>().unwrap_err().to_string().contains("'K'"));
        for bad in ["", ".", "a..b", ".local", "a b"] {
            assert!(bad.parse::<ClusterDomain>().is_err(), "{bad:?}");
        }
        assert_eq!("k8s.local.".parse::<ClusterDomain>().unwrap().to_string(), "k8s.local");
    }
}
