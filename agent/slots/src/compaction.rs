//! Emptying slabs: what little is used of a slab is written anew elsewhere, so that the slab serves another class
//! or goes back to the kernel.
//!
//! ```text
//! choose slabs that are to be emptied           no slot of them is taken from now on
//! visit one handle after the other              a few a step, between updates
//!   `- a version with records there: write these, and those that point at them, anew; publish; retire
//! at the end: move the handles there            each with the one version that refers to it
//!             move the pages there              programs don't read them
//! ```
//!
//! A version is made current as any version is: a program reads the old or the new records, which say the same and
//! have the same version. What doesn't lie in these slabs and points at nothing there stays where it is.
//!
//! These stay in their place: handles of kinds that are [kept](Engine::keep_in_place), because something outside the
//! records leads to them; handles that several versions refer to; and what is in a draft or in quarantine.

use std::{
    collections::{HashMap, HashSet},
    mem::offset_of,
};

use slotmesh_records::{Handle, RecordHeader, SlabIndex, SlotPtr, layout::all_pointers};

use crate::{
    Engine, HandlePtr, ResourceKind, SlotClass, directory::PAGE_BYTES, engine::read, quarantine::Item,
    table::SlotTable,
};

/// A slab of which more eighths are used isn't worth it while there is room.
const SHARE: u32 = 6;
/// How many slabs of a class are emptied at a time.
const AT_ONCE: usize = 32;
/// How many handles are visited, or moved, in a step.
const STEP: usize = 128;

/// Slabs that are being emptied.
pub(crate) struct Compaction {
    slabs: Vec<SlabIndex>,
    /// The number of the handle to visit next.
    next: usize,
    /// For each handle in these slabs, the handles whose versions refer to it.
    referrers: HashMap<HandlePtr, HashSet<HandlePtr>>,
    /// The handles in these slabs that are still to be moved, once all have been visited.
    handles: Option<Vec<HandlePtr>>,
    /// Where those are that have been moved.
    moved: HashMap<HandlePtr, HandlePtr>,
}

/// Where what moves goes.
pub(crate) type Moves = HashMap<SlotPtr, SlotPtr>;

impl Engine {
    /// Handles of this kind stay where they are: something outside the records leads to them.
    pub fn keep_in_place(&mut self, kind: ResourceKind) {
        self.kept.push(kind);
    }

    /// Does a bounded part of emptying slabs that are nearly idle; where a flush was refused, of any whose records
    /// fit elsewhere. Whether there is more to do now. Call it when there is nothing else to do.
    pub fn compact(&mut self) -> bool {
        let Some(mut compaction) = self.compaction.take() else {
            let share = if std::mem::take(&mut self.pressed) { 8 } else { SHARE };
            let slabs = self.table.begin_emptying(share, AT_ONCE);
            if slabs.is_empty() {
                return false;
            }
            self.compaction = Some(Compaction {
                slabs,
                next: 0,
                referrers: HashMap::new(),
                handles: None,
                moved: HashMap::new(),
            });
            return true;
        };
        if compaction.next < self.handles.numbers() {
            let end = self.handles.numbers().min(compaction.next + STEP);
            for number in compaction.next..end {
                if let Some(handle) = self.handles.nth(number) {
                    self.visit(handle, &mut compaction);
                }
            }
            compaction.next = end;
            self.compaction = Some(compaction);
            return true;
        }
        let mut handles = compaction.handles.take().unwrap_or_else(|| {
            compaction.slabs.iter().flat_map(|&slab| self.handles.in_slab(slab)).collect()
        });
        for handle in handles.split_off(handles.len().saturating_sub(STEP)) {
            self.move_handle(handle, &mut compaction);
        }
        if !handles.is_empty() {
            compaction.handles = Some(handles);
            self.compaction = Some(compaction);
            return true;
        }
        self.move_pages();
        let slabs = compaction.slabs.len();
        let left = self.table.end_emptying(&compaction.slabs);
        tracing::debug!(slabs, left, "wrote what was left in slabs anew elsewhere");
        // What was moved leaves slots that become idle by a grace period.
        if self.quarantine.begin() {
            self.background.barrier();
        }
        left < slabs
    }

