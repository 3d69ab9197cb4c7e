//! Four hash maps by size class, as in the other project's newest version; an element is created when its
//! record is written. The maps are preallocated: an update then allocates nothing.

use std::path::Path;

use slotmesh_kernel::{BpfError, Map, MapKind, MapSpec};

use super::{Id, Roots, Store, whole};
use crate::line::class_of;

/// A class's map and the numbers that are free in it.
struct Class<const N: usize> {
    map: Map<u32, [u8; N]>,
    free: Vec<u32>,
    next: u32,
    buffer: [u8; N],
}

impl<const N: usize> Class<N> {
    fn new(class: u32, entries: u32) -> Result<Self, BpfError> {
        let spec = MapSpec { name: "bench_hash", kind: MapKind::Hash, max_entries: entries, flags: 0 };
        Ok(Self { map: Map::create(&spec, None)?, free: Vec::new(), next: class << 30 | 1, buffer: [0; N] })
    }

    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        whole(&mut self.buffer, head, tail)?;
        let id = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.map.update(&id, &self.buffer)?;
        Ok(id)
    }

    fn remove(&mut self, id: Id) -> Result<(), BpfError> {
        self.map.delete(&id)?;
        self.free.push(id);
        Ok(())
    }
}

/// See the module's comment.
pub struct Hash {
    c64: Class<64>,
    c256: Class<256>,
    c1024: Class<1024>,
    c4096: Class<4096>,
    roots: Roots,
}

impl Hash {
    /// Room for so many records of each class, and for so many names.
    pub fn new([c64, c256, c1024, c4096]: [u32; 4], names: u32) -> anyhow::Result<Self> {
        Ok(Self {
            c64: Class::new(0, c64)?,
            c256: Class::new(1, c256)?,
            c1024: Class::new(2, c1024)?,
            c4096: Class::new(3, c4096)?,
            roots: Roots::new(names)?,
        })
    }

    /// Pins the maps, for the program that reads back.
    pub fn pin(&self, dir: &Path) -> Result<(), BpfError> {
        self.c64.map.pin(&dir.join("h64"))?;
        self.c256.map.pin(&dir.join("h256"))?;
        self.c1024.map.pin(&dir.join("h1024"))?;
        self.c4096.map.pin(&dir.join("h4096"))
    }
}

impl Store for Hash {
    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        match head.len() + tail.len() {
            0..=64 => self.c64.write(head, tail),
            65..=256 => self.c256.write(head, tail),
            257..=1024 => self.c1024.write(head, tail),
            _ => self.c4096.write(head, tail),
        }
    }

    fn give_up(&mut self, id: Id) -> anyhow::Result<()> {
        Ok(match class_of(id) {
            0 => self.c64.remove(id),
            1 => self.c256.remove(id),
            2 => self.c1024.remove(id),
            _ => self.c4096.remove(id),
        }?)
    }

    fn handle(&mut self, _name: &str) -> anyhow::Result<Id> {
        Ok(self.roots.create())
    }

    fn publish(&mut self, handle: Id, root: Id) -> anyhow::Result<()> {
        Ok(self.roots.publish(handle, root)?)
    }

    fn drop_handle(&mut self, handle: Id) -> anyhow::Result<()> {
        self.roots.remove(handle);
        Ok(())
    }
}
