//! A copy of what one resource leads to, to be read elsewhere than on the thread that owns the engine.

use std::collections::HashMap;

use slotmesh_records::{
    Handle, Record, RecordHeader, SlotPtr,
    layout::{Points, pointers},
};

use crate::{Engine, HandlePtr, SlotClass, engine::read, sync::Arena};

/// Whoever has records.
pub trait Stored {
    /// The first `bytes` of a slot; `None` where it isn't there.
    fn slot(&self, ptr: SlotPtr, bytes: usize) -> Option<&[u8]>;

    /// A record and its tail; `None` where `ptr` isn't one of this type.
    fn record<R: Record>(&self, ptr: SlotPtr) -> Option<(R, &[R::Tail])> {
        let header: RecordHeader = read(self.slot(ptr, size_of::<RecordHeader>())?);
        if ptr.is_null() || header.kind != R::KIND {
            return None;
        }
        let tail_bytes = header.count as usize * size_of::<R::Tail>();
        let (fixed, tail) = self.slot(ptr, size_of::<R>() + tail_bytes)?.split_at(size_of::<R>());
        let tail = if tail.is_empty() { &[] } else { bytemuck::try_cast_slice(tail).ok()? };
        Some((read(fixed), tail))
    }
}

impl Stored for Engine {
    fn slot(&self, ptr: SlotPtr, bytes: usize) -> Option<&[u8]> {
        self.arena.slot(ptr, bytes)
    }
}

/// The version of a resource that was current when this was made, and the names of the handles to which it refers.
#[derive(Clone, Debug)]
pub struct Snapshot {
    root: SlotPtr,
    /// Words, so that every record is aligned.
    slots: HashMap<SlotPtr, Vec<u64>>,
}

impl Snapshot {
    /// Where the version begins.
    pub const fn root(&self) -> SlotPtr {
        self.root
    }

    /// Copies the slot; its bytes where it is new.
    fn copy<'a>(&mut self, arena: &'a Arena, ptr: SlotPtr) -> Option<&'a [u8]> {
        let header: RecordHeader = read(arena.slot(ptr, size_of::<RecordHeader>())?);
        let bytes = arena.slot(ptr, SlotClass::of_units(header.units)?.bytes())?;
        let mut words = vec![0_u64; bytes.len() / size_of::<u64>()];
        bytemuck::cast_slice_mut::<u64, u8>(&mut words).copy_from_slice(bytes);
        self.slots.insert(ptr, words).is_none().then_some(bytes)
    }
}

impl Stored for Snapshot {
    fn slot(&self, ptr: SlotPtr, bytes: usize) -> Option<&[u8]> {
        bytemuck::cast_slice(self.slots.get(&ptr)?).get(..bytes)
    }
}

impl Engine {
    /// Copies the current version behind a handle; `None` where it has none, or a damaged one. Costs a copy of its bytes, no more.
    pub fn snapshot(&self, handle: HandlePtr) -> Option<Snapshot> {
        let root = self.current(handle);
        if root.is_null() {
            return None;
        }
        let mut snapshot = Snapshot { root, slots: HashMap::new() };
        let mut stack = vec![root];
        while let Some(ptr) = stack.pop() {
            let Some(slot) = snapshot.copy(&self.arena, ptr) else { continue };
            let mut handles = Vec::new();
            pointers(slot, |points, target| match points {
                Points::Owned => stack.push(target),
                Points::Ref => handles.push(target),
                Points::Nothing | Points::Within => {}
            })
            .ok()?;
            for handle in handles {
                debug_assert!(self.record::<Handle>(handle).is_some());
                snapshot.copy(&self.arena, handle);
            }
        }
        Some(snapshot)
    }
}
