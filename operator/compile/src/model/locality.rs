//! Localities: where endpoints and nodes are, and how callers choose among them.
//!
//! A locality is written `REGION/ZONE/SUBZONE`; in a policy what is left out at the end, or is `*`, may be anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use slotmesh_xds::{
    LocalityPolicy, LocalityShare, LocalityShares, RegionFailover, envoy::envoy::config::core::v3 as proto,
};

use crate::report::Findings;

/// The most entries of a list of preferences, as their outcomes travel as bits of a word.
const MOST_PREFERENCES: usize = 32;
/// The most bytes of the name of a region, a zone or a part of one: what a label may have as a value, and a domain.
const MOST_NAME: usize = 253;
/// The label of the network of a pod, which has no effect here.
const NETWORK: &str = "topology.istio.io/network";

/// How callers choose among localities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Localities {
    /// From all alike.
    Alike,
    By {
        policy: Arc<LocalityPolicy>,
        /// Tells whether it acts without outlier detection, too.
        always: bool,
    },
}

/// Where something is; what isn't known is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place<'a> {
    pub(crate) region: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) sub_zone: &'a str,
}

impl Place<'_> {
    pub(crate) fn to_proto(self) -> proto::Locality {
        let Self { region, zone, sub_zone } = self;
        proto::Locality { region: region.into(), zone: zone.into(), sub_zone: sub_zone.into() }
    }

    /// Tells whether it is of a locality as a policy writes it.
    pub(crate) fn is_of(&self, pattern: &str) -> bool {
        let mut parts = pattern.split('/');
        [self.region, self.zone, self.sub_zone]
            .into_iter()
            .all(|part| parts.next().is_none_or(|wanted| wanted == "*" || wanted == part))
    }
}

/// The locality that an object says of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locality(Option<Box<str>>);

impl Locality {
    /// `None` where it can't be.
    pub(crate) fn read(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::default());
        }
        let is_good = text.split('/').count() <= 3
            && !text.starts_with('/')
            && !text.contains('*')
            && text.split('/').all(|part| part.len() <= MOST_NAME);
        is_good.then(|| Self(Some(text.into())))
    }

    pub(crate) fn place(&self) -> Place<'_> {
        let mut parts = self.0.as_deref().unwrap_or_default().split('/');
        let mut part = || parts.next().unwrap_or_default();
        Place { region: part(), zone: part(), sub_zone: part() }
    }
}

/// The choice among localities that an object asks for.
pub(crate) struct Said<'a> {
    /// From where, and the shares in percent by locality.
    pub(crate) distribute: Vec<(&'a str, &'a BTreeMap<String, u32>)>,
    /// From one region to another.
    pub(crate) failover: Vec<(&'a str, &'a str)>,
    pub(crate) priority: &'a [String],
}

