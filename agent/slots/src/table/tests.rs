//! The slot table against a plain model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Slabs in the model: as many as exist at the same time.
const SLABS: u32 = 4;
const UNITS: u32 = 1024;

fn slab(index: u32) -> SlabIndex {
    SlabIndex::new(index).unwrap()
}

fn table(slabs: u32) -> SlotTable {
    let mut table = SlotTable::default();
    (0..slabs).for_each(|i| table.add(slab(i)));
    table
}

#[test]
fn a_slab_that_is_wholly_idle_changes_its_class() {
    let mut table = table(1);
    let small = SlotClass::for_bytes(64).unwrap();
    let large = SlotClass::for_bytes(4096).unwrap();
    let slot = table.take(small).unwrap();
    assert_eq!(table.take(large), None);
    table.retire(slot);
    assert_eq!(table.take(large), None, "a retired slot keeps its slab");
    table.reuse(slot);
    assert!(table.take(large).is_some());
    assert_eq!(table.take(small), None);
}

#[test]
fn the_slabs_of_a_class_are_told_with_their_slots() {
    let mut table = table(3);
    let class = SlotClass::for_bytes(4096).unwrap();
    let slots: Vec<_> = (0..17).filter_map(|_| table.take(class)).collect();
    table.retire(slots[0]);
    table.give_back(slots[16]);
    let told: Vec<_> =
        table.slabs_of(class).map(|(slab, of)| (slab.get(), of.used, of.idle, of.retired)).collect();
    assert_eq!(told, [(0, 15, 0, 1)], "the second one is wholly idle again");
    assert_eq!(table.slabs_of(SlotClass::for_bytes(64).unwrap()).count(), 0);
}

#[test]
#[should_panic(expected = "can't become")]
fn a_slot_is_not_retired_twice() {
    let mut table = table(1);
    let slot = table.take(SlotClass::for_bytes(64).unwrap()).unwrap();
    table.retire(slot);
    table.retire(slot);
}

#[test]
fn of_slabs_that_are_equally_full_what_became_idle_last_is_taken_first() {
    let mut table = table(2);
    let class = SlotClass::for_bytes(1024).unwrap();
    let slots: Vec<_> = std::iter::from_fn(|| table.take(class)).collect();
    assert_eq!(slots.len(), 128, "of both slabs");
    for i in [3, 80, 7] {
        table.retire(slots[i]);
        table.reuse(slots[i]);
    }
    table.give_back(slots[120]);
    let taken: Vec<_> = std::iter::from_fn(|| table.take(class)).collect();
    assert_eq!(taken, [120, 7, 80, 3].map(|i: usize| slots[i]));
}

#[test]
fn the_fullest_slab_gives_its_slots_first() {
    let mut table = table(3);
    let class = SlotClass::for_bytes(4096).unwrap();
    let slots: Vec<_> = std::iter::from_fn(|| table.take(class)).collect();
    // Of slab 0 all but one stay, of slab 1 half, of slab 2 one.
    let stays = |i: usize| [i != 5, i.is_multiple_of(2), i == 40][i / 16];
    for (i, &slot) in slots.iter().enumerate().filter(|&(i, _)| !stays(i)) {
        table.give_back(slot);
        assert_eq!(table.class_of(slot), Some(class), "{i}");
    }
    let taken: Vec<_> = (0..9).map(|_| table.take(class).unwrap().slab_bits()).collect();
    assert_eq!(taken, [0, 1, 1, 1, 1, 1, 1, 1, 1]);
}

