//! The outer map: creating its records, and the grace period that an update of it waits for.
//!
//! ```text
//! index 0 .. MAX_SLABS-1   slabs, each an ARRAY of one 64 KiB element, pinned as slabs/<index>
//! index MAX_SLABS          the barrier's own record, replaced by itself again and again
//! ```
//!
//! An update that changes an element waits for the running programs (`maybe_wait_bpf_programs` in
//! kernel/bpf/syscall.c, for maps of maps): this is the barrier. It covers non-sleepable programs.

use std::{
    fs, io,
    num::NonZeroUsize,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aya_obj::generated::BPF_F_MMAPABLE;
use slotmesh_records::{MAX_SLABS, SLAB_BYTES, SlabIndex};

use crate::{
    arena::{Arena, MappedSlab, Reservation},
    map::{Map, MapKind, MapSpec},
    sys::BpfError,
};

type Slab = Map<u32, [u8; SLAB_BYTES]>;

const SLAB: MapSpec =
    MapSpec { name: "slotmesh_slab", kind: MapKind::Array, max_entries: 1, flags: BPF_F_MMAPABLE };
const OUTER: MapSpec =
    MapSpec { name: "slotmesh_outer", kind: MapKind::ArrayOfMaps, max_entries: MAX_SLABS + 1, flags: 0 };

/// The fewest records that tell how the kernel waits for a batch.
const LEAST_PROBE: usize = 4;
/// The most records in the batch that tells.
const PROBE_BATCH: usize = 32;
/// The most records in a batch: each holds a file descriptor until it is in the outer map, and 1,024 is
/// the usual limit of open files.
const MAX_BATCH: usize = 512;
/// Fewer items than this aren't worth a thread.
const LEAST_SHARE: usize = 4;

/// What went wrong with the outer map, and for what.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Bpf {
        /// What was being done.
        what: &'static str,
        /// The call.
        #[source]
        source: BpfError,
    },
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn remove_pin(path: &Path) -> Result<(), OuterError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove the pin", path)(error)),
        _ => Ok(()),
    }
}

fn bpf(what: &'static str) -> impl Fn(BpfError) -> OuterError {
    move |source| OuterError::Bpf { what, source }
}

fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> OuterError {
    let path = path.to_owned();
    move |source| OuterError::Io { what, path: path.clone(), source }
}

/// How this kernel waits when several records are put into the outer map with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BatchCost {
    /// Not measured yet.
    Unknown,
    /// One grace period a call (kernels 6.12 and later).
    PerCall,
    /// One grace period a record (6.1): several threads share them.
    PerRecord,
}

/// How records were put into the outer map so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Puts {
    /// Records put with a call for many.
    pub batched: u64,
    /// Records put with a call each.
    pub one_by_one: u64,
    /// The most threads that shared these calls.
    pub threads: u64,
}

/// The outer map and the pins of its slabs, under one directory of bpffs.
#[derive(Debug)]
pub struct Outer {
    map: Map<u32, u32>,
    barrier: Slab,
    slabs: PathBuf,
    range: Arc<Reservation>,
    /// How long the barrier took at start: what a batch is held against.
    grace_period: Duration,
    batch_cost: AtomicU8,
    threads: AtomicUsize,
    batched: AtomicU64,
    one_by_one: AtomicU64,
    most_threads: AtomicU64,
}

