//! The published design "after": every outer record is created at start, by several threads; which are
//! idle stands in a table in memory, and writing a record is one update of its inner map.
//!
//! The inner maps' descriptors stay open: an update then needs no other call. The limit of open files
//! bounds how many there can be.

use std::os::fd::{AsFd as _, AsRawFd as _};

use slotmesh_kernel::{BpfError, Map, MapKind, MapSpec};

use super::{Id, Roots, Store, whole};

/// Threads that wait for grace periods at the same time.
const THREADS: usize = 64;

/// See the module's comment. Every inner map has `N` bytes.
pub struct Precreated<const N: usize> {
    outer: Map<u32, u32>,
    records: Vec<Map<u32, [u8; N]>>,
    idle: Vec<Id>,
    buffer: [u8; N],
    roots: Roots,
}

impl<const N: usize> Precreated<N> {
    /// Creates all records.
    pub fn new(count: u32) -> anyhow::Result<Self> {
        let inner = MapSpec { name: "bench_record", kind: MapKind::Array, max_entries: 1, flags: 0 };
        let create = || Map::<u32, [u8; N]>::create(&inner, None);
        let template = create()?;
        let spec = MapSpec { name: "bench_outer", kind: MapKind::ArrayOfMaps, max_entries: count, flags: 0 };
        let outer = Map::<u32, u32>::create(&spec, Some(template.as_fd()))?;
        let ids: Vec<u32> = (0..count).collect();
        let records = std::thread::scope(|scope| {
            let share = ids.len().div_ceil(THREADS);
            let threads: Vec<_> = ids
                .chunks(share)
                .map(|ids| {
                    let outer = &outer;
                    scope.spawn(move || {
                        ids.iter()
                            .map(|id| {
                                let map = create()?;
                                outer.update(id, &(map.as_fd().as_raw_fd() as u32))?;
                                Ok(map)
                            })
                            .collect::<Result<Vec<_>, BpfError>>()
                    })
                })
                .collect();
            let mut records = Vec::with_capacity(ids.len());
            for thread in threads {
                records.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok::<_, BpfError>(records)
        })?;
        // Record 0 is the null pointer.
        let idle = (1..count).rev().collect();
        Ok(Self { outer, records, idle, buffer: [0; N], roots: Roots::new(count)? })
    }

    /// The outer map, for the program that reads back.
    pub fn outer(&self) -> &Map<u32, u32> {
        &self.outer
    }
}

impl<const N: usize> Store for Precreated<N> {
    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let all = self.records.len();
        let id = self.idle.pop().ok_or_else(|| anyhow::anyhow!("all {all} outer records are in use"))?;
        whole(&mut self.buffer, head, tail)?;
        self.records[id as usize].update(&0, &self.buffer)?;
        Ok(id)
    }

    fn give_up(&mut self, id: Id) -> anyhow::Result<()> {
        self.idle.push(id);
        Ok(())
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
