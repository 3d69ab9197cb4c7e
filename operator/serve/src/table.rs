//! The resources of one type, each in a numbered place that it keeps while it exists.
//!
//! By the number, a stream says with one bit that its agent holds a resource as it is now. A snapshot of all places
//! is cheap: chunks are shared until one of their resources changes.
//!
//! Invariant: a place that is given up may be taken by another name. Whoever remembers places is told of each
//! that was given up, or whose resource changed, by [`Before`].

use std::{collections::HashMap, sync::Arc};

use slotmesh_xds::{Resource, ResourceName, Version};

/// Resources of a chunk. A change copies one chunk where a snapshot has it, too.
const CHUNK: usize = 64;

/// The number of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(u32);

impl Place {
    pub(crate) const fn number(self) -> usize {
        self.0 as usize
    }
}

impl From<usize> for Place {
    /// There are fewer resources than 2^32: each takes more than a byte.
    fn from(number: usize) -> Self {
        Self(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

/// The state of a name before it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Before {
    pub(crate) place: Place,
    pub(crate) version: Version,
}

type Chunk = [Option<Resource>; CHUNK];

/// The resources by place, at one generation. Clones share what doesn't change.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places(Arc<Vec<Arc<Chunk>>>);

impl Places {
    pub(crate) fn get(&self, place: Place) -> Option<&Resource> {
        self.0.get(place.number() / CHUNK)?[place.number() % CHUNK].as_ref()
    }

    fn set(&mut self, place: Place, resource: Option<Resource>) {
        let (chunk, at) = (place.number() / CHUNK, place.number() % CHUNK);
        let chunks = Arc::make_mut(&mut self.0);
        if chunk >= chunks.len() {
            chunks.resize_with(chunk + 1, || Arc::new([const { None }; CHUNK]));
        }
        Arc::make_mut(&mut chunks[chunk])[at] = resource;
    }
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Table {
    by_name: HashMap<ResourceName, Place>,
    places: Places,
    free: Vec<Place>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn place(&self, name: &ResourceName) -> Option<Place> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, name: &ResourceName) -> Option<&Resource> {
        self.places.get(self.place(name)?)
    }

    pub(crate) fn at(&self, place: Place) -> Option<&Resource> {
        self.places.get(place)
    }

    /// All of them as they are now.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ResourceName, Place)> {
        self.by_name.iter().map(|(name, place)| (name, *place))
    }

    /// The state before; the outer `None` where the content is the same.
    pub(crate) fn upsert(&mut self, resource: Resource) -> Option<Option<Before>> {
        if let Some(place) = self.place(&resource.name) {
            let version = self.at(place).map(|before| before.version);
            if version == Some(resource.version) {
                return None;
            }
            self.places.set(place, Some(resource));
            return Some(version.map(|version| Before { place, version }));
        }
        let place = self.free.pop().unwrap_or_else(|| Place::from(self.by_name.len()));
        self.by_name.insert(resource.name.clone(), place);
        self.places.set(place, Some(resource));
        Some(None)
    }

    /// The state before, if there was one.
    pub(crate) fn remove(&mut self, name: &ResourceName) -> Option<Before> {
        let place = self.by_name.remove(name)?;
        let version = self.at(place)?.version;
        self.places.set(place, None);
        self.free.push(place);
        Some(Before { place, version })
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::ResourceType;

    use super::*;

    fn resource(name: &str, content: &'static str) -> Resource {
        let (name, content) = (name.into(), content.as_bytes());
        Resource { ty: ResourceType::Cluster, name, version: Version::of(content), content: content.into() }
    }

    #[test]
    fn a_name_keeps_its_place_and_a_snapshot_its_content() {
        let mut table = Table::default();
        for i in 0..200 {
            assert_eq!(table.upsert(resource(&i.to_string(), "1")), Some(None));
        }
        assert_eq!(table.upsert(resource("7", "1")), None, "nothing new");
        let (place, old) = (table.place(&"7".into()).unwrap(), table.places().clone());
        let before = Before { place, version: Version::of(b"1") };
        assert_eq!(table.upsert(resource("7", "2")), Some(Some(before)));
        assert_eq!(table.place(&"7".into()), Some(place));
        assert_eq!(old.get(place).unwrap().content, "1");
        assert_eq!(table.at(place).unwrap().content, "2");

        let before = Before { place, version: Version::of(b"2") };
        assert_eq!(table.remove(&"7".into()), Some(before));
        assert_eq!((table.remove(&"7".into()), table.len()), (None, 199));
        assert_eq!(table.upsert(resource("new", "1")), Some(None));
        assert_eq!(table.place(&"new".into()), Some(place), "the place is used again");
        assert_eq!(old.get(place).unwrap().name.as_str(), "7");
        assert_eq!(table.iter().count(), 200);
    }
}
