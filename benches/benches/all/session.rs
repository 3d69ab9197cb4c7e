//! Named resources over a store that knows only records: what the slot engine does for slabs, as plainly
//! as it can be done. Each name has a handle; a version is the records that were written for it and the
//! handles that these refer to.
//!
//! Where it is *recoverable*, all that it knows stands in its records, as with the slot engine: a handle is entered into
//! a directory, and what a version consists of is read from its records when it is given up, not from a list beside.

use std::hash::BuildHasher as _;

use anyhow::Context as _;
use hashbrown::HashTable;
use slotmesh_records::{
    DirectoryPage, Owned, Record, RecordHeader, SlotPtr,
    layout::{Points, pointers},
};
use slotmesh_slots::{HandlePtr, Records, ResourceKind};

use crate::store::{Id, Store};

/// A version of a resource; of a recoverable session the root alone.
#[derive(Default)]
struct Version {
    records: Vec<Id>,
    refs: Vec<usize>,
}

/// Words of pages of 4 KiB, one a handle, and which handle is which entry.
#[derive(Default)]
struct Directory {
    /// Page and offset of words that hold nothing.
    free: Vec<(Id, usize)>,
    /// The entry of a handle, by its place.
    numbers: Vec<u32>,
}

struct Entry {
    hash: u64,
    kind: u32,
    name: Box<str>,
    handle: Id,
    refs: u32,
    current: Option<Version>,
    /// Its word in the directory, where there is one.
    word: Option<(Id, usize)>,
}

/// See the module's comment.
pub struct Session<S> {
    pub store: S,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    names: HashTable<usize>,
    hasher: foldhash::fast::RandomState,
    /// What versions that have gone leave to the next.
    spare: Vec<Version>,
    /// Of a recoverable session.
    directory: Option<Directory>,
    /// What is written, for who reads it back.
    pub log: Option<Vec<(Id, Vec<u8>)>>,
}

impl<S: Store> Session<S> {
    pub fn new(store: S) -> Self {
        let (entries, free, names, hasher, spare) = Default::default();
        Self { store, entries, free, names, hasher, spare, directory: None, log: None }
    }

    /// The same, recoverable.
    pub fn recoverable(store: S) -> Self {
        Self { directory: Some(Directory::default()), ..Self::new(store) }
    }

    /// Begins the next version of a resource.
    pub fn draft(&mut self) -> Draft<'_, S> {
        let version = self.spare.pop().unwrap_or_default();
        Draft { session: self, version, handles: Vec::new() }
    }

    /// A resource is no more.
    pub fn remove(&mut self, kind: u32, name: &str) -> anyhow::Result<()> {
        let Some(number) = self.find(kind, name) else { return Ok(()) };
        let entry = self.entry(number);
        let (handle, version, unused) = (entry.handle, entry.current.take(), entry.refs == 0);
        self.store.publish(handle, 0)?;
        if let Some(version) = version {
            self.give_up(version)?;
        }
        if unused { self.drop_handle(number) } else { Ok(()) }
    }

    fn entry(&mut self, number: usize) -> &mut Entry {
        self.entries[number].as_mut().expect("an entry that something refers to")
    }

    fn hash(&self, kind: u32, name: &str) -> u64 {
        self.hasher.hash_one((kind, name))
    }

    fn find(&self, kind: u32, name: &str) -> Option<usize> {
        let same = |&number: &usize| {
            self.entries[number].as_ref().is_some_and(|entry| entry.kind == kind && &*entry.name == name)
        };
        self.names.find(self.hash(kind, name), same).copied()
    }

    /// The entry of a name, made where it is missing.
    fn name(&mut self, kind: u32, name: &str) -> anyhow::Result<usize> {
        if let Some(number) = self.find(kind, name) {
            return Ok(number);
        }
        let (hash, handle) = (self.hash(kind, name), self.store.handle(name)?);
        let word = self.enter(handle)?;
        let entry = Some(Entry { hash, kind, name: name.into(), handle, refs: 0, current: None, word });
        let number = match self.free.pop() {
            Some(number) => {
                self.entries[number] = entry;
                number
            }
            None => {
                self.entries.push(entry);
                self.entries.len() - 1
            }
        };
        if let Some(directory) = &mut self.directory {
            let place = handle as usize;
            directory.numbers.resize(directory.numbers.len().max(place + 1), 0);
            directory.numbers[place] = number as u32;
        }
        let entries = &self.entries;
        self.names
            .insert_unique(hash, number, |&number| entries[number].as_ref().map_or(0, |entry| entry.hash));
        Ok(number)
    }

    /// Enters a handle into the directory, if there is one.
    fn enter(&mut self, handle: Id) -> anyhow::Result<Option<(Id, usize)>> {
        let Some(directory) = &mut self.directory else { return Ok(None) };
        if directory.free.is_empty() {
            let page = self.store.write(&[0; 4096], &[])?;
            let words = (size_of::<DirectoryPage>()..4096).step_by(size_of::<SlotPtr>());
            directory.free.extend(words.rev().map(|offset| (page, offset)));
        }
        let word = directory.free.pop().context("a page has words")?;
        self.store.store(word.0, word.1, handle)?;
        Ok(Some(word))
    }

    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let id = self.store.write(head, tail)?;
        if let Some(log) = &mut self.log {
            log.push((id, [head, tail].concat()));
        }
        Ok(id)
    }

    /// Adds to a version's root what its records tell.
    fn complete(&mut self, version: &mut Version) -> anyhow::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let mut next = 0;
        while let Some(&id) = version.records.get(next) {
            next += 1;
            let slot = self.store.read(id).context("a recoverable store can be read")?;
            pointers(slot, |points, ptr| match points {
                Points::Owned => version.records.push(ptr.bits()),
                Points::Ref => version.refs.push(directory.numbers[ptr.bits() as usize] as usize),
                Points::Nothing | Points::Within => {}
            })
            .map_err(|error| anyhow::anyhow!("record {id}: {error:?}"))?;
        }
        Ok(())
    }

    fn give_up(&mut self, mut version: Version) -> anyhow::Result<()> {
        self.complete(&mut version)?;
        for id in version.records.drain(..) {
            self.store.give_up(id)?;
        }
        for number in version.refs.drain(..) {
            let entry = self.entry(number);
            entry.refs -= 1;
            if entry.refs == 0 && entry.current.is_none() {
                self.drop_handle(number)?;
            }
        }
        self.spare.push(version);
        Ok(())
    }

    fn drop_handle(&mut self, number: usize) -> anyhow::Result<()> {
        let Some(entry) = self.entries[number].take() else { return Ok(()) };
        if let Ok(found) = self.names.find_entry(entry.hash, |&other| other == number) {
            found.remove();
        }
        self.free.push(number);
        if let (Some(directory), Some(word)) = (&mut self.directory, entry.word) {
            self.store.store(word.0, word.1, 0)?;
            directory.free.push(word);
        }
        self.store.drop_handle(entry.handle)
    }
}

