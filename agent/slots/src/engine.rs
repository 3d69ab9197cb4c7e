//! The engine: publication and retirement.

mod retirement;

use std::{mem::offset_of, sync::Arc};

use slotmesh_records::{
    DirectoryPage, Handle, LAYOUT_HASH, Owned, Record, RecordHeader, Ref, SLAB_BYTES, SlotPtr, Superblock,
    name_hash,
};

use crate::{
    Backing, ClassStats, Config, Contradiction, Growth, HandlePtr, RecoverError, Recovered, ResourceKind,
    SlotClass, Stored,
    background::{Background, Done},
    compaction::Compaction,
    directory::{Directory, PAGE_ENTRIES},
    growth::GrowthFailed,
    handles::{Handles, Info},
    quarantine::{Item, Quarantine},
    recover,
    sync::{Arena, MappedSlab},
    table::SlotTable,
};

/// Why a record found no slot. The flush is refused as a whole; what was current stays current.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Full {
    /// The cap is reached.
    #[error(
        "no idle slot of {class} bytes: all {cap} slabs are in use ({used} KiB of records, {idle} KiB idle in slots \
         of other sizes, {retired} slots waiting for a grace period); what lies in nearly idle slabs is put together \
         in the background, and then this is tried again; for more room raise --memory-budget or --slab-cap, or those \
         of the node's SlotProfile"
    )]
    Cap {
        /// The slot size that was asked for.
        class: SlotClass,
        /// The bytes of slots that the flush needs at least.
        needed: u64,
        /// The cap in slabs.
        cap: u32,
        /// KiB in use.
        used: u64,
        /// KiB idle, in slots that are too small.
        idle: u64,
        /// Slots in quarantine.
        retired: usize,
    },
    /// The kernel refused to create slabs.
    #[error(
        "no idle slot of {class} bytes, and the kernel refused to create slabs ({reason}); raise the memory \
         limit, or the limit of open files"
    )]
    Growth {
        /// The slot size that was asked for.
        class: SlotClass,
        /// The bytes of slots that the flush needs at least.
        needed: u64,
        /// The kernel's answer.
        reason: String,
    },
    /// No slot is that large.
    #[error("a record of {bytes} bytes is larger than the largest slot, {} bytes", 4096)]
    TooLarge {
        /// The record's size.
        bytes: usize,
    },
}

impl Full {
    /// The same, of a flush that had taken slots of so many bytes already.
    pub(crate) fn after(mut self, taken: u64) -> Self {
        match &mut self {
            Self::Cap { needed, .. } | Self::Growth { needed, .. } => *needed += taken,
            Self::TooLarge { .. } => {}
        }
        self
    }
}

/// A snapshot of the slot table.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Slots by class.
    pub classes: Vec<(SlotClass, ClassStats)>,
    /// Slabs created.
    pub slabs: u32,
    /// Slabs that are wholly idle and can take any class.
    pub empty_slabs: u32,
    /// The most slabs there will be.
    pub cap: u32,
    /// Slots and handles that wait for a grace period.
    pub quarantined: usize,
    /// Handles.
    pub handles: usize,
    /// Grace periods that passed since start.
    pub grace_periods: u64,
    /// Why the last growth failed, if it did.
    pub growth_error: Option<String>,
}

impl Stats {
    /// Outer records not created yet.
    pub const fn remaining(&self) -> u32 {
        self.cap.saturating_sub(self.slabs)
    }
}

/// The slot engine. One thread owns it.
pub struct Engine {
    pub(crate) arena: Arena,
    pub(crate) table: SlotTable,
    pub(crate) handles: Handles,
    pub(crate) directory: Directory,
    pub(crate) quarantine: Quarantine,
    pub(crate) background: Background,
    backing: Arc<dyn Backing>,
    pub(crate) config: Config,
    pub(crate) growing: bool,
    pub(crate) shrinking: bool,
    pub(crate) growth_error: Option<GrowthFailed>,
    pub(crate) grace_periods: u64,
    room: u64,
    made: u64,
    /// Slabs that are to be wholly idle, for what was refused.
    pub(crate) wanted: u32,
    pub(crate) compaction: Option<Compaction>,
    /// A flush was refused since slabs were chosen to be emptied.
    pub(crate) pressed: bool,
    /// Kinds of handles that are never moved.
    pub(crate) kept: Vec<ResourceKind>,
    pub(crate) scratch: Scratch,
}

