//! Whose token is asked about next.
//!
//! A TokenReview costs the API server work, and whoever reaches the port can ask for one. So in no second there are more
//! than [`A_SECOND`], good or bad; and those that come out bad take at most half of these for long: one that comes out good
//! gives its share of that back. The origins take turns. One that had a bad token lately comes after all others and
//! leaves them half of what there is.
//!
//! Invariants: in any second no more are asked about than the rate allows; no more are under way, or have come out bad,
//! than the rate of the bad allows; an origin has a bounded number that wait. No clock: the caller says what time it is.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

/// Tokens that are asked about in any second, at most.
const A_SECOND: usize = 10;
const SECOND: Duration = Duration::from_secs(1);
/// Bad tokens that may be asked about at once after a rest.
const BURST: u32 = 10;
/// Time that each takes of the rate.
const EACH: Duration = Duration::from_millis(200);
/// Questions of one origin that may wait: those of a node's agent, or of many agents behind one address.
const WAITING: usize = 1_024;
/// Questions of an origin that had a bad token lately.
const WAITING_MARKED: usize = 8;
/// How long an origin counts as one that had a bad token.
const MARKED: Duration = Duration::from_secs(60);
/// Origins that are remembered for that.
const REMEMBERED: usize = 16_384;

/// The next thing to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// Ask about this one.
    Ask(T),
    /// Nothing before that time.
    At(Instant),
    /// Nothing until something else happens.
    Nothing,
}

#[derive(Debug)]
struct Queue<O, T> {
    /// Whose turn it is next, first; each origin that waits stands in it once.
    turns: VecDeque<O>,
    waiting: HashMap<O, VecDeque<T>>,
}

impl<O: Copy + Eq + Hash, T> Queue<O, T> {
    fn new() -> Self {
        Self { turns: VecDeque::new(), waiting: HashMap::new() }
    }

    fn join(&mut self, origin: O, ticket: T, most: usize) -> Result<(), T> {
        let own = self.waiting.entry(origin).or_default();
        if own.len() >= most {
            return Err(ticket);
        }
        if own.is_empty() {
            self.turns.push_back(origin);
        }
        own.push_back(ticket);
        Ok(())
    }

    /// All that wait of an origin.
    fn take(&mut self, origin: O) -> VecDeque<T> {
        self.turns.retain(|other| *other != origin);
        self.waiting.remove(&origin).unwrap_or_default()
    }

    fn pop(&mut self) -> Option<T> {
        let origin = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&origin)?;
        let ticket = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&origin);
        } else {
            self.turns.push_back(origin);
        }
        ticket
    }
}

/// See the module's comment. `O` is where a question comes from, `T` the question.
#[derive(Debug)]
pub(super) struct Line<O, T> {
    clean: Queue<O, T>,
    marked: Queue<O, T>,
    bad: HashMap<O, Instant>,
    /// The used part of the burst, as the time that it takes until all is there again.
    used_until: Option<Instant>,
    /// When the last were asked about, the oldest first.
    asked: VecDeque<Instant>,
}

impl<O: Copy + Eq + Hash, T> Line<O, T> {
    pub(super) fn new() -> Self {
        Self {
            clean: Queue::new(),
            marked: Queue::new(),
            bad: HashMap::new(),
            used_until: None,
            asked: VecDeque::new(),
        }
    }

    /// Adds a question; gives it back where too many of its origin wait.
    pub(super) fn join(&mut self, origin: O, ticket: T, now: Instant) -> Result<(), T> {
        if self.bad.get(&origin).is_some_and(|until| *until > now) {
            self.marked.join(origin, ticket, WAITING_MARKED)
        } else {
            self.clean.join(origin, ticket, WAITING)
        }
    }

    /// The token to ask about, which takes its share of the rate.
    pub(super) fn next(&mut self, now: Instant) -> Next<T> {
        while self.asked.front().is_some_and(|at| *at + SECOND <= now) {
            self.asked.pop_front();
        }
        if let Some(oldest) = self.asked.front().filter(|_| self.asked.len() >= A_SECOND) {
            let waits = !self.clean.turns.is_empty() || !self.marked.turns.is_empty();
            return if waits { Next::At(*oldest + SECOND) } else { Next::Nothing };
        }
        let used = self.used_until.map_or(now, |used| used.max(now));
        for (queue, share) in [(&mut self.clean, BURST), (&mut self.marked, BURST / 2)] {
            if queue.turns.is_empty() {
                continue;
            }
            let enough = used + EACH - EACH * share;
            if enough > now {
                return Next::At(enough);
            }
            if let Some(ticket) = queue.pop() {
                self.used_until = Some(used + EACH);
                self.asked.push_back(now);
                return Next::Ask(ticket);
            }
        }
        Next::Nothing
    }

    /// The share of a question that wasn't bad comes back.
    pub(super) fn give_back(&mut self) {
        self.used_until = self.used_until.and_then(|used| used.checked_sub(EACH));
    }

    /// A question to be asked wasn't: it takes nothing.
    pub(super) fn unasked(&mut self) {
        self.give_back();
        self.asked.pop_back();
    }

