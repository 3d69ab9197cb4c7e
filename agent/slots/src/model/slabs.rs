//! Slabs whose every access is checked: a byte that is written while a reader may still read it, or
//! read before what was written is visible, fails the model.
//!
//! The bytes that the owner works on are its own; readers see those of the last publication, which is
//! when a real reader can first come across them. What a reader would see *too early* or *too late*
//! needs no bytes: loom knows from the accesses alone that nothing orders them.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex},
};

use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, Ordering},
};
use slotmesh_records::{SlabIndex, SlotPtr, UNIT_BYTES};

use super::{Fault, is_faulty};

/// Units that are told apart; those behind them count as one. Slots are taken from the front.
const TRACKED: usize = 16;
/// The part of a slab that a model needs: a page of the directory. Copying the rest would take most of the time.
const BYTES: usize = 4096;

/// One slab, as the programs see it.
#[derive(Debug)]
pub struct Slab {
    index: SlabIndex,
    bytes: Mutex<Vec<u8>>,
    /// (Loom's cells check who may, not whether two do; the lock is for the compiler.)
    units: Mutex<Vec<UnsafeCell<()>>>,
    /// The words that were published, by offset.
    words: Mutex<HashMap<usize, Arc<AtomicU32>>>,
}

impl Slab {
    /// A new slab: all its bytes are written, with zeros, by whoever calls this.
    pub fn new(index: SlabIndex) -> Arc<Self> {
        Arc::new(Self {
            index,
            bytes: Mutex::new(vec![0; BYTES]),
            units: Mutex::new((0..=TRACKED).map(|_| UnsafeCell::new(())).collect()),
            words: Mutex::default(),
        })
    }

    fn access(&self, range: &Range<usize>, access: impl Fn(&UnsafeCell<()>)) {
        let first = (range.start / UNIT_BYTES).min(TRACKED);
        let last = (range.end.saturating_sub(1) / UNIT_BYTES).min(TRACKED);
        self.units.lock().unwrap()[first..=last.max(first)].iter().for_each(access);
    }

    fn is_read(&self, range: &Range<usize>) {
        self.access(range, |unit| unit.with(|_| ()));
    }

    fn is_written(&self, range: &Range<usize>) {
        self.access(range, |unit| unit.with_mut(|_| ()));
    }

    /// All of it goes: what nobody may be reading any more.
    pub fn is_gone(&self) {
        self.is_written(&(0..BYTES));
    }

    /// The bytes that a program reads.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        let range = offset..offset + length;
        self.is_read(&range);
        self.bytes.lock().unwrap()[range].to_vec()
    }

    /// The word that a program loads.
    pub fn load(&self, offset: usize) -> u32 {
        let word = self.words.lock().unwrap().get(&offset).cloned();
        // Acquire stands for the order that an address has before what lies there.
        word.map_or(0, |word| word.load(Ordering::Acquire))
    }
}

/// See `slotmesh_kernel::MappedSlab`.
#[derive(Debug)]
pub struct MappedSlab(Arc<Slab>);

impl MappedSlab {
    /// Hands a slab over.
    pub fn new(slab: Arc<Slab>) -> Self {
        Self(slab)
    }

    pub fn index(&self) -> SlabIndex {
        self.0.index
    }

    /// The slab, back in the hands of whoever removes it.
    pub fn slab(&self) -> &Arc<Slab> {
        &self.0
    }
}

#[derive(Debug)]
struct Own {
    bytes: Vec<u8>,
    shared: Arc<Slab>,
}

/// See `slotmesh_kernel::Arena`.
#[derive(Debug, Default)]
pub struct Arena {
    slabs: HashMap<u32, Own>,
    /// Writes since the last publication.
    written: Vec<(u32, Range<usize>)>,
}

impl Arena {
    pub fn adopt(&mut self, slab: &MappedSlab) {
        let shared = slab.0.clone();
        shared.is_read(&(0..BYTES));
        let bytes = shared.bytes.lock().unwrap().clone();
        assert!(self.slabs.insert(slab.index().get(), Own { bytes, shared }).is_none(), "adopted twice");
    }

    pub fn surrender(&mut self, slab: SlabIndex) -> MappedSlab {
        MappedSlab(self.slabs.remove(&slab.get()).expect("the slab is in use").shared)
    }

    pub fn slot(&self, ptr: SlotPtr, bytes: usize) -> Option<&[u8]> {
        let own = self.slabs.get(&ptr.slab_bits())?;
        let range = ptr.offset()..ptr.offset() + bytes;
        own.shared.is_read(&range);
        own.bytes.get(range)
    }

    pub fn slot_mut(&mut self, ptr: SlotPtr, bytes: usize) -> Option<&mut [u8]> {
        let own = self.slabs.get_mut(&ptr.slab_bits())?;
        let range = ptr.offset()..ptr.offset() + bytes;
        own.shared.is_written(&range);
        own.shared.words.lock().unwrap().retain(|offset, _| !range.contains(offset));
        self.written.push((ptr.slab_bits(), range.clone()));
        own.bytes.get_mut(range)
    }

    pub fn publish(&mut self, ptr: SlotPtr, offset: usize, value: u32) {
        for (slab, range) in self.written.drain(..) {
            let own = &self.slabs[&slab];
            own.shared.bytes.lock().unwrap()[range.clone()].copy_from_slice(&own.bytes[range]);
        }
        let own = self.slabs.get_mut(&ptr.slab_bits()).expect("a published word lies within a slab");
        let offset = ptr.offset() + offset;
        own.bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        let mut words = own.shared.words.lock().unwrap();
        let word = words.entry(offset).or_insert_with(|| Arc::new(AtomicU32::new(0))).clone();
        drop(words);
        let order =
            if is_faulty(Fault::UnorderedPublication) { Ordering::Relaxed } else { Ordering::Release };
        word.store(value, order);
    }
}