/// Buffers that every flush uses again.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(crate) slots: Vec<SlotPtr>,
    pub(crate) handles: Vec<HandlePtr>,
    pub(crate) created: Vec<HandlePtr>,
    pub(crate) found: Vec<Option<HandlePtr>>,
    refs: Vec<SlotPtr>,
    unused: Vec<HandlePtr>,
    pub(crate) tree: Vec<SlotPtr>,
}

impl Engine {
    /// Takes over what an earlier agent left in `backing`, or begins anew, and starts growing.
    ///
    /// `roots` are handles that programs can reach other than by the directory. A grace period must
    /// have passed since the earlier agent's last write (opening the outer map waits for one).
    /// `wake` is called, from other threads, when [`poll`](Self::poll) has something to do.
    ///
    /// # Errors
    /// Where slabs can't be had, or what is there isn't readable.
    pub fn open(
        backing: &Arc<dyn Backing>,
        mut arena: Arena,
        config: Config,
        roots: &[SlotPtr],
        wake: Arc<dyn Fn() + Send + Sync>,
    ) -> Result<(Self, Recovered), RecoverError> {
        if let Some(contradiction) = config.contradiction() {
            return Err(contradiction.into());
        }
        backing.set_threads(config.threads);
        let mut table = SlotTable::default();
        let mut adopt = |slabs: Vec<MappedSlab>, table: &mut SlotTable| {
            for slab in &slabs {
                arena.adopt(slab);
                table.add(slab.index());
            }
        };
        adopt(backing.existing().map_err(RecoverError::Backing)?, &mut table);
        let wanted = match config.growth {
            Growth::Eager => config.cap,
            Growth::Background | Growth::OnDemand => config.initial,
        };
        let missing = table.missing(wanted.max(1).saturating_sub(table.created()) as usize);
        if !missing.is_empty() {
            adopt(backing.create(&missing).map_err(RecoverError::Backing)?, &mut table);
        }
        let found = recover::recover(&arena, &mut table, roots)?;
        let background =
            Background::start(backing, wake).map_err(|error| RecoverError::Backing(error.into()))?;
        let mut engine = Self {
            arena,
            table,
            handles: found.handles,
            directory: found.directory,
            quarantine: Quarantine::default(),
            background,
            backing: backing.clone(),
            config,
            growing: false,
            shrinking: false,
            growth_error: None,
            grace_periods: 0,
            room: 0,
            made: 0,
            wanted: 0,
            compaction: None,
            pressed: false,
            kept: Vec::new(),
            scratch: Scratch::default(),
        };
        if found.is_new {
            engine.format();
        }
        for handle in found.unused {
            engine.forget_unreachable(handle);
        }
        for (handle, entry) in found.left {
            engine.directory.leave(&mut engine.arena, entry);
            engine.table.give_back(handle.ptr());
        }
        engine.poll();
        Ok((engine, found.recovered))
    }

    /// Writes the superblock; its first word last, so that it is there whole or not at all.
    fn format(&mut self) {
        let header = RecordHeader { kind: Superblock::KIND, units: 1, count: 0, version: 0 };
        let superblock = Superblock { header, layout: LAYOUT_HASH, directory: Owned::NULL, reserved: 0 };
        let bytes = bytemuck::bytes_of(&superblock);
        let slot = self.arena.slot_mut(SlotPtr::SUPERBLOCK, bytes.len()).expect("slab 0 exists");
        slot[4..].copy_from_slice(&bytes[4..]);
        let first = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.arena.publish(SlotPtr::SUPERBLOCK, 0, first);
    }

    /// The handle of a resource, if it has one.
    pub fn find(&self, kind: ResourceKind, name: &str) -> Option<HandlePtr> {
        self.handles.find(kind, name)
    }

    /// The name of a handle that is in the directory.
    pub fn name(&self, handle: HandlePtr) -> Option<&str> {
        self.handles.get(handle).map(|info| &*info.name)
    }

