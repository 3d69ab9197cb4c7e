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
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::Arc,
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

fn bpf(what: &'static str) -> impl Fn(BpfError) -> OuterError {
    move |source| OuterError::Bpf { what, source }
}

fn at(what: &'static str, path: &Path) -> impl Fn(io::Error) -> OuterError {
    let path = path.to_owned();
    move |source| OuterError::Io { what, path: path.clone(), source }
}

/// The outer map and the pins of its slabs, under one directory of bpffs.
#[derive(Debug)]
pub struct Outer {
    map: Map<u32, u32>,
    barrier: Slab,
    slabs: PathBuf,
    range: Arc<Reservation>,
}

impl Outer {
    /// Opens the outer map pinned under `root` or creates it, without BTF: kernel 6.1 refuses inner
    /// maps whose BTF isn't that of the outer map's template. The arena is where its slabs will be mapped.
    pub fn open(root: &Path) -> Result<(Self, Arena), OuterError> {
        let slabs = root.join("slabs");
        fs::create_dir_all(&slabs).map_err(at("create directory", &slabs))?;
        let barrier = Slab::create(&SLAB, None).map_err(bpf("create the barrier's inner map"))?;
        let map = Map::open_or_create(&root.join("outer"), &OUTER, Some(barrier.as_fd()))
            .map_err(bpf("open or create the outer map"))?;
        let (range, arena) = Reservation::new(MAX_SLABS).map_err(at("reserve addresses for", root))?;
        let outer = Self { map, barrier, slabs, range };
        // An element that is replaced, not one that is new, is what makes an update wait.
        outer.barrier()?;
        Ok((outer, arena))
    }

    /// Returns after every program run that was under way when it was called has ended.
    pub fn barrier(&self) -> Result<(), OuterError> {
        let fd = self.barrier.as_fd().as_raw_fd() as u32;
        self.map.update(&MAX_SLABS, &fd).map_err(bpf("wait for a grace period"))
    }

    /// Creates slabs, puts them into the outer map with one batch (one grace period on kernels 6.12
    /// and later), pins and maps them. On an error none of them is in use. A slab is pinned after it
    /// is in the outer map, so that every pin that recovery finds can be reached by programs.
    pub fn create(&self, indexes: &[SlabIndex]) -> Result<Vec<MappedSlab>, OuterError> {
        let maps = indexes
            .iter()
            .map(|_| Slab::create(&SLAB, None).map_err(bpf("create a slab")))
            .collect::<Result<Vec<_>, _>>()?;
        let keys: Vec<u32> = indexes.iter().map(|index| index.get()).collect();
        let fds: Vec<u32> = maps.iter().map(|map| map.as_fd().as_raw_fd() as u32).collect();
        self.map.update_batch(&keys, &fds).map_err(bpf("put slabs into the outer map"))?;
        indexes
            .iter()
            .zip(&maps)
            .map(|(&index, map)| {
                let path = self.pin_of(index);
                // What a batch that failed half-way left pinned was never used: replace it.
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(at("replace the pin", &path)(error));
                    }
                    _ => map.pin(&path).map_err(bpf("pin a slab"))?,
                }
                self.range.map(index, map.as_fd()).map_err(at("map slab", &path))
            })
            .collect()
    }

    /// Maps every slab that is pinned.
    pub fn recover(&self) -> Result<Vec<MappedSlab>, OuterError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.slabs).map_err(at("list", &self.slabs))? {
            let path = entry.map_err(at("list", &self.slabs))?.path();
            let index =
                path.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(SlabIndex::new);
            let index = index.ok_or_else(|| {
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