impl Outer {
    /// Opens the outer map pinned under `root` or creates it, without BTF: kernel 6.1 refuses inner
    /// maps whose BTF isn't that of the outer map's template. The arena is where its slabs will be
    /// mapped; `threads` share the work of creating them.
    pub fn open(root: &Path, threads: NonZeroUsize) -> Result<(Self, Arena), OuterError> {
        let slabs = root.join("slabs");
        fs::create_dir_all(&slabs).map_err(at("create directory", &slabs))?;
        let barrier = Slab::create(&SLAB, None).map_err(bpf("create the barrier's inner map"))?;
        let map = Map::open_or_create(&root.join("outer"), &OUTER, Some(barrier.as_fd()))
            .map_err(bpf("open or create the outer map"))?;
        let (range, arena) = Reservation::new(MAX_SLABS).map_err(at("reserve addresses for", root))?;
        let mut outer = Self {
            map,
            barrier,
            slabs,
            range,
            grace_period: Duration::ZERO,
            batch_cost: AtomicU8::new(BatchCost::Unknown as u8),
            batched: AtomicU64::new(0),
            one_by_one: AtomicU64::new(0),
            most_threads: AtomicU64::new(0),
            threads: AtomicUsize::new(threads.get()),
        };
        let started = Instant::now();
        outer.barrier()?;
        outer.grace_period = started.elapsed();
        Ok((outer, arena))
    }

    /// Returns after every program run that was under way when it was called has ended.
    pub fn barrier(&self) -> Result<(), OuterError> {
        self.map.update(&MAX_SLABS, &self.barrier_fd()).map_err(bpf("wait for a grace period"))
    }

    /// From now on this many threads share the work of creating slabs.
    pub fn set_threads(&self, threads: NonZeroUsize) {
        self.threads.store(threads.get(), Ordering::Relaxed);
    }

    /// What was measured of this kernel.
    pub fn batch_cost(&self) -> BatchCost {
        match self.batch_cost.load(Ordering::Relaxed) {
            cost if cost == BatchCost::PerCall as u8 => BatchCost::PerCall,
            cost if cost == BatchCost::PerRecord as u8 => BatchCost::PerRecord,
            _ => BatchCost::Unknown,
        }
    }

    /// How records were put into it.
    pub fn puts(&self) -> Puts {
        Puts {
            batched: self.batched.load(Ordering::Relaxed),
            one_by_one: self.one_by_one.load(Ordering::Relaxed),
            threads: self.most_threads.load(Ordering::Relaxed),
        }
    }

    /// How long the barrier took when the map was opened: what a batch is held against.
    pub fn grace_period(&self) -> Duration {
        self.grace_period
    }

    /// Creates slabs, puts them into the outer map, pins and maps them. On an error none of them is in
    /// use. A slab is pinned after it is in the outer map, so that every pin that recovery finds can be
    /// reached by programs.
    pub fn create(&self, indexes: &[SlabIndex]) -> Result<Vec<MappedSlab>, OuterError> {
        let mut slabs = Vec::with_capacity(indexes.len());
        let mut rest = indexes;
        while !rest.is_empty() {
            // The first batch tells how this kernel waits; where each record waits, a large one would
            // take seconds. Later ones are bounded by the open-file limit, one descriptor a slab.
            let most = if self.batch_cost() == BatchCost::Unknown { PROBE_BATCH } else { MAX_BATCH };
            let (batch, later) = rest.split_at(rest.len().min(most));
            slabs.extend(self.create_batch(batch)?);
            rest = later;
        }
        Ok(slabs)
    }

    fn create_batch(&self, indexes: &[SlabIndex]) -> Result<Vec<MappedSlab>, OuterError> {
        // What a batch that failed half-way left pinned was never used. It goes before the outer map
        // changes, so that pin and record never disagree.
        indexes.iter().try_for_each(|&index| remove_pin(&self.pin_of(index)))?;
        let maps = self.shared(indexes, |_| Slab::create(&SLAB, None).map_err(bpf("create a slab")))?;
        let records: Vec<(u32, u32)> = indexes
            .iter()
            .zip(&maps)
            .map(|(index, map)| (index.get(), map.as_fd().as_raw_fd() as u32))
            .collect();
        self.put(&records)?;
        let pairs: Vec<_> = indexes.iter().zip(&maps).collect();
        self.shared(&pairs, |&(&index, map)| {
            let path = self.pin_of(index);
            map.pin(&path).map_err(bpf("pin a slab"))?;
            self.range.map(index, map.as_fd()).map_err(at("map slab", &path))
        })
    }