/// The next version of a resource, before anything can see it.
pub struct Draft<'s, S> {
    session: &'s mut Session<S>,
    version: Version,
    /// Handles that were asked for, with their entries.
    handles: Vec<(Id, usize)>,
}

impl<S: Store> Draft<'_, S> {
    /// Writes a record as it is.
    pub fn record(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let id = self.session.write(head, tail)?;
        self.version.records.push(id);
        Ok(id)
    }

    /// Makes `root` the current version of a name.
    pub fn make_current(mut self, kind: u32, name: &str, root: Id) -> anyhow::Result<()> {
        let number = self.session.name(kind, name)?;
        self.finish(number, root)
    }

    fn finish(&mut self, number: usize, root: Id) -> anyhow::Result<()> {
        let mut version = std::mem::take(&mut self.version);
        if self.session.directory.is_some() {
            version.records.clear();
            version.records.push(root);
            version.refs.clear();
        }
        let entry = self.session.entry(number);
        let (handle, old) = (entry.handle, entry.current.replace(version));
        self.session.store.publish(handle, root)?;
        old.map_or(Ok(()), |old| self.session.give_up(old))
    }
}

impl<S: Store> Records for Draft<'_, S> {
    type Error = anyhow::Error;

    fn write_root<R: Record>(
        &mut self,
        fixed: &R,
        tail: &[R::Tail],
        version: u64,
    ) -> anyhow::Result<Owned<R>> {
        let header = RecordHeader { kind: R::KIND, units: 0, count: tail.len() as u32, version };
        let mut fixed = *fixed;
        bytemuck::bytes_of_mut(&mut fixed)[..size_of::<RecordHeader>()]
            .copy_from_slice(bytemuck::bytes_of(&header));
        let id = self.record(bytemuck::bytes_of(&fixed), bytemuck::cast_slice(tail))?;
        Ok(Owned::new(SlotPtr::from_bits(id)))
    }

    fn handle(&mut self, kind: ResourceKind, name: &str) -> anyhow::Result<HandlePtr> {
        let number = self.session.name(kind.0, name)?;
        let handle = self.session.entry(number).handle;
        self.handles.push((handle, number));
        Ok(HandlePtr::new(SlotPtr::from_bits(handle)))
    }

    fn publish<R: Record>(mut self, handle: HandlePtr, root: Owned<R>) -> anyhow::Result<()> {
        let own = self.handles.iter().rposition(|&(id, _)| id == handle.ptr().bits());
        let (_, own) = self.handles.swap_remove(own.expect("a handle of this draft"));
        for &(_, number) in &self.handles {
            self.session.entry(number).refs += 1;
            self.version.refs.push(number);
        }
        self.finish(own, root.ptr().bits())
    }
}
