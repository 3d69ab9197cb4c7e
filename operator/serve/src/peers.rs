//! The state of an agent's names of one type, with its sums.
//!
//! Of what the agent holds exactly as it is served, the stream keeps a bit: the store has the rest, for all agents
//! together. Only what differs is written out ([`Peer`]): what the agent lacks or has in another version, is being
//! sent, or refused. So an agent in sync costs a bit a resource, and one that falls behind costs what it is behind.
//!
//! What the agent is spared has a bit of another sort.
//!
//! Invariants: a name has a bit or a peer, never both. The sums (how many are held, their sketch, which are refused)
//! are those of both at any time, and the sketch is of what is spared, too. Every change goes through this module and
//! costs the names that it touches.

use std::collections::{HashMap, HashSet};

use slotmesh_xds::{Fingerprint, Resource, ResourceName, ResourceType, Sketch, Version};

use crate::{
    bits::Bits,
    status::Rejected,
    table::{Before, Place, Table},
    tracker::Sent,
};

/// Memory for so many peers is kept when they are gone.
const SPARE: usize = 4;

/// A version that an agent says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Version(Version),
    /// Some content under the version of another control plane.
    Foreign,
}

/// The state of one name at an agent.
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

    /// Tells whether this version has to be sent. A version that was refused isn't sent again: its content
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

    /// Tells whether there is nothing to say but that it has this version.
    fn has_just(&self, version: Version) -> bool {
        self.held == Some(Held::Version(version)) && self.sent.is_none() && self.refused.is_none()
    }
}

/// The state of all names of one type, with its sums.
#[derive(Debug)]
pub(crate) struct Peers {
    ty: ResourceType,
    /// The places whose resources the agent holds as they are served.
    current: Bits,
    /// The places whose resources the agent doesn't need.
    spared: Bits,
    /// The names of which there is more to say.
    others: HashMap<ResourceName, Peer>,
    held: usize,
    sketch: Sketch,
    refused: HashSet<ResourceName>,
}

impl Peers {
    pub(crate) fn new(ty: ResourceType) -> Self {
        Self {
            ty,
            current: Bits::default(),
            spared: Bits::default(),
            others: HashMap::new(),
            held: 0,
            sketch: Sketch::default(),
            refused: HashSet::new(),
        }
    }

    /// The peer of a name that isn't held as it is served.
    pub(crate) fn get(&self, name: &ResourceName) -> Option<&Peer> {
        self.others.get(name)
    }

    /// Tells whether the agent holds the resource of this place as it is served.
    pub(crate) fn is_current(&self, place: Place) -> bool {
        self.current.contains(place)
    }

    /// The resource of a name has changed, or is gone: what the agent holds is what there was before.
    pub(crate) fn outdate(&mut self, name: &ResourceName, before: Before) {
        if self.current.remove(before.place) {
            // The sums stay: it holds what it held.
            self.others.insert(name.clone(), Peer::holding(Held::Version(before.version)));
        }
    }

    /// The agent is spared the resource of this place.
    pub(crate) fn spare(&mut self, place: Place, resource: &Resource) {
        if self.spared.insert(place) {
            self.sketch.add(Fingerprint::of(self.ty, &resource.name, resource.version));
        }
    }

    /// As [`spare`](Self::spare), given what is served.
    pub(crate) fn spare_at(&mut self, place: Place, table: &Table) {
        if let Some(resource) = table.at(place) {
            self.spare(place, resource);
        }
    }

    /// Tells whether the agent holds something of this name, which is served in this place, or is being sent something.
    pub(crate) fn is_known(&self, name: &ResourceName, place: Place) -> bool {
        self.current.contains(place) || self.others.contains_key(name)
    }

    /// The agent may not be spared it any more: it has changed, or is gone, or the agent may need it.
    pub(crate) fn unspare(&mut self, name: &ResourceName, before: Before) {
        if self.spared.remove(before.place) {
            self.sketch.remove(Fingerprint::of(self.ty, name, before.version));
        }
    }