    /// The root record of a handle's current version; null where it has none.
    pub fn current(&self, handle: HandlePtr) -> SlotPtr {
        self.record::<Handle>(handle.ptr()).map_or(SlotPtr::NULL, |(handle, _)| handle.current)
    }

    /// A record and its tail; `None` where `ptr` isn't one of this type.
    pub fn record<R: Record>(&self, ptr: SlotPtr) -> Option<(R, &[R::Tail])> {
        Stored::record(self, ptr)
    }

    /// The resources that have a current version: kind, name, version.
    pub fn resources(&self) -> impl Iterator<Item = (ResourceKind, &str, u64)> {
        self.handles.iter().filter(|(_, info)| info.published).filter_map(|(handle, info)| {
            let root = self.arena.slot(self.current(handle), size_of::<RecordHeader>())?;
            Some((info.kind, &*info.name, read::<RecordHeader>(root).version))
        })
    }

    /// Rises whenever slots may have become idle, or slabs were created.
    pub fn capacity(&self) -> u64 {
        self.room
    }

    /// Rises whenever there is room of which no refusal knew: with a higher cap, and when the kernel creates slabs again
    /// that it refused before. Unlike slots that become idle, that happens rarely and for many resources at once.
    pub fn new_capacity(&self) -> u64 {
        self.made
    }

    /// Slots of so many bytes are wanted by flushes that were refused, and will be tried again: slabs for them are
    /// created, as far as the cap allows, and not given back.
    pub fn want(&mut self, bytes: u64) {
        self.wanted = u32::try_from(bytes.div_ceil(SLAB_BYTES as u64)).unwrap_or(u32::MAX);
        self.grow_ahead();
    }

    /// The settings in force.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Changes the settings while running. Growth goes on as the new ones say; slabs above a lower cap
    /// are given back as they become idle.
    ///
    /// # Errors
    /// Where they contradict each other; then the old ones stay in force.
    pub fn set_config(&mut self, config: Config) -> Result<(), Contradiction> {
        if let Some(contradiction) = config.contradiction() {
            return Err(contradiction);
        }
        if config.cap > self.config.cap {
            // What was refused at the old cap may now be accepted.
            self.room += 1;
            self.made += 1;
        }
        self.backing.set_threads(config.threads);
        self.config = config;
        self.poll();
        Ok(())
    }

    /// Takes finished background work over and starts what is due. Call it after each batch of
    /// changes and whenever `wake` was called.
    pub fn poll(&mut self) {
        while let Some(done) = self.background.finished() {
            self.done(done);
        }
        self.grow_ahead();
        self.give_back();
        if self.quarantine.begin() {
            self.background.barrier();
        }
    }

    /// Waits until nothing is in quarantine, and no slabs are being created or given back.
    pub fn settle(&mut self) {
        self.poll();
        while self.growing || self.shrinking || self.quarantine.len() > 0 {
            let done = self.background.wait();
            self.done(done);
            self.poll();
        }
    }

    /// The slabs that serve a class, by index, and their slots by state.
    pub fn slabs_of(&self, class: SlotClass) -> Vec<(u32, ClassStats)> {
        self.table.slabs_of(class).map(|(slab, stats)| (slab.get(), stats)).collect()
    }

    /// The slot table as it is now.
    pub fn stats(&self) -> Stats {
        Stats {
            classes: self.table.stats().collect(),
            slabs: self.table.created(),
            empty_slabs: self.table.empty_slabs(),
            cap: self.config.cap,
            quarantined: self.quarantine.len(),
            handles: self.handles.len(),
            grace_periods: self.grace_periods,
            growth_error: self.growth_error.as_ref().map(|failed| failed.reason.clone()),
        }
    }

