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
    thread,
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
/// The most records in the first batch that tells.
const PROBE_BATCH: usize = 32;
/// Where the kernel is held to wait for each record, so many of a batch are put with one call all the same:
/// whether it really does is looked at again with each batch.
const PROBE_AGAIN: usize = 8;
/// The most records in a batch: each holds a file descriptor until it is in the outer map, and 1,024 is
/// the usual limit of open files.
const MAX_BATCH: usize = 512;
/// Fewer items than this aren't worth a thread.
const LEAST_SHARE: usize = 4;

/// A failure of the outer map, and of what.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// The kernel refused.
    #[error("{what}: {source}")]
    Bpf {
        /// The step that failed.
        what: &'static str,
        /// The call.
        #[source]
        source: BpfError,
    },
    /// A file operation failed.
    #[error("{what} {path}: {source}")]
    Io {
        /// The step that failed.
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

impl BatchCost {
    /// The way in which a kernel waits that took this long for a call with so many records; `None` where they
    /// are too few to tell. One call waits for one grace period, or a few on a busy machine, or for one a
    /// record: half-way between lies half a grace period a record.
    fn of(took: Duration, grace_period: Duration, records: usize) -> Option<Self> {
        let half_way = grace_period.saturating_mul(records as u32) / 2;
        (records >= LEAST_PROBE).then_some(if took < half_way { Self::PerCall } else { Self::PerRecord })
    }
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
    /// How long barriers take, in nanoseconds: what a batch is held against.
    grace_period: AtomicU64,
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
        let outer = Self {
            map,
            barrier,
            slabs,
            range,
            grace_period: AtomicU64::new(0),
            batch_cost: AtomicU8::new(BatchCost::Unknown as u8),
            batched: AtomicU64::new(0),
            one_by_one: AtomicU64::new(0),
            most_threads: AtomicU64::new(0),
            threads: AtomicUsize::new(threads.get()),
        };
        outer.barrier()?;
        Ok((outer, arena))
    }

    /// Returns after every program run that was under way when it was called has ended.
    pub fn barrier(&self) -> Result<(), OuterError> {
        let started = Instant::now();
        self.map.update(&MAX_SLABS, &self.barrier_fd()).map_err(bpf("wait for a grace period"))?;
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let before = self.grace_period.load(Ordering::Relaxed);
        // One that was out of the ordinary is forgotten after some more.
        let now = if before == 0 { took } else { before / 8 * 7 + took / 8 };
        self.grace_period.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// From now on this many threads share the work of creating slabs.
    pub fn set_threads(&self, threads: NonZeroUsize) {
        self.threads.store(threads.get(), Ordering::Relaxed);
    }

    /// Measurements of this kernel.
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

    /// How long the last barriers took, on the whole: what a batch is held against.
    pub fn grace_period(&self) -> Duration {
        Duration::from_nanos(self.grace_period.load(Ordering::Relaxed))
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

    /// Puts records into the outer map: with one call where the kernel waits once a call, else most of them
    /// one by one on several threads, whose grace periods pass at the same time.
    fn put(&self, records: &[(u32, u32)]) -> Result<(), OuterError> {
        let failed = || bpf("put slabs into the outer map");
        let per_record = self.batch_cost() == BatchCost::PerRecord;
        let most = if per_record { PROBE_AGAIN } else { usize::MAX };
        let (batch, rest) = records.split_at(records.len().min(most));
        let (keys, fds): (Vec<u32>, Vec<u32>) = batch.iter().copied().unzip();
        let started = Instant::now();
        self.map.update_batch(&keys, &fds).map_err(failed())?;
        self.batched.fetch_add(batch.len() as u64, Ordering::Relaxed);
        if let Some(cost) = BatchCost::of(started.elapsed(), self.grace_period(), batch.len()) {
            self.batch_cost.store(cost as u8, Ordering::Relaxed);
        }
        if self.batch_cost() != BatchCost::PerRecord && !rest.is_empty() {
            return self.put(rest);
        }
        self.one_by_one.fetch_add(rest.len() as u64, Ordering::Relaxed);
        let threads = rest.len().div_ceil(self.share(rest.len()).max(1));
        self.most_threads.fetch_max(threads as u64, Ordering::Relaxed);
        self.shared(rest, |(key, fd)| self.map.update(key, fd).map_err(failed())).map(drop)
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
        share_out(items, share, work, thread::Builder::new)
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

/// Does the work for each item, on a thread for each share of them. What a thread was to do that can't be made,
/// this one does.
fn share_out<T: Sync, R: Send, E: Send>(
    items: &[T],
    share: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
    builder: impl Fn() -> thread::Builder,
) -> Result<Vec<R>, E> {
    let work = |chunk: &[T]| chunk.iter().map(&work).collect::<Result<Vec<_>, _>>();
    let work = &work;
    thread::scope(|scope| {
        let start = |chunk| builder().spawn_scoped(scope, move || work(chunk)).map_err(|_none| chunk);
        let chunks: Vec<_> = items.chunks(share).map(start).collect();
        let mut all = Vec::with_capacity(items.len());
        for chunk in chunks {
            all.extend(match chunk {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                Err(chunk) => work(chunk)?,
            });
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_millis(8);

    #[test]
    fn a_batch_is_held_against_the_number_of_its_records() {
        let of = |periods: f64, records| BatchCost::of(PERIOD.mul_f64(periods), PERIOD, records);
        assert_eq!(of(1.0, 3), None, "too few to tell");
        // A busy machine stretches a wait to several periods.
        for (periods, records) in [(1.0, 4), (1.9, 4), (3.0, 8), (9.0, 32), (15.0, 512)] {
            assert_eq!(of(periods, records), Some(BatchCost::PerCall), "{periods} for {records}");
        }
        for records in [4, 8, 32, 512] {
            let periods = f64::from(records) * 0.8;
            assert_eq!(of(periods, records as usize), Some(BatchCost::PerRecord), "{periods} for {records}");
        }
    }

    /// On the real kernel: whatever is believed of it, the next batch tells. Needs root and BPF.
    #[test]
    fn what_was_misjudged_is_judged_again_with_the_next_batch() {
        let root = PathBuf::from(format!("/sys/fs/bpf/slotmesh-outer-{}-judged", std::process::id()));
        crate::ensure_bpffs(&root).expect("a BPF file system");
        fs::create_dir_all(&root).expect("root");
        let (outer, arena) = Outer::open(&root, NonZeroUsize::MIN).expect("root and BPF");
        let create = |batch: u32| {
            let slabs: Vec<_> = (32 * batch..32 * (batch + 1)).filter_map(SlabIndex::new).collect();
            outer.create(&slabs).expect("a batch that tells");
            outer.batch_cost()
        };
        // A machine that does other work stretches a batch now and then, and then both may be right.
        let judged_again = (0..8).any(|i| {
            let truth = create(2 * i);
            let wrong = match truth {
                BatchCost::PerRecord => BatchCost::PerCall,
                _ => BatchCost::PerRecord,
            };
            outer.batch_cost.store(wrong as u8, Ordering::Relaxed);
            create(2 * i + 1) == truth
        });
        drop((outer, arena));
        fs::remove_dir_all(&root).expect("the pins go");
        assert!(judged_again, "no batch changed what was believed of the kernel");
    }

    #[test]
    fn work_is_done_where_no_thread_can_be_made() {
        let items: Vec<u32> = (0..64).collect();
        let doubled: Vec<u32> = items.iter().map(|item| item * 2).collect();
        let work = |&item: &u32| Ok::<_, ()>(item * 2);
        assert_eq!(share_out(&items, 16, work, thread::Builder::new), Ok(doubled.clone()));
        // No address space holds such a stack.
        let too_large = || thread::Builder::new().stack_size(1 << 50);
        assert!(too_large().spawn(|| ()).is_err());
        assert_eq!(share_out(&items, 16, work, too_large), Ok(doubled));
    }
}
