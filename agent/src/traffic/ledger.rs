//! The counters of traffic that are shown: numbers that only rise, of as many talks (a workload and a destination) as there may be.
//!
//! Invariants: what the kernel has counted is added once, to a talk that is shown or to the rest; so the sums of all
//! counters rise by just that, whichever talks are shown. A talk that is shown stays so until one that is much busier
//! takes its place.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use slotmesh_records::{ConnectionEnding, TrafficKey, TrafficState};

use super::destinations::{Destination, UNKNOWN, workload_of};

/// A workload and a cluster, as the kernel knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pair {
    pub cluster: u64,
    pub source: u32,
}

impl Pair {
    pub const fn of(key: TrafficKey) -> Self {
        Self { cluster: key.cluster, source: key.source }
    }

    /// All that have no element of their own.
    const OTHER: Self = Self { cluster: 0, source: 0 };
}

/// Connections of a pair that are open, and their bytes until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub connections: u64,
    pub sent: u64,
    pub received: u64,
    pub retransmits: u64,
}

/// Both ends of connections, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Talk {
    pub source: String,
    pub source_namespace: String,
    pub destination: Destination,
}

/// Counters as they are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Numbers of the ends, as the kernel has them.
    pub ended: TrafficState,
    /// Connections that were established: those that are open, and those that ended.
    pub opened: u64,
    /// Open now.
    pub open: u64,
}

impl Sums {
    fn add(&mut self, more: &Self) {
        self.ended = self.ended.plus(&more.ended);
        self.opened += more.opened;
    }

    /// How much there is of it.
    fn weight(&self) -> u64 {
        let of_all: u64 = self.ended.ended.iter().sum();
        of_all + self.opened + (self.ended.sent + self.ended.received) / (64 << 10)
    }
}

/// The names of both ends, where they are known now.
pub(super) struct PairNames<'n> {
    /// Namespace and name, by mark.
    pub sources: &'n HashMap<u32, [String; 2]>,
    pub clusters: &'n HashMap<u64, String>,
}

/// A pair that has been seen.
struct Seen {
    /// The number of its talk.
    talk: u32,
    /// Totals at the last look, which never fall.
    totals: Sums,
    /// For how many looks nobody could have connected.
    idle: u32,
    /// The number of the look at which it was there last.
    look: u64,
}

/// A talk that has been seen.
struct Heard {
    talk: Arc<Talk>,
    sums: Sums,
    is_shown: bool,
    /// How busy it was of late.
    weight: u64,
    /// How many pairs it has.
    pairs: usize,
    /// At how many looks it had none.
    alone: u32,
}

/// The counters. Talks have numbers, so that what is only counted on touches no name.
#[derive(Default)]
pub(super) struct Ledger {
    most: usize,
    pairs: HashMap<Pair, Seen>,
    talks: HashMap<u32, Heard>,
    numbers: HashMap<Arc<Talk>, u32>,
    next: u32,
    /// How many looks there were.
    looks: u64,
    rest: Sums,
}

/// A pair is forgotten after so many looks at which nobody could have connected.
const IDLE_LOOKS: u32 = 2;
/// A pair that has neither an element nor a connection is forgotten after so many looks: what is open ends before it has an
/// element.
const ABSENT_LOOKS: u64 = 10;
/// Counters of workloads that are gone are shown for so many looks, so that nobody misses the last of them.
const ALONE_LOOKS: u32 = 20;
/// How much busier one must be to take another's place.
const MUCH_BUSIER: u64 = 2;

impl Ledger {
    pub fn set_most(&mut self, most: usize) {
        self.most = most;
    }

    pub const fn is_shown(&self) -> bool {
        self.most > 0
    }

    /// The talks that are shown, in the order of names.
    pub fn shown(&self) -> Vec<(&Talk, &Sums)> {
        let shown = self.talks.values().filter(|heard| heard.is_shown);
        let mut shown: Vec<_> = shown.map(|heard| (&*heard.talk, &heard.sums)).collect();
        shown.sort_unstable_by_key(|(talk, _)| *talk);
        shown
    }

    /// The sums of all others.
    pub const fn rest(&self) -> &Sums {
        &self.rest
    }

