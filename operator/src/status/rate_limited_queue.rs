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

/// The class of a key: somebody may be waiting for it, or nobody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Urgent,
    Idle,
}

#[derive(Debug, Default)]
struct Item {
    /// When it waits for, if it does, and in which queue.
    due: Option<(Instant, Class)>,
    rests_until: Option<Instant>,
    failures: u32,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct RateLimitedQueue<K> {
    limits: Limits,
    /// When the rate is used up to.
    used_until: Option<Instant>,
    items: HashMap<K, Item>,
    queue: BTreeSet<(Instant, K)>,
    /// Those for which nobody waits.
    idle: BTreeSet<(Instant, K)>,
}

impl<K: Clone + Ord + std::hash::Hash> RateLimitedQueue<K> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            used_until: None,
            items: HashMap::new(),
            queue: BTreeSet::new(),
            idle: BTreeSet::new(),
        }
    }

    /// The key is to be written in `delay` at the latest, if nothing is against it.
    pub(crate) fn add(&mut self, key: &K, now: Instant, delay: Duration) {
        self.put(key, now, delay, Class::Urgent);
    }

    /// As [`add`](Self::add), when nothing else is to be written.
    pub(crate) fn add_idle(&mut self, key: &K, now: Instant, delay: Duration) {
        self.put(key, now, delay, Class::Idle);
    }

    fn put(&mut self, key: &K, now: Instant, delay: Duration, class: Class) {
        let item = self.items.entry(key.clone()).or_default();
        let at = (now + delay).max(item.rests_until.unwrap_or(now));
        match item.due {
            // Then everything is written that there is to say.
            Some((_, Class::Urgent)) if class == Class::Idle => return,
            Some((due, was)) if was == class && due <= at => return,
            Some((due, Class::Urgent)) => _ = self.queue.remove(&(due, key.clone())),
            Some((due, Class::Idle)) => _ = self.idle.remove(&(due, key.clone())),
            None => {}
        }
        item.due = Some((at, class));
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
        if let Some(item) = self.items.get_mut(&key) {
            item.due = None;
        }
        Some(key)
    }

    /// A key was written.
    pub(crate) fn done(&mut self, key: &K, now: Instant) {
        self.spend(now);
        let rests_until = now + self.limits.rest;
        let item = self.items.entry(key.clone()).or_default();
        (item.rests_until, item.failures) = (Some(rests_until), 0);
    }

    /// There was nothing to write.
    pub(crate) fn skip(&mut self, key: &K) {
        if self.items.get(key).is_some_and(|item| item.due.is_none() && item.failures == 0) {
            self.items.remove(key);
        }
    }

    /// A key could not be written: it comes again.
    pub(crate) fn retry(&mut self, key: &K, now: Instant) {
        self.spend(now);
        let item = self.items.entry(key.clone()).or_default();
        let wait = self.limits.again.saturating_mul(1 << item.failures.min(16)).min(LONGEST);
        item.failures += 1;
        item.rests_until = Some(now + wait);
        self.add(key, now, wait);
    }

    /// Nothing is to be written of the key any more.
    pub(crate) fn forget(&mut self, key: &K) {
        match self.items.remove(key).and_then(|item| item.due) {
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
        let (mut queue, start) = (RateLimitedQueue::new(LIMITS), Instant::now());
        queue.add(&"a", start, ms(500));
        queue.add(&"a", start, ms(50));
        queue.add(&"a", start, ms(200));
        assert_eq!(queue.next(), Some(start + ms(50)));
        assert_eq!(queue.pop(start), None);
        let now = start + ms(50);
        assert_eq!((queue.pop(now), queue.pop(now)), (Some("a"), None));
        queue.done(&"a", now);
        queue.add(&"a", now, ms(50));
        assert_eq!(queue.next(), Some(now + ms(1_000)));
    }

    #[test]
    fn together_they_stay_below_the_rate() {
        let (mut queue, start) = (RateLimitedQueue::new(LIMITS), Instant::now());
        let keys = ["a", "b", "c", "d"];
        keys.iter().for_each(|key| queue.add(key, start, ms(0)));
        let mut written = Vec::new();
        while let Some(at) = queue.next() {
            let key = queue.pop(at).unwrap();
            queue.done(&key, at);
            written.push((key, at - start));
        }
        assert_eq!(written, [("a", ms(0)), ("b", ms(0)), ("c", ms(0)), ("d", ms(100))]);
    }

    #[test]
    fn what_nobody_waits_for_keeps_nothing_waiting() {
        let (mut queue, start) = (RateLimitedQueue::new(LIMITS), Instant::now());
        for key in ["a", "b", "c", "d"] {
            queue.add_idle(&key, start, ms(0));
        }
        let mut now = start;
        for key in ["a", "b"] {
            assert_eq!(queue.pop(now), Some(key));
            queue.done(&key, now);
            assert_eq!((queue.pop(now), queue.next()), (None, Some(now + ms(100))), "no burst");
            now += ms(100);
        }
        // The burst is there for what somebody waits for; what was idle becomes urgent.
        queue.add(&"x", now, ms(0));
        queue.add(&"d", now, ms(0));
        for key in ["d", "x"] {
            assert_eq!(queue.pop(now), Some(key));
            queue.done(&key, now);
        }
        assert_eq!((queue.pop(now), queue.next()), (None, Some(now + ms(200))));
        // What is urgent stays so, and what is forgotten goes.
        queue.add(&"c", now, ms(500));
        queue.add_idle(&"c", now, ms(0));
        assert_eq!(queue.next(), Some(now + ms(500)));
        queue.forget(&"c");
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn what_failed_comes_again_later_each_time() {
        let (mut queue, mut now) = (RateLimitedQueue::new(LIMITS), Instant::now());
        queue.add(&"a", now, ms(0));
        for wait in [2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(queue.pop(now), Some("a"));
            queue.retry(&"a", now);
            // Wanting it doesn't make it come sooner.
            queue.add(&"a", now, ms(0));
            assert_eq!(queue.next(), Some(now + Duration::from_secs(wait)));
            now += Duration::from_secs(wait);
        }
        queue.forget(&"a");
        assert_eq!(queue.next(), None);
    }
}
