//! When slabs come and go: ahead of demand, on demand, at the cap, and back to the kernel.

use std::time::{Duration, Instant};

use slotmesh_records::{SLAB_BYTES, SlotPtr};

use crate::{BackingError, ClassStats, Engine, Full, Growth, SlotClass, background::Done};

/// How long growth ahead of demand rests after a first failure; doubles with each further one.
const GROWTH_RETRY: Duration = Duration::from_millis(500);
/// The longest rest.
const GROWTH_RETRY_MOST: Duration = Duration::from_secs(60);

/// The last growth, where it failed. A flush that needs a slot tries again at once.
pub(crate) struct GrowthFailed {
    pub reason: String,
    wait: Duration,
    at: Instant,
}

impl GrowthFailed {
    /// Growth failed with `error`, after it failed `before`.
    pub fn after(before: Option<&Self>, error: &BackingError) -> Self {
        let wait = before.map_or(GROWTH_RETRY, |failed| failed.wait * 2).min(GROWTH_RETRY_MOST);
        Self { reason: error.to_string(), wait, at: Instant::now() }
    }

    /// Tells whether it is time for another try.
    fn is_over(&self) -> bool {
        self.at.elapsed() >= self.wait
    }
}

impl Engine {
    /// Asks for slabs ahead of demand, as the mode says.
    pub(crate) fn grow_ahead(&mut self) {
        let ahead = match self.config.growth {
            Growth::Background => self.table.empty_slabs() < self.config.low_watermark.max(self.wanted),
            // What a later, higher cap allows.
            Growth::Eager => true,
            Growth::OnDemand => self.table.empty_slabs() < self.wanted,
        };
        // Fewer than `initial` where that was raised while running.
        let ahead = ahead || self.table.created() < self.config.initial;
        let due = self.growth_error.as_ref().is_none_or(GrowthFailed::is_over);
        if ahead && due {
            self.grow();
        }
    }

    /// Gives slabs back that are wholly idle: above the high watermark, and all that exceed the cap.
    pub(crate) fn give_back(&mut self) {
        if self.growing || self.shrinking {
            return;
        }
        let created = self.table.created();
        let spare = match self.config.growth {
            Growth::Eager => 0,
            Growth::Background | Growth::OnDemand => self
                .table
                .empty_slabs()
                .saturating_sub(self.config.high_watermark.max(self.wanted))
                .min(created.saturating_sub(self.config.initial)),
        };
        let surplus = spare.max(created.saturating_sub(self.config.cap)).min(self.table.empty_slabs());
        if surplus > 0 {
            let slabs = self.table.take_empty(surplus as usize);
            let slabs: Vec<_> = slabs.into_iter().map(|slab| self.arena.surrender(slab)).collect();
            let created = self.table.created();
            tracing::info!(given_back = slabs.len(), created, "gave outer records back");
            self.shrinking = true;
            self.background.shrink(slabs);
        }
    }

    /// Asks for a batch of slabs, where the cap allows one. Whether growth is under way.
    fn grow(&mut self) -> bool {
        let room = self.config.cap.saturating_sub(self.table.created());
        if !self.growing && room > 0 {
            let batch = self.table.missing(self.config.batch.clamp(1, room) as usize);
            if !batch.is_empty() {
                self.growing = true;
                self.background.grow(batch);
            }
        }
        self.growing
    }

    /// Takes a slot, idle until now.
    pub(crate) fn take(&mut self, class: SlotClass) -> Result<SlotPtr, Full> {
        self.table.take(class).map_or_else(|| self.take_slowly(class), Ok)
    }

    /// No slot is idle: wait for one batch of growth at most, and then for what is retired, as long as that gives
    /// a slot. Where it can't, the flush is refused at once: want of room costs nobody a grace period.
    #[cold]
    fn take_slowly(&mut self, class: SlotClass) -> Result<SlotPtr, Full> {
        self.poll();
        if let Some(ptr) = self.table.take(class) {
            return Ok(ptr);
        }
        self.stop_compacting();
        if let Some(ptr) = self.table.take(class) {
            return Ok(ptr);
        }
        let can_grow = self.grow();
        if !can_grow && let Some(ptr) = self.take_larger(class) {
            return Ok(ptr);
        }
        if can_grow {
            while self.growing {
                let done = self.background.wait();
                self.done(done);
            }
        }
        // What is retired may be what is needed. A handle takes two grace periods: one for itself, one
        // for the version behind it.
        loop {
            if let Some(ptr) = self.table.take(class).or_else(|| self.take_larger(class)) {
                return Ok(ptr);
            }
            if !self.table.may_free(class) && !self.quarantine.holds_handles() {
                break;
            }
            if self.quarantine.begin() {
                self.background.barrier();
            }
            let done = self.background.wait();
            let failed = matches!(done, Done::Barrier(Err(_)));
            self.done(done);
            if failed {
                break;
            }
        }
        if let Some(ptr) = self.table.take(class).or_else(|| self.take_larger(class)) {
            return Ok(ptr);
        }
        self.pressed = true;
        let needed = class.bytes() as u64;
        Err(match &self.growth_error {
            Some(failed) if can_grow => Full::Growth { class, needed, reason: failed.reason.clone() },
            _ => Full::Cap {
                class,
                needed,
                cap: self.config.cap,
                used: self.slot_kib(|slots| slots.used),
                idle: self.slot_kib(|slots| slots.idle),
                retired: self.quarantine.len(),
            },
        })
    }

    /// KiB of slots of all classes.
    fn slot_kib(&self, of: impl Fn(ClassStats) -> u64) -> u64 {
        self.table.stats().map(|(class, stats)| of(stats) * class.bytes() as u64).sum::<u64>() / 1024
    }

    /// At the cap, a slot that is larger than needed is better than none.
    fn take_larger(&mut self, class: SlotClass) -> Option<SlotPtr> {
        SlotClass::all().filter(|&larger| larger > class).find_map(|larger| self.table.take(larger))
    }

    /// Bytes that records of this class can take now: idle slots of its size and larger ones, slabs that are wholly
    /// idle, and those that may still be created.
    pub fn usable(&self, class: SlotClass) -> u64 {
        let may_grow = self.growth_error.is_none();
        let growth = if may_grow { self.config.cap.saturating_sub(self.table.created()) } else { 0 };
        self.table.usable(class) + u64::from(growth) * SLAB_BYTES as u64
    }
}
