//! Named resources over a store that knows only records: what the slot engine does for slabs, as plainly
//! as it can be done. Each name has a handle; a version is the records that were written for it and the
//! handles that these refer to.

use std::hash::BuildHasher as _;

use hashbrown::HashTable;
use slotmesh_records::{Owned, Record, RecordHeader, SlotPtr};
use slotmesh_slots::{HandlePtr, Records, ResourceKind};

use crate::store::{Id, Store};

/// A version of a resource.
#[derive(Default)]
struct Version {
    records: Vec<Id>,
    refs: Vec<usize>,
}

struct Entry {
    hash: u64,
    kind: u32,
    name: Box<str>,
    handle: Id,
    refs: u32,
    current: Option<Version>,
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
    /// What is written, for who reads it back.
    pub log: Option<Vec<(Id, Vec<u8>)>>,
}

impl<S: Store> Session<S> {
    pub fn new(store: S) -> Self {
        let (entries, free, names, hasher, spare) = Default::default();
        Self { store, entries, free, names, hasher, spare, log: None }
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
        let entry = Some(Entry { hash, kind, name: name.into(), handle, refs: 0, current: None });
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
        let entries = &self.entries;
        self.names
            .insert_unique(hash, number, |&number| entries[number].as_ref().map_or(0, |entry| entry.hash));
        Ok(number)
    }

    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let id = self.store.write(head, tail)?;
        if let Some(log) = &mut self.log {
            log.push((id, [head, tail].concat()));
        }
        Ok(id)
    }

    fn give_up(&mut self, mut version: Version) -> anyhow::Result<()> {
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
        let version = std::mem::take(&mut self.version);
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