#[test]
fn of_a_slab_that_is_being_emptied_nothing_is_taken() {
    let mut table = table(3);
    let class = SlotClass::for_bytes(4096).unwrap();
    let slots: Vec<_> = std::iter::from_fn(|| table.take(class)).collect();
    slots.iter().enumerate().filter(|&(i, _)| i % 16 > 3).for_each(|(_, &slot)| table.give_back(slot));
    // Not the first slab; and what is used of both others fits what is left.
    let emptied = table.begin_emptying(6, 8);
    assert_eq!(emptied.iter().map(|slab| slab.get()).collect::<Vec<_>>(), [1, 2]);
    let mut moved = slots[16..20].iter().chain(&slots[32..36]);
    for _ in 0..8 {
        assert_eq!(table.take(class).unwrap().slab_bits(), 0);
        table.retire(*moved.next().unwrap());
    }
    assert_eq!(table.end_emptying(&emptied), 0);
    assert!(table.may_free(SlotClass::for_bytes(64).unwrap()), "whole slabs wait for a grace period");
    slots[16..20].iter().chain(&slots[32..36]).for_each(|&slot| table.reuse(slot));
    assert_eq!((table.empty_slabs(), table.usable(class)), (2, 4 * 4096 + 2 * 65_536));
    assert_eq!(table.begin_emptying(8, 8), []);
}

#[test]
fn a_slab_that_could_not_be_emptied_is_tried_again_when_it_has_changed() {
    let mut table = table(3);
    let class = SlotClass::for_bytes(4096).unwrap();
    let slots: Vec<_> = std::iter::from_fn(|| table.take(class)).collect();
    slots.iter().enumerate().filter(|&(i, _)| i % 16 > 3).for_each(|(_, &slot)| table.give_back(slot));
    let chosen = table.begin_emptying(6, 1);
    assert_eq!(table.end_emptying(&chosen), 1);
    let others = table.begin_emptying(6, 8);
    assert!(!others.is_empty() && !others.contains(&chosen[0]));
    table.stop_emptying(&others);
    table.give_back(slots[chosen[0].get() as usize * 16]);
    assert_eq!(table.begin_emptying(6, 8)[0], chosen[0], "it is the emptiest now");
}

#[test]
fn recovery_refuses_slots_that_cannot_be() {
    let (small, large) = (SlotClass::for_bytes(64).unwrap(), SlotClass::for_bytes(192).unwrap());
    let at = |index, unit| SlotPtr::new(slab(index), unit).unwrap();
    let mut table = table(2);
    assert_eq!(table.mark(at(0, 3), large), Ok(true));
    assert_eq!(table.mark(at(0, 3), large), Ok(false), "marked before");
    assert_eq!(table.mark(at(0, 6), small), Err(()), "the slab serves another class");
    assert_eq!(table.mark(at(0, 4), large), Err(()), "not where a slot begins");
    assert_eq!(table.mark(at(0, 1023), large), Err(()), "past the last whole slot");
    assert_eq!(table.mark(at(2, 0), small), Err(()), "no such slab");
    assert_eq!(table.mark(SlotPtr::from_bits(u32::MAX), small), Err(()));
}

#[derive(Clone, Debug)]
enum Op {
    /// Takes so many slots of a class.
    Take(u8, u16),
    Retire(prop::sample::Index),
    Reuse(prop::sample::Index),
    GiveBack(prop::sample::Index),
    /// All slots of a slab become idle, in this direction.
    Empty(u8, bool),
    Grow(u8),
    Shrink(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let any_slot = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..SlotClass::COUNT as u8, 1..20_u16).prop_map(|(class, count)| Op::Take(class, count)),
        // A whole slab of the smallest, and more than one of the largest.
        1 => (0..SlotClass::COUNT as u8).prop_map(|class| Op::Take(class, UNITS as u16)),
        3 => any_slot().prop_map(Op::Retire),
        3 => any_slot().prop_map(Op::Reuse),
        1 => any_slot().prop_map(Op::GiveBack),
        2 => (0..SLABS as u8, any::<bool>()).prop_map(|(slab, up)| Op::Empty(slab, up)),
        1 => (1..3_u8).prop_map(Op::Grow),
        1 => (1..3_u8).prop_map(Op::Shrink),
    ]
}

