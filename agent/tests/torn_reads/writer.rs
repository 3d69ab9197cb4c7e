//! The writer: the slot engine over the real outer map, and a VIP map, changed as the agent changes them.

use std::{fmt, num::NonZeroUsize, path::Path, sync::Arc};

use bytemuck::Zeroable as _;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use slotmesh_kernel::{Map, MapKind, MapSpec, MappedSlab, Outer};
use slotmesh_records::{
    self as records, Endpoint, EndpointChunk, EndpointIndex, SlabIndex, Vip, VipKey, VipValue, name_hash,
};
use slotmesh_slots::{Backing, BackingError, Config, Engine, Full, HandlePtr, ResourceKind};

use crate::report::{self, CLUSTER, ENDPOINTS, LISTENER, Owner, endpoint_count, mix};

const KIND_CLUSTER: ResourceKind = ResourceKind(1);
const KIND_ENDPOINTS: ResourceKind = ResourceKind(2);
const KIND_LISTENER: ResourceKind = ResourceKind(4);

const VIPS: MapSpec =
    MapSpec { name: "slotmesh_vips", kind: MapKind::Hash, max_entries: 65_536, flags: NO_PREALLOC };
const NO_PREALLOC: u32 = 1;

/// Few enough slabs that slots are soon used again, enough to write on while a grace period passes.
const SLABS: Config = Config {
    growth: slotmesh_slots::Growth::Background,
    initial: 128,
    cap: 192,
    low_watermark: 16,
    high_watermark: 64,
    batch: 16,
    threads: NonZeroUsize::MIN,
};

/// Whether retired slots wait for a grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Real,
    /// They are idle at once: the mistake that the reader is there to find.
    LeftOut,
}

/// An outer map whose barrier doesn't wait.
struct WithoutBarrier(Outer);

impl Backing for WithoutBarrier {
    fn create(&self, slabs: &[SlabIndex]) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(self.0.create(slabs)?)
    }

    fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), BackingError> {
        Ok(self.0.remove(slabs)?)
    }

    fn barrier(&self) -> Result<(), BackingError> {
        Ok(())
    }

    fn existing(&self) -> Result<Vec<MappedSlab>, BackingError> {
        Ok(self.0.recover()?)
    }
}

/// What the writer did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) flushes: u64,
    pub(crate) deletes: u64,
    pub(crate) grace_periods: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flushes, deletes, grace_periods } = self;
        write!(f, "{flushes} flushes, {deletes} trees deleted, {grace_periods} grace periods")
    }
}

struct Tree {
    listener: String,
    cluster: String,
    endpoints: String,
    vip: VipKey,
    /// Of the last versions.
    sequence: u64,
    /// The listener's handle, while the VIP leads there.
    entered: Option<HandlePtr>,
}

/// See the module's comment.
pub(crate) struct Writer {
    engine: Engine,
    vips: Map<VipKey, u64>,
    trees: Vec<Tree>,
    random: SmallRng,
    counts: Counts,
    tail: Vec<Endpoint>,
}

impl Writer {
    pub(crate) fn open(root: &Path, barrier: Barrier, trees: u32) -> Self {
        let (outer, arena) = Outer::open(root, NonZeroUsize::MIN).expect("root and BPF");
        let vips = Map::open_or_create(&root.join("vips"), &VIPS, None).expect("root and BPF");
        let backing: Arc<dyn Backing> = match barrier {
            Barrier::Real => Arc::new(outer),
            Barrier::LeftOut => Arc::new(WithoutBarrier(outer)),
        };
        let (engine, _) = Engine::open(&backing, arena, SLABS, &[], Arc::new(|| {})).expect("slabs");
        let tree = |i: u32| Tree {
            listener: format!("listener-{i}"),
            cluster: format!("cluster-{i}"),
            endpoints: format!("endpoints-{i}"),
            vip: VipKey::new([10, 96, 0, i as u8].into(), 80, VipKey::TCP),
            sequence: 0,
            entered: None,
        };
        let mut writer = Self {
            engine,
            vips,
            trees: (0..trees).map(tree).collect(),
            random: SmallRng::seed_from_u64(1),
            counts: Counts::default(),
            tail: Vec::new(),
        };
        (0..trees).for_each(|i| writer.make(i));
        writer
    }

    /// What the reader is to know of the trees.
    pub(crate) fn owners(&self) -> Vec<Owner> {
        let owner = |tree: &Tree| Owner {
            listener: name_hash(&tree.listener),
            cluster: name_hash(&tree.cluster),
            endpoints: name_hash(&tree.endpoints),
            vip: tree.vip,
            reserved: 0,
        };
        self.trees.iter().map(owner).collect()
    }

