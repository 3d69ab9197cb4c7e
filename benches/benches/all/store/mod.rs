//! The places where records can lie. One trait, so that both flattens write to each of them alike.
//!
//! | store | a record is | to write it | to give it up |
//! | --- | --- | --- | --- |
//! | naive | an outer record, created for it | map create, outer update, bitmap update | outer delete, bitmap update |
//! | precreated | an outer record, created at start | one update of its inner map | nothing: idle in a table |
//! | hash | an element of one of four hash maps | one update | one delete |
//! | slab, flat | a slot of mapped memory | stores | nothing: a grace period on a thread |
//!
//! The published designs and the hash maps give a place to the next record at once, though a program may
//! still read it; slab and flat wait for a grace period. That is in their favour.

mod hash;
mod mapped;
mod naive;
mod precreated;

pub use hash::Hash;
pub use mapped::{Flat, Mapped, Slabs};
pub use naive::Naive;
pub use precreated::Precreated;
use slotmesh_kernel::{BpfError, Map, MapKind, MapSpec};

/// Where a record lies; never 0.
pub type Id = u32;

/// See the module's comment.
pub trait Store {
    /// Writes a record of two parts, which programs can't reach yet.
    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id>;

    /// Gives a record up that programs may still read.
    fn give_up(&mut self, id: Id) -> anyhow::Result<()>;

    /// Creates the handle of a name: what leads to its current version.
    fn handle(&mut self, name: &str) -> anyhow::Result<Id>;

    /// Makes `root` what a handle leads to; 0 for nothing.
    fn publish(&mut self, handle: Id, root: Id) -> anyhow::Result<()>;

    /// Gives a handle up.
    fn drop_handle(&mut self, handle: Id) -> anyhow::Result<()>;

    /// What lies at a record's place; `None` where only a system call could tell.
    fn read(&mut self, _id: Id) -> Option<&[u8]> {
        None
    }

    /// Stores a word at an offset of a record that isn't only being written.
    fn store(&mut self, _id: Id, _offset: usize, _value: u32) -> anyhow::Result<()> {
        anyhow::bail!("only a store in mapped memory has words")
    }

    /// What is to be done now and then, outside of an update.
    fn poll(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Handles of the stores that have no word to store: an element of a hash map by number.
struct Roots {
    map: Map<u32, u32>,
    free: Vec<u32>,
    next: u32,
}

impl Roots {
    fn new(entries: u32) -> Result<Self, BpfError> {
        let spec = MapSpec { name: "bench_roots", kind: MapKind::Hash, max_entries: entries, flags: 0 };
        Ok(Self { map: Map::create(&spec, None)?, free: Vec::new(), next: 1 })
    }

    fn create(&mut self) -> Id {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn publish(&self, handle: Id, root: Id) -> Result<(), BpfError> {
        if root == 0 { self.map.delete(&handle).map(drop) } else { self.map.update(&handle, &root) }
    }

    fn remove(&mut self, handle: Id) {
        self.free.push(handle);
    }
}

/// The parts of a record as one value of `N` bytes, as a system call takes it.
fn whole<const N: usize>(buffer: &mut [u8; N], head: &[u8], tail: &[u8]) -> anyhow::Result<()> {
    let len = head.len() + tail.len();
    anyhow::ensure!(len <= N, "a record of {len} bytes doesn't fit an inner map of {N}");
    buffer[..head.len()].copy_from_slice(head);
    buffer[head.len()..len].copy_from_slice(tail);
    Ok(())
}