    /// Takes one piece of finished background work over.
    pub(crate) fn done(&mut self, done: Done) {
        match done {
            Done::Grown(Ok(slabs)) => {
                self.growing = false;
                self.made += u64::from(self.growth_error.take().is_some());
                self.room += 1;
                for slab in &slabs {
                    self.arena.adopt(slab);
                    self.table.add(slab.index());
                }
                let (created, cap) = (self.table.created(), self.config.cap);
                tracing::info!(new = slabs.len(), created, cap, "created outer records");
            }
            Done::Shrunk(result) => {
                self.shrinking = false;
                if let Err(error) = result {
                    tracing::warn!(%error, "slabs that were given back may still take memory");
                }
            }
            Done::Grown(Err(error)) => {
                tracing::warn!(%error, "growth failed");
                self.growing = false;
                self.growth_error = Some(GrowthFailed::after(self.growth_error.as_ref(), &error));
            }
            Done::Barrier(Ok(())) => {
                self.grace_periods += 1;
                self.room += 1;
                for item in self.quarantine.end() {
                    match item {
                        Item::Slot(ptr) => self.table.reuse(ptr),
                        Item::Handle(handle) => self.retire_handle(handle),
                    }
                }
            }
            Done::Died(thread) => panic!("thread {thread} has died: no slot would become idle any more"),
            Done::Barrier(Err(error)) => {
                tracing::warn!(%error, "a grace period failed; what is retired stays retired");
                self.quarantine.failed();
            }
        }
    }

    pub(crate) fn write<R: Record>(
        &mut self,
        fixed: &R,
        tail: &[R::Tail],
        version: u64,
    ) -> Result<SlotPtr, Full> {
        let bytes = size_of::<R>() + size_of_val(tail);
        let class = SlotClass::for_bytes(bytes).ok_or(Full::TooLarge { bytes })?;
        let ptr = self.take(class)?;
        let units = self.table.class_of(ptr).expect("a slot that was taken has a class").units();
        let header = RecordHeader { kind: R::KIND, units, count: tail.len() as u32, version };
        let slot = self.arena.slot_mut(ptr, bytes).expect("a slot of the table lies in a slab in use");
        let (head, rest) = slot.split_at_mut(size_of::<R>());
        head.copy_from_slice(bytemuck::bytes_of(fixed));
        head[..size_of::<RecordHeader>()].copy_from_slice(bytemuck::bytes_of(&header));
        rest.copy_from_slice(bytemuck::cast_slice(tail));
        Ok(ptr)
    }

    pub(crate) fn create_handle(&mut self, kind: ResourceKind, name: &str) -> Result<HandlePtr, Full> {
        if self.directory.is_full() {
            let header = RecordHeader { kind: DirectoryPage::KIND, units: 0, count: 0, version: 0 };
            let page = DirectoryPage { header, next: Owned::new(self.directory.newest()), reserved: 0 };
            let page = self.write(&page, &[Ref::NULL; PAGE_ENTRIES as usize], 0)?;
            self.directory.publish_page(&mut self.arena, page);
        }
        let header = RecordHeader { kind: Handle::KIND, units: 0, count: 0, version: 0 };
        let record = Handle { header, current: SlotPtr::NULL, resource: kind.0, name_hash: name_hash(name) };
        let handle = HandlePtr::new(self.write(&record, name.as_bytes(), 0)?);
        let entry = self.directory.enter(&mut self.arena, handle);
        self.handles
            .insert(handle, Info { kind, name: name.into(), refs: 0, seen: false, published: false, entry });
        Ok(handle)
    }

    /// Makes `root`, whose references count already, the current version behind `handle`, and retires the
    /// version before it.
    pub(crate) fn make_current(&mut self, handle: HandlePtr, root: SlotPtr) {
        let old = self.current(handle);
        let info = self.handles.info(handle);
        info.published = true;
        info.seen = true;
        self.arena.publish(handle.ptr(), offset_of!(Handle, current), root.bits());
        if !old.is_null() {
            self.retire_version(old);
        }
    }

    /// Tells whether these are the references of a version, each as often as it stands there.
    pub(crate) fn refers_to_exactly(&mut self, root: SlotPtr, handles: &[HandlePtr]) -> bool {
        let (mut refs, mut handles) = (Vec::new(), handles.to_vec());
        self.tree(root, &mut refs);
        let mut refs: Vec<HandlePtr> = refs.into_iter().map(HandlePtr::new).collect();
        refs.sort_unstable();
        handles.sort_unstable();
        refs == handles
    }
}

/// Reads a plain value from exactly its bytes.
pub(crate) fn read<T: bytemuck::Pod>(bytes: &[u8]) -> T {
    bytemuck::pod_read_unaligned(bytes)
}
