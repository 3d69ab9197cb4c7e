//! Lines of the log that strangers can cause: a few at once, then one a second.
//!
//! Invariant: how many were left out is said with the next one that isn't.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines at once after a rest.
const BURST: u32 = 10;
/// Time that each line takes of the rate.
const EACH: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Written {
    /// When the rate is used up to.
    used_until: Option<Instant>,
    left_out: u64,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(crate) struct Quiet(Mutex<Written>);

impl Quiet {
    /// Number of lines that were left out since the last one; `None` where this one is left out too.
    pub(crate) fn line(&self, now: Instant) -> Option<u64> {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = written.used_until.map_or(now, |used| used.max(now));
        if used.saturating_duration_since(now) >= EACH * BURST {
            written.left_out += 1;
            return None;
        }
        written.used_until = Some(used + EACH);
        Some(std::mem::take(&mut written.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_some_lines_and_how_many_were_left_out() {
        let (quiet, start) = (Quiet::default(), Instant::now());
        let lines: Vec<_> = (0..1_000).filter_map(|_| quiet.line(start)).collect();
        assert_eq!(lines, [0; BURST as usize]);
        assert_eq!(quiet.line(start + EACH), Some(990));
        assert_eq!(quiet.line(start + EACH), None);
        assert_eq!(quiet.line(start + EACH * 60), Some(1));
    }
}
