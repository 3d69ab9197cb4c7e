//! Connections of which nobody knows yet whose they are, and those of each node.
//!
//! Whoever connects is accepted at once. Until a token is found good, a connection is one of a bounded number;
//! where there are too many, the address that has most of them gives up its oldest. So a peer that opens
//! connections without end competes with itself, and who comes from another address is served. A node keeps a
//! few connections, its newest.
//!
//! Invariants: at most [`UNKNOWN`] connections are unknown, at most [`OF_A_NODE`] are those of one node, and an
//! unknown one has a deadline. Deciding costs the logarithm of what is open. Nothing here looks at a clock.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
    time::Duration,
};

use futures::task::AtomicWaker;
use tokio::{sync::Notify, time::Instant};

use crate::NodeName;

/// Unknown connections at a time. One takes about 25 kB after its handshake.
const UNKNOWN: usize = 1_024;
/// Connections of one node: an agent has one, and another while the first is dying.
const OF_A_NODE: usize = 4;
/// Time from the connection to the first request, TLS included.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// Time that a token may be checked for.
const ASKING: Duration = Duration::from_secs(25);
/// Time that a peer that was refused has to read why.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Where a peer comes from, as far as it can't choose that itself: of an IPv6 address the first 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            other => other,
        })
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a connection was ended from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shed {
    /// Too many were unknown.
    Crowded,
    /// It took too long to say who it is.
    Late,
    /// Its node has newer ones.
    Replaced,
}

impl Shed {
    /// All reasons.
    pub const ALL: [Self; 3] = [Self::Crowded, Self::Late, Self::Replaced];

    /// The reason as metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Crowded => "crowded",
            Self::Late => "late",
            Self::Replaced => "replaced",
        }
    }
}

/// Ends a connection, whoever reads or writes it.
#[derive(Debug, Default)]
pub(crate) struct Closer {
    closed: AtomicBool,
    waker: AtomicWaker,
}

impl Closer {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Tells whether the connection has to end; the task is woken when that changes.
    pub(crate) fn is_closed(&self, waker: &Waker) -> bool {
        self.waker.register(waker);
        self.closed.load(Ordering::Acquire)
    }
}

/// The order in which connections came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Number(u64);

#[derive(Debug)]
enum Standing {
    Unknown { origin: Origin, deadline: Instant },
    Known(Option<NodeName>),
}

#[derive(Debug)]
struct Open {
    standing: Standing,
    closer: Arc<Closer>,
}

#[derive(Debug, Default)]
struct Opened {
    last: u64,
    all: HashMap<Number, Open>,
    unknown: HashMap<Origin, BTreeSet<Number>>,
    /// The origins by how many they have, then by their oldest.
    crowds: BTreeSet<(usize, Reverse<Number>, Origin)>,
    deadlines: BTreeSet<(Instant, Number)>,
    nodes: HashMap<NodeName, BTreeSet<Number>>,
}

impl Opened {
    /// Changes the unknown ones of an origin.
    fn crowd(&mut self, origin: Origin, change: impl FnOnce(&mut BTreeSet<Number>)) {
        let rank = |crowd: &BTreeSet<Number>| Some((crowd.len(), Reverse(*crowd.first()?), origin));
        let crowd = self.unknown.entry(origin).or_default();
        if let Some(rank) = rank(crowd) {
            self.crowds.remove(&rank);
        }
        change(crowd);
        match rank(crowd) {
            Some(rank) => _ = self.crowds.insert(rank),
            None => _ = self.unknown.remove(&origin),
        }
    }

    fn enter(&mut self, origin: Origin, deadline: Instant, closer: Arc<Closer>) -> Number {
        self.last += 1;
        let number = Number(self.last);
        self.all.insert(number, Open { standing: Standing::Unknown { origin, deadline }, closer });
        self.deadlines.insert((deadline, number));
        self.crowd(origin, |crowd| _ = crowd.insert(number));
        number
    }

