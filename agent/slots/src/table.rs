//! The slot table: which slots of which slabs are idle, used and retired.
//!
//! Slots are taken from the fullest slabs, so that those with few used slots become wholly idle. Among the
//! slabs that are equally full, to an eighth, what became idle last is taken first, while it is in the
//! processor's caches.
//!
//! A slab serves one class at a time. A slab whose slots are all idle belongs to no class and can
//! take any; that needs no system call, as a class is only this table's way to cut a slab up. Of a slab that
//! is being *emptied* no slot is taken.
//!
//! Nothing here takes longer the more slabs there are: a slab knows its place in its class's lists, and
//! which slabs are wholly idle or missing are sets of bits. A slab that is wholly idle is taken from the
//! lowest index up and given back from the highest down, so that what is used stays together. Only the choice
//! of slabs to be emptied looks at all that have idle slots.

use slotmesh_records::{MAX_SLABS, SLAB_BYTES, SlabIndex, SlotPtr, UNITS_PER_SLAB};

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

/// How many lists of slabs with idle slots a class has: the fullest in the first.
const LISTS: usize = 8;

/// One bit a slot; the largest number of slots is that of the smallest class.
type Bits = [u64; 16];

#[derive(Debug)]
struct Slab {
    class: Option<SlotClass>,
    idle: Bits,
    used: Bits,
    idle_count: u16,
    used_count: u16,
    /// Where the slab stands in which of its class's lists of slabs with idle slots.
    listed: Option<(u8, u32)>,
    /// Its used slots are being moved elsewhere: it is in no list.
    emptying: bool,
    /// How many slots were used when it could not be emptied: not worth a try while there are as many.
    stuck: u16,
}

impl Slab {
    const IDLE: Self = Self {
        class: None,
        idle: [0; 16],
        used: [0; 16],
        idle_count: 0,
        used_count: 0,
        listed: None,
        emptying: false,
        stuck: 0,
    };

    /// The list of slabs that are as full; there are idle slots.
    fn list(&self, class: SlotClass) -> usize {
        usize::from((self.idle_count - 1) * class.units()) * LISTS / UNITS_PER_SLAB as usize
    }

    /// Tells whether it becomes wholly idle by grace periods alone.
    fn is_retired(&self, class: SlotClass) -> bool {
        self.used_count == 0 && self.idle_count < class.slots_per_slab()
    }
}

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct SlotTable {
    slabs: Vec<Option<Box<Slab>>>,
    /// The slabs with idle slots of each class, the fullest in the first list.
    open: [[Vec<SlabIndex>; LISTS]; SlotClass::COUNT],
    /// One bit a list that isn't empty.
    filled: [u8; SlotClass::COUNT],
    /// Slots that became idle, the last one last. Some may have been taken since, or be of another class
    /// by now: the bits decide.
    recent: [Vec<SlotPtr>; SlotClass::COUNT],
    empty: SlabSet,
    missing: SlabSet,
    /// Slabs that become wholly idle by grace periods alone.
    retired: u32,
    stats: [ClassStats; SlotClass::COUNT],
}

