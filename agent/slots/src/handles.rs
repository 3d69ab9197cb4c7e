//! The engine's knowledge of each handle, beside the handle's own record.
//!
//! ```text
//! name    -> hash table of numbers ---.
//! pointer -> slab -> unit -> number ---+-> entries, dense, the number freed last reused first
//! ```
//!
//! The tables hold only numbers, so that they stay in the processor's caches with 100,000 names, and
//! the entries of what changes often lie close together: a flush costs what it costs among few.

use std::{hash::BuildHasher as _, sync::Arc};

use hashbrown::HashTable;
use slotmesh_records::{Handle, MAX_SLABS, Ref, SlabIndex, SlotPtr, UNITS_PER_SLAB};

use crate::directory::Entry as DirectoryEntry;

/// The kind of a resource, a small number that the engine only compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKind(pub u32);

/// Where a handle lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlePtr(SlotPtr);

impl HandlePtr {
    /// Says that there is a handle at this slot. Only who has put it there knows.
    pub const fn new(ptr: SlotPtr) -> Self {
        Self(ptr)
    }

    /// The slot.
    pub const fn ptr(self) -> SlotPtr {
        self.0
    }

    /// The reference to it that a record stores.
    pub const fn as_ref(self) -> Ref<Handle> {
        Ref::new(self.0)
    }
}

/// A handle's life beside its record.
#[derive(Debug)]
pub(crate) struct Info {
    pub kind: ResourceKind,
    pub name: Arc<str>,
    /// How many pointers of current versions lead here.
    pub refs: u32,
    /// Tells whether programs may have seen it: a version that refers to it, or its own, was published.
    pub seen: bool,
    /// Tells whether the resource was published (and not removed since).
    pub published: bool,
    pub entry: DirectoryEntry,
}

#[derive(Debug)]
struct Entry {
    handle: HandlePtr,
    hash: u64,
    info: Info,
}

/// A place in `entries`.
type Number = u32;

/// No entry's number.
const NONE: Number = Number::MAX;

type Page = Box<[Number; UNITS_PER_SLAB as usize]>;

/// All handles, by pointer and by name.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    entries: Vec<Option<Entry>>,
    /// Places in `entries` that are free.
    free: Vec<Number>,
    names: HashTable<Number>,
    /// By slab: which entry has its handle at which unit.
    places: Vec<Option<Page>>,
    hasher: foldhash::fast::RandomState,
    /// Used again by each call.
    numbers: Vec<Number>,
}

impl Handles {
    pub fn find(&self, kind: ResourceKind, name: &str) -> Option<HandlePtr> {
        let number = self.named(kind, name)?;
        Some(self.entries[number as usize].as_ref()?.handle)
    }

    /// The handle of this name, with one reference more.
    pub fn hold(&mut self, kind: ResourceKind, name: &str) -> Option<HandlePtr> {
        let number = self.named(kind, name)?;
        let entry = self.entries[number as usize].as_mut()?;
        entry.info.refs += 1;
        Some(entry.handle)
    }

    /// The handles of these names, each with one reference more, where there are any. First all entries are looked up
    /// by their hashes, then all names are compared: so the memory of several is fetched at the same time.
    pub fn hold_all(&mut self, kind: ResourceKind, names: &[&str], found: &mut Vec<Option<HandlePtr>>) {
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.extend(names.iter().map(|name| {
            let hash = self.hash(kind, name);
            let entry = |&number: &Number| self.entries[number as usize].as_ref();
            let number =
                self.names.find(hash, |number| entry(number).is_some_and(|entry| entry.hash == hash));
            number.copied().unwrap_or(NONE)
        }));
        found.extend(names.iter().zip(numbers.drain(..)).map(|(name, number)| {
            let entry = self.entries.get_mut(number as usize)?.as_mut()?;
            if entry.info.kind == kind && *entry.info.name == **name {
                entry.info.refs += 1;
                return Some(entry.handle);
            }
            // Another name of the same hash.
            self.hold(kind, name)
        }));
        self.numbers = numbers;
    }

