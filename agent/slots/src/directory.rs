//! The directory: the records from which a new agent finds every handle.
//!
//! The superblock (first slot of slab 0) points at the newest page, each page at the next older one.
//! Programs never read it, so an entry is one aligned store: after the handle is written, before
//! anything refers to it.

use std::mem::offset_of;

use slotmesh_records::{DirectoryPage, SlotPtr, Superblock};

use crate::{HandlePtr, sync::Arena};

/// Handles in a page of 4 KiB.
pub(crate) const PAGE_ENTRIES: u32 = ((4096 - size_of::<DirectoryPage>()) / size_of::<SlotPtr>()) as u32;

/// The bytes of a page that are used.
pub(crate) const PAGE_BYTES: usize =
    size_of::<DirectoryPage>() + PAGE_ENTRIES as usize * size_of::<SlotPtr>();

/// Where a handle stands in the directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    page: SlotPtr,
    index: u32,
}

impl Entry {
    const fn offset(self) -> usize {
        size_of::<DirectoryPage>() + self.index as usize * size_of::<SlotPtr>()
    }
}

/// The free entries; the pages themselves are records.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    newest: Option<SlotPtr>,
    free: Vec<Entry>,
}

impl Directory {
    /// Takes note of a page; entries for which `is_free` are free.
    pub fn add_page(&mut self, page: SlotPtr, newest: bool, is_free: impl Fn(u32) -> bool) {
        if newest {
            self.newest = Some(page);
        }
        self.free.extend((0..PAGE_ENTRIES).rev().filter(|&i| is_free(i)).map(|index| Entry { page, index }));
    }

    /// The newest page: what a new page's `next` is.
    pub fn newest(&self) -> SlotPtr {
        self.newest.unwrap_or(SlotPtr::NULL)
    }

    /// Makes a page that was just written the newest.
    pub fn publish_page(&mut self, arena: &mut Arena, page: SlotPtr) {
        arena.publish(SlotPtr::SUPERBLOCK, offset_of!(Superblock, directory), page.bits());
        self.add_page(page, true, |_| true);
    }

    /// Whether there is no free entry.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Enters a handle. The directory isn't full.
    pub fn enter(&mut self, arena: &mut Arena, handle: HandlePtr) -> Entry {
        let entry = self.free.pop().expect("a page was added when the directory was full");
        arena.publish(entry.page, entry.offset(), handle.ptr().bits());
        entry
    }

    /// Takes a handle out.
    pub fn leave(&mut self, arena: &mut Arena, entry: Entry) {
        arena.publish(entry.page, entry.offset(), 0);
        self.free.push(entry);
    }

    /// The entry at this place, for recovery.
    pub fn entry(page: SlotPtr, index: u32) -> Entry {
        Entry { page, index }
    }
}
