//! How long to wait before the API server is asked again: soon at first, then every few seconds.
//!
//! Invariant: no wait is above [`LONGEST`]. What a dead server is spared isn't worth a blind operator: some twenty
//! requests each few seconds. The waits are spread, so that the kinds don't all come at once.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use kube_runtime::utils::Backoff;

/// The first wait; each that follows is twice as long.
const FIRST: Duration = Duration::from_millis(400);
/// The longest.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// See the module's comment.
#[derive(Debug)]
pub(crate) struct Retry {
    failures: u32,
    spread: RandomState,
}

impl Default for Retry {
    fn default() -> Self {
        Self { failures: 0, spread: RandomState::new() }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST.saturating_mul(1 << self.failures.min(8)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        // From half of it to all of it.
        let share = self.spread.hash_one(self.failures) % 1_000;
        Some(wait / 2 + wait.mul_f64(share as f64 / 2_000.0))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_few_seconds_and_no_further() {
        let mut retry = Retry::default();
        let waits: Vec<_> = retry.by_ref().take(100).collect();
        assert!(waits[0] <= FIRST && waits.iter().all(|wait| *wait <= LONGEST), "{waits:?}");
        assert!(waits[10..].iter().all(|wait| *wait >= LONGEST / 2), "{waits:?}");
        retry.reset();
        assert!(retry.next().is_some_and(|wait| wait <= FIRST));
        assert_ne!(Retry::default().nth(20), Retry::default().nth(20), "they are spread");
    }
}
