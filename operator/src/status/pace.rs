//! When what is to be written may be written.
//!
//! Invariants: a key waits at most once, however often it is wanted; one key isn't written again before
//! its rest is over; all together stay below a rate, with a burst; what nobody waits for keeps nothing
//! waiting, and leaves the burst alone; and what failed comes again, later each time. Nothing here looks
//! at a clock: the caller says what time it is.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

/// The longest wait after failures.
const LONGEST: Duration = Duration::from_secs(60);

/// How fast may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The time that each write takes of the rate.
    pub(crate) interval: Duration,
    /// How many may be written at once after a rest.
    pub(crate) burst: u32,
    /// One key's rest after a write.
    pub(crate) rest: Duration,
    /// The wait after a failure; doubled by each that follows.
    pub(crate) again: Duration,
}

/// Whether somebody may be waiting for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Urgent,
    Idle,
}

#[derive(Debug, Default)]
struct Turn {
    /// When it waits for, if it does, and in which queue.
    due: Option<(Instant, Class)>,
    rests_until: Option<Instant>,
    failures: u32,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Pace<K> {
    limits: Limits,
    /// When the rate is used up to.
    used_until: Option<Instant>,
    turns: HashMap<K, Turn>,
    queue: BTreeSet<(Instant, K)>,
    /// Those for which nobody waits.
    idle: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Ord + std::hash::Hash> Pace<K> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            used_until: None,
            turns: HashMap::new(),
            queue: BTreeSet::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The key is to be written in `delay` at the latest, if nothing is against it.
    pub(crate) fn want(&mut self, key: &K, now: Instant, delay: Duration) {
        self.put(key, now, delay, Class::Urgent);
    }

    /// As [`want`](Self::want), when nothing else is to be written.
    pub(crate) fn want_idly(&mut self, key: &K, now: Instant, delay: Duration) {
        self.put(key, now, delay, Class::Idle);
    }

    fn put(&mut self, key: &K, now: Instant, delay: Duration, class: Class) {
        let turn = self.turns.entry(key.clone()).or_default();
        let at = (now + delay).max(turn.rests_until.unwrap_or(now));
        match turn.due {
            // Then everything is written that there is to say.
            Some((_, Class::Urgent)) if class == Class::Idle => return,
            Some((due, was)) if was == class && due <= at => return,
            Some((due, Class::Urgent)) => _ = self.queue.remove(&(due, key.clone())),
            Some((due, Class::Idle)) => _ = self.idle.remove(&(due, key.clone())),
            None => {}
        }
        turn.due = Some((at, class));
        let queue = match class {
            Class::Urgent => &mut self.queue,
            Class::Idle => &mut self.idle,
        };
        queue.insert((at, key.clone()));
    }

    fn next_urgent(&self) -> Option<Instant> {
        let (due, _) = self.queue.first()?;
        let burst = self.limits.interval * self.limits.burst;
        let allowed = self.used_until.and_then(|used| used.checked_sub(burst));
        Some(allowed.map_or(*due, |allowed| allowed.max(*due)))
    }

    fn next_idle(&self) -> Option<Instant> {
        let (due, _) = self.idle.first()?;
        Some(self.used_until.map_or(*due, |used| used.max(*due)))
    }

    /// When there is something to write, if nothing else is wanted until then.
    pub(crate) fn next(&self) -> Option<Instant> {
        [self.next_urgent(), self.next_idle()].into_iter().flatten().min()
    }

    /// The next key to write, if it is time.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<K> {
        let is_time = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let (_, key) = if is_time(self.next_urgent()) {
            self.queue.pop_first()?
        } else if is_time(self.next_idle()) {
            self.idle.pop_first()?
        } else {
            return None;
        };
        if let Some(turn) = self.turns.get_mut(&key) {
            turn.due = None;
        }
        Some(key)
    }

    /// A key was written.
    pub(crate) fn wrote(&mut self, key: &K, now: Instant) {
        self.spend(now);
        let rests_until = now + self.limits.rest;
        let turn = self.turns.entry(key.clone()).or_default();
        (turn.rests_until, turn.failures) = (Some(rests_until), 0);
    }

    /// There was nothing to write.
    pub(crate) fn idle(&mut self, key: &K) {
        if self.turns.get(key).is_some_and(|turn| turn.due.is_none() && turn.failures == 0) {
            self.turns.remove(key);
        }
    }

