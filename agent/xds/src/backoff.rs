//! How long to wait before something is tried again: a connection, or what was refused for want of room.
//!
//! Full jitter: the delay is anything between zero and a bound that doubles with each attempt. When
//! a control plane restarts, all nodes lose it at the same instant; a fixed delay, or one with a
//! little jitter, brings them back together.
//!
//! The bound is small again only after things went well for a while: a peer that serves for a moment and then fails is
//! no better than one that fails at once.

use std::time::Duration;

use rand::Rng;

/// The bounds of the delays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The bound of the first delay.
    pub initial: Duration,
    /// What the bound never exceeds.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(200), max: Duration::from_secs(15) }
    }
}

/// The attempts since things went well. It has no clock: whoever asks says what time it is, from whatever start.
#[derive(Debug)]
pub(crate) struct Attempts {
    backoff: Backoff,
    /// How long things have to go well until the next delay is a first one.
    stable_after: Duration,
    bound: Duration,
    well_since: Option<Duration>,
}

impl Attempts {
    pub(crate) fn new(backoff: Backoff, stable_after: Duration) -> Self {
        Self { backoff, stable_after, bound: backoff.initial.min(backoff.max), well_since: None }
    }

    /// Things go well now, and have since the last call unless [`failed`](Self::failed) was called in between.
    pub(crate) fn goes_well(&mut self, now: Duration) {
        self.well_since.get_or_insert(now);
    }

    /// It has failed now: the delay before the next attempt.
    pub(crate) fn failed(&mut self, now: Duration, rng: &mut impl Rng) -> Duration {
        let well = self.well_since.take().map(|since| now.saturating_sub(since));
        if well.is_some_and(|well| well >= self.stable_after) {
            self.bound = self.backoff.initial.min(self.backoff.max);
        }
        let delay = self.bound.mul_f64(rng.random_range(0.0..=1.0));
        self.bound = self.bound.saturating_mul(2).min(self.backoff.max);
        delay
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const STABLE: Duration = Duration::from_secs(60);

    #[test]
    fn delays_spread_from_zero_to_a_bound_that_doubles_up_to_the_maximum() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_millis(500) };
        let mut rng = StdRng::seed_from_u64(1);
        for (attempt, bound) in [100, 200, 400, 500, 500].into_iter().enumerate() {
            let delays: Vec<_> = (0..1_000)
                .map(|_| {
                    let mut attempts = Attempts::new(backoff, STABLE);
                    for _ in 0..attempt {
                        attempts.failed(Duration::ZERO, &mut rng);
                    }
                    attempts.failed(Duration::ZERO, &mut rng).as_millis()
                })
                .collect();
            assert!(delays.iter().all(|delay| *delay <= bound));
            assert!(delays.iter().any(|delay| *delay < bound / 10), "attempt {attempt}");
            assert!(delays.iter().any(|delay| *delay > bound * 9 / 10), "attempt {attempt}");
        }
    }

    #[test]
    fn only_a_stable_while_starts_again() {
        let mut rng = StdRng::seed_from_u64(1);
        let backoff = Backoff { initial: Duration::from_millis(1), max: Duration::from_secs(3_600) };
        let mut attempts = Attempts::new(backoff, STABLE);
        let mut now = Duration::from_secs(7);
        for _ in 0..20 {
            // Again and again well, but never for long enough.
            attempts.goes_well(now);
            attempts.goes_well(now + STABLE / 2);
            now += STABLE - Duration::from_millis(1);
            attempts.failed(now, &mut rng);
        }
        assert!(attempts.bound > Duration::from_secs(500), "{attempts:?}");
        attempts.goes_well(now);
        now += STABLE;
        attempts.goes_well(now);
        assert!(attempts.failed(now, &mut rng) <= backoff.initial);
        assert_eq!(attempts.bound, backoff.initial * 2);
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut rng = StdRng::seed_from_u64(1);
        let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(1 << 40) };
        let mut attempts = Attempts::new(backoff, STABLE);
        for _ in 0..10_000 {
            attempts.failed(Duration::MAX, &mut rng);
        }
        assert_eq!(attempts.bound, backoff.max);
    }
}
