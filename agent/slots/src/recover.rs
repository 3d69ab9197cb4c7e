//! Recovery: what an earlier agent left, found by marking from the roots.
//!
//! Marked is what the directory and the given roots lead to. All else is idle: nothing has led to it
//! since before the grace period that the caller waited for.

use std::collections::HashSet;

use slotmesh_records::{
    DirectoryPage, Handle, LAYOUT_HASH, Record, RecordHeader, SlotPtr, Superblock,
    layout::{Malformed, Points, pointers},
};

use crate::{
    BackingError, Contradiction, HandlePtr, ResourceKind, SlotClass,
    directory::{Directory, Entry, PAGE_BYTES, PAGE_ENTRIES},
    engine::read,
    handles::{Handles, Info},
    sync::Arena,
    table::SlotTable,
};

/// Why an engine can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The settings contradict each other.
    #[error("slot settings: {0}")]
    Config(#[from] Contradiction),
    /// The kernel refused.
    #[error("slabs can't be had: {0}")]
    Backing(#[source] BackingError),
    /// The records that are there aren't what this build writes.
    #[error(
        "the records left by an earlier agent are damaged: {what} at {ptr:?}; remove the pin root to begin anew"
    )]
    Damaged {
        /// The fault.
        what: String,
        /// Where.
        ptr: SlotPtr,
    },
}

/// Resources that were in force when the earlier agent ended.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The resources that have a current version.
    pub resources: Vec<RecoveredResource>,
    /// Handles that only the given roots lead to: their removal was under way.
    pub orphans: Vec<HandlePtr>,
}

/// A resource that is in force.
#[derive(Debug)]
pub struct RecoveredResource {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name.
    pub name: std::sync::Arc<str>,
    /// Its version; 0 where it is unknown.
    pub version: u64,
    /// Its handle.
    pub handle: HandlePtr,
}

pub(crate) struct Found {
    pub handles: Handles,
    pub directory: Directory,
    pub recovered: Recovered,
    /// Handles that lead nowhere and to which nothing refers.
    pub unused: Vec<HandlePtr>,
    /// Rests of handles that were being moved: the one of the two that nothing refers to, and its entry.
    pub left: Vec<(HandlePtr, Entry)>,
    pub is_new: bool,
}

/// A handle that was being moved when the earlier agent ended: both lead to the same version.
struct Twin {
    first: HandlePtr,
    second: HandlePtr,
    info: Info,
}

struct Marker<'a> {
    arena: &'a Arena,
    table: &'a mut SlotTable,
}

/// Marks what the earlier agent left as used in `table`, which holds all slabs.
pub(crate) fn recover(
    arena: &Arena,
    table: &mut SlotTable,
    roots: &[SlotPtr],
) -> Result<Found, RecoverError> {
    let mut found = Found {
        handles: Handles::default(),
        directory: Directory::default(),
        recovered: Recovered::default(),
        unused: Vec::new(),
        left: Vec::new(),
        is_new: false,
    };
    let mut marker = Marker { arena, table };
    let superblock: Superblock = read(marker.bytes(SlotPtr::SUPERBLOCK, size_of::<Superblock>())?);
    found.is_new = superblock.header.kind != Superblock::KIND;
    if found.is_new && superblock.header.kind.get() != 0 {
        return Err(damaged("no superblock", SlotPtr::SUPERBLOCK));
    }
    let unit = SlotClass::of_units(1).expect("the smallest class");
    marker.table.mark(SlotPtr::SUPERBLOCK, unit).map_err(|()| damaged("no slab", SlotPtr::SUPERBLOCK))?;
    if found.is_new {
        return Ok(found);
    }
    if superblock.layout != LAYOUT_HASH {
        return Err(damaged("another record layout", SlotPtr::SUPERBLOCK));
    }

    let mut pages = Vec::new();
    let mut page = superblock.directory.ptr();
    while !page.is_null() {
        let slot = marker.mark(page)?;
        let record = typed::<DirectoryPage>(slot, page)?;
        if record.header.count != PAGE_ENTRIES || slot.len() < PAGE_BYTES {
            return Err(damaged("a short page of the directory", page));
        }
        let entries: &[SlotPtr] = bytemuck::try_cast_slice(&slot[size_of::<DirectoryPage>()..PAGE_BYTES])
            .map_err(|_| damaged("a misaligned page", page))?;
        pages.push((page, entries));
        page = record.next.ptr();
    }
    let mut trees = Vec::new();
    let mut twins: Vec<Twin> = Vec::new();
    for (page, entries) in pages.into_iter().rev() {
        let number = found.directory.add_page(page, |i| entries[i as usize].is_null());
        for (i, &ptr) in entries.iter().enumerate().filter(|(_, ptr)| !ptr.is_null()) {
            let entry = Directory::entry(number, i as u32);
            let (handle, name, current) = marker.handle(ptr)?;
            let kind = ResourceKind(handle.resource);
            let published = !current.is_null();
            let info = Info { kind, name: name.as_str().into(), refs: 0, seen: true, published, entry };
            let handle = HandlePtr::new(ptr);
            if let Some(first) = found.handles.find(kind, &name) {
                let is_third = twins.iter().any(|twin| twin.first == first);
                if is_third || marker.current(first) != current {
                    return Err(damaged("a second handle of the same name", ptr));
                }
                twins.push(Twin { first, second: handle, info });
                continue;
            }
            found.handles.insert(handle, info);
            if published {
                trees.push((handle, current));
            }
        }
    }
    let known: HashSet<SlotPtr> = found.handles.iter().map(|(handle, _)| handle.ptr()).collect();
    for &root in roots.iter().collect::<HashSet<_>>() {
        if !known.contains(&root) {
            let (_, _, current) = marker.handle(root)?;
            let handle = HandlePtr::new(root);
            found.recovered.orphans.push(handle);
            if !current.is_null() {
                trees.push((handle, current));
            }
        }
    }
    for (handle, root) in trees {
        let version = marker.tree(root, &mut found.handles, &mut twins)?;
        if let Some(info) = found.handles.get(handle) {
            let (kind, name) = (info.kind, info.name.clone());
            found.recovered.resources.push(RecoveredResource { kind, name, version, handle });
        }
    }
    for Twin { first, second, info } in twins {
        let of_first = found.handles.info(first).refs;
        if of_first > 0 && info.refs > 0 {
            return Err(damaged("a second handle of the same name", second.ptr()));
        }
        if info.refs > 0 {
            let before = found.handles.remove(first).map(|info| info.entry);
            found.left.extend(before.map(|entry| (first, entry)));
            for resource in found.recovered.resources.iter_mut().filter(|one| one.handle == first) {
                resource.handle = second;
            }
            found.handles.insert(second, info);
        } else {
            found.left.push((second, info.entry));
        }
    }
    found.unused = found
        .handles
        .iter()
        .filter(|(_, info)| info.refs == 0 && !info.published)
        .map(|(handle, _)| handle)
        .collect();
    Ok(found)
}

