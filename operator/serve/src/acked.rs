//! The state of an agent's names of one type, with its sums.
//!
//! Of what the agent holds exactly as it is served, the stream keeps a bit: the store has the rest, for all agents
//! together. Only what differs is written out ([`ResourceState`]): what the agent lacks or has in another version, is being
//! sent, or refused. So an agent in sync costs a bit a resource, and one that falls behind costs what it is behind.
//!
//! Resources that the agent is spared have a bit of another sort.
//!
//! Invariants: a name has a bit or a state, never both. The sums (how many are held, their sketch, which are refused)
//! are those of both at any time, and the sketch is of what is spared, too. Every change goes through this module and
//! costs the names that it touches.

use std::collections::{HashMap, HashSet};

use slotmesh_xds::{Fingerprint, Resource, ResourceName, ResourceType, Sketch, Version};

use crate::{
    bits::Bits,
    status::Rejected,
    table::{Before, Place, Table},
};

/// Memory for so many states is kept when they are gone.
const SPARE: usize = 4;

/// A version that an agent says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Version(Version),
    /// Some content under the version of another control plane.
    Foreign,
}

/// A message about a name that was sent, or is about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// This version.
    Upsert(Version),
    /// That it is gone.
    Removal,
    /// That it does not exist, to an agent that has not got it.
    Absent,
}

/// The state of one name at an agent.
#[derive(Debug, Default)]
pub(crate) struct ResourceState {
    pub(crate) held: Option<Held>,
    pub(crate) sent: Option<Sent>,
    pub(crate) refused: Option<Box<RefusedVersion>>,
}

#[derive(Debug)]
pub(crate) struct RefusedVersion {
    /// `None`: the agent refused to remove it.
    pub(crate) version: Option<Version>,
    pub(crate) reason: String,
}

impl ResourceState {
    /// A state that has this.
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
        let RefusedVersion { version, reason } = self.refused.as_deref()?;
        Some(Rejected { name: name.clone(), version: *version, reason: reason.clone() })
    }

    /// Tells whether there is nothing to say but that it has this version.
    fn has_just(&self, version: Version) -> bool {
        self.held == Some(Held::Version(version)) && self.sent.is_none() && self.refused.is_none()
    }
}

/// The state of all names of one type, with its sums.
#[derive(Debug)]
pub(crate) struct AckedResources {
    ty: ResourceType,
    /// The places whose resources the agent holds as they are served.
    current: Bits,
    /// The places whose resources the agent doesn't need.
    spared: Bits,
    /// The names of which there is more to say.
    others: HashMap<ResourceName, ResourceState>,
    held: usize,
    sketch: Sketch,
    refused: HashSet<ResourceName>,
}

impl AckedResources {
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

