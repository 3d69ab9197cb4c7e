//! Tables that give each source its endpoint, also when other endpoints come and go: Maglev hashing
//! (Eisenbud et al. 2016), with weights, and with sizes that grow with the number of endpoints.
//!
//! Each endpoint has an order of all places, of its own, that follows from its address and port. In turns they
//! take the next free place of their order. So a table depends on which endpoints there are, not on how they
//! are listed, and is the same on all nodes.
//!
//! A larger table begins as the smaller one of the same endpoints, with two places for each. Who has more than his
//! share gives places up, and those who have less take them in turns. So a source keeps its endpoint also where one
//! endpoint more asks for a larger table.

use std::net::IpAddr;

use slotmesh_records::HashTable;

use crate::{alias::are_equal, config::Endpoint};

/// Places of the smallest table; each larger one has twice as many. The largest fills its chunks.
const BASE: usize = 4_056;
/// How often a table may double.
const DOUBLINGS: u32 = 7;
/// So many places at least for each endpoint, as far as tables go: then the shares of endpoints of equal weight differ
/// by an eighth at most.
const PLACES_EACH: usize = 8;

const _: () = assert!(BASE << DOUBLINGS <= HashTable::PLACES && BASE << (DOUBLINGS + 1) > HashTable::PLACES);

const FREE: u32 = u32::MAX;

/// The tables of a load assignment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Of its IPv4 endpoints.
    pub(crate) v4: Vec<u32>,
    /// Of its IPv6 endpoints.
    pub(crate) v6: Vec<u32>,
}

impl Tables {
    pub(crate) fn of(v4: &[Endpoint], v6: &[Endpoint]) -> Self {
        Self { v4: table(v4), v6: table(v6) }
    }
}

/// For each place the number of the endpoint that has it; empty where there is nothing to choose.
fn table(endpoints: &[Endpoint]) -> Vec<u32> {
    if endpoints.len() < 2 {
        return Vec::new();
    }
    let mut order: Vec<(u32, &Endpoint)> = (0..).zip(endpoints).collect();
    order.sort_by_key(|(_, endpoint)| (endpoint.ip, endpoint.port));
    let weights: Vec<u32> = order.iter().map(|(_, endpoint)| endpoint.weight.get()).collect();
    let mut places = Places::smallest(order.iter().map(|(_, endpoint)| *endpoint), &weights);
    for _ in 0..DOUBLINGS {
        if places.owners.len() >= endpoints.len() * PLACES_EACH {
            break;
        }
        places.double(&weights);
    }
    places.owners.into_iter().map(|owner| order[owner as usize].0).collect()
}

/// A table, by the numbers of endpoints in the order of their addresses.
struct Places {
    owners: Vec<u32>,
    walks: Vec<Walk>,
    /// How many places each has.
    counts: Vec<u32>,
}

impl Places {
    fn smallest<'e>(endpoints: impl Iterator<Item = &'e Endpoint>, weights: &[u32]) -> Self {
        let walks = endpoints.map(Walk::of).collect();
        let mut places = Self { owners: vec![FREE; BASE], walks, counts: vec![0; weights.len()] };
        let mut take = |endpoint| places.take(endpoint);
        if are_equal(weights.iter().copied()) {
            (0..weights.len()).cycle().take(BASE).for_each(&mut take);
        } else {
            turns(weights.iter().copied(), BASE).for_each(&mut take);
        }
        places
    }

    /// The endpoint takes the next free place of its order; there is one.
    fn take(&mut self, endpoint: usize) {
        let place = self.walks[endpoint].next_free(&self.owners);
        self.owners[place] = endpoint as u32;
        self.counts[endpoint] += 1;
    }

    fn double(&mut self, weights: &[u32]) {
        self.owners = self.owners.iter().flat_map(|&owner| [owner; 2]).collect();
        self.counts.iter_mut().for_each(|count| *count *= 2);
        let due = shares(weights, self.owners.len());
        let has_more = |owner: u32| self.counts[owner as usize] > due[owner as usize];
        // Which it gives up follows from endpoint and place alone.
        let given = (0..).zip(&self.owners).filter(|&(_, &owner)| has_more(owner));
        let mut given: Vec<(u32, u64, u32)> = given
            .map(|(place, &owner)| (owner, mix(self.walks[owner as usize].seed ^ u64::from(place)), place))
            .collect();
        given.sort_unstable();
        for (owner, _, place) in given {
            if self.counts[owner as usize] > due[owner as usize] {
                self.counts[owner as usize] -= 1;
                self.owners[place as usize] = FREE;
            }
        }
        self.walks.iter_mut().for_each(|walk| walk.step = 0);
        let mut open: Vec<usize> = (0..due.len()).collect();
        loop {
            open.retain(|&endpoint| self.counts[endpoint] < due[endpoint]);
            if open.is_empty() {
                break;
            }
            open.iter().for_each(|&endpoint| self.take(endpoint));
        }
    }
}

