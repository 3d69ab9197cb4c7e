//! Knowledge of the source, and the point behind which an agent must not be taken back.
//!
//! Versions of resources are hashes of their content, which tell that two differ and not which is newer. So each
//! response says of which versions of the *source* it is: by kind of object, the last event that is in it. An agent
//! gives that back when it connects, and a replica that hasn't come so far answers when it has.
//!
//! A replica is known to have come as far as its last event, its last list, or a mark that nothing happened since; what
//! an agent needs is events only. So a replica that has seen all of them is never taken for one that lags behind, however
//! long ago the last one was.

use std::{collections::BTreeMap, fmt};

/// More than there are kinds: what a peer says beyond it isn't read.
const MOST: usize = 64;
/// Longer than the name of any kind.
const LONGEST: usize = 64;

/// Versions of the source, by kind of object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Versions(BTreeMap<String, u64>);

impl Versions {
    fn raise(&mut self, kind: &str, version: u64) {
        match self.0.get_mut(kind) {
            Some(held) => *held = version.max(*held),
            None => _ = self.0.insert(kind.to_owned(), version),
        }
    }

    /// The higher one of each kind.
    pub(crate) fn merged(mut self, other: &Self) -> Self {
        other.0.iter().for_each(|(kind, version)| self.raise(kind, *version));
        self
    }

    /// Tells whether merging adds nothing to the other.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(kind, version)| other.0.get(kind).is_some_and(|held| held >= version))
    }

    /// Reads what [`Display`](fmt::Display) wrote; what can't be read is left out.
    pub(crate) fn parse(text: &str) -> Self {
        let one = |part: &str| {
            let (kind, version) = part.split_once('=').filter(|(kind, _)| kind.len() <= LONGEST)?;
            Some((kind.to_owned(), version.parse().ok()?))
        };
        Self(text.split(',').take(MOST).filter_map(one).collect())
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(i, (kind, version))| {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{kind}={version}")
        })
    }
}

/// Knowledge of the source, kind by kind. Versions of one kind are comparable, those of two are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceVersions {
    /// Up to which version everything is known.
    known: Versions,
    /// The version of the last event that is part of what is served.
    needs: Versions,
}

impl SourceVersions {
    /// An object of this version is in a list that isn't complete.
    pub fn listing(&mut self, kind: &str, version: u64) {
        self.needs.raise(kind, version);
    }

    /// A list of all objects is complete, as they were at this version. It may be lower than others before: then the
    /// source was restored from a backup.
    pub fn listed(&mut self, kind: &str, version: u64) {
        self.known.0.insert(kind.to_owned(), version);
        if let Some(needs) = self.needs.0.get_mut(kind) {
            *needs = version.min(*needs);
        }
    }

    /// An object was changed, or deleted, at this version.
    pub fn changed(&mut self, kind: &str, version: u64) {
        self.known.raise(kind, version);
        self.needs.raise(kind, version);
    }

    /// Nothing happened up to this version that isn't known.
    pub fn quiet(&mut self, kind: &str, version: u64) {
        self.known.raise(kind, version);
    }

    /// There are no such objects, or their versions can't be compared.
    pub fn unknown(&mut self, kind: &str) {
        self.known.0.remove(kind);
        self.needs.0.remove(kind);
    }

    /// The least knowledge that whoever holds all that is served gives back.
    pub(crate) fn needs(&self) -> &Versions {
        &self.needs
    }

    /// Tells whether all of this is known. What is said of a kind that isn't known at all doesn't count.
    pub(crate) fn covers(&self, versions: &Versions) -> bool {
        versions.0.iter().all(|(kind, version)| self.known.0.get(kind).is_none_or(|known| known >= version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_compared_kind_by_kind() {
        let mut old = SourceVersions::default();
        old.listing("Pod", 5);
        assert!(old.covers(&Versions::parse("Pod=9")), "nothing is known yet");
        old.listed("Pod", 7);
        old.listed("Service", 8);
        let mut new = old.clone();
        assert_eq!(new.needs().to_string(), "Pod=5");
        new.changed("Pod", 9);
        new.quiet("Service", 10);
        assert_eq!(new.needs().to_string(), "Pod=9");
        assert!(new.covers(new.needs()) && new.covers(old.needs()));
        assert!(!old.covers(new.needs()));
        // Nothing happened to Services, so who hasn't heard that doesn't lag behind.
        old.quiet("Pod", 11);
        assert!(old.covers(new.needs()));
        old.unknown("Pod");
        assert!(old.covers(&Versions::parse("Pod=99")));
    }

    #[test]
    fn a_list_of_a_lower_version_is_a_restored_source() {
        let mut reached = SourceVersions::default();
        reached.changed("Pod", 100);
        reached.listing("Pod", 20);
        reached.listed("Pod", 30);
        assert_eq!(reached.needs().to_string(), "Pod=30");
        assert!(!reached.covers(&Versions::parse("Pod=31")));
    }

    #[test]
    fn versions_are_read_back_and_nonsense_is_left_out() {
        let versions = Versions::parse("Pod=9,Service=18446744073709551615");
        assert_eq!(versions.to_string(), "Pod=9,Service=18446744073709551615");
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(
            Versions::parse(&format!(",=,a,b=-1,c=18446744073709551616,{long}=1,d=4")).to_string(),
            "d=4"
        );
        assert_eq!(Versions::parse(""), Versions::default());
        assert!(Versions::default().is_within(&versions) && Versions::parse("Pod=9").is_within(&versions));
        assert!(
            !Versions::parse("Pod=10").is_within(&versions)
                && !Versions::parse("Node=1").is_within(&versions)
        );
        let many: String = (0..1_000).map(|i| format!("k{i}=1,")).collect();
        assert_eq!(Versions::parse(&many).0.len(), MOST);
        assert_eq!(
            Versions::parse("a=3,b=1").merged(&Versions::parse("b=2,a=1,c=1")).to_string(),
            "a=3,b=2,c=1"
        );
    }
}
