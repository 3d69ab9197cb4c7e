//! Tables that give each source its endpoint, also when other endpoints come and go: Maglev hashing
//! (Eisenbud et al. 2016), with weights.
//!
//! Each endpoint has an order of all places, of its own, that follows from its address and port. In turns they
//! take the next free place of their order. So a table depends on which endpoints there are, not on how they
//! are listed, and is the same on all nodes.

use std::net::IpAddr;

use slotmesh_records::HashTable;

use crate::{alias::are_equal, config::Endpoint};

/// How many places a table has, and up to how many endpoints. Primes, so that any step leads through all
/// places; few, as a source keeps its endpoint only while the size stays; each of chunks that are nearly full.
/// With 8 places or more for each, the shares of endpoints of equal weight differ by an eighth at most.
const SIZES: [(usize, usize); 3] = [(4_079, 254), (65_269, 8_158), (519_161, usize::MAX)];

const _: () = assert!(SIZES[2].0 <= HashTable::PLACES);

const FREE: u32 = u32::MAX;

/// For each place the number of the endpoint that has it; empty where there is nothing to choose.
pub(crate) fn table(endpoints: &[Endpoint]) -> Vec<u32> {
    if endpoints.len() < 2 {
        return Vec::new();
    }
    let (size, _) =
        SIZES.into_iter().find(|&(_, most)| endpoints.len() <= most).expect("the last has no bound");
    let mut order: Vec<(u32, &Endpoint)> = (0..).zip(endpoints).collect();
    order.sort_by_key(|(_, endpoint)| (endpoint.ip, endpoint.port));
    let mut walks: Vec<Walk> = order.iter().map(|(_, endpoint)| Walk::of(endpoint, size)).collect();
    let mut places = vec![FREE; size];
    let mut take = |turn: usize| {
        let place = walks[turn].next_free(&places);
        places[place] = order[turn].0;
    };
    if are_equal(endpoints.iter().map(|endpoint| endpoint.weight.get())) {
        (0..order.len()).cycle().take(size).for_each(&mut take);
    } else {
        turns(order.iter().map(|(_, endpoint)| endpoint.weight.get()), size).for_each(&mut take);
    }
    places
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

/// An endpoint's order of the places: from one place by steps of a fixed width.
struct Walk {
    at: usize,
    step: usize,
}

impl Walk {
    fn of(endpoint: &Endpoint, size: usize) -> Self {
        let ip = match endpoint.ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let bits = ip.to_bits();
        let parts = [(bits >> 64) as u64, bits as u64, endpoint.port.get().into()];
        let hash = parts.into_iter().fold(0, |hash, part| mix(hash ^ part));
        let within = |hash: u64, size: usize| ((u128::from(hash) * size as u128) >> 64) as usize;
        Self { at: within(hash, size), step: within(mix(hash), size - 1) + 1 }
    }

    /// The next place of the order that nobody has; there is one.
    fn next_free(&mut self, places: &[u32]) -> usize {
        loop {
            let place = self.at;
            self.at += self.step;
            if self.at >= places.len() {
                self.at -= places.len();
            }
            if places[place] == FREE {
                return place;
            }
        }
    }
}

/// Spreads what differs in few bits over all of them (SplitMix64).
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
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

    /// Of the places that `gone` didn't have, the share that changed hands when it went.
    fn moved(before: &[IpAddr], after: &[IpAddr], gone: IpAddr) -> f64 {
        assert_eq!(before.len(), after.len());
        let stayed = before.iter().zip(after).filter(|(old, _)| **old != gone);
        let (all, moved) =
            stayed.fold((0, 0), |(all, moved), (old, new)| (all + 1, moved + i32::from(old != new)));
        f64::from(moved) / f64::from(all)
    }

    fn is_prime(n: usize) -> bool {
        (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
    }

    #[test]
    fn sizes_are_primes() {
        assert!(SIZES.iter().all(|&(size, _)| is_prime(size)));
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
        fn few_move_that_need_not(n in 2..400_u32, gone in any::<prop::sample::Index>(), seed in 0..60_000_u32) {
            let mut list: Vec<_> = (0..n).map(|i| endpoint(seed + i, 1)).collect();
            let before = addresses(&list);
            let gone = list.remove(gone.index(list.len())).ip;
            let after = addresses(&list);
            // One endpoint has no table; another size moves all.
            if before.len() == after.len() {
                let moved = moved(&before, &after, gone);
                prop_assert!(moved < 0.05, "{moved} of {n}");
            }
        }
    }

    #[test]
    fn many_endpoints_have_their_share_each() {
        for n in [254, 255, 5_000, 8_158, 20_000] {
            let mut list: Vec<_> = (0..n).map(|i| endpoint(i, 1)).collect();
            let before = addresses(&list);
            let (least, most) = (before.len() / list.len(), before.len().div_ceil(list.len()));
            assert!(counts(&before).values().all(|count| (least..=most).contains(count)), "{n}");
            assert!(most - least <= 1 && least >= 8, "{n}: {least} to {most}");
            let gone = list.remove(77).ip;
            let after = addresses(&list);
            if before.len() == after.len() {
                let moved = moved(&before, &after, gone);
                assert!(moved < 0.03, "{moved} of {n}");
            }
        }
    }
}