    /// One change.
    pub(crate) fn step(&mut self) {
        let i = self.random.random_range(0..self.trees.len() as u32);
        if self.trees[i as usize].entered.is_none() {
            // Deleted trees stay away for a few changes.
            if self.random.random_ratio(1, 4) {
                self.make(i);
            }
        } else {
            match self.random.random_range(0..64) {
                0 => self.delete(i),
                1..4 => self.flush(i, Self::flush_listener),
                4..12 => self.flush(i, Self::flush_cluster),
                _ => self.flush(i, Self::flush_endpoints),
            }
        }
        self.engine.poll();
    }

    /// Waits for the last grace period; what was done.
    pub(crate) fn finish(&mut self) -> Counts {
        self.engine.settle();
        let stats = self.engine.stats();
        let retired: u64 = stats.classes.iter().map(|(_, class)| class.retired).sum();
        assert_eq!((stats.quarantined, retired), (0, 0), "all that was retired is idle");
        Counts { grace_periods: stats.grace_periods, ..self.counts }
    }

    fn make(&mut self, i: u32) {
        self.flush(i, Self::flush_endpoints);
        self.flush(i, Self::flush_cluster);
        self.flush(i, Self::flush_listener);
        let Tree { vip, ref listener, .. } = self.trees[i as usize];
        let handle = self.engine.find(KIND_LISTENER, listener).expect("it was flushed");
        self.vips.update(&vip, &VipValue::new(&vip, handle.as_ref()).bits()).expect("room for a VIP");
        self.trees[i as usize].entered = Some(handle);
    }

    /// As the agent removes: the listener from the directory, its VIP, its records after a grace period;
    /// then what it led to.
    fn delete(&mut self, i: u32) {
        let tree = &mut self.trees[i as usize];
        let handle = tree.entered.take().expect("it is there");
        self.engine.unlist(handle);
        assert!(self.vips.delete(&tree.vip).expect("BPF"), "the VIP was there");
        self.engine.retire(handle);
        for (kind, name) in [(KIND_CLUSTER, &tree.cluster), (KIND_ENDPOINTS, &tree.endpoints)] {
            let handle = self.engine.find(kind, name).expect("it is there");
            self.engine.remove(handle);
        }
        self.counts.deletes += 1;
    }

    fn flush(&mut self, i: u32, flush: impl Fn(&mut Self, u32, u64) -> Result<(), Full>) {
        self.trees[i as usize].sequence += 1;
        let sequence = self.trees[i as usize].sequence;
        // With all slots in use or retired it waits for a grace period.
        flush(self, i, sequence).unwrap_or_else(|full| panic!("flush {sequence} of tree {i}: {full}"));
        self.counts.flushes += 1;
    }

    fn flush_listener(&mut self, i: u32, sequence: u64) -> Result<(), Full> {
        let version = report::version(i, LISTENER, sequence);
        let tree = &self.trees[i as usize];
        let mut draft = self.engine.draft();
        let handle = draft.handle(KIND_LISTENER, &tree.listener)?;
        let cluster = draft.handle(KIND_CLUSTER, &tree.cluster)?.as_ref();
        let any = records::Action { cluster, ..records::Action::zeroed() };
        let record = records::Listener { any, ..records::Listener::zeroed() };
        let root = draft.write_root(&record, &[Vip { key: tree.vip }], version)?;
        draft.publish(handle, root);
        Ok(())
    }

    fn flush_cluster(&mut self, i: u32, sequence: u64) -> Result<(), Full> {
        let version = report::version(i, CLUSTER, sequence);
        let tree = &self.trees[i as usize];
        let mut draft = self.engine.draft();
        let handle = draft.handle(KIND_CLUSTER, &tree.cluster)?;
        let endpoints = draft.handle(KIND_ENDPOINTS, &tree.endpoints)?.as_ref();
        let record =
            records::Cluster { endpoints, connect_timeout_ms: mix(version, 0), ..records::Cluster::zeroed() };
        let root = draft.write_root(&record, &[], version)?;
        draft.publish(handle, root);
        Ok(())
    }

    fn flush_endpoints(&mut self, i: u32, sequence: u64) -> Result<(), Full> {
        let version = report::version(i, ENDPOINTS, sequence);
        let count = endpoint_count(version);
        let mut sum = 0;
        self.tail.clear();
        self.tail.extend((0..count).map(|index| report::endpoint(i, version, index, &mut sum)));
        let mut draft = self.engine.draft();
        let handle = draft.handle(KIND_ENDPOINTS, &self.trees[i as usize].endpoints)?;
        if count > EndpointChunk::CAPACITY {
            let mut chunks = Vec::with_capacity(3);
            for chunk in self.tail.chunks(EndpointChunk::CAPACITY as usize) {
                chunks.push(draft.write(&EndpointChunk::zeroed(), chunk)?);
            }
            let index = EndpointIndex { v6: count, ..EndpointIndex::zeroed() };
            let root = draft.write_root(&index, &chunks, version)?;
            draft.publish(handle, root);
        } else {
            let record = records::Endpoints { v6: count, ..records::Endpoints::zeroed() };
            let root = draft.write_root(&record, &self.tail, version)?;
            draft.publish(handle, root);
        }
        Ok(())
    }
}
