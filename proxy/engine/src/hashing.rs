//! Tables that give each hash of a request its endpoint, also while others come and go: Maglev and ring hash, built as
//! Envoy builds them.
//!
//! A table depends on the addresses and weights of the endpoints and not on how they are listed.

use std::net::SocketAddr;

use xxhash_rust::xxh64::xxh64;

use crate::assignment::Endpoint;

/// How a table is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HashTableKind {
    /// So many places; a prime number.
    Maglev { size: u64 },
    /// At least and at most so many points.
    Ring { minimum: u64, maximum: u64 },
}

/// The hash of a source: its name, or its address.
pub(crate) fn hash_of_source(source: &str) -> u64 {
    xxh64(source.as_bytes(), 0)
}

/// Gives each hash its endpoint, by its number in the list that it was built from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndpointTable {
    Maglev(Box<[u32]>),
    /// Points in their order.
    Ring(Box<[(u64, u32)]>),
}

impl EndpointTable {
    /// The table of these endpoints; `None` where there are none.
    pub(crate) fn build(kind: HashTableKind, endpoints: &[Endpoint]) -> Option<Self> {
        if endpoints.is_empty() {
            return None;
        }
        Some(match kind {
            HashTableKind::Maglev { size } => Self::Maglev(maglev(size, endpoints)),
            HashTableKind::Ring { minimum, maximum } => Self::Ring(ring(minimum, maximum, endpoints)),
        })
    }

    pub(crate) fn pick(&self, hash: u64) -> usize {
        match self {
            Self::Maglev(places) => {
                let place = hash % places.len() as u64;
                places[usize::try_from(place).unwrap_or_default()] as usize
            }
            Self::Ring(points) => {
                let next = points.partition_point(|(point, _)| *point < hash);
                points.get(next).unwrap_or(&points[0]).1 as usize
            }
        }
    }
}

fn key(address: SocketAddr) -> String {
    address.to_string()
}

struct Walk {
    endpoint: u32,
    weight: f64,
    offset: u64,
    skip: u64,
    next: u64,
    target: f64,
}

fn maglev(size: u64, endpoints: &[Endpoint]) -> Box<[u32]> {
    const FREE: u32 = u32::MAX;
    let largest = endpoints.iter().map(|endpoint| endpoint.weight).max().unwrap_or(1);
    let mut walks: Vec<(String, Walk)> = (0_u32..)
        .zip(endpoints)
        .map(|(endpoint, of)| {
            let key = key(of.address);
            let walk = Walk {
                endpoint,
                weight: f64::from(of.weight),
                offset: xxh64(key.as_bytes(), 0) % size,
                skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
                next: 0,
                target: 0.0,
            };
            (key, walk)
        })
        .collect();
    walks.sort_by(|a, b| a.0.cmp(&b.0));
    let largest = f64::from(largest);
    let mut places = vec![FREE; usize::try_from(size).unwrap_or(1)];
    let mut free = size;
    let mut round = 1.0;
    while free > 0 {
        for (_, walk) in &mut walks {
            if free == 0 {
                break;
            }
            // The heaviest takes a place in each round, others in as many as is their share of that.
            if round * walk.weight < walk.target {
                continue;
            }
            walk.target += largest;
            loop {
                let place = (walk.offset + walk.skip * walk.next) % size;
                walk.next += 1;
                let place = &mut places[usize::try_from(place).unwrap_or_default()];
                if *place == FREE {
                    *place = walk.endpoint;
                    break;
                }
            }
            free -= 1;
        }
        round += 1.0;
    }
    places.into()
}

fn ring(minimum: u64, maximum: u64, endpoints: &[Endpoint]) -> Box<[(u64, u32)]> {
    let total: f64 = endpoints.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
    let smallest = endpoints.iter().map(|endpoint| f64::from(endpoint.weight) / total).fold(1.0, f64::min);
    // Each endpoint has a whole number of points, as long as the ring isn't too large for that.
    #[expect(clippy::cast_precision_loss, reason = "sizes of rings are far below 2^52")]
    let scale = ((smallest * minimum as f64).ceil() / smallest).min(maximum as f64);
    let mut points = Vec::new();
    let (mut current, mut target) = (0.0, 0.0);
    for (endpoint, of) in (0_u32..).zip(endpoints) {
        target += scale * f64::from(of.weight) / total;
        let key = key(of.address);
        let mut number = 0_u64;
        while current < target {
            points.push((xxh64(format!("{key}_{number}").as_bytes(), 0), endpoint));
            number += 1;
            current += 1.0;
        }
    }
    points.sort_unstable();
    points.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [HashTableKind; 2] =
        [HashTableKind::Maglev { size: 65_537 }, HashTableKind::Ring { minimum: 1_024, maximum: 8 << 20 }];

    fn endpoints(weights: &[u32]) -> Vec<Endpoint> {
        (1..)
            .zip(weights)
            .map(|(host, weight)| Endpoint {
                address: SocketAddr::from(([10, 0, 0, host], 80)),
                weight: *weight,
            })
            .collect()
    }

    fn hashes() -> impl Iterator<Item = u64> {
        (0..20_000_u64).map(|n| xxh64(&n.to_le_bytes(), 7))
    }

    #[test]
    fn shares_follow_the_weights() {
        for kind in KINDS {
            let endpoints = endpoints(&[1, 1, 2]);
            let table = EndpointTable::build(kind, &endpoints).unwrap();
            let mut counts = [0_u32; 3];
            hashes().for_each(|hash| counts[table.pick(hash)] += 1);
            for (count, share) in counts.into_iter().zip([5_000, 5_000, 10_000]) {
                assert!(count.abs_diff(share) < share / 4, "{kind:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_that_goes_moves_few_others() {
        for kind in KINDS {
            let all = endpoints(&[1; 10]);
            let mut fewer = all.clone();
            fewer.remove(3);
            let before = EndpointTable::build(kind, &all).unwrap();
            let after = EndpointTable::build(kind, &fewer).unwrap();
            let moved = hashes()
                .filter(|hash| {
                    let was = all[before.pick(*hash)].address;
                    was != all[3].address && was != fewer[after.pick(*hash)].address
                })
                .count();
            assert!(moved < 1_500, "{kind:?}: {moved} of 20,000");
        }
    }

    #[test]
    fn the_order_of_the_list_makes_no_difference_to_maglev() {
        let all = endpoints(&[1, 2, 3]);
        let mut reversed = all.clone();
        reversed.reverse();
        let [one, other] = [&all, &reversed].map(|list| EndpointTable::build(KINDS[0], list).unwrap());
        for hash in hashes().take(100) {
            assert_eq!(all[one.pick(hash)], reversed[other.pick(hash)]);
        }
    }

    #[test]
    fn without_endpoints_there_is_no_table() {
        assert_eq!(EndpointTable::build(KINDS[0], &[]), None);
    }
}