    fn leave(&mut self, number: Number) -> Option<Arc<Closer>> {
        let Open { standing, closer } = self.all.remove(&number)?;
        match standing {
            Standing::Unknown { origin, deadline } => self.forget(number, origin, deadline),
            Standing::Known(node) => {
                if let Some(node) = node
                    && let Some(own) = self.nodes.get_mut(&node)
                {
                    own.remove(&number);
                    if own.is_empty() {
                        self.nodes.remove(&node);
                    }
                }
            }
        }
        Some(closer)
    }

    fn forget(&mut self, number: Number, origin: Origin, deadline: Instant) {
        self.deadlines.remove(&(deadline, number));
        self.crowd(origin, |crowd| _ = crowd.remove(&number));
    }

    /// The oldest unknown one of the origin that has most.
    fn eldest(&self) -> Option<Number> {
        self.crowds.last().map(|(_, Reverse(eldest), _)| *eldest)
    }

    fn due(&mut self, number: Number, at: Instant) {
        if let Some(Open { standing: Standing::Unknown { deadline, .. }, .. }) = self.all.get_mut(&number) {
            self.deadlines.remove(&(*deadline, number));
            *deadline = at;
            self.deadlines.insert((at, number));
        }
    }

    /// Returns the one that its node has to give up for it.
    fn known(&mut self, number: Number, node: Option<NodeName>) -> Option<Number> {
        let open = self.all.get_mut(&number)?;
        let Standing::Unknown { origin, deadline } = open.standing else { return None };
        open.standing = Standing::Known(node.clone());
        self.forget(number, origin, deadline);
        let own = self.nodes.entry(node?).or_default();
        own.insert(number);
        (own.len() > OF_A_NODE).then(|| own.first().copied()).flatten()
    }
}

#[derive(Debug, Default)]
struct Shared {
    opened: Mutex<Opened>,
    /// A deadline may have moved forward.
    sooner: Notify,
    shed: [AtomicU64; Shed::ALL.len()],
}

/// See the module's comment. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Shared>);

impl Gate {
    /// Number of connections that aren't known yet.
    pub fn unknown(&self) -> usize {
        self.opened().deadlines.len()
    }

    /// Number of connections that were ended for this reason.
    pub fn shed(&self, reason: Shed) -> u64 {
        self.0.shed[reason as usize].load(Ordering::Relaxed)
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.0.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a new connection, and gives up another one where there are too many.
    pub(crate) fn enter(&self, origin: Origin, now: Instant) -> Entry {
        let closer = Arc::<Closer>::default();
        let mut opened = self.opened();
        let number = opened.enter(origin, now + FIRST_REQUEST, closer.clone());
        if opened.deadlines.len() > UNKNOWN
            && let Some(eldest) = opened.eldest()
        {
            self.close(&mut opened, eldest, Shed::Crowded);
        }
        drop(opened);
        Entry { gate: self.clone(), origin, number, closer }
    }

    /// Gives one up, so that there is room for another.
    pub(crate) fn make_room(&self) {
        let mut opened = self.opened();
        if let Some(eldest) = opened.eldest() {
            self.close(&mut opened, eldest, Shed::Crowded);
        }
    }

    /// Ends those whose time is over; says when the next one's is.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut opened = self.opened();
        while let Some((deadline, number)) = opened.deadlines.first().copied() {
            if deadline > now {
                return Some(deadline);
            }
            self.close(&mut opened, number, Shed::Late);
        }
        None
    }

    /// Resolves when [`expire`](Self::expire) has to be called sooner than it said.
    pub(crate) async fn sooner(&self) {
        self.0.sooner.notified().await;
    }

    fn close(&self, opened: &mut Opened, number: Number, reason: Shed) {
        if let Some(closer) = opened.leave(number) {
            self.0.shed[reason as usize].fetch_add(1, Ordering::Relaxed);
            closer.close();
        }
    }
}

/// A connection's place; it is given up when this is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    gate: Gate,
    origin: Origin,
    number: Number,
    closer: Arc<Closer>,
}

impl Entry {
    pub(crate) fn closer(&self) -> &Closer {
        &self.closer
    }

    pub(crate) fn peer(&self) -> Peer {
        Peer { gate: self.gate.clone(), origin: self.origin, number: self.number }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        drop(self.gate.opened().leave(self.number));
    }
}

