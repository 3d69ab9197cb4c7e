//! The published design "before": an outer record for each record, created when it is written and
//! deleted when it goes. Which are in use stands in a bitmap in outer record 0.

use std::os::fd::{AsFd as _, AsRawFd as _};

use slotmesh_kernel::{Map, MapKind, MapSpec};

use super::{Id, Roots, Store, whole};

/// Outer records; the bitmap takes a bit of each.
const RECORDS: u32 = 8_192;

/// See the module's comment. Every inner map has `N` bytes.
pub struct Naive<const N: usize> {
    outer: Map<u32, u32>,
    bitmap: Map<u32, [u8; N]>,
    used: [u8; N],
    buffer: [u8; N],
    roots: Roots,
}

const fn inner() -> MapSpec {
    MapSpec { name: "bench_naive", kind: MapKind::Array, max_entries: 1, flags: 0 }
}

impl<const N: usize> Naive<N> {
    pub fn new() -> anyhow::Result<Self> {
        assert!(N * 8 >= RECORDS as usize, "the bitmap fits an inner map");
        let bitmap = Map::create(&inner(), None)?;
        let spec =
            MapSpec { name: "bench_outer", kind: MapKind::ArrayOfMaps, max_entries: RECORDS, flags: 0 };
        let outer = Map::create(&spec, Some(bitmap.as_fd()))?;
        let mut used = [0; N];
        used[0] = 1;
        let naive = Self { outer, bitmap, used, buffer: [0; N], roots: Roots::new(RECORDS)? };
        naive.outer.update(&0, &(naive.bitmap.as_fd().as_raw_fd() as u32))?;
        naive.bitmap.update(&0, &naive.used)?;
        Ok(naive)
    }

    /// The outer map, for the program that reads back.
    pub fn outer(&self) -> &Map<u32, u32> {
        &self.outer
    }
}

impl<const N: usize> Store for Naive<N> {
    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let byte = self.used[..RECORDS as usize / 8].iter().position(|&byte| byte != u8::MAX);
        let byte = byte.ok_or_else(|| anyhow::anyhow!("all {RECORDS} outer records are in use"))?;
        let bit = self.used[byte].trailing_ones();
        let id = byte as u32 * 8 + bit;
        whole(&mut self.buffer, head, tail)?;
        let map = Map::<u32, [u8; N]>::create(&inner(), None)?;
        map.update(&0, &self.buffer)?;
        self.outer.update(&id, &(map.as_fd().as_raw_fd() as u32))?;
        self.used[byte] |= 1 << bit;
        self.bitmap.update(&0, &self.used)?;
        Ok(id)
    }

    fn give_up(&mut self, id: Id) -> anyhow::Result<()> {
        self.outer.delete(&id)?;
        self.used[id as usize / 8] &= !(1 << (id % 8));
        Ok(self.bitmap.update(&0, &self.used)?)
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