    /// A key could not be written: it comes again.
    pub(crate) fn failed(&mut self, key: &K, now: Instant) {
        self.spend(now);
        let turn = self.turns.entry(key.clone()).or_default();
        let wait = self.limits.again.saturating_mul(1 << turn.failures.min(16)).min(LONGEST);
        turn.failures += 1;
        turn.rests_until = Some(now + wait);
        self.want(key, now, wait);
    }

    /// Nothing is to be written of the key any more.
    pub(crate) fn forget(&mut self, key: &K) {
        match self.turns.remove(key).and_then(|turn| turn.due) {
            Some((due, Class::Urgent)) => _ = self.queue.remove(&(due, key.clone())),
            Some((due, Class::Idle)) => _ = self.idle.remove(&(due, key.clone())),
            None => {}
        }
    }

    fn spend(&mut self, now: Instant) {
        // What wasn't used for long isn't saved up beyond the burst.
        self.used_until = Some(self.used_until.map_or(now, |used| used.max(now)) + self.limits.interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        interval: Duration::from_millis(100),
        burst: 2,
        rest: Duration::from_secs(1),
        again: Duration::from_secs(2),
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_key_waits_once_at_its_earliest_and_rests_after_a_write() {
        let (mut pace, start) = (Pace::new(LIMITS), Instant::now());
        pace.want(&"a", start, ms(500));
        pace.want(&"a", start, ms(50));
        pace.want(&"a", start, ms(200));
        assert_eq!(pace.next(), Some(start + ms(50)));
        assert_eq!(pace.pop(start), None);
        let now = start + ms(50);
        assert_eq!((pace.pop(now), pace.pop(now)), (Some("a"), None));
        pace.wrote(&"a", now);
        pace.want(&"a", now, ms(50));
        assert_eq!(pace.next(), Some(now + ms(1_000)));
    }

    #[test]
    fn together_they_stay_below_the_rate() {
        let (mut pace, start) = (Pace::new(LIMITS), Instant::now());
        let keys = ["a", "b", "c", "d"];
        keys.iter().for_each(|key| pace.want(key, start, ms(0)));
        let mut written = Vec::new();
        while let Some(at) = pace.next() {
            let key = pace.pop(at).unwrap();
            pace.wrote(&key, at);
            written.push((key, at - start));
        }
        assert_eq!(written, [("a", ms(0)), ("b", ms(0)), ("c", ms(0)), ("d", ms(100))]);
    }

    #[test]
    fn what_nobody_waits_for_keeps_nothing_waiting() {
        let (mut pace, start) = (Pace::new(LIMITS), Instant::now());
        for key in ["a", "b", "c", "d"] {
            pace.want_idly(&key, start, ms(0));
        }
        let mut now = start;
        for key in ["a", "b"] {
            assert_eq!(pace.pop(now), Some(key));
            pace.wrote(&key, now);
            assert_eq!((pace.pop(now), pace.next()), (None, Some(now + ms(100))), "no burst");
            now += ms(100);
        }
        // The burst is there for what somebody waits for; what was idle becomes urgent.
        pace.want(&"x", now, ms(0));
        pace.want(&"d", now, ms(0));
        for key in ["d", "x"] {
            assert_eq!(pace.pop(now), Some(key));
            pace.wrote(&key, now);
        }
        assert_eq!((pace.pop(now), pace.next()), (None, Some(now + ms(200))));
        // What is urgent stays so, and what is forgotten goes.
        pace.want(&"c", now, ms(500));
        pace.want_idly(&"c", now, ms(0));
        assert_eq!(pace.next(), Some(now + ms(500)));
        pace.forget(&"c");
        assert_eq!(pace.next(), None);
    }

    #[test]
    fn what_failed_comes_again_later_each_time() {
        let (mut pace, mut now) = (Pace::new(LIMITS), Instant::now());
        pace.want(&"a", now, ms(0));
        for wait in [2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(pace.pop(now), Some("a"));
            pace.failed(&"a", now);
            // Wanting it doesn't make it come sooner.
            pace.want(&"a", now, ms(0));
            assert_eq!(pace.next(), Some(now + Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
        }
        pace.forget(&"a");
        assert_eq!(pace.next(), None);
    }
}
