//! Retirement: what is no longer current is given up, and reused after a grace period.

use std::mem::offset_of;

use slotmesh_records::{
    Handle, SlotPtr,
    layout::{Points, pointers},
};

use super::Engine;
use crate::{HandlePtr, quarantine::Item};

impl Engine {
    /// A resource is no more: its handle leads nowhere from now on, and goes with the last reference.
    pub fn remove(&mut self, handle: HandlePtr) {
        let Some(info) = self.handles.get_mut(handle) else { return };
        info.published = false;
        let unused = info.refs == 0;
        let old = self.current(handle);
        if !old.is_null() {
            self.arena.publish(handle.ptr(), offset_of!(Handle, current), 0);
            self.retire_version(old);
        }
        if unused {
            self.drop_handle(handle);
        }
    }

    /// Takes a handle to which no record refers out of the directory: first step of a removal that
    /// leaves program runs that have found the handle with its last version. Second step: whatever else
    /// leads to the handle is removed. Third: [`retire`](Self::retire).
    pub fn unlist(&mut self, handle: HandlePtr) {
        if let Some(info) = self.handles.remove(handle) {
            debug_assert_eq!(info.refs, 0, "records refer to {}", info.name);
            self.directory.leave(&mut self.arena, info.entry);
        }
    }

    /// New program runs can't find the unlisted handle any more: it goes, with its version, when those
    /// under way have ended.
    pub fn retire(&mut self, handle: HandlePtr) {
        self.quarantine.push(Item::Handle(handle));
    }

    /// Retires a version: its slots, and its references.
    pub(super) fn retire_version(&mut self, root: SlotPtr) {
        let mut refs = std::mem::take(&mut self.scratch.refs);
        self.tree(root, &mut refs);
        for i in 0..self.scratch.tree.len() {
            let ptr = self.scratch.tree[i];
            self.table.retire(ptr);
            self.quarantine.push(Item::Slot(ptr));
        }
        self.release_all(&refs);
        refs.clear();
        self.scratch.refs = refs;
    }

    /// One reference to each handle less; without any, and without a version, it goes.
    pub(crate) fn release_all(&mut self, handles: &[SlotPtr]) {
        let mut unused = std::mem::take(&mut self.scratch.unused);
        self.handles.release_all(handles, &mut unused);
        for handle in unused.drain(..) {
            if self.handles.info(handle).seen {
                self.drop_handle(handle);
            } else {
                self.forget_unreachable(handle);
            }
        }
        self.scratch.unused = unused;
    }

    /// One reference to the handle less, as [`release_all`](Self::release_all).
    pub(crate) fn release(&mut self, handle: HandlePtr) {
        self.release_all(&[handle.ptr()]);
    }

    /// The slots of a version, into `scratch.tree`, and what it refers to.
    pub(crate) fn tree(&mut self, root: SlotPtr, refs: &mut Vec<SlotPtr>) {
        let tree = &mut self.scratch.tree;
        tree.clear();
        tree.push(root);
        let mut next = 0;
        while let Some(&ptr) = tree.get(next) {
            next += 1;
            let class = self.table.class_of(ptr).expect("a record in use lies in a slab with a class");
            let slot =
                self.arena.slot(ptr, class.bytes()).expect("a slot of the table lies in a slab in use");
            pointers(slot, |points, ptr| match points {
                Points::Owned => tree.push(ptr),
                Points::Ref => refs.push(ptr),
                Points::Nothing | Points::Within => {}
            })
            .expect("the engine wrote this record");
        }
    }

    /// Nothing refers to the handle any more, but programs may still read it.
    pub(super) fn drop_handle(&mut self, handle: HandlePtr) {
        if let Some(info) = self.handles.remove(handle) {
            self.directory.leave(&mut self.arena, info.entry);
            self.table.retire(handle.ptr());
            self.quarantine.push(Item::Slot(handle.ptr()));
        }
    }

    /// No program can find the handle any more: its last version goes with it.
    pub(super) fn retire_handle(&mut self, handle: HandlePtr) {
        let old = self.current(handle);
        if !old.is_null() {
            self.retire_version(old);
        }
        self.table.retire(handle.ptr());
        self.quarantine.push(Item::Slot(handle.ptr()));
    }

    /// A handle that no program ever saw.
    pub(super) fn forget_unreachable(&mut self, handle: HandlePtr) {
        if let Some(info) = self.handles.remove(handle) {
            self.directory.leave(&mut self.arena, info.entry);
            self.table.give_back(handle.ptr());
        }
    }
}