    /// How many pairs have an element in the kernel.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Takes over what ended and what is open. Answers the pairs whose elements can go: their workload isn't attached any
    /// more, or their cluster isn't in force, and no connection is open. Where it isn't `known` yet what is in force, none.
    pub fn take(
        &mut self,
        ended: &HashMap<Pair, TrafficState>,
        open: &HashMap<Pair, Open>,
        names: PairNames<'_>,
        is_known: bool,
    ) -> Vec<Pair> {
        for heard in self.talks.values_mut() {
            heard.sums.open = 0;
            heard.weight -= heard.weight.div_ceil(8);
        }
        self.rest.open = 0;
        self.looks += 1;
        let only_open = open.keys().filter(|pair| !ended.contains_key(pair));
        let all: Vec<Pair> = ended.keys().chain(only_open).copied().collect();
        let (mut over, mut news) = (Vec::new(), Vec::with_capacity(all.len()));
        for pair in all {
            let now = totals(ended.get(&pair), open.get(&pair));
            let mut seen = self.pairs.remove(&pair).unwrap_or_else(|| Seen {
                talk: self.enter(talk(pair, &names)),
                totals: Sums::default(),
                idle: 0,
                look: 0,
            });
            seen.look = self.looks;
            if self.talks.get(&seen.talk).is_some_and(|heard| heard.talk.is_unknown()) {
                let found = talk(pair, &names);
                if !found.is_unknown() {
                    self.leave(seen.talk);
                    seen.talk = self.enter(found);
                }
            }
            let more = seen.totals.follow(&now);
            if let Some(heard) = self.talks.get_mut(&seen.talk) {
                heard.weight += more.weight();
            }
            news.push((pair, seen.talk, more));
            let is_gone = !names.sources.contains_key(&pair.source)
                || pair.cluster != 0 && !names.clusters.contains_key(&pair.cluster);
            let is_idle = is_known && pair != Pair::OTHER && is_gone && !open.contains_key(&pair);
            seen.idle = if is_idle { seen.idle + 1 } else { 0 };
            if seen.idle >= IDLE_LOOKS {
                over.push(pair);
            }
            self.pairs.insert(pair, seen);
        }
        self.choose();
        for (pair, talk, more) in news {
            let heard = self.talks.get_mut(&talk).filter(|heard| heard.is_shown && pair != Pair::OTHER);
            let sums = heard.map_or(&mut self.rest, |heard| &mut heard.sums);
            sums.add(&more);
            sums.open += more.open;
        }
        let absent = self.pairs.iter().filter(|(_, seen)| self.looks - seen.look >= ABSENT_LOOKS);
        let absent: Vec<Pair> = absent.map(|(pair, _)| *pair).collect();
        for pair in over.iter().chain(&absent) {
            if let Some(seen) = self.pairs.remove(pair) {
                self.leave(seen.talk);
            }
        }
        let numbers = &mut self.numbers;
        self.talks.retain(|_, heard| {
            heard.alone = if heard.pairs > 0 { 0 } else { heard.alone + 1 };
            let stays = heard.pairs > 0 || heard.is_shown && heard.alone < ALONE_LOOKS;
            if !stays {
                numbers.remove(&heard.talk);
            }
            stays
        });
        over
    }

    /// A pair has this talk; its number.
    fn enter(&mut self, talk: Talk) -> u32 {
        let number = match self.numbers.get(&talk) {
            Some(number) => *number,
            None => {
                let (number, talk) = (self.next, Arc::new(talk));
                self.next = self.next.wrapping_add(1);
                self.numbers.insert(talk.clone(), number);
                let heard =
                    Heard { talk, sums: Sums::default(), is_shown: false, weight: 0, pairs: 0, alone: 0 };
                self.talks.insert(number, heard);
                number
            }
        };
        if let Some(heard) = self.talks.get_mut(&number) {
            heard.pairs += 1;
        }
        number
    }

    /// A pair has it no longer.
    fn leave(&mut self, number: u32) {
        if let Some(heard) = self.talks.get_mut(&number) {
            heard.pairs -= 1;
        }
    }

    /// Who is shown.
    fn choose(&mut self) {
        let of = |is_shown: bool| {
            let talks = self.talks.iter();
            let talks = talks.filter(|(_, heard)| heard.is_shown == is_shown && !heard.talk.is_unknown());
            talks.map(|(number, heard)| (heard.weight, *number)).collect::<Vec<_>>()
        };
        let (mut waiting, mut shown) = (of(false), of(true));
        shown.sort_unstable();
        waiting.sort_unstable_by_key(|busy| Reverse(*busy));
        let mut room = self.most.saturating_sub(shown.len());
        let mut least = shown.into_iter();
        for (weight, number) in waiting {
            if room == 0 {
                let Some((of_least, out)) = least.next() else { return };
                if weight <= of_least.saturating_mul(MUCH_BUSIER) {
                    return;
                }
                // Its counters were its own; what comes is the rest's.
                if let Some(heard) = self.talks.get_mut(&out) {
                    heard.is_shown = false;
                    heard.sums = Sums::default();
                }
                room += 1;
            }
            if let Some(heard) = self.talks.get_mut(&number) {
                heard.is_shown = true;
            }
            room -= 1;
        }
    }
}

