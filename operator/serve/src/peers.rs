//! What is remembered of the names of one type on one stream, with its sums.
//!
//! Invariant: the sums (how many are held, their sketch, which are refused) are those of the peers at
//! any time. Every change goes through this module and costs the names that it touches, so asking for
//! the sums costs nothing that depends on how much is held.

use std::collections::{HashMap, HashSet};

use slotmesh_xds::{Fingerprint, ResourceName, ResourceType, Sketch, Version};

use crate::{status::Rejected, tracker::Sent};

/// A version that an agent says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Version(Version),
    /// Some content under the version of another control plane.
    Foreign,
}

/// What an agent has of one name. Small: there is one for each name on each stream.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub(crate) held: Option<Held>,
    pub(crate) sent: Option<Sent>,
    pub(crate) refused: Option<Box<Refused>>,
}

#[derive(Debug)]
pub(crate) struct Refused {
    /// `None`: the agent refused to remove it.
    pub(crate) version: Option<Version>,
    pub(crate) reason: String,
}

impl Peer {
    /// A peer that has this.
    pub(crate) fn holding(held: Held) -> Self {
        Self { held: Some(held), ..Self::default() }
    }

    /// Whether this version has to be sent. A version that was refused isn't sent again: its content
    /// would be refused again.
    pub(crate) fn lacks(&mut self, version: Version) -> bool {
        if self.held == Some(Held::Version(version)) {
            self.refused = None;
            return false;
        }
        self.refused.as_ref().is_none_or(|refused| refused.version != Some(version))
    }

    pub(crate) fn rejected(&self, name: &ResourceName) -> Option<Rejected> {
        let Refused { version, reason } = self.refused.as_deref()?;
        Some(Rejected { name: name.clone(), version: *version, reason: reason.clone() })
    }
}

/// The peers of one type, with their sums.
#[derive(Debug)]
pub(crate) struct Peers {
    ty: ResourceType,
    all: HashMap<ResourceName, Peer>,
    held: usize,
    sketch: Sketch,
    refused: HashSet<ResourceName>,
}

impl Peers {
    pub(crate) fn new(ty: ResourceType) -> Self {
        Self { ty, all: HashMap::new(), held: 0, sketch: Sketch::default(), refused: HashSet::new() }
    }

    pub(crate) fn get(&self, name: &ResourceName) -> Option<&Peer> {
        self.all.get(name)
    }

    pub(crate) fn contains(&self, name: &ResourceName) -> bool {
        self.all.contains_key(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ResourceName, &Peer)> {
        self.all.iter()
    }

    /// Changes the peer of this name, if there is one.
    pub(crate) fn update<T>(
        &mut self,
        name: &ResourceName,
        change: impl FnOnce(&mut Peer) -> T,
    ) -> Option<T> {
        let mut peer = self.all.remove(name)?;
        self.take_out(name, &peer);
        let outcome = change(&mut peer);
        self.insert(name.clone(), peer);
        Some(outcome)
    }

    /// As [`update`](Self::update), of a new peer where there is none.
    pub(crate) fn update_or_new<T>(&mut self, name: &ResourceName, change: impl FnOnce(&mut Peer) -> T) -> T {
        let mut peer = self.remove(name).unwrap_or_default();
        let outcome = change(&mut peer);
        self.insert(name.clone(), peer);
        outcome
    }

    pub(crate) fn insert(&mut self, name: ResourceName, peer: Peer) {
        self.remove(&name);
        self.held += usize::from(peer.held.is_some());
        if let Some(Held::Version(version)) = peer.held {
            self.sketch.add(Fingerprint::of(self.ty, &name, version));
        }
        if peer.refused.is_some() {
            self.refused.insert(name.clone());
        }
        self.all.insert(name, peer);
    }

    pub(crate) fn remove(&mut self, name: &ResourceName) -> Option<Peer> {
        let peer = self.all.remove(name)?;
        self.take_out(name, &peer);
        Some(peer)
    }

    /// Removes those whose names `keep` doesn't let pass.
    pub(crate) fn retain(&mut self, keep: impl Fn(&ResourceName) -> bool) {
        let gone: Vec<ResourceName> = self.all.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
    }

    /// How many are held.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// The sketch of the versions that are held.
    pub(crate) const fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    /// What is refused.
    pub(crate) fn rejected(&self) -> Vec<Rejected> {
        self.refused.iter().filter_map(|name| self.all.get(name)?.rejected(name)).collect()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Takes a peer that is no longer among all out of the sums.
    fn take_out(&mut self, name: &ResourceName, peer: &Peer) {
        self.held -= usize::from(peer.held.is_some());
        if let Some(Held::Version(version)) = peer.held {
            self.sketch.remove(Fingerprint::of(self.ty, name, version));
        }
        if peer.refused.is_some() {
            self.refused.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_are_those_of_the_peers() {
        let version = Version::of(b"1");
        let mut peers = Peers::new(ResourceType::Cluster);
        let (a, b, c) = ("a".into(), "b".into(), "c".into());
        peers.insert(ResourceName::clone(&a), Peer::holding(Held::Version(version)));
        peers.insert(ResourceName::clone(&b), Peer::holding(Held::Foreign));
        let reason = || Some(Box::new(Refused { version: Some(version), reason: "no".into() }));
        peers.update_or_new(&c, |peer| peer.refused = reason());
        peers.update(&b, |peer| peer.refused = reason());
        assert_eq!((peers.held(), peers.rejected().len(), peers.len()), (2, 2, 3));
        let mut expected = Sketch::default();
        expected.add(Fingerprint::of(ResourceType::Cluster, &a, version));
        assert_eq!(*peers.sketch(), expected);

        peers.update(&c, |peer| *peer = Peer::holding(Held::Version(version)));
        expected.add(Fingerprint::of(ResourceType::Cluster, &c, version));
        assert_eq!((peers.held(), peers.rejected().len()), (3, 1));
        assert_eq!(*peers.sketch(), expected);

        peers.retain(|name| *name == b);
        assert_eq!((peers.held(), peers.len(), peers.sketch().clone()), (1, 1, Sketch::default()));
        peers.remove(&b);
        assert_eq!((peers.held(), peers.rejected().len()), (0, 0));
    }
}
