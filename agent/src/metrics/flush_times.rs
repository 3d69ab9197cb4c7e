//! How long flushes took, for the one number that a node's status shows.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The bound of the first bucket; each next is the double. The last has none.
const FIRST: Duration = Duration::from_nanos(250);
const BUCKETS: usize = 24;

/// Flushes since the start, by how long they took.
#[derive(Debug, Default)]
pub(super) struct FlushTimes([AtomicU64; BUCKETS]);

impl FlushTimes {
    pub(super) fn observe(&self, took: Duration) {
        let bucket = (0..BUCKETS - 1).find(|at| took <= bound(*at)).unwrap_or(BUCKETS - 1);
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// The bound of the bucket in which the slowest of the fastest 99 of 100 is.
    pub(super) fn p99(&self) -> Option<Duration> {
        let counts: Vec<u64> = self.0.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let wanted = all - all / 100;
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        (all > 0).then(|| bound(bucket))
    }
}

const fn bound(bucket: usize) -> Duration {
    Duration::from_nanos((FIRST.as_nanos() as u64) << bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_flush_of_a_hundred_is_left_out() {
        let times = FlushTimes::default();
        assert_eq!(times.p99(), None);
        times.observe(Duration::from_millis(9));
        assert_eq!(times.p99(), Some(Duration::from_nanos(250 << 16)));
        for _ in 0..99 {
            times.observe(Duration::from_nanos(700));
        }
        assert_eq!(times.p99(), Some(Duration::from_micros(1)));
        times.observe(Duration::from_secs(3_600));
        assert_eq!(times.p99(), Some(Duration::from_nanos(250 << 16)));
    }
}