/// How many of `size` places each weight is due: its share rounded down, and one more for those of which most was cut
/// off, the first of equals.
fn shares(weights: &[u32], size: usize) -> Vec<u32> {
    let sum: u128 = weights.iter().copied().map(u128::from).sum();
    let exact = |weight: u32| size as u128 * u128::from(weight);
    let mut due: Vec<u32> = weights.iter().map(|&weight| (exact(weight) / sum) as u32).collect();
    let left = size - due.iter().map(|&due| due as usize).sum::<usize>();
    let mut rest: Vec<(u128, usize)> =
        weights.iter().enumerate().map(|(i, &weight)| (sum - exact(weight) % sum, i)).collect();
    rest.sort_unstable();
    rest.into_iter().take(left).for_each(|(_, i)| due[i] += 1);
    due
}

/// Whose turn it is, `size` times: the `k`-th turn of a weight comes at `(2k + 1) / weight` (Webster's
/// apportionment), so that each has its share, spread over all turns.
fn turns(weights: impl Iterator<Item = u32> + Clone, size: usize) -> impl Iterator<Item = usize> {
    let sum: u64 = weights.clone().map(u64::from).sum();
    let mut turns = Vec::with_capacity(2 * size);
    for (i, weight) in weights.map(u64::from).enumerate() {
        // Its share of less than 2^20 places, and what rounding may add.
        let most = size as u64 * weight / sum + 1;
        turns.extend((0..=most).map(|k| (((2 * k + 1) << 40) / weight, i)));
    }
    turns.sort_unstable();
    turns.into_iter().take(size).map(|(_, i)| i)
}

/// An endpoint's order of the places: random numbers, each of which is a place in a table of any size.
struct Walk {
    seed: u64,
    step: u64,
}

impl Walk {
    fn of(endpoint: &Endpoint) -> Self {
        let ip = match endpoint.ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let bits = ip.to_bits();
        let parts = [(bits >> 64) as u64, bits as u64, endpoint.port.get().into()];
        Self { seed: parts.into_iter().fold(0, |hash, part| mix(hash ^ part)), step: 0 }
    }

