//! Stand-ins for the kernel: slabs that programs reach, program runs, and grace periods.

use std::{
    collections::HashMap,
    mem::offset_of,
    sync::{Arc, Mutex},
};

use loom::sync::{
    Condvar, Mutex as Lock,
    atomic::{AtomicU32, Ordering},
};
use slotmesh_records::{DirectoryPage, Handle, Owned, Record, RecordHeader, SlabIndex, SlotPtr};

use super::{
    Fault, is_faulty,
    slabs::{Arena, MappedSlab, Slab},
};
use crate::{
    Backing, BackingError, Config, Engine, Full, Growth, HandlePtr, ResourceKind, SlotClass, engine::read,
    quarantine::Item,
};

pub(super) const RESOURCE: ResourceKind = ResourceKind(1);

/// One slab for the superblock and what is small, one for the directory's pages, one for the rest.
pub(super) const SMALL: Config = Config {
    growth: Growth::OnDemand,
    initial: 3,
    cap: 3,
    low_watermark: 0,
    high_watermark: 1,
    batch: 1,
    threads: std::num::NonZeroUsize::MIN,
};

/// A flag that threads wait for.
#[derive(Debug)]
pub(super) struct Gate {
    open: Lock<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn new(open: bool) -> Self {
        Self { open: Lock::new(open), opened: Condvar::new() }
    }

    pub fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    pub fn close(&self) {
        *self.open.lock().unwrap() = false;
    }

    /// Passes when it is open.
    pub fn pass(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    /// Passes when it is open, and closes it.
    pub fn take(&self) {
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        *open = false;
    }
}

/// See the module's comment.
pub(super) struct World {
    /// The outer map.
    slabs: Mutex<HashMap<u32, Arc<Slab>>>,
    /// Held while a program runs, one for each CPU.
    runs: Vec<Lock<()>>,
    /// The one entry of the VIP map.
    pub vip: AtomicU32,
    /// The kernel creates slabs only while it is open.
    pub growth: Gate,
    /// Opened by each piece of finished work.
    pub woken: Gate,
}

impl World {
    pub fn new(cpus: usize) -> Arc<Self> {
        Arc::new(Self {
            slabs: Mutex::default(),
            runs: (0..cpus).map(|_| Lock::new(())).collect(),
            vip: AtomicU32::new(0),
            growth: Gate::new(true),
            woken: Gate::new(false),
        })
    }

    pub fn engine(self: &Arc<Self>, config: Config) -> Engine {
        let backing: Arc<dyn Backing> = Arc::new(Kernel(self.clone()));
        let world = self.clone();
        let wake = Arc::new(move || world.woken.open());
        Engine::open(&backing, Arena::default(), config, &[], wake).unwrap().0
    }

    /// A program's run on this CPU: the version that the VIP leads to. Each record is read whole, and
    /// the child has to be of the same version as its parent.
    pub fn run(&self, cpu: usize) -> Option<u64> {
        let _under_way = self.runs[cpu].lock().unwrap();
        let handle = SlotPtr::from_bits(self.vip.load(Ordering::Acquire));
        if handle.is_null() {
            return None;
        }
        let header: RecordHeader = self.read(handle, 0);
        assert_eq!(header.kind, Handle::KIND, "the VIP leads to a handle");
        let current = self.slab(handle).load(handle.offset() + offset_of!(Handle, current));
        let current = SlotPtr::from_bits(current);
        if current.is_null() {
            return None;
        }
        let root: DirectoryPage = self.read(current, 0);
        assert_eq!(root.header.kind, DirectoryPage::KIND, "the handle leads to a version's root");
        let child: DirectoryPage = self.read(root.next.ptr(), 0);
        assert_eq!(child.header.kind, DirectoryPage::KIND, "the root leads to its child");
        let version = root.header.version;
        assert_eq!(u64::from(child.reserved), version, "parent and child are of one version");
        Some(version)
    }

    fn slab(&self, ptr: SlotPtr) -> Arc<Slab> {
        self.slabs.lock().unwrap()[&ptr.slab_bits()].clone()
    }

    fn read<T: bytemuck::Pod>(&self, ptr: SlotPtr, offset: usize) -> T {
        read(&self.slab(ptr).read(ptr.offset() + offset, size_of::<T>()))
    }
}

/// Writes a version of a resource, a root with one child, and makes it current. (Of the record types,
/// that of the directory's pages serves: the engine's own, and one that owns another.)
pub(super) fn flush(engine: &mut Engine, name: &str, version: u32) -> Result<HandlePtr, Full> {
    let header: RecordHeader = bytemuck::Zeroable::zeroed();
    let record = |next| DirectoryPage { header, next, reserved: version };
    let mut draft = engine.draft();
    let handle = draft.handle(RESOURCE, name)?;
    let child = draft.write(&record(Owned::NULL), &[])?;
    let root = draft.write_root(&record(child), &[], version.into())?;
    draft.publish(handle, root);
    Ok(handle)
}

struct Kernel(Arc<World>);

impl Backing for Kernel {
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError> {
        self.0.growth.pass();
        let create = |&index: &SlabIndex| {
            let slab = Slab::new(index);
            let before = self.0.slabs.lock().unwrap().insert(index.get(), slab.clone());
            assert!(before.is_none(), "slab {index} is created twice");
            MappedSlab::new(slab)
        };
        Ok(slabs.iter().map(create).collect())
    }

    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError> {
        for slab in slabs {
            self.0.slabs.lock().unwrap().remove(&slab.index().get()).expect("a slab that there is");
            slab.slab().is_gone();
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), BackingError> {
        if !is_faulty(Fault::NoBarrier) {
            self.0.runs.iter().for_each(|run| drop(run.lock().unwrap()));
        }
        Ok(())
    }

    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(Vec::new())
    }
}

/// Steps of models on an engine, beside those of its users.
impl Engine {
    /// Waits for one barrier, and takes over what else is finished before it.
    pub(super) fn wait_for_barrier(&mut self) {
        let before = self.stats().grace_periods;
        while self.stats().grace_periods == before {
            let done = self.background.wait();
            self.done(done);
        }
    }

    /// Has two slabs more created, as a flush would that finds none.
    pub(super) fn grow_by_two(&mut self) {
        self.growing = true;
        let batch = self.table.missing(2);
        self.background.grow(batch);
    }

    /// Takes all idle slots.
    pub(super) fn take_all(&mut self) -> Vec<SlotPtr> {
        let mut taken = Vec::new();
        for class in SlotClass::all() {
            while let Some(ptr) = self.table.take(class) {
                taken.push(ptr);
            }
        }
        taken
    }

    /// Retires slots, as if their version had been replaced.
    pub(super) fn retire_all(&mut self, slots: Vec<SlotPtr>) {
        for ptr in slots {
            self.table.retire(ptr);
            self.quarantine.push(Item::Slot(ptr));
        }
    }
}