    /// Leaves the slabs that are being emptied as they are: their idle slots are needed.
    pub(crate) fn stop_compacting(&mut self) {
        if let Some(compaction) = self.compaction.take() {
            self.table.stop_emptying(&compaction.slabs);
        }
    }

    /// Tells whether slabs are being emptied.
    pub const fn is_compacting(&self) -> bool {
        self.compaction.is_some()
    }

    /// Moves what the version of a handle has in slabs that are being emptied, and notes what it refers to there.
    fn visit(&mut self, handle: HandlePtr, compaction: &mut Compaction) {
        let Some(root) = Some(self.current(handle)).filter(|root| !root.is_null()) else { return };
        let mut refs = Vec::new();
        self.tree(root, &mut refs);
        if self.scratch.tree.iter().any(|&ptr| self.table.is_emptying(ptr)) {
            self.rewrite(handle, Moves::new(), SlotTable::is_emptying);
        }
        for target in refs.into_iter().filter(|&target| self.table.is_emptying(target)) {
            compaction.referrers.entry(HandlePtr::new(target)).or_default().insert(handle);
        }
    }

    /// Writes those records of a handle's version anew that are `leaving` their slots, that point at what `moves`, or
    /// at such a record; then makes them current. Whether there was room.
    pub(crate) fn rewrite(
        &mut self,
        handle: HandlePtr,
        mut moves: Moves,
        leaving: impl Fn(&SlotTable, SlotPtr) -> bool,
    ) -> bool {
        let root = self.current(handle);
        self.tree(root, &mut Vec::new());
        let nodes = self.scratch.tree.clone();
        let mut moving: HashSet<SlotPtr> =
            nodes.iter().copied().filter(|&ptr| leaving(&self.table, ptr)).collect();
        loop {
            let before = moving.len();
            for &node in &nodes {
                let mut leads = false;
                self.all_pointers(node, |_, to| leads |= moving.contains(&to) || moves.contains_key(&to));
                if leads {
                    moving.insert(node);
                }
            }
            if moving.len() == before {
                break;
            }
        }
        let moved: Vec<SlotPtr> = nodes.into_iter().filter(|node| moving.contains(node)).collect();
        let mut taken = Vec::with_capacity(moved.len());
        for &node in &moved {
            let bytes = self.all_pointers(node, |_, _| ());
            match SlotClass::for_bytes(bytes).and_then(|class| self.table.take(class)) {
                Some(slot) => taken.push(slot),
                None => {
                    taken.into_iter().for_each(|slot| self.table.give_back(slot));
                    return false;
                }
            }
        }
        moves.extend(moved.iter().copied().zip(taken.iter().copied()));
        for (&from, &to) in moved.iter().zip(&taken) {
            self.copy(from, to, &moves);
        }
        let new = moves.get(&root).copied().unwrap_or(root);
        self.arena.publish(handle.ptr(), offset_of!(Handle, current), new.bits());
        for ptr in moved {
            self.table.retire(ptr);
            self.quarantine.push(Item::Slot(ptr));
        }
        true
    }