    /// The next place of the order that nobody has; there is one.
    fn next_free(&mut self, owners: &[u32]) -> usize {
        loop {
            let number = mix(self.seed.wrapping_add(self.step.wrapping_mul(GOLDEN)));
            self.step += 1;
            let place = ((u128::from(number) * owners.len() as u128) >> 64) as usize;
            if owners[place] == FREE {
                return place;
            }
        }
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads what differs in few bits over all of them (SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(GOLDEN);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, net::Ipv4Addr, num::NonZeroU32};

    use proptest::prelude::*;

    use super::*;

    fn endpoint(i: u32, weight: u32) -> Endpoint {
        Endpoint {
            degraded: false,
            ip: Ipv4Addr::from_bits(0x0a01_0000 + i).into(),
            port: 8080.try_into().unwrap(),
            locality: 0,
            weight: NonZeroU32::new(weight).unwrap(),
        }
    }

    /// The address that each place leads to.
    fn addresses(endpoints: &[Endpoint]) -> Vec<IpAddr> {
        table(endpoints).into_iter().map(|i| endpoints[i as usize].ip).collect()
    }

    fn counts(addresses: &[IpAddr]) -> HashMap<IpAddr, usize> {
        let mut counts = HashMap::new();
        addresses.iter().for_each(|ip| *counts.entry(*ip).or_default() += 1);
        counts
    }

    /// Of the sources that `gone` didn't have, the share that changed hands when it went.
    fn moved(before: &[IpAddr], after: &[IpAddr], gone: IpAddr) -> f64 {
        // A source is a number below 1, whatever the size.
        let most = before.len().max(after.len());
        let of = |table: &[IpAddr], source: usize| table[source * table.len() / most];
        let stayed = (0..most).map(|source| (of(before, source), of(after, source)));
        let (all, moved) = stayed
            .filter(|(old, _)| *old != gone)
            .fold((0, 0), |(all, moved), (old, new)| (all + 1, moved + i32::from(old != new)));
        f64::from(moved) / f64::from(all)
    }

    proptest! {
        #[test]
        fn shares_follow_weights_and_no_order_matters(
            weights in prop::collection::vec(1..1000_u32, 2..100), equal in any::<bool>(), seed in any::<u32>(),
        ) {
            let weight = |weight| if equal { 7 } else { weight };
            let list: Vec<_> = (0..).zip(&weights).map(|(i, &w)| endpoint(seed % 60_000 + i, weight(w))).collect();
            let chosen = addresses(&list);
            let counts = counts(&chosen);
            let sum: u32 = list.iter().map(|e| e.weight.get()).sum();
            for one in &list {
                let share = chosen.len() as f64 * f64::from(one.weight.get()) / f64::from(sum);
                let count = counts.get(&one.ip).copied().unwrap_or(0) as f64;
                prop_assert!((count - share).abs() <= if equal { 1.0 } else { 2.0 }, "{one:?}: {count} for {share}");
            }
            let reversed: Vec<_> = list.iter().rev().copied().collect();
            prop_assert_eq!(addresses(&reversed), chosen);
        }

        /// Besides the sources of the endpoint that goes, few move.
        #[test]
        fn few_move_that_need_not(n in 3..1_200_u32, gone in any::<prop::sample::Index>(), seed in 0..60_000_u32) {
            let mut list: Vec<_> = (0..n).map(|i| endpoint(seed + i, 1)).collect();
            let before = addresses(&list);
            let gone = list.remove(gone.index(list.len())).ip;
            let after = addresses(&list);
            let moved = moved(&before, &after, gone);
            prop_assert!(moved < 0.06, "{moved} of {n}");
        }
    }

    #[test]
    fn many_endpoints_have_their_share_each_and_no_size_moves_all_sources() {
        // Where a table doubles, and in between.
        for n in [254, 255, 507, 508, 1_014, 1_015, 5_000, 8_158, 8_159, 20_000] {
            let mut list: Vec<_> = (0..n).map(|i| endpoint(i, 1)).collect();
            let before = addresses(&list);
            let (least, most) = (before.len() / list.len(), before.len().div_ceil(list.len()));
            assert!(counts(&before).values().all(|count| (least..=most).contains(count)), "{n}");
            assert!(least >= PLACES_EACH, "{n}: {least} to {most}");
            let gone = list.remove(77).ip;
            let after = addresses(&list);
            let moved = moved(&before, &after, gone);
            assert!(moved < 0.06, "{moved} of {n}");
        }
    }

    #[test]
    fn shares_add_up() {
        assert_eq!(shares(&[1, 1, 1], 10), [4, 3, 3]);
        assert_eq!(shares(&[80, 20], 4_056), [3_245, 811]);
        assert_eq!(shares(&[u32::MAX, 1], 519_168), [519_168, 0]);
    }
}