impl Default for SlotTable {
    fn default() -> Self {
        Self {
            slabs: Vec::new(),
            open: Default::default(),
            filled: Default::default(),
            recent: Default::default(),
            empty: SlabSet::default(),
            missing: SlabSet::full(),
            retired: 0,
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
        self.slabs[index] = Some(Box::new(Slab::IDLE));
        self.empty.insert(slab);
        self.missing.remove(slab);
    }

    /// Takes an idle slot, of the fullest slab that has one; `None` where there is none.
    pub fn take(&mut self, class: SlotClass) -> Option<SlotPtr> {
        let filled = self.filled[class.index()];
        let list = filled.trailing_zeros() as usize;
        while let Some(ptr) = self.recent[class.index()].pop() {
            if let Some((slab, slot)) = self.idle(ptr, class, list) {
                self.move_bit(slab, slot, State::Idle, State::Used);
                return Some(ptr);
            }
        }
        let fullest = self.open[class.index()].get(list).and_then(|slabs| slabs.last());
        let index = match fullest {
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
    ///
    /// # Panics
    /// Where it isn't used.
    pub fn retire(&mut self, ptr: SlotPtr) {
        let (index, slot) = self.locate(ptr);
        // As `move_bit`, but for what can't change by it: which slots are idle, and so the lists.
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        let class = slab.class.expect("the slab has a class");
        let (word, bit) = (slot as usize / 64, 1_u64 << (slot % 64));
        assert!(
            slab.used[word] & bit != 0,
            "slot {slot} of slab {index} ({class} bytes) can't become Retired"
        );
        slab.used[word] &= !bit;
        slab.used_count -= 1;
        self.retired += u32::from(slab.is_retired(class));
        let stats = &mut self.stats[class.index()];
        stats.used -= 1;
        stats.retired += 1;
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

    /// Where an idle slot of this class lies in a slab of this list; `None` where it isn't one.
    fn idle(&self, ptr: SlotPtr, class: SlotClass, list: usize) -> Option<(SlabIndex, u32)> {
        let index = ptr.slab()?;
        let slab = self.slabs.get(index.get() as usize)?.as_ref()?;
        if slab.class != Some(class) || slab.listed.is_none_or(|(found, _)| usize::from(found) != list) {
            return None;
        }
        let units = u32::from(class.units());
        let slot = ptr.unit() / units;
        let idle = slab.idle[slot as usize / 64] & 1 << (slot % 64) != 0;
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

    /// The slabs that serve a class, and their slots by state.
    pub fn slabs_of(&self, class: SlotClass) -> impl Iterator<Item = (SlabIndex, ClassStats)> {
        let slabs = self.slabs.iter().enumerate().filter_map(|(index, slab)| Some((index, slab.as_ref()?)));
        slabs.filter(move |(_, slab)| slab.class == Some(class)).filter_map(move |(index, slab)| {
            let (used, idle) = (slab.used_count, slab.idle_count);
            let retired = class.slots_per_slab() - used - idle;
            let stats = ClassStats { used: used.into(), idle: idle.into(), retired: retired.into() };
            Some((SlabIndex::new(u32::try_from(index).ok()?)?, stats))
        })
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
        for (word, bits) in slab.idle.iter_mut().enumerate() {
            let left = u32::from(slots).saturating_sub(word as u32 * 64);
            *bits = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
        }
        self.stats[class.index()].idle += u64::from(slots);
        self.list(index, class);
    }

    fn locate(&self, ptr: SlotPtr) -> (SlabIndex, u32) {
        let index = ptr.slab().expect("a slot of the table");
        let slab = self.slabs[index.get() as usize].as_ref().expect("a slot of the table");
        let class = slab.class.expect("a slot that isn't idle has a class");
        (index, ptr.unit() / u32::from(class.units()))
    }

    /// Moves a slot to another state, but for `Retired`, which is [`retire`](Self::retire)'s.
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
        self.retired -= u32::from(slab.is_retired(class));
        slab.idle[word] &= !bit;
        slab.used[word] &= !bit;
        let stats = &mut self.stats[class.index()];
        match from {
            State::Idle => {
                slab.idle_count -= 1;
                stats.idle -= 1;
            }
            State::Used => {
                slab.used_count -= 1;
                stats.used -= 1;
            }
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
                slab.used_count += 1;
                stats.used += 1;
            }
            State::Retired => unreachable!("a slot is retired by `retire`"),
        }
        self.retired += u32::from(slab.is_retired(class));
        if slab.idle_count == class.slots_per_slab() {
            // Wholly idle: any class may have it.
            stats.idle -= u64::from(class.slots_per_slab());
            self.unlist(index, class);
            **self.slabs[index.get() as usize].as_mut().expect("the slab exists") = Slab::IDLE;
            self.empty.insert(index);
        } else {
            self.list(index, class);
        }
    }

    /// Puts a slab where it stands by its idle slots: in one of its class's lists, or in none.
    fn list(&mut self, index: SlabIndex, class: SlotClass) {
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        let list = (slab.idle_count > 0 && !slab.emptying).then(|| slab.list(class));
        if slab.listed.map(|(list, _)| usize::from(list)) == list {
            return;
        }
        self.unlist(index, class);
        let Some(list) = list else { return };
        let open = &mut self.open[class.index()][list];
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        slab.listed = Some((list as u8, open.len() as u32));
        open.push(index);
        self.filled[class.index()] |= 1 << list;
    }

    /// Takes a slab off its class's list, if it stands in one; the last of the list takes its place.
    fn unlist(&mut self, index: SlabIndex, class: SlotClass) {
        let slab = self.slabs[index.get() as usize].as_mut().expect("the slab exists");
        let Some((list, place)) = slab.listed.take() else { return };
        let open = &mut self.open[class.index()][usize::from(list)];
        open.swap_remove(place as usize);
        if open.is_empty() {
            self.filled[class.index()] &= !(1 << list);
        }
        if let Some(&moved) = open.get(place as usize) {
            self.slabs[moved.get() as usize].as_mut().expect("a listed slab exists").listed =
                Some((list, place));
        }
    }

    /// Chooses slabs whose used slots fit into the other slabs of their classes, the emptiest first, at most `most` of
    /// a class, and of which at most `share` eighths are used; from now on no slot of them is taken. Not the first
    /// slab, where the superblock lies, and none that only waits for grace periods.
    pub fn begin_emptying(&mut self, share: u32, most: usize) -> Vec<SlabIndex> {
        let mut chosen = Vec::new();
        for class in SlotClass::all() {
            let slots = u32::from(class.slots_per_slab());
            let listed = self.open[class.index()].iter().flatten().filter_map(|&index| {
                let slab = self.slabs[index.get() as usize].as_ref()?;
                let candidate = index.get() != 0 && slab.stuck != slab.used_count;
                Some((u32::from(slab.used_count), u32::from(slab.idle_count), index, candidate))
            });
            let mut slabs: Vec<_> = listed.filter(|&(used, ..)| used > 0).collect();
            slabs.sort_unstable_by_key(|&(used, _, index, _)| (used, index));
            let mut room: u32 = slabs.iter().map(|&(_, idle, ..)| idle).sum();
            let candidates = slabs.into_iter().filter(|&(.., candidate)| candidate).take(most);
            for (used, idle, index, _) in candidates {
                if idle + used > room || used * 8 > slots * share {
                    break;
                }
                room -= idle + used;
                chosen.push(index);
            }
        }
        for &index in &chosen {
            let slab = self.slabs[index.get() as usize].as_mut().expect("a listed slab exists");
            slab.emptying = true;
            let class = slab.class.expect("a listed slab has a class");
            self.list(index, class);
        }
        chosen
    }

    /// The slabs are emptied as far as they can be: those with used slots serve their class again; those without
    /// are wholly idle when the last grace period has passed. How many have used slots.
    pub fn end_emptying(&mut self, slabs: &[SlabIndex]) -> usize {
        let mut left = 0;
        for index in slabs {
            let Some(slab) = self.slabs.get_mut(index.get() as usize).and_then(Option::as_mut) else {
                continue;
            };
            if slab.emptying && slab.used_count > 0 {
                slab.stuck = slab.used_count;
                left += 1;
            }
        }
        self.serve_again(slabs, |slab| slab.used_count > 0);
        left
    }

    /// The slabs serve their classes again.
    pub fn stop_emptying(&mut self, slabs: &[SlabIndex]) {
        self.serve_again(slabs, |_| true);
    }

    fn serve_again(&mut self, slabs: &[SlabIndex], which: impl Fn(&Slab) -> bool) {
        for &index in slabs {
            let Some(slab) = self.slabs.get_mut(index.get() as usize).and_then(Option::as_mut) else {
                continue;
            };
            if let Some(class) = slab.class.filter(|_| slab.emptying && which(slab)) {
                slab.emptying = false;
                self.list(index, class);
            }
        }
    }

    /// Tells whether what is used of this slot's slab is being moved elsewhere.
    pub fn is_emptying(&self, ptr: SlotPtr) -> bool {
        self.slabs.get(ptr.slab_bits() as usize).and_then(Option::as_ref).is_some_and(|slab| slab.emptying)
    }

    /// Bytes of the idle slots that serve records of this class: of slots of its size or larger, and of slabs that
    /// are wholly idle.
    pub fn usable(&self, class: SlotClass) -> u64 {
        let larger = SlotClass::all().skip(class.index());
        let slots: u64 = larger.map(|class| self.stats[class.index()].idle * class.bytes() as u64).sum();
        slots + u64::from(self.empty.len()) * SLAB_BYTES as u64
    }

    /// Tells whether a slot that serves records of this class becomes idle by grace periods alone.
    pub fn may_free(&self, class: SlotClass) -> bool {
        self.retired > 0
            || SlotClass::all().skip(class.index()).any(|class| self.stats[class.index()].retired > 0)
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
