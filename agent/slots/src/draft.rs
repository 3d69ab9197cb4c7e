//! Drafts: the next version of a resource, before anything can see it.

use slotmesh_records::{Owned, Record, SlotPtr};

use crate::{Engine, Full, HandlePtr, ResourceKind};

impl Engine {
    /// Begins the next version of a resource.
    pub fn draft(&mut self) -> Draft<'_> {
        let slots = std::mem::take(&mut self.scratch.slots);
        let handles = std::mem::take(&mut self.scratch.handles);
        let created = std::mem::take(&mut self.scratch.created);
        Draft { engine: self, slots, handles, created }
    }
}

/// Where the records of one resource's next version go: what whoever makes records needs to know of
/// slots. [`Draft`] is the one that programs read; the benchmarks hold others against it.
pub trait Records: Sized {
    /// Why a record can't be written.
    type Error;

    /// Writes a record. Children first: `fixed` and `tail` already point at them. The header is the
    /// store's; what stands in `fixed` doesn't matter.
    ///
    /// # Errors
    /// Where there is no room.
    fn write<R: Record>(&mut self, fixed: &R, tail: &[R::Tail]) -> Result<Owned<R>, Self::Error> {
        self.write_root(fixed, tail, 0)
    }

    /// Writes the record that a handle will lead to, with the version of the resource.
    ///
    /// # Errors
    /// Where there is no room.
    fn write_root<R: Record>(
        &mut self,
        fixed: &R,
        tail: &[R::Tail],
        version: u64,
    ) -> Result<Owned<R>, Self::Error>;

    /// The handle of a resource, which need not exist yet: it then leads nowhere until it does. For each
    /// time that a record refers to a handle, it is asked for once; and once to publish.
    ///
    /// # Errors
    /// Where there is no room.
    fn handle(&mut self, kind: ResourceKind, name: &str) -> Result<HandlePtr, Self::Error>;

    /// The handles of many resources of a kind, as [`handle`](Self::handle) gives them one by one.
    ///
    /// # Errors
    /// Where there is no room.
    fn handles(&mut self, kind: ResourceKind, names: &[&str]) -> Result<Vec<HandlePtr>, Self::Error> {
        names.iter().map(|name| self.handle(kind, name)).collect()
    }

    /// Makes the records current, and gives up the version before them.
    ///
    /// # Errors
    /// Where the store can't; [`Draft`] always can.
    fn publish<R: Record>(self, handle: HandlePtr, root: Owned<R>) -> Result<(), Self::Error>;
}

/// The next version of one resource: records that no program can reach yet.
///
/// Dropped without [`publish`](Self::publish), it gives everything back.
pub struct Draft<'e> {
    engine: &'e mut Engine,
    slots: Vec<SlotPtr>,
    /// Each is held by a reference of the draft's, so that none goes while the draft waits for a slot.
    handles: Vec<HandlePtr>,
    /// Those that no program can have seen yet.
    created: Vec<HandlePtr>,
}

impl Draft<'_> {
    /// Writes a record. Children first: `fixed` and `tail` already point at them. The header is the
    /// engine's; what stands in `fixed` doesn't matter.
    ///
    /// # Errors
    /// Where no slot is to be had.
    pub fn write<R: Record>(&mut self, fixed: &R, tail: &[R::Tail]) -> Result<Owned<R>, Full> {
        self.write_root(fixed, tail, 0)
    }

    /// Writes the record that a handle will lead to, with the version of the resource.
    ///
    /// # Errors
    /// Where no slot is to be had.
    pub fn write_root<R: Record>(
        &mut self,
        fixed: &R,
        tail: &[R::Tail],
        version: u64,
    ) -> Result<Owned<R>, Full> {
        let ptr = self.engine.write(fixed, tail, version).map_err(|full| self.after_all(full))?;
        self.slots.push(ptr);
        Ok(Owned::new(ptr))
    }

    /// The handle of a resource, which need not exist yet: it then leads nowhere until it does. For each
    /// time that a record refers to a handle, it is asked for once.
    ///
    /// # Errors
    /// Where no slot is to be had.
    pub fn handle(&mut self, kind: ResourceKind, name: &str) -> Result<HandlePtr, Full> {
        let handle = match self.engine.handles.hold(kind, name) {
            Some(handle) => handle,
            None => {
                let handle = self.engine.create_handle(kind, name).map_err(|full| self.after_all(full))?;
                self.engine.handles.info(handle).refs += 1;
                self.created.push(handle);
                handle
            }
        };
        self.handles.push(handle);
        Ok(handle)
    }

    /// No slot was to be had for one more record.
    fn after_all(&self, full: Full) -> Full {
        let taken = self.slots.iter().copied().chain(self.created.iter().map(|handle| handle.ptr()));
        full.after(
            taken.filter_map(|ptr| self.engine.table.class_of(ptr)).map(|class| class.bytes() as u64).sum(),
        )
    }

    /// Makes the records current with one release store, and retires the version before them.
    pub fn publish<R: Record>(mut self, handle: HandlePtr, root: Owned<R>) {
        // The draft's references become those of the new version, but for the one that is the resource's
        // own handle. They count before the old version's are given up, so that no handle is dropped in
        // between.
        let own = self.handles.iter().rposition(|&held| held == handle);
        if let Some(own) = own {
            self.handles.swap_remove(own);
        }
        debug_assert!(
            self.engine.refers_to_exactly(root.ptr(), &self.handles),
            "each reference in a record is a handle that was asked for, and the other way round"
        );
        for handle in self.created.drain(..) {
            self.engine.handles.info(handle).seen = true;
        }
        self.slots.clear();
        self.handles.clear();
        self.engine.make_current(handle, root.ptr());
        if own.is_some() {
            self.engine.release(handle);
        }
    }
}

impl Records for Draft<'_> {
    type Error = Full;

    fn write_root<R: Record>(&mut self, fixed: &R, tail: &[R::Tail], version: u64) -> Result<Owned<R>, Full> {
        Draft::write_root(self, fixed, tail, version)
    }

    fn handle(&mut self, kind: ResourceKind, name: &str) -> Result<HandlePtr, Full> {
        Draft::handle(self, kind, name)
    }

    fn handles(&mut self, kind: ResourceKind, names: &[&str]) -> Result<Vec<HandlePtr>, Full> {
        let mut found = std::mem::take(&mut self.engine.scratch.found);
        self.engine.handles.hold_all(kind, names, &mut found);
        // All that are held are the draft's to release, also where one can't be created.
        self.handles.extend(found.iter().flatten());
        let handles = found.drain(..).zip(names).map(|(found, name)| match found {
            Some(handle) => Ok(handle),
            None => Draft::handle(self, kind, name),
        });
        let handles = handles.collect();
        self.engine.scratch.found = found;
        handles
    }

    fn publish<R: Record>(self, handle: HandlePtr, root: Owned<R>) -> Result<(), Full> {
        Draft::publish(self, handle, root);
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        for ptr in self.slots.drain(..) {
            self.engine.table.give_back(ptr);
        }
        for handle in self.handles.drain(..) {
            self.engine.release(handle);
        }
        self.engine.scratch.slots = std::mem::take(&mut self.slots);
        self.created.clear();
        self.engine.scratch.handles = std::mem::take(&mut self.handles);
        self.engine.scratch.created = std::mem::take(&mut self.created);
    }
}
