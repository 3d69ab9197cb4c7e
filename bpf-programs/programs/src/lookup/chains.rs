//! The filter chain of a listener: by port, or by the class of the caller.

use core::mem::offset_of;

use slotmesh_records::{
    Action, CallerChain, CallerEntry, CallerIndex, CallerRange, Callers, Chain, ChainIndex, ChainRange,
    Chains, Listener, Record, RecordHeader, SlotPtr,
};

use super::{Numbers, forget};
use crate::place::{Place, tail};

/// What the filter chain of a port or caller does: the one that matches it, else the one that matches all.
#[inline(always)]
pub(super) fn chain(listener: &Listener, port: u16, numbers: &impl Numbers) -> Option<Action> {
    let chains = listener.chains.ptr();
    if chains.is_null() {
        return Some(listener.any);
    }
    let mut at = Place::of(chains)?;
    let mut header = at.read::<RecordHeader>(0)?;
    if header.kind.get() == CallerIndex::KIND.get() {
        let [class, namespace] = numbers.classes();
        let mut chain = of_class(chains.bits(), class);
        // Most callers are told apart by their namespaces only.
        if chain == 0 && class != namespace {
            chain = of_class(chains.bits(), namespace);
        }
        return match chain {
            0 => Some(listener.any),
            DAMAGED => None,
            chain => {
                Place::of(SlotPtr::from_bits(chain as u32))?.read::<Action>(offset_of!(CallerChain, action))
            }
        };
    }
    if header.kind.get() == ChainIndex::KIND.get() {
        let range = last_from::<ChainIndex, ChainRange>(&at, header.count, ChainIndex::CAPACITY, port)?;
        let range = at.read::<ChainRange>(tail::<ChainIndex, ChainRange>(range))?;
        at = Place::of(range.chains.ptr())?;
        header = at.read::<RecordHeader>(0)?;
    }
    let found = last_from::<Chains, Chain>(&at, header.count, Chains::CAPACITY, port)?;
    let found = at.read::<Chain>(tail::<Chains, Chain>(found))?;
    if found.port == port { Some(found.action) } else { Some(listener.any) }
}

/// What `of_class` answers where the records are damaged.
const DAMAGED: u64 = u64::MAX;

/// The slot pointer of the chain of a class, as a number; 0 where it has none. A function of its own, of numbers only:
/// else the verifier would follow each way through it to the end of the program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn of_class(index: u32, class: u64) -> u64 {
    find_class(SlotPtr::from_bits(index), class).map_or(DAMAGED, |chain| u64::from(chain.bits()))
}

#[inline(always)]
fn find_class(index: SlotPtr, class: u64) -> Option<SlotPtr> {
    let index = Place::of(index)?;
    let ranges = index.read::<RecordHeader>(0)?.count;
    let range = last_class::<CallerIndex, CallerRange>(&index, ranges, CallerIndex::CAPACITY, class)?;
    let range = index.read::<CallerRange>(tail::<CallerIndex, CallerRange>(range))?;
    let at = Place::of(range.callers.ptr())?;
    let count = at.read::<RecordHeader>(0)?.count;
    let found = last_class::<Callers, CallerEntry>(&at, count, Callers::CAPACITY, class)?;
    let found = at.read::<CallerEntry>(tail::<Callers, CallerEntry>(found))?;
    Some(if found.class == class { found.chain.ptr() } else { SlotPtr::NULL })
}

/// As `last_from`, of an `E` that begins with a class.
#[inline(always)]
fn last_class<R, E>(at: &Place, count: u32, capacity: u32, class: u64) -> Option<u32> {
    let mut found = 0;
    let mut step = capacity.next_power_of_two() / 2;
    while step > 0 {
        let next = found + step;
        if next < count && at.read::<u64>(tail::<R, E>(next))? <= class {
            found = next;
        }
        found = forget(found, u32::from(class as u16));
        step /= 2;
    }
    Some(found)
}

/// The last element of the tail of an `R` whose port, with which an `E` begins, is not above this one, else the first:
/// a binary search by halving steps.
#[inline(always)]
fn last_from<R, E>(at: &Place, count: u32, capacity: u32, port: u16) -> Option<u32> {
    let mut found = 0;
    let mut step = capacity.next_power_of_two() / 2;
    while step > 0 {
        let next = found + step;
        if next < count && at.read::<u16>(tail::<R, E>(next))? <= port {
            found = next;
        }
        found = forget(found, port.into());
        step /= 2;
    }
    Some(found)
}