    /// Puts records into the outer map: with one call where the kernel waits once a call, else one by
    /// one on several threads, whose grace periods pass at the same time.
    fn put(&self, records: &[(u32, u32)]) -> Result<(), OuterError> {
        let failed = || bpf("put slabs into the outer map");
        if self.batch_cost() == BatchCost::PerRecord {
            self.one_by_one.fetch_add(records.len() as u64, Ordering::Relaxed);
            let threads = records.len().div_ceil(self.share(records.len()).max(1));
            self.most_threads.fetch_max(threads as u64, Ordering::Relaxed);
            return self.shared(records, |(key, fd)| self.map.update(key, fd).map_err(failed())).map(drop);
        }
        let (keys, fds): (Vec<u32>, Vec<u32>) = records.iter().copied().unzip();
        let started = Instant::now();
        self.map.update_batch(&keys, &fds).map_err(failed())?;
        self.batched.fetch_add(records.len() as u64, Ordering::Relaxed);
        if self.batch_cost() == BatchCost::Unknown && records.len() >= LEAST_PROBE {
            // One grace period or `LEAST_PROBE` and more of them: nothing lies in between.
            let once = started.elapsed() < self.grace_period * (LEAST_PROBE as u32) / 2;
            let cost = if once { BatchCost::PerCall } else { BatchCost::PerRecord };
            self.batch_cost.store(cost as u8, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives slabs back: nothing in them can be reached any more. Their memory is free when this
    /// returns. Their pins go first: an agent that is killed in between leaves a record without a pin,
    /// which is no slab.
    pub fn remove(&self, slabs: Vec<MappedSlab>) -> Result<(), OuterError> {
        for slab in &slabs {
            remove_pin(&self.pin_of(slab.index()))?;
        }
        let emptied: Vec<(u32, u32)> =
            slabs.iter().map(|slab| (slab.index().get(), self.barrier_fd())).collect();
        self.put(&emptied)?;
        for slab in slabs {
            let path = self.pin_of(slab.index());
            self.range.unmap(slab).map_err(at("unmap slab", &path))?;
        }
        Ok(())
    }

    /// Does the work for each item, on several threads where there is enough of it.
    fn shared<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R, OuterError> + Sync,
    ) -> Result<Vec<R>, OuterError> {
        let share = self.share(items.len());
        if items.len() <= share {
            return items.iter().map(work).collect();
        }
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> = items
                .chunks(share)
                .map(|chunk| scope.spawn(move || chunk.iter().map(work).collect::<Result<Vec<_>, _>>()))
                .collect();
            let mut all = Vec::with_capacity(items.len());
            for thread in threads {
                all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(all)
        })
    }

    /// How many of so many items a thread works on.
    fn share(&self, items: usize) -> usize {
        items.div_ceil(self.threads.load(Ordering::Relaxed)).max(LEAST_SHARE)
    }

    fn barrier_fd(&self) -> u32 {
        self.barrier.as_fd().as_raw_fd() as u32
    }

    /// Maps every slab that is pinned.
    pub fn recover(&self) -> Result<Vec<MappedSlab>, OuterError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.slabs).map_err(at("list", &self.slabs))? {
            let path = entry.map_err(at("list", &self.slabs))?.path();
            let index =
                path.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(SlabIndex::new);
            let index = index.filter(|&index| self.pin_of(index) == path).ok_or_else(|| {
                at("unexpected file among the slabs:", &path)(io::ErrorKind::InvalidData.into())
            })?;
            let map = Slab::open(&path)
                .map_err(bpf("open a pinned slab"))?
                .ok_or_else(|| at("open", &path)(io::ErrorKind::NotFound.into()))?;
            found.push(self.range.map(index, map.as_fd()).map_err(at("map slab", &path))?);
        }
        found.sort_by_key(MappedSlab::index);
        Ok(found)
    }

    fn pin_of(&self, index: SlabIndex) -> PathBuf {
        self.slabs.join(index.to_string())
    }
}
