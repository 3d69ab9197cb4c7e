//! The heartbeat of a thread: since when it has been at what it is at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// The heartbeat of a thread. Clones are handles of the same.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Beat>);

#[derive(Debug)]
struct Beat {
    epoch: Instant,
    /// Milliseconds from the epoch, and one more; 0 while the thread waits for something to do.
    busy_since: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Arc::new(Beat { epoch: Instant::now(), busy_since: AtomicU64::new(0) }))
    }
}

impl Pulse {
    /// How long the thread has been at what it is at; `None` while it waits for something to do.
    pub fn busy_for(&self) -> Option<Duration> {
        let since = self.0.busy_since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.0.epoch.elapsed().saturating_sub(Duration::from_millis(since)))
    }

    /// The thread begins something, and is at it as long as the guard lives.
    pub(crate) fn begin(&self) -> Busy<'_> {
        let now = u64::try_from(self.0.epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.busy_since.store(now.saturating_add(1), Ordering::Relaxed);
        Busy(self)
    }
}

/// The thread is at something.
pub(crate) struct Busy<'p>(&'p Pulse);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.0.busy_since.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_busy_from_when_it_began_until_it_is_done() {
        let pulse = Pulse::default();
        assert_eq!(pulse.busy_for(), None);
        let busy = pulse.begin();
        let first = pulse.clone().busy_for().unwrap();
        while pulse.busy_for().unwrap() <= first {
            std::thread::yield_now();
        }
        drop(busy);
        assert_eq!(pulse.busy_for(), None);
    }
}
