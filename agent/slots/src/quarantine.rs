//! Slots and handles that wait for a grace period.
//!
//! Whatever is retired while a barrier runs waits for the next one: only a grace period that *began*
//! after the retirement counts. One barrier frees all that was pending when it began.

use slotmesh_records::SlotPtr;

use crate::HandlePtr;

/// Something that programs may still read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A slot, idle afterwards.
    Slot(SlotPtr),
    /// A handle that nothing leads to any more: its current version is retired afterwards.
    Handle(HandlePtr),
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    pending: Vec<Item>,
    waiting: Vec<Item>,
    running: bool,
    /// How many of the items are handles.
    handles: usize,
}

impl Quarantine {
    /// Puts something in.
    pub fn push(&mut self, item: Item) {
        self.handles += usize::from(matches!(item, Item::Handle(_)));
        #[cfg(loom)]
        if self.running && crate::model::is_faulty(crate::model::Fault::EarlyBarrier) {
            return self.waiting.push(item);
        }
        self.pending.push(item);
    }

    /// Begins a grace period for all that is pending, if there is anything and none is running.
    /// Whether the caller must start a barrier now.
    pub fn begin(&mut self) -> bool {
        if self.running || self.pending.is_empty() {
            return false;
        }
        debug_assert!(self.waiting.is_empty());
        std::mem::swap(&mut self.pending, &mut self.waiting);
        self.running = true;
        true
    }

    /// The barrier that [`begin`](Self::begin) asked for is over. What it freed.
    pub fn end(&mut self) -> Vec<Item> {
        self.running = false;
        let freed = std::mem::take(&mut self.waiting);
        self.handles -= freed.iter().filter(|item| matches!(item, Item::Handle(_))).count();
        freed
    }

    /// The barrier failed: nothing is freed, all of it waits for the next.
    pub fn failed(&mut self) {
        self.running = false;
        self.pending.append(&mut self.waiting);
    }

    /// Tells whether handles wait: the version behind each is retired after them.
    pub fn holds_handles(&self) -> bool {
        self.handles > 0
    }

    /// How many items wait.
    pub fn len(&self) -> usize {
        self.pending.len() + self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_grace_period_that_began_later_frees() {
        let slot = |bits| Item::Slot(SlotPtr::from_bits(bits));
        let mut quarantine = Quarantine::default();
        assert!(!quarantine.begin());
        quarantine.push(slot(1));
        assert!(quarantine.begin());
        quarantine.push(slot(2));
        assert!(!quarantine.begin(), "one barrier at a time");
        assert_eq!(quarantine.end(), [slot(1)]);
        assert!(quarantine.begin());
        quarantine.failed();
        assert_eq!(quarantine.len(), 1);
        assert!(quarantine.begin());
        assert_eq!(quarantine.end(), [slot(2)]);
        assert!(!quarantine.holds_handles());
        quarantine.push(Item::Handle(HandlePtr::new(SlotPtr::from_bits(3))));
        assert!(quarantine.holds_handles() && quarantine.begin() && quarantine.holds_handles());
        quarantine.end();
        assert!(!quarantine.holds_handles());
    }
}
