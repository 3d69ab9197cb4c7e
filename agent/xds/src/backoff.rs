//! How long to wait before the next attempt to connect.
//!
//! Full jitter: the delay is anything between zero and a bound that doubles with each attempt. When
//! a control plane restarts, all nodes lose it at the same instant; a fixed delay, or one with a
//! little jitter, brings them back together.

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
        Self { initial: Duration::from_millis(200), max: Duration::from_secs(30) }
    }
}

/// Counts the attempts since the last success.
#[derive(Debug)]
pub(crate) struct Attempts {
    backoff: Backoff,
    bound: Duration,
}

impl Attempts {
    pub(crate) fn new(backoff: Backoff) -> Self {
        Self { backoff, bound: backoff.initial.min(backoff.max) }
    }

    /// The delay before the next attempt.
    pub(crate) fn next_delay(&mut self, rng: &mut impl Rng) -> Duration {
        let delay = self.bound.mul_f64(rng.random_range(0.0..=1.0));
        self.bound = self.bound.saturating_mul(2).min(self.backoff.max);
        delay
    }

    /// Starts again from the first delay.
    pub(crate) fn reset(&mut self) {
        *self = Self::new(self.backoff);
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn delays_spread_from_zero_to_a_bound_that_doubles_up_to_the_maximum() {
        let backoff = Backoff { initial: Duration::from_millis(100), max: Duration::from_millis(500) };
        let mut rng = StdRng::seed_from_u64(1);
        for (attempt, bound) in [100, 200, 400, 500, 500].into_iter().enumerate() {
            let delays: Vec<_> = (0..1_000)
                .map(|_| {
                    let mut attempts = Attempts::new(backoff);
                    for _ in 0..attempt {
                        attempts.next_delay(&mut rng);
                    }
                    attempts.next_delay(&mut rng).as_millis()
                })
                .collect();
            assert!(delays.iter().all(|delay| *delay <= bound));
            assert!(delays.iter().any(|delay| *delay < bound / 10), "attempt {attempt}");
            assert!(delays.iter().any(|delay| *delay > bound * 9 / 10), "attempt {attempt}");
        }
    }

    #[test]
    fn a_success_starts_again_and_a_long_outage_does_not_overflow() {
        let mut rng = StdRng::seed_from_u64(1);
        let backoff = Backoff { initial: Duration::from_secs(1), max: Duration::MAX };
        let mut attempts = Attempts::new(backoff);
        for _ in 0..10_000 {
            attempts.bound = attempts.bound.saturating_mul(2);
        }
        attempts.backoff.max = Duration::from_secs(1 << 40);
        attempts.bound = attempts.backoff.max;
        attempts.next_delay(&mut rng);
        attempts.reset();
        assert!(attempts.next_delay(&mut rng) <= backoff.initial);
    }
}
