//! Choice of an endpoint for a request, on one worker.
//!
//! First the level (priority and health) by the shares of the levels, then an endpoint in it as the cluster chooses.
//! Workers don't know of each other: each takes its own turns and knows its own requests in flight, from a start that
//! chance gives it.

use std::net::SocketAddr;

use rand::Rng;

use crate::{
    assignment::{Endpoint, EndpointSet, Level},
    upstream::EndpointChoice,
};

/// Turns of a worker at one version of a cluster's endpoints.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    turns: Vec<Turns>,
}

/// Whose turn it is in a level.
#[derive(Debug)]
enum Turns {
    /// All weigh the same.
    Equal(usize),
    /// Earliest deadline first: each comes again after a time that is the smaller the more it weighs.
    Weighted(Vec<Deadline>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Deadline {
    at: f64,
    endpoint: usize,
}

impl Balance {
    pub(crate) fn new(set: &EndpointSet, choice: EndpointChoice, random: &mut impl Rng) -> Self {
        if choice != EndpointChoice::RoundRobin {
            return Self::default();
        }
        let turns = set.levels.iter().map(|level| {
            if level.sums.is_empty() {
                return Turns::Equal(random.random_range(0..level.endpoints.len()));
            }
            let mut deadlines: Vec<Deadline> = level
                .endpoints
                .iter()
                .enumerate()
                .map(|(endpoint, of)| Deadline {
                    at: random.random::<f64>() / f64::from(of.weight),
                    endpoint,
                })
                .collect();
            // Sorted is a heap, too.
            deadlines.sort_by(|a, b| a.at.total_cmp(&b.at));
            Turns::Weighted(deadlines)
        });
        Self { turns: turns.collect() }
    }

    /// The endpoint for a request; `None` where there is none. `busy` tells the requests in flight at an endpoint.
    ///
    /// Where `tried` are given, another one is preferred.
    pub(crate) fn pick(
        &mut self,
        set: &EndpointSet,
        choice: EndpointChoice,
        hash: Option<u64>,
        tried: &[SocketAddr],
        busy: impl Fn(SocketAddr) -> u32,
        random: &mut impl Rng,
    ) -> Option<SocketAddr> {
        let mut found = None;
        // As many as Envoy's predicate "previous hosts" tries.
        for attempt in 0..3 {
            let hash = if attempt == 0 { hash } else { None };
            found = self.pick_any(set, choice, hash, &busy, random);
            if found.is_none_or(|found| !tried.contains(&found)) {
                break;
            }
        }
        found
    }

    fn pick_any(
        &mut self,
        set: &EndpointSet,
        choice: EndpointChoice,
        hash: Option<u64>,
        busy: &impl Fn(SocketAddr) -> u32,
        random: &mut impl Rng,
    ) -> Option<SocketAddr> {
        let number = match set.levels.len() {
            0 => return None,
            1 => 0,
            _ => {
                let share = match hash {
                    Some(hash) => u32::try_from(hash % 100).unwrap_or_default(),
                    None => random.random_range(0..100),
                };
                set.levels.iter().position(|level| share < level.share_up_to)?
            }
        };
        let level = &set.levels[number];
        if let [only] = level.endpoints.as_slice() {
            return Some(only.address);
        }
        let endpoint = match (choice, hash, &level.table) {
            (EndpointChoice::Hash(_), Some(hash), Some(table)) => table.pick(hash),
            (EndpointChoice::RoundRobin, ..) => self.turns.get_mut(number)?.next(level),
            (EndpointChoice::LeastRequests { choices }, ..) => least_busy(level, choices, busy, random),
            (EndpointChoice::Hash(_) | EndpointChoice::Random, ..) => by_weight(level, random),
        };
        level.endpoints.get(endpoint).map(|endpoint| endpoint.address)
    }
}

impl Turns {
    fn next(&mut self, level: &Level) -> usize {
        match self {
            Self::Equal(next) => {
                let endpoint = *next % level.endpoints.len();
                *next = endpoint + 1;
                endpoint
            }
            Self::Weighted(heap) => {
                let Deadline { at, endpoint } = heap[0];
                heap[0].at = at + 1.0 / f64::from(level.endpoints[endpoint].weight);
                sink(heap);
                endpoint
            }
        }
    }
}

/// Moves the first down to where it belongs.
fn sink(heap: &mut [Deadline]) {
    let mut parent = 0;
    loop {
        let earliest = [parent * 2 + 1, parent * 2 + 2]
            .into_iter()
            .filter(|child| *child < heap.len())
            .min_by(|a, b| heap[*a].at.total_cmp(&heap[*b].at));
        match earliest {
            Some(child) if heap[child].at < heap[parent].at => {
                heap.swap(child, parent);
                parent = child;
            }
            _ => return,
        }
    }
}

fn by_weight(level: &Level, random: &mut impl Rng) -> usize {
    match level.sums.last() {
        None => random.random_range(0..level.endpoints.len()),
        Some(total) => {
            let point = random.random_range(0..*total);
            level.sums.partition_point(|sum| *sum <= point)
        }
    }
}

fn least_busy(
    level: &Level,
    choices: u32,
    busy: &impl Fn(SocketAddr) -> u32,
    random: &mut impl Rng,
) -> usize {
    let load = |endpoint: usize| {
        let Endpoint { address, weight } = level.endpoints[endpoint];
        f64::from(busy(address) + 1) / f64::from(weight)
    };
    let mut best = by_weight(level, random);
    let mut least = load(best);
    for _ in 1..choices {
        let mut other = by_weight(level, random);
        if other == best {
            // The same one twice is no choice.
            other = (other + 1) % level.endpoints.len();
        }
        let its = load(other);
        if its < least {
            (best, least) = (other, its);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::{SeedableRng as _, rngs::SmallRng};
    use slotmesh_xds::envoy::envoy::config::core::v3::HealthStatus::{self, Healthy, Unhealthy};

    use super::*;
    use crate::{assignment::tests::assignment, hashing::HashTableKind};

    fn set(choice: EndpointChoice, endpoints: &[(u16, u32, u32, HealthStatus)]) -> EndpointSet {
        EndpointSet::new(&assignment(endpoints)).unwrap().with_tables(choice)
    }

    /// Requests that each port gets of so many.
    fn counts(
        choice: EndpointChoice,
        endpoints: &[(u16, u32, u32, HealthStatus)],
        requests: u64,
        busy: impl Fn(u16) -> u32,
    ) -> HashMap<u16, i64> {
        let set = set(choice, endpoints);
        let mut random = SmallRng::seed_from_u64(7);
        let mut balance = Balance::new(&set, choice, &mut random);
        let mut counts = HashMap::new();
        for _ in 0..requests {
            let busy = |address: SocketAddr| busy(address.port());
            let found = balance.pick(&set, choice, None, &[], busy, &mut random).unwrap();
            *counts.entry(found.port()).or_default() += 1;
        }
        counts
    }

    const EQUAL: [(u16, u32, u32, HealthStatus); 3] =
        [(1, 0, 1, Healthy), (2, 0, 1, Healthy), (3, 0, 1, Healthy)];
    const UNEQUAL: [(u16, u32, u32, HealthStatus); 3] =
        [(1, 0, 1, Healthy), (2, 0, 2, Healthy), (3, 0, 7, Healthy)];

    #[test]
    fn turns_are_exact_by_weight() {
        let equal = counts(EndpointChoice::RoundRobin, &EQUAL, 300, |_| 0);
        assert_eq!(equal, HashMap::from([(1, 100), (2, 100), (3, 100)]));
        let unequal = counts(EndpointChoice::RoundRobin, &UNEQUAL, 1_000, |_| 0);
        for (port, share) in [(1, 100), (2, 200), (3, 700)] {
            assert!((unequal[&port] - share).abs() <= 2, "{unequal:?}");
        }
    }

    #[test]
    fn chance_follows_the_weights() {
        let counts = counts(EndpointChoice::Random, &UNEQUAL, 10_000, |_| 0);
        for (port, share) in [(1, 1_000_i64), (2, 2_000), (3, 7_000)] {
            assert!((counts[&port] - share).abs() < 300, "{counts:?}");
        }
    }

    #[test]
    fn the_busy_one_is_left_alone() {
        let choice = EndpointChoice::LeastRequests { choices: 2 };
        let counts = counts(choice, &EQUAL, 3_000, |port| if port == 1 { 100 } else { 0 });
        assert_eq!(counts.get(&1), None, "{counts:?}");
        assert!(counts[&2] > 1_200 && counts[&3] > 1_200, "{counts:?}");
    }

    #[test]
    fn a_hash_keeps_its_endpoint_and_levels_get_their_shares() {
        let choice = EndpointChoice::Hash(HashTableKind::Maglev { size: 251 });
        let set = set(choice, &EQUAL);
        let mut random = SmallRng::seed_from_u64(7);
        let mut balance = Balance::new(&set, choice, &mut random);
        let first = balance.pick(&set, choice, Some(42), &[], |_| 0, &mut random);
        for _ in 0..100 {
            assert_eq!(balance.pick(&set, choice, Some(42), &[], |_| 0, &mut random), first);
        }
        let spill = [(1, 0, 1, Healthy), (2, 0, 1, Unhealthy), (3, 1, 1, Healthy)];
        let counts = counts(EndpointChoice::RoundRobin, &spill, 10_000, |_| 0);
        assert!((counts[&1] - 7_000).abs() < 300 && (counts[&3] - 3_000).abs() < 300, "{counts:?}");
    }

    #[test]
    fn a_retry_goes_to_another_one_where_there_is_one() {
        let mut random = SmallRng::seed_from_u64(7);
        let choice = EndpointChoice::RoundRobin;
        let two = set(choice, &EQUAL);
        let mut balance = Balance::new(&two, choice, &mut random);
        for _ in 0..10 {
            let first = balance.pick(&two, choice, None, &[], |_| 0, &mut random).unwrap();
            let again = balance.pick(&two, choice, None, &[first], |_| 0, &mut random).unwrap();
            assert_ne!(first, again);
        }
        let one = set(choice, &EQUAL[..1]);
        let mut balance = Balance::new(&one, choice, &mut random);
        let first = balance.pick(&one, choice, None, &[], |_| 0, &mut random).unwrap();
        assert_eq!(balance.pick(&one, choice, None, &[first], |_| 0, &mut random), Some(first));
        let none = EndpointSet::default();
        assert_eq!(Balance::default().pick(&none, choice, None, &[], |_| 0, &mut random), None);
    }
}
