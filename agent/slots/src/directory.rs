//! The directory: the records from which a new agent finds every handle.
//!
//! The superblock (first slot of slab 0) points at the newest page, each page at the next older one.
//! Programs never read it, so an entry is one aligned store: after the handle is written, before
//! anything refers to it. And a page moves by a copy and one store, without a grace period.
//!
//! A handle that is being moved stands in it twice for a moment. Only one of the two is referred to: it is the one
//! that recovery keeps.

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
    /// The number of the page, the oldest is 0.
    page: u32,
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
    /// The oldest first.
    pages: Vec<SlotPtr>,
    free: Vec<Entry>,
}

impl Directory {
    /// Takes note of the newest page; entries for which `is_free` are free. Its number.
    pub fn add_page(&mut self, page: SlotPtr, is_free: impl Fn(u32) -> bool) -> u32 {
        let number = self.pages.len() as u32;
        self.pages.push(page);
        let free = (0..PAGE_ENTRIES).rev().filter(|&i| is_free(i));
        self.free.extend(free.map(|index| Entry { page: number, index }));
        number
    }

    /// The newest page: what a new page's `next` is.
    pub fn newest(&self) -> SlotPtr {
        self.pages.last().copied().unwrap_or(SlotPtr::NULL)
    }

    /// Makes a page that was just written the newest.
    pub fn publish_page(&mut self, arena: &mut Arena, page: SlotPtr) {
        arena.publish(SlotPtr::SUPERBLOCK, offset_of!(Superblock, directory), page.bits());
        self.add_page(page, |_| true);
    }

    /// Tells whether there is no free entry.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// The pages, the oldest first.
    pub fn pages(&self) -> &[SlotPtr] {
        &self.pages
    }

    /// The page of this number has been copied to another slot, which takes its place.
    pub fn replace_page(&mut self, arena: &mut Arena, number: usize, copy: SlotPtr) {
        self.pages[number] = copy;
        match self.pages.get(number + 1) {
            Some(&newer) => arena.publish(newer, offset_of!(DirectoryPage, next), copy.bits()),
            None => arena.publish(SlotPtr::SUPERBLOCK, offset_of!(Superblock, directory), copy.bits()),
        }
    }

    /// Enters a handle. The directory isn't full.
    pub fn enter(&mut self, arena: &mut Arena, handle: HandlePtr) -> Entry {
        let entry = self.free.pop().expect("a page was added when the directory was full");
        self.write(arena, entry, handle.ptr());
        entry
    }

    /// Takes a handle out.
    pub fn leave(&mut self, arena: &mut Arena, entry: Entry) {
        self.write(arena, entry, SlotPtr::NULL);
        self.free.push(entry);
    }

    fn write(&self, arena: &mut Arena, entry: Entry, handle: SlotPtr) {
        arena.publish(self.pages[entry.page as usize], entry.offset(), handle.bits());
    }

    /// The entry at this place, for recovery.
    pub fn entry(page: u32, index: u32) -> Entry {
        Entry { page, index }
    }
}