    /// Copies a record to a slot that was taken for it; its pointers follow what moves.
    fn copy(&mut self, from: SlotPtr, to: SlotPtr, moves: &Moves) {
        let mut changed = Vec::new();
        let bytes = self.all_pointers(from, |at, ptr| changed.extend(moves.get(&ptr).map(|&to| (at, to))));
        let mut record = self.arena.slot(from, bytes).expect("a record in use").to_vec();
        for (at, ptr) in changed {
            record[at..at + size_of::<SlotPtr>()].copy_from_slice(bytemuck::bytes_of(&ptr));
        }
        let units = self.table.class_of(to).expect("a slot that was taken has a class").units();
        let header = RecordHeader { units, ..read(&record[..size_of::<RecordHeader>()]) };
        record[..size_of::<RecordHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        let slot = self.arena.slot_mut(to, bytes).expect("a slot of the table lies in a slab in use");
        slot.copy_from_slice(&record);
    }

    /// Visits all pointers of a record in use, with where they stand; how long it is.
    fn all_pointers(&self, ptr: SlotPtr, visit: impl FnMut(usize, SlotPtr)) -> usize {
        let class = self.table.class_of(ptr).expect("a record in use lies in a slab with a class");
        let slot = self.arena.slot(ptr, class.bytes()).expect("a slot of the table lies in a slab in use");
        all_pointers(slot, visit).expect("the engine wrote this record")
    }

    /// Moves a handle to which one version at most refers, by one store: that which makes the version current that
    /// refers to it at its new place. Both places stand in the directory before, the new one alone after; an agent
    /// that finds both keeps the one that is referred to.
    fn move_handle(&mut self, handle: HandlePtr, compaction: &mut Compaction) {
        let Some(info) = self.handles.get(handle) else { return };
        let (refs, entry, kind) = (info.refs, info.entry, info.kind);
        if self.kept.contains(&kind) || self.directory.is_full() {
            return;
        }
        let noted = compaction.referrers.get(&handle);
        let referrer = match (refs, noted.map_or(0, HashSet::len)) {
            (0, _) => None,
            (_, 1) => noted.and_then(|noted| noted.iter().next().copied()),
            _ => return,
        };
        let referrer = referrer.map(|referrer| compaction.moved.get(&referrer).copied().unwrap_or(referrer));
        // What was noted may have changed since; what a draft holds counts, too.
        if let Some(referrer) = referrer {
            let root = self.handles.get(referrer).map_or(SlotPtr::NULL, |_| self.current(referrer));
            if root.is_null() {
                return;
            }
            let mut found = Vec::new();
            self.tree(root, &mut found);
            if found.into_iter().filter(|&ptr| ptr == handle.ptr()).count() != refs as usize {
                return;
            }
        }
        let bytes = self.all_pointers(handle.ptr(), |_, _| ());
        let Some(to) = SlotClass::for_bytes(bytes).and_then(|class| self.table.take(class)) else { return };
        self.copy(handle.ptr(), to, &Moves::new());
        let moved = HandlePtr::new(to);
        self.publish_current(handle, moved);
        let second = self.directory.enter(&mut self.arena, moved);
        if let Some(referrer) = referrer
            && !self.rewrite(referrer, Moves::from([(handle.ptr(), to)]), SlotTable::is_emptying)
        {
            self.directory.leave(&mut self.arena, second);
            self.table.give_back(to);
            return;
        }
        self.directory.leave(&mut self.arena, entry);
        self.handles.relocate(handle, moved);
        self.handles.info(moved).entry = second;
        self.table.retire(handle.ptr());
        self.quarantine.push(Item::Slot(handle.ptr()));
        compaction.moved.insert(handle, moved);
    }

    /// A copy of a handle leads where the handle does, as a word that was published.
    fn publish_current(&mut self, handle: HandlePtr, copy: HandlePtr) {
        let current = self.current(handle);
        self.arena.publish(copy.ptr(), offset_of!(Handle, current), current.bits());
    }

    /// Moves the pages of the directory that lie in slabs that are being emptied.
    fn move_pages(&mut self) {
        for number in 0..self.directory.pages().len() {
            let page = self.directory.pages()[number];
            if !self.table.is_emptying(page) {
                continue;
            }
            let class = SlotClass::for_bytes(PAGE_BYTES).expect("a page fits a slot");
            let Some(to) = self.table.take(class) else { return };
            self.copy(page, to, &Moves::new());
            self.directory.replace_page(&mut self.arena, number, to);
            self.table.give_back(page);
        }
    }
}