impl<'a> Marker<'a> {
    fn bytes(&self, ptr: SlotPtr, len: usize) -> Result<&'a [u8], RecoverError> {
        self.arena.slot(ptr, len).ok_or_else(|| damaged("a pointer that leads out of the slabs", ptr))
    }

    /// Marks one slot, found for the first time; its bytes.
    fn mark(&mut self, ptr: SlotPtr) -> Result<&'a [u8], RecoverError> {
        let header: RecordHeader = read(self.bytes(ptr, size_of::<RecordHeader>())?);
        let class = SlotClass::of_units(header.units).ok_or_else(|| damaged("no record", ptr))?;
        match self.table.mark(ptr, class) {
            Ok(true) => self.bytes(ptr, class.bytes()),
            Ok(false) => Err(damaged("a slot with two owners", ptr)),
            Err(()) => Err(damaged("slots that overlap", ptr)),
        }
    }

    /// The version that a handle leads to, which was marked.
    fn current(&self, handle: HandlePtr) -> SlotPtr {
        let slot = self.arena.slot(handle.ptr(), size_of::<Handle>());
        slot.map_or(SlotPtr::NULL, |slot| read::<Handle>(slot).current)
    }

    fn handle(&mut self, ptr: SlotPtr) -> Result<(Handle, String, SlotPtr), RecoverError> {
        let slot = self.mark(ptr)?;
        let handle = typed::<Handle>(slot, ptr)?;
        let name = slot
            .get(size_of::<Handle>()..)
            .and_then(|tail| tail.get(..handle.header.count as usize))
            .and_then(|name| std::str::from_utf8(name).ok())
            .ok_or_else(|| damaged("a handle without a name", ptr))?;
        Ok((handle, name.to_owned(), handle.current))
    }

    /// Marks a version and counts what it refers to; the version's number.
    fn tree(
        &mut self,
        root: SlotPtr,
        handles: &mut Handles,
        twins: &mut [Twin],
    ) -> Result<u64, RecoverError> {
        let mut stack = vec![root];
        let mut version = None;
        while let Some(ptr) = stack.pop() {
            let slot = self.mark(ptr)?;
            let mut unknown = None;
            let header = pointers(slot, |points, target| match points {
                Points::Owned => stack.push(target),
                Points::Ref => match handles.get_mut(HandlePtr::new(target)) {
                    Some(info) => info.refs += 1,
                    None => match twins.iter_mut().find(|twin| twin.second.ptr() == target) {
                        Some(twin) => twin.info.refs += 1,
                        None => unknown = Some(target),
                    },
                },
                Points::Nothing | Points::Within => {}
            })
            .map_err(|error: Malformed| damaged(&error.to_string(), ptr))?;
            if let Some(target) = unknown {
                return Err(damaged("a reference to no handle", target));
            }
            version.get_or_insert(header.version);
        }
        Ok(version.unwrap_or(0))
    }
}

fn typed<R: Record>(slot: &[u8], ptr: SlotPtr) -> Result<R, RecoverError> {
    let header: RecordHeader = read(&slot[..size_of::<RecordHeader>()]);
    if header.kind != R::KIND || slot.len() < size_of::<R>() {
        return Err(damaged(R::SHAPE.name, ptr));
    }
    Ok(read(&slot[..size_of::<R>()]))
}

fn damaged(what: &str, ptr: SlotPtr) -> RecoverError {
    RecoverError::Damaged { what: what.to_owned(), ptr }
}
