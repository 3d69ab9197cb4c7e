//! Mapped memory, cut into slots by class: one big array ([`Flat`]), or slabs ([`Slabs`]) for the
//! published flatten, whose records the slot engine doesn't know.
//!
//! The allocator is as plain as it can be: a free list a class, and a quarantine that a thread empties.
//! It keeps nothing that a new agent could find; the slot engine does.

use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, channel},
};

use anyhow::Context as _;
use slotmesh_kernel::{Arena, Map, MapKind, MapSpec, MappedArray, Outer};
use slotmesh_records::{
    Handle, Record as _, RecordHeader, SLAB_BYTES, SlabIndex, SlotPtr, UNIT_BYTES, name_hash,
};

use super::{Id, Store};
use crate::line::FLAT_BYTES;

/// Slot sizes in units of 64 bytes, as the slot engine's.
const UNITS: [u32; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
/// The class that holds so many units.
const CLASS_OF: [u8; 65] = {
    let mut classes = [0; 65];
    let (mut units, mut class) = (0, 0);
    while units <= 64 {
        if units > UNITS[class] as usize {
            class += 1;
        }
        classes[units] = class as u8;
        units += 1;
    }
    classes
};
/// `BPF_F_MMAPABLE`
const MMAPABLE: u32 = 1 << 10;

/// Memory that programs see, in units of 64 bytes.
pub trait Memory {
    /// How many units there are.
    fn units(&self) -> u32;
    /// A slot to be written.
    fn slot(&mut self, id: Id, len: usize) -> &mut [u8];
    /// A release store of the word at an offset of a slot.
    fn publish(&mut self, id: Id, offset: usize, value: u32);
}

/// One big array.
pub struct Flat {
    pub map: Map<u32, [u8; FLAT_BYTES]>,
    memory: MappedArray,
}

impl Flat {
    pub fn new() -> anyhow::Result<Self> {
        let spec = MapSpec { name: "bench_flat", kind: MapKind::Array, max_entries: 1, flags: MMAPABLE };
        let map = Map::create(&spec, None)?;
        let memory = MappedArray::new(std::os::fd::AsFd::as_fd(&map), FLAT_BYTES).context("map the array")?;
        Ok(Self { map, memory })
    }
}

impl Memory for Flat {
    fn units(&self) -> u32 {
        (FLAT_BYTES / UNIT_BYTES) as u32
    }

    fn slot(&mut self, id: Id, len: usize) -> &mut [u8] {
        self.memory.bytes_mut(id as usize * UNIT_BYTES, len)
    }

    fn publish(&mut self, id: Id, offset: usize, value: u32) {
        self.memory.publish(id as usize * UNIT_BYTES + offset, value);
    }
}

/// Slabs in an outer map.
pub struct Slabs {
    arena: Arena,
    slabs: u32,
}

impl Slabs {
    pub fn new(outer: &Outer, mut arena: Arena, slabs: u32) -> anyhow::Result<Self> {
        let indexes: Vec<_> = (0..slabs).filter_map(SlabIndex::new).collect();
        for slab in outer.create(&indexes)? {
            arena.adopt(&slab);
        }
        Ok(Self { arena, slabs })
    }
}

impl Memory for Slabs {
    fn units(&self) -> u32 {
        self.slabs * (SLAB_BYTES / UNIT_BYTES) as u32
    }

    fn slot(&mut self, id: Id, len: usize) -> &mut [u8] {
        self.arena.slot_mut(SlotPtr::from_bits(id), len).expect("a slot lies within its slab")
    }

    fn publish(&mut self, id: Id, offset: usize, value: u32) {
        self.arena.publish(SlotPtr::from_bits(id), offset, value);
    }
}

/// Units in a block, the piece that belongs to one class.
const BLOCK: u32 = (SLAB_BYTES / UNIT_BYTES) as u32;

/// A free list a class, and a quarantine.
pub struct Mapped<M> {
    pub memory: M,
    free: [Vec<Id>; UNITS.len()],
    /// Of each class: the next unit of its newest block that no slot has had yet, and the block's end.
    fresh: [(u32, u32); UNITS.len()],
    /// The class of each block.
    blocks: Vec<u8>,
    pending: Vec<Id>,
    waiting: Vec<Id>,
    running: bool,
    barrier: Sender<()>,
    over: Receiver<()>,
}

impl<M: Memory> Mapped<M> {
    /// Grace periods are those of `outer`, waited for on a thread.
    pub fn new(memory: M, outer: Arc<Outer>) -> Self {
        let ((barrier, begin), (end, over)) = (channel::<()>(), channel());
        std::thread::spawn(move || {
            for () in begin {
                outer.barrier().expect("an outer map can be updated");
                if end.send(()).is_err() {
                    return;
                }
            }
        });
        let (free, fresh, blocks, pending, waiting) = Default::default();
        Self { memory, free, fresh, blocks, pending, waiting, running: false, barrier, over }
    }

    fn take(&mut self, class: u8) -> anyhow::Result<Id> {
        if let Some(id) = self.free[class as usize].pop() {
            return Ok(id);
        }
        let units = UNITS[class as usize];
        let (next, end) = &mut self.fresh[class as usize];
        if *next + units > *end {
            let block = self.blocks.len() as u32;
            anyhow::ensure!((block + 1) * BLOCK <= self.memory.units(), "all {block} blocks are in use");
            self.blocks.push(class);
            // The first unit of all is the null pointer.
            (*next, *end) = (if block == 0 { units } else { block * BLOCK }, (block + 1) * BLOCK);
        }
        *next += units;
        Ok(*next - units)
    }

    fn put(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        let len = head.len() + tail.len();
        let class = CLASS_OF.get(len.div_ceil(UNIT_BYTES));
        let id = self.take(*class.with_context(|| format!("a record of {len} bytes"))?)?;
        let (first, second) = self.memory.slot(id, len).split_at_mut(head.len());
        first.copy_from_slice(head);
        second.copy_from_slice(tail);
        Ok(id)
    }
}

impl<M: Memory> Store for Mapped<M> {
    fn write(&mut self, head: &[u8], tail: &[u8]) -> anyhow::Result<Id> {
        self.put(head, tail)
    }

    fn give_up(&mut self, id: Id) -> anyhow::Result<()> {
        self.pending.push(id);
        Ok(())
    }

    fn handle(&mut self, name: &str) -> anyhow::Result<Id> {
        let header = RecordHeader { kind: Handle::KIND, units: 0, count: name.len() as u32, version: 0 };
        let handle = Handle { header, current: SlotPtr::NULL, resource: 0, name_hash: name_hash(name) };
        self.put(bytemuck::bytes_of(&handle), name.as_bytes())
    }

    fn publish(&mut self, handle: Id, root: Id) -> anyhow::Result<()> {
        self.memory.publish(handle, std::mem::offset_of!(Handle, current), root);
        Ok(())
    }

    fn drop_handle(&mut self, handle: Id) -> anyhow::Result<()> {
        self.pending.push(handle);
        Ok(())
    }

    fn read(&mut self, id: Id) -> Option<&[u8]> {
        let class = *self.blocks.get((id / BLOCK) as usize)?;
        Some(self.memory.slot(id, UNITS[class as usize] as usize * UNIT_BYTES))
    }

    fn store(&mut self, id: Id, offset: usize, value: u32) -> anyhow::Result<()> {
        self.memory.publish(id, offset, value);
        Ok(())
    }

    fn poll(&mut self) -> anyhow::Result<()> {
        if self.running && self.over.try_recv().is_ok() {
            self.running = false;
            for id in self.waiting.drain(..) {
                self.free[self.blocks[(id / BLOCK) as usize] as usize].push(id);
            }
        }
        if !self.running && !self.pending.is_empty() {
            std::mem::swap(&mut self.pending, &mut self.waiting);
            self.running = true;
            self.barrier.send(()).context("the thread that waits for grace periods has ended")?;
        }
        Ok(())
    }
}
