//! What the engine knows of each handle beside the handle's own record.

use std::sync::Arc;

use hashbrown::{Equivalent, HashMap};
use slotmesh_records::{Handle, Ref, SlotPtr};

use crate::directory::Entry;

/// The kind of a resource, a small number that the engine only compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceKind(pub u32);

/// Where a handle lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandlePtr(SlotPtr);

impl HandlePtr {
    pub(crate) const fn new(ptr: SlotPtr) -> Self {
        Self(ptr)
    }

    /// The slot.
    pub const fn ptr(self) -> SlotPtr {
        self.0
    }

    /// What a record stores to refer to it.
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
    /// Whether programs may have seen it: a version that refers to it, or its own, was published.
    pub seen: bool,
    /// Whether the resource was published (and not removed since).
    pub published: bool,
    pub entry: Entry,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key(ResourceKind, Arc<str>);

#[derive(Hash)]
struct Borrowed<'a>(ResourceKind, &'a str);

impl Equivalent<Key> for Borrowed<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.0 == key.0 && self.1 == &*key.1
    }
}

/// All handles, by pointer and by name.
#[derive(Debug, Default)]
pub(crate) struct Handles {
    infos: HashMap<SlotPtr, Info, foldhash::fast::RandomState>,
    names: HashMap<Key, HandlePtr, foldhash::fast::RandomState>,
}

impl Handles {
    pub fn find(&self, kind: ResourceKind, name: &str) -> Option<HandlePtr> {
        self.names.get(&Borrowed(kind, name)).copied()
    }

    pub fn get(&self, handle: HandlePtr) -> Option<&Info> {
        self.infos.get(&handle.0)
    }

    /// A handle that something refers to, and which therefore exists.
    ///
    /// # Panics
    /// Where it doesn't: going on would lead connections astray.
    pub fn info(&mut self, handle: HandlePtr) -> &mut Info {
        let info = self.infos.get_mut(&handle.0);
        info.unwrap_or_else(|| panic!("a record or draft refers to {:?}, which is no handle", handle.0))
    }

    pub fn get_mut(&mut self, handle: HandlePtr) -> Option<&mut Info> {
        self.infos.get_mut(&handle.0)
    }

    pub fn insert(&mut self, handle: HandlePtr, info: Info) {
        self.names.insert(Key(info.kind, info.name.clone()), handle);
        self.infos.insert(handle.0, info);
    }

    pub fn remove(&mut self, handle: HandlePtr) -> Option<Info> {
        let info = self.infos.remove(&handle.0)?;
        self.names.remove(&Borrowed(info.kind, &info.name));
        Some(info)
    }

    pub fn iter(&self) -> impl Iterator<Item = (HandlePtr, &Info)> {
        self.infos.iter().map(|(&ptr, info)| (HandlePtr(ptr), info))
    }

    pub fn len(&self) -> usize {
        self.infos.len()
    }
}