/// The connection that a request came by.
#[derive(Clone, Debug)]
pub struct Peer {
    gate: Gate,
    origin: Origin,
    number: Number,
}

impl Peer {
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Somebody is asked whose it is.
    pub(crate) fn asks(&self, now: Instant) {
        self.gate.opened().due(self.number, now + ASKING);
    }

    /// It is known whose it is; `None` where nobody asks.
    pub(crate) fn is_known(&self, node: Option<NodeName>) {
        let mut opened = self.gate.opened();
        if let Some(older) = opened.known(self.number, node) {
            self.gate.close(&mut opened, older, Shed::Replaced);
        }
    }

    /// It isn't let in.
    pub(crate) fn is_refused(&self, now: Instant) {
        self.gate.opened().due(self.number, now + LAST_WORD);
        self.gate.0.sooner.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(last: u8) -> Origin {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn is_open(entry: &Entry) -> bool {
        !entry.closer.is_closed(Waker::noop())
    }

    #[test]
    fn who_has_most_gives_up_its_oldest() {
        let (gate, now) = (Gate::default(), Instant::now());
        let honest: Vec<_> = (0..50).map(|_| gate.enter(origin(1), now)).collect();
        let crowds: Vec<_> = (0..5_000_u32).map(|i| gate.enter(origin(2 + (i % 4) as u8), now)).collect();
        assert_eq!(gate.unknown(), UNKNOWN);
        assert!(honest.iter().all(is_open));
        let left: Vec<_> = (0..crowds.len()).filter(|i| is_open(&crowds[*i])).collect();
        assert_eq!(left, (crowds.len() - (UNKNOWN - 50)..crowds.len()).collect::<Vec<_>>());
        assert_eq!(gate.shed(Shed::Crowded), 5_050 - UNKNOWN as u64);
        drop((honest, crowds));
        let opened = gate.opened();
        assert!(opened.all.is_empty() && opened.unknown.is_empty() && opened.crowds.is_empty());
    }

    #[test]
    fn an_unknown_one_has_a_deadline_and_a_known_one_has_none() {
        let (gate, now) = (Gate::default(), Instant::now());
        let (silent, known, asking, refused) = (
            gate.enter(origin(1), now),
            gate.enter(origin(1), now),
            gate.enter(origin(1), now),
            gate.enter(origin(1), now),
        );
        known.peer().is_known(Some("n1".into()));
        asking.peer().asks(now);
        refused.peer().is_refused(now);
        assert_eq!(gate.expire(now), Some(now + LAST_WORD));
        assert_eq!(gate.expire(now + LAST_WORD), Some(now + FIRST_REQUEST));
        assert_eq!(gate.expire(now + FIRST_REQUEST), Some(now + ASKING));
        assert_eq!(gate.expire(now + ASKING), None);
        let open = [&silent, &known, &asking, &refused].map(is_open);
        assert_eq!((open, gate.shed(Shed::Late)), ([false, true, false, false], 3));
        // Whatever comes too late changes nothing.
        silent.peer().is_known(Some("n1".into()));
        assert_eq!(gate.opened().nodes[&NodeName::from("n1")].len(), 1);
    }

    #[test]
    fn a_node_keeps_its_newest() {
        let (gate, now) = (Gate::default(), Instant::now());
        let own: Vec<_> = (0..OF_A_NODE + 2).map(|_| gate.enter(origin(1), now)).collect();
        let other = gate.enter(origin(1), now);
        own.iter().for_each(|entry| entry.peer().is_known(Some("n1".into())));
        other.peer().is_known(Some("n2".into()));
        let open: Vec<_> = own.iter().map(is_open).collect();
        assert_eq!(open, [false, false, true, true, true, true]);
        assert!(is_open(&other) && gate.shed(Shed::Replaced) == 2);
        drop((own, other));
        assert!(gate.opened().nodes.is_empty());
    }

    #[test]
    fn an_address_is_that_of_a_peer_however_it_is_written() {
        let of = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:2:4:5:6:7"));
        assert_ne!(of("2001:db8:1:2::3"), of("2001:db8:1:3::3"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