impl Said<'_> {
    /// Reads a policy; what is wrong with it is refused by field.
    pub(crate) fn read(&self, at: &str, found: &mut Findings) -> LocalityPolicy {
        let given = [
            ("distribute", !self.distribute.is_empty()),
            ("failover", !self.failover.is_empty()),
            ("failoverPriority", !self.priority.is_empty()),
        ];
        let mut given = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name);
        if let (Some(first), Some(second)) = (given.next(), given.next()) {
            found.refuse(format!("{at}.{second}"), format!("it excludes {first}; remove one of them"));
        }
        LocalityPolicy {
            distribute: self.read_shares(&format!("{at}.distribute"), found),
            failover: self.read_failover(&format!("{at}.failover"), found),
            prefer: self.read_preferences(&format!("{at}.failoverPriority"), found),
        }
    }

    fn read_shares(&self, at: &str, found: &mut Findings) -> Vec<LocalityShares> {
        let mut read = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, (from, to)) in self.distribute.iter().enumerate() {
            let at = format!("{at}[{i}]");
            if let Some(fault) = pattern_fault(from) {
                found.refuse(format!("{at}.from"), fault);
            } else if !seen.insert(from) {
                found.refuse(format!("{at}.from"), format!("{from} stands there twice; remove one"));
            }
            for (to, percent) in *to {
                let at = format!("{at}.to.{to}");
                if let Some(fault) = pattern_fault(to) {
                    found.refuse(&at, fault);
                }
                if !(1..=100).contains(percent) {
                    found.refuse(at, format!("{percent} is no share; shares are of 1 to 100 percent"));
                }
            }
            let sum = to.values().fold(0_u32, |sum, percent| sum.saturating_add(*percent));
            if sum != 100 {
                found.refuse(format!("{at}.to"), format!("the shares are {sum} percent together, not 100"));
            }
            let share = |(to, percent): (&String, &u32)| LocalityShare { to: to.clone(), percent: *percent };
            let mut to: Vec<_> = to.iter().map(share).collect();
            // The narrower go before.
            to.sort_by_key(|share| std::cmp::Reverse(width(&share.to)));
            read.push(LocalityShares { from: (*from).to_owned(), to });
        }
        read
    }

    fn read_failover(&self, at: &str, found: &mut Findings) -> Vec<RegionFailover> {
        let mut seen = BTreeSet::new();
        for (i, (from, to)) in self.failover.iter().enumerate() {
            for (name, region) in [("from", from), ("to", to)] {
                if region.is_empty() || region.contains(['/', '*']) {
                    let fault = format!("{region:?} is no region; name one, without zones and wildcards");
                    found.refuse(format!("{at}[{i}].{name}"), fault);
                }
            }
            if from == to {
                found.refuse(format!("{at}[{i}].to"), format!("{to} is the region that it is from"));
            }
            if !seen.insert(from) {
                found.refuse(format!("{at}[{i}].from"), format!("{from} stands there twice; remove one"));
            }
        }
        let read = |(from, to): &(&str, &str)| RegionFailover { from: (*from).into(), to: (*to).into() };
        self.failover.iter().map(read).collect()
    }

    fn read_preferences(&self, at: &str, found: &mut Findings) -> Vec<String> {
        if self.priority.len() > MOST_PREFERENCES {
            let fault = format!("{} entries; at most {MOST_PREFERENCES}", self.priority.len());
            found.refuse(at, fault);
        }
        for (i, text) in self.priority.iter().enumerate() {
            let fault = match (text.split_once('='), text.as_str()) {
                (Some((NETWORK, _)), _) | (None, NETWORK) => {
                    "it has no effect here: connections go to endpoints of every network directly".to_owned()
                }
                (Some((key, value)), _) if !key.is_empty() && !value.is_empty() => continue,
                (None, LocalityPolicy::REGION | LocalityPolicy::ZONE) => continue,
                (None, LocalityPolicy::SUB_ZONE | LocalityPolicy::NODE) => continue,
                _ => format!(
                    "{text:?} asks for a label of each caller; a label needs a value, KEY=VALUE, but for those that tell \
                     where a node is"
                ),
            };
            found.refuse(format!("{at}[{i}]"), fault);
        }
        self.priority.to_vec()
    }
}

/// How many parts of a pattern say something.
fn width(pattern: &str) -> usize {
    pattern.split('/').take_while(|part| *part != "*").count()
}

/// Why a pattern is none.
fn pattern_fault(pattern: &str) -> Option<String> {
    let parts: Vec<&str> = pattern.split('/').collect();
    let wild = parts.iter().position(|part| part.contains('*'));
    let is_good = parts.len() <= 3
        && parts.iter().all(|part| !part.is_empty() && part.len() <= MOST_NAME)
        && wild.is_none_or(|at| at + 1 == parts.len() && parts[at] == "*");
    (!is_good).then(|| {
        format!(
            "{pattern:?} is no locality; write REGION/ZONE/SUBZONE, or what it begins with, with * at the end"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_what_places_begin_with() {
        for good in ["*", "eu", "eu/*", "eu/a", "eu/a/*", "eu/a/1"] {
            assert_eq!(pattern_fault(good), None, "{good}");
        }
        for bad in ["", "/", "eu/", "/a", "eu/*/1", "*/a", "e*", "eu/a/1/2", "eu//1", &"e".repeat(254)] {
            assert!(pattern_fault(bad).is_some(), "{bad}");
        }
        let place = Place { region: "eu", zone: "a", sub_zone: "" };
        assert!(place.is_of("*") && place.is_of("eu/a/*") && place.is_of("eu"));
        assert!(!place.is_of("eu/b") && !place.is_of("eu/a/1") && !place.is_of("us/*"));
    }

    #[test]
    fn a_workload_may_say_as_much_as_it_knows() {
        let place = |text| {
            Locality::read(text).map(|locality| {
                let Place { region, zone, sub_zone } = locality.place();
                [region, zone, sub_zone].map(str::to_owned)
            })
        };
        let some = |parts: [&str; 3]| Some(parts.map(str::to_owned));
        assert_eq!(place(""), some(["", "", ""]));
        assert_eq!(place("eu"), some(["eu", "", ""]));
        assert_eq!(place("eu/a/1"), some(["eu", "a", "1"]));
        assert_eq!(place("eu/a/1/2"), None);
        assert_eq!(place("eu/*"), None);
        assert_eq!(place(&format!("eu/{}", "a".repeat(254))), None);
    }
}
