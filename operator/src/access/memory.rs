//! Which tokens were found good or bad, by their SHA-256, for a while.
//!
//! Invariant: both are bounded. A flood of bad tokens takes the place of other bad ones, never of good ones.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use slotmesh_serve::{Authenticated, NodeName};

/// More tokens than this aren't remembered; each node has one at a time.
const REMEMBERED: usize = 16_384;
/// A bad answer is asked for anew after this long: the API server may have been told another key.
const BAD: Duration = Duration::from_secs(60);

pub(super) type Digest = [u8; 32];

#[derive(Clone, Debug)]
struct Good {
    node: NodeName,
    expires: Option<Instant>,
    ask_again: Instant,
}

/// A remembered answer about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Good(Authenticated),
    Bad(String),
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Memory {
    good: HashMap<Digest, Good>,
    bad: HashMap<Digest, (Instant, String)>,
    /// The bad ones in the order in which they came.
    order: VecDeque<Digest>,
}

impl Memory {
    pub(super) fn recall(&mut self, key: &Digest, now: Instant) -> Option<Known> {
        if let Some(good) = self.good.get(key) {
            if good.ask_again > now {
                let lasts = good.expires.map(|at| at.saturating_duration_since(now));
                return Some(Known::Good(Authenticated { node: good.node.clone(), lasts }));
            }
            self.good.remove(key);
        }
        let (until, why) = self.bad.get(key)?;
        (*until > now).then(|| Known::Bad(why.clone()))
    }

    /// `ask_again` is when the answer is asked for anew at the latest.
    pub(super) fn good(
        &mut self,
        key: Digest,
        authenticated: &Authenticated,
        now: Instant,
        ask_again: Instant,
    ) {
        if self.good.len() >= REMEMBERED {
            self.good.retain(|_, good| good.ask_again > now);
        }
        if self.good.len() < REMEMBERED {
            let expires = authenticated.lasts.map(|lasts| now + lasts);
            self.good.insert(key, Good { node: authenticated.node.clone(), expires, ask_again });
        }
    }

    pub(super) fn bad(&mut self, key: Digest, why: String, now: Instant) {
        if self.bad.insert(key, (now + BAD, why)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.bad.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Digest {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn a_flood_of_bad_tokens_leaves_the_good_ones() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let authenticated = Authenticated { node: "n1".into(), lasts: Some(Duration::from_secs(90)) };
        memory.good(key(0), &authenticated, now, now + Duration::from_secs(30));
        let most = u32::try_from(REMEMBERED).unwrap();
        (1..=2 * most).for_each(|number| memory.bad(key(number), "no".to_owned(), now));
        assert_eq!((memory.bad.len(), memory.order.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(memory.recall(&key(1), now), None);
        assert_eq!(memory.recall(&key(2 * most), now), Some(Known::Bad("no".to_owned())));
        assert_eq!(memory.recall(&key(2 * most), now + BAD), None);
        let soon = now + Duration::from_secs(20);
        let left = Authenticated { lasts: Some(Duration::from_secs(70)), ..authenticated };
        assert_eq!(memory.recall(&key(0), soon), Some(Known::Good(left)));
        assert_eq!(memory.recall(&key(0), now + Duration::from_secs(30)), None);
    }
}
