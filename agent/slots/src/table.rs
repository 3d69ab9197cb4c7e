//! The slot table: which slots of which slabs are idle, used and retired.
//!
//! Slots are handed out last in, first out: what became idle last is taken first, while it is in the
//! processor's caches.
//!
//! A slab serves one class at a time. A slab whose slots are all idle belongs to no class and can
//! take any; that needs no system call, as a class is only this table's way to cut a slab up.
//!
//! Nothing here takes longer the more slabs there are: a slab knows its place in its class's list, and
//! which slabs are wholly idle or missing are sets of bits. A slab that is wholly idle is taken from the
//! lowest index up and given back from the highest down, so that what is used stays together.

use slotmesh_records::{MAX_SLABS, SlabIndex, SlotPtr};

use crate::{SlotClass, slab_set::SlabSet};

/// Slots of one class by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Reachable, or being written.
    pub used: u64,
    /// Free to be taken.
    pub idle: u64,
    /// Waiting for a grace period.
    pub retired: u64,
}

/// How many slots of a class the table remembers as idle lately. What is beyond is found by its bit.
const RECENT: usize = 1024;

/// One bit a slot; the largest number of slots is that of the smallest class.
type Bits = [u64; 16];

#[derive(Debug)]
struct Slab {
    class: Option<SlotClass>,
    idle: Bits,
    used: Bits,
    idle_count: u16,
    /// Where the slab stands in its class's list of slabs with idle slots.
    listed: Option<u32>,
}

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct SlotTable {
    slabs: Vec<Option<Box<Slab>>>,
    open: [Vec<SlabIndex>; SlotClass::COUNT],
    /// Slots that became idle, the last one last. Some may have been taken since, or be of another class
    /// by now: the bits decide.
    recent: [Vec<SlotPtr>; SlotClass::COUNT],
    empty: SlabSet,
    missing: SlabSet,
    stats: [ClassStats; SlotClass::COUNT],
}

impl Default for SlotTable {
    fn default() -> Self {
        Self {
            slabs: Vec::new(),
            open: Default::default(),
            recent: Default::default(),
            empty: SlabSet::default(),
            missing: SlabSet::full(),
            stats: Default::default(),
        }
    }
}

impl SlotTable {
    /// Adds a slab whose slots are all idle.
    pub fn add(&mut self, slab: SlabIndex) {
        let index = slab.get() as usize;
        if self.slabs.len() <= index {
            self.slabs.resize_with(index + 1, || None);
        }
        assert!(self.slabs[index].is_none(), "slab {slab} is added twice");
        self.slabs[index] =
            Some(Box::new(Slab { class: None, idle: [0; 16], used: [0; 16], idle_count: 0, listed: None }));
        self.empty.insert(slab);
        self.missing.remove(slab);
    }

    /// Takes an idle slot; `None` where there is none.
    pub fn take(&mut self, class: SlotClass) -> Option<SlotPtr> {
        while let Some(ptr) = self.recent[class.index()].pop() {
            if let Some((slab, slot)) = self.idle(ptr, class) {
                self.move_bit(slab, slot, State::Idle, State::Used);
                return Some(ptr);
            }
        }
        let index = match self.open[class.index()].last() {
            Some(&index) => index,
            None => self.assign(class)?,
        };
        let slab = self.slabs[index.get() as usize].as_mut().expect("a listed slab exists");
        let (word, bits) =
            slab.idle.iter().enumerate().find(|(_, bits)| **bits != 0).expect("a listed slab has idle slots");
        let slot = word as u32 * 64 + bits.trailing_zeros();
        self.move_bit(index, slot, State::Idle, State::Used);
        Some(SlotPtr::new(index, slot * u32::from(class.units())).expect("a slot lies within its slab"))
    }

    /// A used slot is given up while programs may still read it.
    pub fn retire(&mut self, ptr: SlotPtr) {
        let (slab, slot) = self.locate(ptr);
        self.move_bit(slab, slot, State::Used, State::Retired);
    }

    /// A retired slot's grace period has passed.
    pub fn reuse(&mut self, ptr: SlotPtr) {
        let (slab, slot) = self.locate(ptr);
        self.move_bit(slab, slot, State::Retired, State::Idle);
    }

    /// A used slot that no program could reach is given back.
    pub fn give_back(&mut self, ptr: SlotPtr) {
        let (slab, slot) = self.locate(ptr);
        self.move_bit(slab, slot, State::Used, State::Idle);
    }

    /// Where an idle slot of this class lies; `None` where it isn't one.
    fn idle(&self, ptr: SlotPtr, class: SlotClass) -> Option<(SlabIndex, u32)> {
        let index = ptr.slab()?;
        let slab = self.slabs.get(index.get() as usize)?.as_ref()?;
        let units = u32::from(class.units());
        let slot = ptr.unit() / units;
        let idle = slab.class == Some(class) && slab.idle[slot as usize / 64] & 1 << (slot % 64) != 0;
        (idle && ptr.unit().is_multiple_of(units)).then_some((index, slot))
    }

    /// Recovery found this slot in use. Whether it was not marked before.
    ///
    /// # Errors
    /// Where the slot can't be: its slab serves another class, or it doesn't begin at a slot's start.
    pub fn mark(&mut self, ptr: SlotPtr, class: SlotClass) -> Result<bool, ()> {
        let index = ptr.slab().ok_or(())?;
        let slab = self.slabs.get_mut(index.get() as usize).and_then(Option::as_mut).ok_or(())?;
        match slab.class {
            Some(found) if found != class => return Err(()),
            Some(_) => {}
            None => {
                self.empty.remove(index);
                self.cut(index, class);
            }
        }
        let slab = self.slabs[index.get() as usize].as_ref().expect("found above");
        let slot = ptr.unit() / u32::from(class.units());
        if !ptr.unit().is_multiple_of(u32::from(class.units())) || slot >= u32::from(class.slots_per_slab()) {
            return Err(());
        }
        if slab.used[slot as usize / 64] & 1 << (slot % 64) != 0 {
            return Ok(false);
        }
        self.move_bit(index, slot, State::Idle, State::Used);
        Ok(true)
    }