impl Talk {
    /// Nobody knows who it is, or where it leads.
    fn is_unknown(&self) -> bool {
        self.source == UNKNOWN || self.destination.host == UNKNOWN
    }
}

impl Sums {
    /// By how much the totals have risen; these are followed. What fell is what was missed at a look: it is waited for.
    fn follow(&mut self, now: &Self) -> Self {
        let rise = |before: &mut u64, now: u64| {
            let by = now.saturating_sub(*before);
            *before = (*before).max(now);
            by
        };
        let mut more = Self { open: now.open, opened: rise(&mut self.opened, now.opened), ..Self::default() };
        let (before, after, by) = (&mut self.ended, &now.ended, &mut more.ended);
        for i in 0..before.ended.len() {
            by.ended[i] = rise(&mut before.ended[i], after.ended[i]);
        }
        by.unmeasured = rise(&mut before.unmeasured, after.unmeasured);
        by.sent = rise(&mut before.sent, after.sent);
        by.received = rise(&mut before.received, after.received);
        by.retransmits = rise(&mut before.retransmits, after.retransmits);
        by.round_trip_us = rise(&mut before.round_trip_us, after.round_trip_us);
        by.round_trips = rise(&mut before.round_trips, after.round_trips);
        by.lasted = rise(&mut before.lasted, after.lasted);
        more
    }
}

/// The totals of a pair.
fn totals(ended: Option<&TrafficState>, open: Option<&Open>) -> Sums {
    let (mut ended, open) = (ended.copied().unwrap_or_default(), open.copied().unwrap_or_default());
    ended.sent += open.sent;
    ended.received += open.received;
    ended.retransmits += open.retransmits;
    let opened = ended.of(ConnectionEnding::Closed) + ended.of(ConnectionEnding::Reset) + open.connections;
    Sums { ended, opened, open: open.connections }
}