    /// Writes out what a bit says.
    pub(crate) fn write_out(&mut self, place: Place, resource: &Resource) {
        self.outdate(&resource.name, Before { place, version: resource.version });
    }

    /// Changes the peer of this name, if there is one.
    pub(crate) fn update<T>(
        &mut self,
        name: &ResourceName,
        change: impl FnOnce(&mut Peer) -> T,
    ) -> Option<T> {
        let mut peer = self.remove(name)?;
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

    /// Sets the peer of a name that has no bit.
    pub(crate) fn insert(&mut self, name: ResourceName, peer: Peer) {
        self.remove(&name);
        self.held += usize::from(peer.held.is_some());
        if let Some(Held::Version(version)) = peer.held {
            self.sketch.add(Fingerprint::of(self.ty, &name, version));
        }
        if peer.refused.is_some() {
            self.refused.insert(name.clone());
        }
        self.others.insert(name, peer);
    }

    /// Keeps only a bit of the name where that says all, given what is served.
    pub(crate) fn settle(&mut self, name: &ResourceName, table: &Table) {
        let Some((place, resource)) = table.place(name).and_then(|place| Some((place, table.at(place)?)))
        else {
            return;
        };
        if self.others.get(name).is_some_and(|peer| peer.has_just(resource.version)) {
            // The sums stay: it holds what it held.
            self.others.remove(name);
            self.current.insert(place);
        }
    }

    /// The agent holds the resource of this place as it is served, and nothing was known of it before.
    pub(crate) fn insert_current(&mut self, place: Place, resource: &Resource) {
        self.remove(&resource.name);
        if self.current.insert(place) {
            self.held += 1;
            self.sketch.add(Fingerprint::of(self.ty, &resource.name, resource.version));
        }
    }

    pub(crate) fn remove(&mut self, name: &ResourceName) -> Option<Peer> {
        let peer = self.others.remove(name)?;
        self.held -= usize::from(peer.held.is_some());
        if let Some(Held::Version(version)) = peer.held {
            self.sketch.remove(Fingerprint::of(self.ty, name, version));
        }
        if peer.refused.is_some() {
            self.refused.remove(name);
        }
        Some(peer)
    }

    /// Removes those whose names `keep` doesn't let pass.
    pub(crate) fn retain(&mut self, table: &Table, keep: impl Fn(&ResourceName) -> bool) {
        let current = self.current.iter().filter_map(|place| Some((place, table.at(place)?)));
        let out: Vec<_> = current.filter(|(_, resource)| !keep(&resource.name)).collect();
        for (place, resource) in out {
            self.write_out(place, resource);
        }
        let spared = self.spared.iter().filter_map(|place| Some((place, table.at(place)?)));
        let out: Vec<_> = spared.filter(|(_, resource)| !keep(&resource.name)).collect();
        for (place, resource) in out {
            self.unspare(&resource.name, Before { place, version: resource.version });
        }
        let gone: Vec<ResourceName> = self.others.keys().filter(|name| !keep(name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        self.shrink();
    }

    /// Gives memory back that was needed for more.
    pub(crate) fn shrink(&mut self) {
        if self.others.capacity() > SPARE.max(4 * self.others.len()) {
            self.others.shrink_to(SPARE);
        }
    }

    /// How many are held.
    pub(crate) const fn held(&self) -> usize {
        self.held
    }

    /// The sketch of the versions that are held, and of what is spared.
    pub(crate) const fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    /// The refused names.
    pub(crate) fn rejected(&self) -> Vec<Rejected> {
        self.refused.iter().filter_map(|name| self.others.get(name)?.rejected(name)).collect()
    }

    /// The versions that are held, given what is served.
    pub(crate) fn versions(&self, table: &Table) -> impl Iterator<Item = (ResourceName, Version)> {
        let current = self.current.iter().filter_map(|place| table.at(place));
        let current = current.map(|resource| (resource.name.clone(), resource.version));
        let others = self.others.iter().filter_map(|(name, peer)| match peer.held {
            Some(Held::Version(version)) => Some((name.clone(), version)),
            Some(Held::Foreign) | None => None,
        });
        current.chain(others)
    }

    /// The versions that are spared, given what is served.
    #[cfg(test)]
    pub(crate) fn spared(&self, table: &Table) -> impl Iterator<Item = (ResourceName, Version)> {
        let spared = self.spared.iter().filter_map(|place| table.at(place));
        spared.map(|resource| (resource.name.clone(), resource.version))
    }

    /// How many names are written out.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.others.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TY: ResourceType = ResourceType::Cluster;

    fn resource(name: &str, content: &'static str) -> Resource {
        let (name, content) = (name.into(), content.as_bytes());
        Resource { ty: TY, name, version: Version::of(content), content: content.into() }
    }

    #[test]
    fn the_sums_are_those_of_the_peers() {
        let version = Version::of(b"1");
        let (mut peers, mut table) = (Peers::new(TY), Table::default());
        let (a, b, c) = ("a".into(), "b".into(), "c".into());
        peers.insert(ResourceName::clone(&a), Peer::holding(Held::Version(version)));
        peers.insert(ResourceName::clone(&b), Peer::holding(Held::Foreign));
        let reason = || Some(Box::new(Refused { version: Some(version), reason: "no".into() }));
        peers.update_or_new(&c, |peer| peer.refused = reason());
        peers.update(&b, |peer| peer.refused = reason());
        assert_eq!((peers.held(), peers.rejected().len(), peers.len()), (2, 2, 3));
        let mut expected = Sketch::default();
        expected.add(Fingerprint::of(TY, &a, version));
        assert_eq!(*peers.sketch(), expected);

        peers.update(&c, |peer| *peer = Peer::holding(Held::Version(version)));
        expected.add(Fingerprint::of(TY, &c, version));
        assert_eq!((peers.held(), peers.rejected().len()), (3, 1));
        assert_eq!(*peers.sketch(), expected);

        peers.retain(&table, |name| *name == b);
        assert_eq!((peers.held(), peers.len(), peers.sketch().clone()), (1, 1, Sketch::default()));
        table.upsert(resource("b", "1"));
        peers.settle(&b, &table);
        assert_eq!(peers.len(), 1, "it is refused, and of another control plane");
        peers.remove(&b);
        assert_eq!((peers.held(), peers.rejected().len()), (0, 0));
    }

    #[test]
    fn what_is_held_as_it_is_served_is_a_bit() {
        let (mut peers, mut table) = (Peers::new(TY), Table::default());
        for name in ["a", "b", "c"] {
            table.upsert(resource(name, "1"));
        }
        let a = ResourceName::from("a");
        let place = table.place(&a).unwrap();
        peers.insert(a.clone(), Peer::holding(Held::Version(Version::of(b"1"))));
        peers.insert_current(table.place(&"b".into()).unwrap(), &resource("b", "1"));
        let sums = |peers: &Peers| (peers.held(), peers.sketch().clone());
        let before = sums(&peers);
        peers.settle(&a, &table);
        assert!(peers.is_current(place) && peers.len() == 0);

        let old = table.upsert(resource("a", "2")).flatten().unwrap();
        peers.outdate(&a, old);
        assert!(!peers.is_current(place));
        assert_eq!(peers.get(&a).unwrap().held, Some(Held::Version(Version::of(b"1"))));
        peers.settle(&a, &table);
        assert_eq!((sums(&peers), peers.len()), (before, 1), "it holds what it held");
        assert_eq!(peers.versions(&table).count(), 2);

        peers.retain(&table, |name| *name == a);
        assert_eq!((peers.held(), peers.versions(&table).count()), (1, 1));
    }
}