    /// The size of the slot at `ptr`, which is used or retired.
    pub fn class_of(&self, ptr: SlotPtr) -> Option<SlotClass> {
        self.slabs.get(ptr.slab_bits() as usize)?.as_ref()?.class
    }

    /// Slabs that belong to no class: wholly idle.
    pub fn empty_slabs(&self) -> u32 {
        self.empty.len()
    }

    /// Takes up to `count` wholly idle slabs out of the table, those with the highest indexes.
    pub fn take_empty(&mut self, count: usize) -> Vec<SlabIndex> {
        let mut taken = Vec::with_capacity(count.min(self.empty.len() as usize));
        while taken.len() < count
            && let Some(slab) = self.empty.last()
        {
            self.empty.remove(slab);
            self.missing.insert(slab);
            self.slabs[slab.get() as usize] = None;
            taken.push(slab);
        }
        taken
    }

    /// Slabs in the table.
    pub fn created(&self) -> u32 {
        MAX_SLABS - self.missing.len()
    }

    /// The lowest indexes that have no slab.
    pub fn missing(&self, count: usize) -> Vec<SlabIndex> {
        self.missing.iter().take(count).collect()
    }

    /// Slots by class and state.
    pub fn stats(&self) -> impl Iterator<Item = (SlotClass, ClassStats)> {
        SlotClass::all().map(|class| (class, self.stats[class.index()]))
    }

    /// Gives an empty slab to a class.
    fn assign(&mut self, class: SlotClass) -> Option<SlabIndex> {
        let index = self.empty.first()?;
        self.empty.remove(index);
        self.cut(index, class);
        Some(index)
    }

    fn cut(&mut self, index: SlabIndex, class: SlotClass) {
        let slab = self.slabs[index.get() as usize].as_mut().expect("an empty slab exists");
        let slots = class.slots_per_slab();
        slab.class = Some(class);
        slab.idle_count = slots;
        let open = &mut self.open[class.index()];
        slab.listed = Some(open.len() as u32);
        open.push(index);
        for (word, bits) in slab.idle.iter_mut().enumerate() {
            let left = u32::from(slots).saturating_sub(word as u32 * 64);
            *bits = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        }
        self.stats[class.index()].idle += u64::from(slots);
    }

    fn locate(&self, ptr: SlotPtr) -> (SlabIndex, u32) {
        let index = ptr.slab().expect("a slot of the table");
        let slab = self.slabs[index.get() as usize].as_ref().expect("a slot of the table");
        let class = slab.class.expect("a slot that isn't idle has a class");
        (index, ptr.unit() / u32::from(class.units()))
    }

    fn move_bit(&mut self, index: SlabIndex, slot: u32, from: State, to: State) {
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        let class = slab.class.expect("the slab has a class");
        let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
        let found = match (slab.idle[word] & bit != 0, slab.used[word] & bit != 0) {
            (true, false) => State::Idle,
            (false, true) => State::Used,
            (false, false) => State::Retired,
            (true, true) => unreachable!("slot {index}:{slot} is idle and used"),
        };
        assert_eq!(found, from, "slot {slot} of slab {index} ({class} bytes) can't become {to:?}");
        slab.idle[word] &= !bit;
        slab.used[word] &= !bit;
        let stats = &mut self.stats[class.index()];
        match from {
            State::Idle => {
                slab.idle_count -= 1;
                stats.idle -= 1;
            }
            State::Used => stats.used -= 1,
            State::Retired => stats.retired -= 1,
        }
        match to {
            State::Idle => {
                slab.idle[word] |= bit;
                slab.idle_count += 1;
                stats.idle += 1;
                let recent = &mut self.recent[class.index()];
                if recent.len() == RECENT {
                    recent.drain(..RECENT / 2);
                }
                recent.extend(SlotPtr::new(index, slot * u32::from(class.units())));
            }
            State::Used => {
                slab.used[word] |= bit;
                stats.used += 1;
            }
            State::Retired => stats.retired += 1,
        }
        if slab.idle_count == 0 {
            self.unlist(index, class);
        } else if slab.idle_count == class.slots_per_slab() {
            // Wholly idle: any class may have it.
            slab.class = None;
            slab.idle = [0; 16];
            slab.idle_count = 0;
            stats.idle -= u64::from(class.slots_per_slab());
            self.unlist(index, class);
            self.empty.insert(index);
        } else if slab.listed.is_none() {
            let open = &mut self.open[class.index()];
            slab.listed = Some(open.len() as u32);
            open.push(index);
        }
    }

    /// Takes a slab off its class's list, if it stands there; the last of the list takes its place.
    fn unlist(&mut self, index: SlabIndex, class: SlotClass) {
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        let Some(place) = slab.listed.take() else { return };
        let open = &mut self.open[class.index()];
        open.swap_remove(place as usize);
        if let Some(&moved) = open.get(place as usize) {
            self.slabs[moved.get() as usize].as_mut().expect("a listed slab exists").listed = Some(place);
        }
    }
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    Used,
    Retired,
}

#[cfg(all(test, not(loom)))]
mod tests;