    /// One reference less to each of these; those that are left without any, and without a version, go to `unused`.
    ///
    /// # Panics
    /// Where one doesn't exist, as [`info`](Self::info).
    pub fn release_all(&mut self, handles: &[SlotPtr], unused: &mut Vec<HandlePtr>) {
        // Handles that are referred to together mostly lie in one slab.
        let mut last: Option<(u32, &Page)> = None;
        for &ptr in handles {
            let slab = ptr.slab_bits();
            let page = match last {
                Some((found, page)) if found == slab => Some(page),
                _ => self.places.get(slab as usize).and_then(Option::as_ref),
            };
            last = page.map(|page| (slab, page));
            let number = page.map_or(NONE, |page| page[ptr.unit() as usize]);
            let entry = self.entries.get_mut(number as usize).and_then(Option::as_mut);
            let Entry { info, .. } =
                entry.unwrap_or_else(|| panic!("a record refers to {ptr:?}, which is no handle"));
            info.refs -= 1;
            if info.refs == 0 && !info.published {
                unused.push(HandlePtr(ptr));
            }
        }
    }

    fn named(&self, kind: ResourceKind, name: &str) -> Option<Number> {
        let hash = self.hash(kind, name);
        let found = self.names.find(hash, |&number| {
            self.entries[number as usize].as_ref().is_some_and(|entry| {
                entry.hash == hash && entry.info.kind == kind && &*entry.info.name == name
            })
        });
        found.copied()
    }

    pub fn get(&self, handle: HandlePtr) -> Option<&Info> {
        Some(&self.entries[self.number(handle)? as usize].as_ref()?.info)
    }

    /// A handle that something refers to, and which therefore exists.
    ///
    /// # Panics
    /// Where it doesn't: going on would lead connections astray.
    pub fn info(&mut self, handle: HandlePtr) -> &mut Info {
        let info = self.get_mut(handle);
        info.unwrap_or_else(|| panic!("a record or draft refers to {:?}, which is no handle", handle.0))
    }

    pub fn get_mut(&mut self, handle: HandlePtr) -> Option<&mut Info> {
        let number = self.number(handle)?;
        Some(&mut self.entries[number as usize].as_mut()?.info)
    }