/// A slot that isn't idle.
#[derive(Clone, Copy, Debug)]
struct Owned {
    class: SlotClass,
    retired: bool,
}

/// The table's state as it should be: each slot that isn't idle, and the slabs that there are.
#[derive(Debug, Default)]
struct Model {
    owned: BTreeMap<u32, Owned>,
    slabs: BTreeSet<u32>,
}

impl Model {
    fn pick(&self, i: &prop::sample::Index, retired: bool) -> Option<u32> {
        let matching: Vec<u32> =
            self.owned.iter().filter(|(_, slot)| slot.retired == retired).map(|(&bits, _)| bits).collect();
        (!matching.is_empty()).then(|| *i.get(&matching))
    }

    fn in_slab(&self, slab: u32) -> impl DoubleEndedIterator<Item = (u32, Owned)> {
        self.owned.range(slab * UNITS..(slab + 1) * UNITS).map(|(&bits, &slot)| (bits, slot))
    }

    fn empty_slabs(&self) -> impl DoubleEndedIterator<Item = u32> {
        self.slabs.iter().copied().filter(|&slab| self.in_slab(slab).next().is_none())
    }

    /// Tells whether a slot of this class is idle.
    fn has_room(&self, class: SlotClass) -> bool {
        self.slabs.iter().any(|&slab| match self.in_slab(slab).next() {
            None => true,
            Some((_, first)) => {
                first.class == class && self.in_slab(slab).count() < usize::from(class.slots_per_slab())
            }
        })
    }

    /// A slot is taken: its bytes are nobody else's, and its slab serves its class.
    fn take(&mut self, ptr: SlotPtr, class: SlotClass) -> Result<(), TestCaseError> {
        let (bits, units) = (ptr.bits(), u32::from(class.units()));
        prop_assert!(self.slabs.contains(&ptr.slab_bits()), "{ptr:?} lies in a slab that there is");
        prop_assert!(ptr.unit() + units <= UNITS, "{ptr:?} lies within its slab");
        for (other, slot) in self.in_slab(ptr.slab_bits()) {
            prop_assert_eq!(slot.class, class, "a slab serves one class");
            let apart = bits + units <= other || other + u32::from(slot.class.units()) <= bits;
            prop_assert!(apart, "{:?} overlaps {:?}", ptr, SlotPtr::from_bits(other));
        }
        self.owned.insert(bits, Owned { class, retired: false });
        Ok(())
    }

    /// The table says the same: nothing is lost, and the counts add up.
    fn check(&self, table: &SlotTable) -> Result<(), TestCaseError> {
        prop_assert_eq!(table.created() as usize, self.slabs.len());
        prop_assert_eq!(table.empty_slabs() as usize, self.empty_slabs().count());
        for (class, stats) in table.stats() {
            let of_class = self.owned.iter().filter(|(_, slot)| slot.class == class);
            let (retired, used): (Vec<_>, Vec<_>) = of_class.partition(|(_, slot)| slot.retired);
            let slabs: BTreeSet<u32> = used.iter().chain(&retired).map(|(bits, _)| **bits / UNITS).collect();
            let all = slabs.len() * usize::from(class.slots_per_slab());
            let expected = ClassStats {
                used: used.len() as u64,
                retired: retired.len() as u64,
                idle: (all - used.len() - retired.len()) as u64,
            };
            prop_assert_eq!(stats, expected, "slots of {} bytes", class);
        }
        Ok(())
    }
}