    /// The state of a name that isn't held as it is served.
    pub(crate) fn get(&self, name: &ResourceName) -> Option<&ResourceState> {
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
            self.others.insert(name.clone(), ResourceState::holding(Held::Version(before.version)));
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

    /// Changes the state of this name, if there is one.
    pub(crate) fn update<T>(
        &mut self,
        name: &ResourceName,
        change: impl FnOnce(&mut ResourceState) -> T,
    ) -> Option<T> {
        let mut state = self.remove(name)?;
        let outcome = change(&mut state);
        self.insert(name.clone(), state);
        Some(outcome)
    }

    /// As [`update`](Self::update), of a new state where there is none.
    pub(crate) fn update_or_new<T>(
        &mut self,
        name: &ResourceName,
        change: impl FnOnce(&mut ResourceState) -> T,
    ) -> T {
        let mut state = self.remove(name).unwrap_or_default();
        let outcome = change(&mut state);
        self.insert(name.clone(), state);
        outcome
    }

    /// Sets the state of a name that has no bit.
    pub(crate) fn insert(&mut self, name: ResourceName, state: ResourceState) {
        self.remove(&name);
        self.held += usize::from(state.held.is_some());
        if let Some(Held::Version(version)) = state.held {
            self.sketch.add(Fingerprint::of(self.ty, &name, version));
        }
        if state.refused.is_some() {
            self.refused.insert(name.clone());
        }
        self.others.insert(name, state);
    }

    /// Keeps only a bit of the name where that says all, given what is served.
    pub(crate) fn settle(&mut self, name: &ResourceName, table: &Table) {
        let Some((place, resource)) = table.place(name).and_then(|place| Some((place, table.at(place)?)))
        else {
            return;
        };
        if self.others.get(name).is_some_and(|state| state.has_just(resource.version)) {
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

    pub(crate) fn remove(&mut self, name: &ResourceName) -> Option<ResourceState> {
        let state = self.others.remove(name)?;
        self.held -= usize::from(state.held.is_some());
        if let Some(Held::Version(version)) = state.held {
            self.sketch.remove(Fingerprint::of(self.ty, name, version));
        }
        if state.refused.is_some() {
            self.refused.remove(name);
        }
        Some(state)
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
        let others = self.others.iter().filter_map(|(name, state)| match state.held {
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
        let (mut acked, mut table) = (AckedResources::new(TY), Table::default());
        let (a, b, c) = ("a".into(), "b".into(), "c".into());
        acked.insert(ResourceName::clone(&a), ResourceState::holding(Held::Version(version)));
        acked.insert(ResourceName::clone(&b), ResourceState::holding(Held::Foreign));
        let reason = || Some(Box::new(RefusedVersion { version: Some(version), reason: "no".into() }));
        acked.update_or_new(&c, |state| state.refused = reason());
        acked.update(&b, |state| state.refused = reason());
        assert_eq!((acked.held(), acked.rejected().len(), acked.len()), (2, 2, 3));
        let mut expected = Sketch::default();
        expected.add(Fingerprint::of(TY, &a, version));
        assert_eq!(*acked.sketch(), expected);

        acked.update(&c, |state| *state = ResourceState::holding(Held::Version(version)));
        expected.add(Fingerprint::of(TY, &c, version));
        assert_eq!((acked.held(), acked.rejected().len()), (3, 1));
        assert_eq!(*acked.sketch(), expected);

        acked.retain(&table, |name| *name == b);
        assert_eq!((acked.held(), acked.len(), acked.sketch().clone()), (1, 1, Sketch::default()));
        table.upsert(resource("b", "1"));
        acked.settle(&b, &table);
        assert_eq!(acked.len(), 1, "it is refused, and of another control plane");
        acked.remove(&b);
        assert_eq!((acked.held(), acked.rejected().len()), (0, 0));
    }

    #[test]
    fn what_is_held_as_it_is_served_is_a_bit() {
        let (mut acked, mut table) = (AckedResources::new(TY), Table::default());
        for name in ["a", "b", "c"] {
            table.upsert(resource(name, "1"));
        }
        let a = ResourceName::from("a");
        let place = table.place(&a).unwrap();
        acked.insert(a.clone(), ResourceState::holding(Held::Version(Version::of(b"1"))));
        acked.insert_current(table.place(&"b".into()).unwrap(), &resource("b", "1"));
        let sums = |acked: &AckedResources| (acked.held(), acked.sketch().clone());
        let before = sums(&acked);
        acked.settle(&a, &table);
        assert!(acked.is_current(place) && acked.len() == 0);

        let old = table.upsert(resource("a", "2")).flatten().unwrap();
        acked.outdate(&a, old);
        assert!(!acked.is_current(place));
        assert_eq!(acked.get(&a).unwrap().held, Some(Held::Version(Version::of(b"1"))));
        acked.settle(&a, &table);
        assert_eq!((sums(&acked), acked.len()), (before, 1), "it holds what it held");
        assert_eq!(acked.versions(&table).count(), 2);

        acked.retain(&table, |name| *name == a);
        assert_eq!((acked.held(), acked.versions(&table).count()), (1, 1));
    }
}