/// The names of a pair's ends, as far as they are known.
fn talk(pair: Pair, names: &PairNames<'_>) -> Talk {
    let unknown = || UNKNOWN.to_owned();
    let (source_namespace, source) = match names.sources.get(&pair.source) {
        Some([namespace, name]) => (namespace.clone(), workload_of(name).to_owned()),
        None => (unknown(), unknown()),
    };
    let destination = match names.clusters.get(&pair.cluster) {
        Some(name) => Destination::of_cluster(name),
        // A connection that was refused because there is nowhere to go.
        None if pair.cluster == 0 => Destination {
            host: "none".to_owned(),
            name: "none".to_owned(),
            namespace: unknown(),
            ..Destination::default()
        },
        None => {
            Destination { host: unknown(), name: unknown(), namespace: unknown(), ..Destination::default() }
        }
    };
    Talk { source, source_namespace, destination }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(connections: u64, sent: u64) -> TrafficState {
        let mut state = TrafficState { sent, ..TrafficState::NONE };
        state.ended[ConnectionEnding::Closed as usize] = connections;
        state
    }

    /// Pods 1, 2, … of the Deployment `web`, and clusters 1, 2, … of Services.
    struct World {
        sources: HashMap<u32, [String; 2]>,
        clusters: HashMap<u64, String>,
        ended: HashMap<Pair, TrafficState>,
        open: HashMap<Pair, Open>,
    }

    impl World {
        fn new() -> Self {
            let sources = (1..9).map(|i| (i, ["shop".to_owned(), format!("client{i}")])).collect();
            let clusters =
                (1..9).map(|i| (i, format!("outbound|80||svc{i}.shop.svc.cluster.local"))).collect();
            Self { sources, clusters, ended: HashMap::new(), open: HashMap::new() }
        }

        fn look(&self, ledger: &mut Ledger) -> Vec<Pair> {
            let names = PairNames { sources: &self.sources, clusters: &self.clusters };
            ledger.take(&self.ended, &self.open, names, true)
        }
    }

    fn pair(source: u32, cluster: u64) -> Pair {
        Pair { cluster, source }
    }

    fn all_sent(ledger: &Ledger) -> u64 {
        ledger.shown().iter().map(|(_, sums)| sums.ended.sent).sum::<u64>() + ledger.rest().ended.sent
    }

    #[test]
    fn nothing_is_lost_whoever_is_shown() {
        let mut world = World::new();
        let mut ledger = Ledger::default();
        ledger.set_most(2);
        let mut sent = 0;
        for round in 1..40_u64 {
            for i in 1..9_u32 {
                // Who is busy changes.
                let more = if u64::from(i) == round / 5 + 1 { 1_000_000 } else { u64::from(i) };
                let state = world.ended.entry(pair(i, u64::from(i))).or_default();
                *state = state.plus(&closed(more / 1000, more));
                sent += more;
            }
            assert_eq!(world.look(&mut ledger), []);
            assert!(ledger.shown().len() <= 2);
            assert!(all_sent(&ledger) <= sent);
        }
        let busiest: Vec<&str> = ledger.shown().iter().map(|(talk, _)| &*talk.source).collect();
        assert!(busiest.contains(&"client8"), "{busiest:?}");
    }

    #[test]
    fn what_is_open_is_in_the_totals_once_it_ends_too() {
        let mut world = World::new();
        let mut ledger = Ledger::default();
        ledger.set_most(9);
        let at = pair(1, 1);
        world.open.insert(at, Open { connections: 1, sent: 500, received: 0, retransmits: 0 });
        world.look(&mut ledger);
        let of = |ledger: &Ledger| *ledger.shown()[0].1;
        assert_eq!((of(&ledger).opened, of(&ledger).open, of(&ledger).ended.sent), (1, 1, 500));
        // It ends between the two reads: seen in neither.
        world.open.clear();
        world.look(&mut ledger);
        assert_eq!((of(&ledger).opened, of(&ledger).ended.sent), (1, 500));
        world.ended.insert(at, closed(1, 700));
        world.look(&mut ledger);
        let sums = of(&ledger);
        assert_eq!((sums.opened, sums.open, sums.ended.sent), (1, 0, 700));
        assert_eq!(sums.ended.of(ConnectionEnding::Closed), 1);
    }

    #[test]
    fn pods_of_a_workload_are_one() {
        let mut world = World::new();
        world.sources.insert(20, ["shop".to_owned(), "web-7d9f8c6b54-x2x4z".to_owned()]);
        world.sources.insert(21, ["shop".to_owned(), "web-7d9f8c6b54-z4x2x".to_owned()]);
        world.ended.insert(pair(20, 1), closed(1, 10));
        world.ended.insert(pair(21, 1), closed(1, 5));
        let mut ledger = Ledger::default();
        ledger.set_most(9);
        world.look(&mut ledger);
        let shown = ledger.shown();
        assert_eq!(shown.len(), 1);
        assert_eq!((&*shown[0].0.source, shown[0].1.ended.sent), ("web", 15));
    }

    #[test]
    fn what_is_gone_is_forgotten_and_counted_anew_when_it_is_back() {
        let mut world = World::new();
        world.ended.insert(pair(1, 1), closed(3, 30));
        world.ended.insert(Pair::OTHER, closed(1, 7));
        let mut ledger = Ledger::default();
        ledger.set_most(9);
        assert_eq!(world.look(&mut ledger), []);
        world.sources.remove(&1);
        assert_eq!(world.look(&mut ledger), []);
        world.open.insert(pair(1, 1), Open::default());
        assert_eq!(world.look(&mut ledger), [], "a socket of it is open");
        world.open.clear();
        assert_eq!(world.look(&mut ledger), []);
        assert_eq!(world.look(&mut ledger), [pair(1, 1)], "the rest's element stays");
        world.ended.remove(&pair(1, 1));
        world.sources = World::new().sources;
        world.ended.insert(pair(1, 1), closed(1, 4));
        world.look(&mut ledger);
        assert_eq!(all_sent(&ledger), 41);
    }

    #[test]
    fn before_the_first_sync_nothing_is_forgotten() {
        let mut world = World::new();
        world.ended.insert(pair(1, 1), closed(3, 30));
        world.clusters.clear();
        let mut ledger = Ledger::default();
        ledger.set_most(9);
        let names = || PairNames { sources: &world.sources, clusters: &world.clusters };
        for _ in 0..5 {
            assert_eq!(ledger.take(&world.ended, &world.open, names(), false), []);
        }
        assert_eq!((ledger.shown().len(), all_sent(&ledger)), (0, 30));
    }
}