    /// A token of this origin is bad. What waits of it does so behind others from now on, or is dropped.
    pub(super) fn mark(&mut self, origin: O, now: Instant) {
        for ticket in self.clean.take(origin) {
            if self.marked.join(origin, ticket, WAITING_MARKED).is_err() {
                break;
            }
        }
        if self.bad.len() >= REMEMBERED {
            self.bad.retain(|_, until| *until > now);
        }
        if self.bad.len() < REMEMBERED {
            self.bad.insert(origin, now + MARKED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &mut Line<u8, u32>, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| match line.next(now) {
            Next::Ask(ticket) => Some(ticket),
            Next::At(_) | Next::Nothing => None,
        })
        .collect()
    }

    #[test]
    fn good_tokens_wait_for_what_the_api_server_bears() {
        let (mut line, start) = (Line::new(), Instant::now());
        (0..1_000).for_each(|i| line.join(1, i, start).unwrap());
        let mut now = start;
        for i in 0..1_000 {
            if let Next::At(when) = line.next(now) {
                assert_eq!((i % 10, when), (0, now + SECOND));
                now = when;
                assert_eq!(line.next(now), Next::Ask(i));
            } else {
                assert_eq!(line.asked.len(), i as usize % 10 + 1);
            }
            line.give_back();
        }
        assert_eq!(now - start, Duration::from_secs(99));
        assert_eq!(line.next(now), Next::Nothing);
        // Who went away meanwhile takes nothing.
        let later = now + SECOND;
        (0..100).for_each(|i| line.join(1, i, later).unwrap());
        for i in 0..100 {
            assert_eq!(line.next(later), Next::Ask(i));
            line.unasked();
        }
    }

    #[test]
    fn in_no_second_more_are_asked_about_than_the_rate_allows() {
        let (mut line, mut now) = (Line::new(), Instant::now());
        let mut asked_at = Vec::new();
        // 300 a second of four origins, of which one has good tokens, and pauses.
        for ticket in 0..9_000 {
            let origin = (ticket % 4) as u8;
            if ticket % 1_500 < 1_000 {
                _ = line.join(origin, ticket, now);
            }
            for ticket in asked(&mut line, now) {
                asked_at.push((now, ticket % 4));
                match ticket % 4 {
                    0 => line.give_back(),
                    origin => line.mark(origin as u8, now),
                }
            }
            now += Duration::from_micros(3_333);
        }
        for (i, (at, _)) in asked_at.iter().enumerate() {
            let within = asked_at[i..].iter().take_while(|(other, _)| *other < *at + SECOND).count();
            assert!(within <= A_SECOND, "{within}");
        }
        // The bad ones leave room, which the good ones get.
        let good = asked_at.iter().filter(|(_, origin)| *origin == 0).count();
        assert!(good >= 130 && asked_at.len() - good <= 160, "{good} of {}", asked_at.len());
    }

    #[test]
    fn bad_tokens_are_asked_about_at_a_rate() {
        let (mut line, mut now) = (Line::new(), Instant::now());
        let (mut reviews, start) = (0, now);
        for ticket in 0..60_000 {
            // 1,000 a second from four origins.
            _ = line.join((ticket % 4) as u8, ticket, now);
            for ticket in asked(&mut line, now) {
                line.mark((ticket % 4) as u8, now);
                reviews += 1;
            }
            now += Duration::from_millis(1);
        }
        assert_eq!(now - start, Duration::from_secs(60));
        assert!((290..=310).contains(&reviews), "{reviews}");
        assert!(line.marked.waiting.values().all(|own| own.len() <= WAITING_MARKED));
    }

    #[test]
    fn who_had_no_bad_token_goes_first() {
        let (mut line, now) = (Line::new(), Instant::now());
        (0..20).for_each(|i| line.join(1, i, now).unwrap());
        let bad = asked(&mut line, now);
        assert_eq!(bad.len(), BURST as usize);
        bad.iter().for_each(|_| line.mark(1, now));
        let later = now + EACH * BURST;
        assert!(line.join(1, 100, later).is_err(), "it has enough that wait");
        (200..203).for_each(|i| line.join(2, i, later).unwrap());
        (300..302).for_each(|i| line.join(3, i, later).unwrap());
        // Half of what comes back is kept for others.
        assert_eq!(asked(&mut line, later), [200, 300, 201, 301, 202]);
        assert_eq!(asked(&mut line, later + EACH), [10]);
        let much_later = later + MARKED;
        asked(&mut line, much_later);
        line.join(1, 500, much_later).unwrap();
        assert_eq!(line.clean.turns, [1]);
    }

    #[test]
    fn an_origin_can_not_fill_the_line() {
        let (mut line, now) = (Line::new(), Instant::now());
        let joined = (0..5_000).filter(|i| line.join(1, *i, now).is_ok()).count();
        assert_eq!(joined, WAITING);
        assert_eq!(line.join(2, 7, now), Ok(()));
        line.mark(3, now);
        let joined = (0..5_000).filter(|i| line.join(3, *i, now).is_ok()).count();
        assert_eq!(joined, WAITING_MARKED);
    }
}