    pub fn insert(&mut self, handle: HandlePtr, info: Info) {
        let hash = self.hash(info.kind, &info.name);
        let entry = Some(Entry { handle, hash, info });
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number as usize] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as Number - 1
            }
        };
        let entries = &self.entries;
        self.names.insert_unique(hash, number, |&number| {
            entries[number as usize].as_ref().map_or(0, |entry| entry.hash)
        });
        self.place(handle, number);
    }

    /// The handle at this slot has this number.
    fn place(&mut self, handle: HandlePtr, number: Number) {
        let slab = handle.0.slab_bits() as usize;
        debug_assert!(slab < MAX_SLABS as usize);
        if self.places.len() <= slab {
            self.places.resize_with(slab + 1, || None);
        }
        let page = self.places[slab].get_or_insert_with(|| Box::new([NONE; UNITS_PER_SLAB as usize]));
        page[handle.0.unit() as usize] = number;
    }

    pub fn remove(&mut self, handle: HandlePtr) -> Option<Info> {
        let number = self.number(handle)?;
        let Entry { handle, hash, info } = self.entries[number as usize].take()?;
        if let Ok(found) = self.names.find_entry(hash, |&other| other == number) {
            found.remove();
        }
        if let Some(page) = &mut self.places[handle.0.slab_bits() as usize] {
            page[handle.0.unit() as usize] = NONE;
        }
        self.free.push(number);
        Some(info)
    }

    /// The handle has moved: it is found at another slot, by the same name.
    pub fn relocate(&mut self, from: HandlePtr, to: HandlePtr) {
        let Some(number) = self.number(from) else { return };
        if let Some(page) = &mut self.places[from.0.slab_bits() as usize] {
            page[from.0.unit() as usize] = NONE;
        }
        self.place(to, number);
        if let Some(entry) = &mut self.entries[number as usize] {
            entry.handle = to;
        }
    }

    /// The handle with this number, which may be none, of [`numbers`](Self::numbers).
    pub fn nth(&self, number: usize) -> Option<HandlePtr> {
        Some(self.entries.get(number)?.as_ref()?.handle)
    }

    /// Handles have numbers below this.
    pub fn numbers(&self) -> usize {
        self.entries.len()
    }

    /// The handles that lie in a slab.
    pub fn in_slab(&self, slab: SlabIndex) -> impl Iterator<Item = HandlePtr> {
        let page = self.places.get(slab.get() as usize).and_then(Option::as_ref);
        let numbers = page.into_iter().flat_map(|page| page.iter()).filter(|&&number| number != NONE);
        numbers.filter_map(|&number| self.nth(number as usize))
    }

    pub fn iter(&self) -> impl Iterator<Item = (HandlePtr, &Info)> {
        self.entries.iter().flatten().map(|entry| (entry.handle, &entry.info))
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    fn number(&self, handle: HandlePtr) -> Option<Number> {
        let page = self.places.get(handle.0.slab_bits() as usize)?.as_ref()?;
        Some(page[handle.0.unit() as usize]).filter(|&number| number != NONE)
    }

    fn hash(&self, kind: ResourceKind, name: &str) -> u64 {
        self.hasher.hash_one((kind, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Directory;

    fn info(kind: u32, name: &str) -> Info {
        let entry = Directory::entry(0, 0);
        Info { kind: ResourceKind(kind), name: name.into(), refs: 0, seen: false, published: false, entry }
    }

    #[test]
    fn handles_are_found_by_name_and_by_pointer_until_they_go() {
        let mut handles = Handles::default();
        let ptr = |i: u32| HandlePtr::new(SlotPtr::from_bits(1 + i * 37));
        for i in 0..5_000 {
            handles.insert(ptr(i), info(1 + i % 2, &format!("name-{}", i / 2)));
        }
        assert_eq!((handles.len(), handles.iter().count()), (5_000, 5_000));
        for i in (0..5_000).step_by(3) {
            assert_eq!(&*handles.remove(ptr(i)).unwrap().name, format!("name-{}", i / 2));
            assert!(handles.remove(ptr(i)).is_none());
        }
        for i in 0..5_000 {
            let found = handles.find(ResourceKind(1 + i % 2), &format!("name-{}", i / 2));
            assert_eq!(found, (i % 3 != 0).then_some(ptr(i)));
            assert_eq!(handles.get(ptr(i)).is_some(), i % 3 != 0);
        }
        assert!(handles.get(HandlePtr::new(SlotPtr::from_bits(u32::MAX))).is_none());
        let mut found = vec![];
        handles.hold_all(ResourceKind(1), &["name-1", "name-9999", "name-0", "name-1"], &mut found);
        assert_eq!(found, [Some(ptr(2)), None, None, Some(ptr(2))]);
        assert_eq!(handles.get(ptr(2)).unwrap().refs, 2);
        let elsewhere = HandlePtr::new(SlotPtr::from_bits(7 * UNITS_PER_SLAB + 5));
        handles.relocate(ptr(1), elsewhere);
        assert!(handles.get(ptr(1)).is_none());
        assert_eq!(handles.find(ResourceKind(2), "name-0"), Some(elsewhere));
        assert!(handles.in_slab(SlabIndex::new(7).unwrap()).any(|found| found == elsewhere));
        assert!((0..handles.numbers()).any(|number| handles.nth(number) == Some(elsewhere)));
        handles.insert(ptr(0), info(3, "again"));
        assert_eq!(handles.find(ResourceKind(3), "again"), Some(ptr(0)));
        assert_eq!(handles.iter().count(), handles.len());
    }
}