fn apply(op: Op, table: &mut SlotTable, model: &mut Model) -> Result<(), TestCaseError> {
    match op {
        Op::Take(class, count) => {
            let class = SlotClass::all().nth(class.into()).unwrap();
            for _ in 0..count {
                let room = model.has_room(class);
                let taken = table.take(class);
                prop_assert_eq!(taken.is_some(), room, "a slot of {} bytes", class);
                let Some(ptr) = taken else { break };
                prop_assert_eq!(table.class_of(ptr), Some(class));
                model.take(ptr, class)?;
            }
        }
        Op::Retire(i) => {
            if let Some(bits) = model.pick(&i, false) {
                table.retire(SlotPtr::from_bits(bits));
                model.owned.get_mut(&bits).unwrap().retired = true;
            }
        }
        Op::Reuse(i) => {
            if let Some(bits) = model.pick(&i, true) {
                table.reuse(SlotPtr::from_bits(bits));
                model.owned.remove(&bits);
            }
        }
        Op::GiveBack(i) => {
            if let Some(bits) = model.pick(&i, false) {
                table.give_back(SlotPtr::from_bits(bits));
                model.owned.remove(&bits);
            }
        }
        Op::Empty(slab, up) => {
            let mut slots: Vec<_> = model.in_slab(slab.into()).collect();
            if !up {
                slots.reverse();
            }
            for (bits, slot) in slots {
                let ptr = SlotPtr::from_bits(bits);
                if slot.retired {
                    table.reuse(ptr)
                } else {
                    table.give_back(ptr)
                }
                model.owned.remove(&bits);
            }
        }
        Op::Grow(count) => {
            let lowest: Vec<u32> =
                (0..).filter(|slab| !model.slabs.contains(slab)).take(count.into()).collect();
            let missing = table.missing(count.into());
            prop_assert_eq!(missing.iter().map(|slab| slab.get()).collect::<Vec<_>>(), lowest);
            for slab in missing.into_iter().filter(|slab| slab.get() < SLABS) {
                table.add(slab);
                model.slabs.insert(slab.get());
            }
        }
        Op::Shrink(count) => {
            let highest: BTreeSet<u32> = model.empty_slabs().rev().take(count.into()).collect();
            let taken: BTreeSet<u32> =
                table.take_empty(count.into()).into_iter().map(SlabIndex::get).collect();
            prop_assert_eq!(&taken, &highest, "the highest that are wholly idle");
            model.slabs.retain(|slab| !taken.contains(slab));
        }
    }
    model.check(table)
}

proptest! {
    /// No two owners of a byte, nothing lost, counts add up: whatever is taken, retired, given back,
    /// added and removed.
    #[test]
    fn agrees_with_a_plain_model(ops in prop::collection::vec(op(), 1..200)) {
        let mut table = table(2);
        let mut model = Model { slabs: (0..2).collect(), ..Model::default() };
        for op in ops {
            apply(op, &mut table, &mut model)?;
        }
    }

    /// A table that is built anew from what is in use, in any order, goes on like the old one.
    #[test]
    fn recovery_finds_what_is_in_use(
        before in prop::collection::vec(op(), 1..100),
        order in any::<prop::sample::Index>(),
        after in prop::collection::vec(op(), 1..100),
    ) {
        let mut old = table(3);
        let mut model = Model { slabs: (0..3).collect(), ..Model::default() };
        for op in before {
            apply(op, &mut old, &mut model)?;
        }
        // What was retired is idle by the time of a recovery.
        model.owned.retain(|_, slot| !slot.retired);
        let mut new = SlotTable::default();
        model.slabs.iter().rev().for_each(|&index| new.add(slab(index)));
        let mut marks: Vec<(u32, SlotClass)> =
            model.owned.iter().map(|(&bits, slot)| (bits, slot.class)).collect();
        if !marks.is_empty() {
            let middle = order.index(marks.len());
            marks.rotate_left(middle);
            marks[middle..].reverse();
        }
        for (bits, class) in marks {
            prop_assert_eq!(new.mark(SlotPtr::from_bits(bits), class), Ok(true));
            prop_assert_eq!(new.mark(SlotPtr::from_bits(bits), class), Ok(false), "marked before");
        }
        model.check(&new)?;
        for op in after {
            apply(op, &mut new, &mut model)?;
        }
    }
}
