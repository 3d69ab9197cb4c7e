//! How callers on this node choose among localities: the shares of some, or the nearest first, as Istio's
//! `localityLbSetting` has it.
//!
//! Each address family by itself. Where it isn't known where this node is, endpoints of all localities are alike.
//!
//! Where all of the nearest are left out because connects to them fail, the next nearest stand in for them, and so on.
//! Those that are left out stay in the list, with next to no weight: programs pass them over, and count how many are left
//! out of how many.

use std::{collections::BTreeSet, net::SocketAddr, num::NonZeroU32};

use slotmesh_xds::{EndpointHints, LocalityPolicy, LocalityShares};

use crate::{
    config::{Endpoint, Locality, NodePlace},
    view::View,
};

/// The sum of the weights of a locality, for each percent of its share.
const PER_PERCENT: u64 = 1 << 20;
/// The most by which the weight of an endpoint exceeds that of one for which it stands in.
const STANDING_IN: u32 = 1 << 16;

/// Leaves the endpoints of a family that a policy has callers on a node choose from, with the weights that they have
/// then. Returns whether some of them stand in for nearer ones, which are `left_out`; `None` where all have the same
/// distance, or none counts.
pub(crate) fn choose(
    policy: &LocalityPolicy,
    family: &mut Vec<Endpoint>,
    localities: &[Locality<'_>],
    hints: &[EndpointHints],
    view: &View,
    left_out: Option<&BTreeSet<SocketAddr>>,
) -> Option<bool> {
    let NodePlace { region, zone, sub_zone } = &view.place;
    let own = Locality { region, zone, sub_zone, ..Locality::default() };
    if own.is_anonymous() {
        return None;
    }
    if !policy.distribute.is_empty() {
        // Callers of whom nothing is said choose from all alike.
        if let Some(shares) = policy.distribute.iter().find(|shares| matches(&shares.from, &own)) {
            share_out(shares, family, localities);
        }
        return None;
    }
    let distance = |endpoint: &Endpoint| {
        let i = usize::from(endpoint.locality);
        if policy.prefer.is_empty() {
            by_place(policy, &own, &localities[i])
        } else {
            by_preference(policy, &own, &localities[i], &hints[i], view)
        }
    };
    let distances: Vec<usize> = family.iter().map(distance).collect();
    let (least, farthest) = (*distances.iter().min()?, *distances.iter().max()?);
    if least == farthest {
        return None;
    }
    let is_out = |endpoint: &Endpoint| {
        left_out.is_some_and(|out| out.contains(&SocketAddr::new(endpoint.ip, endpoint.port.get())))
    };
    let reached = distances.iter().zip(&*family).filter(|(_, endpoint)| !is_out(endpoint));
    let found = reached.map(|(distance, _)| *distance).min();
    // Where all are left out, all are counted.
    let most = found.unwrap_or(farthest);
    let stand_in = most != least;
    let mut distances = distances.into_iter();
    family.retain(|_| distances.next().is_some_and(|distance| distance <= most));
    if stand_in && found.is_some() {
        let heaviest = family.iter().map(|endpoint| endpoint.weight.get()).max()?;
        let factor = (u32::MAX / heaviest).clamp(1, STANDING_IN);
        for endpoint in family {
            let weight = if is_out(endpoint) { 1 } else { endpoint.weight.get().saturating_mul(factor) };
            endpoint.weight = NonZeroU32::new(weight).unwrap_or(NonZeroU32::MIN);
        }
    }
    Some(stand_in)
}

/// Tells whether a place is of a locality as a policy writes it.
fn matches(pattern: &str, place: &Locality<'_>) -> bool {
    let mut parts = pattern.split('/');
    [place.region, place.zone, place.sub_zone]
        .into_iter()
        .all(|part| parts.next().is_none_or(|wanted| wanted == "*" || wanted == part))
}

/// Weighs endpoints so that those of each locality have its share together. A share of which there is no endpoint goes to
/// the others; what has no share goes.
fn share_out(shares: &LocalityShares, family: &mut Vec<Endpoint>, localities: &[Locality<'_>]) {
    let of = |endpoint: &Endpoint| {
        let place = &localities[usize::from(endpoint.locality)];
        shares.to.iter().position(|share| matches(&share.to, place))
    };
    let mut sums = vec![0_u64; shares.to.len()];
    for endpoint in &*family {
        if let Some(share) = of(endpoint) {
            sums[share] += u64::from(endpoint.weight.get());
        }
    }
    family.retain_mut(|endpoint| {
        let Some(share) = of(endpoint) else { return false };
        let whole = u64::from(shares.to[share].percent) * PER_PERCENT;
        let weight = whole * u64::from(endpoint.weight.get()) / sums[share];
        let weight = u32::try_from(weight).ok().and_then(NonZeroU32::new);
        endpoint.weight = weight.unwrap_or(NonZeroU32::MIN);
        true
    });
}

/// The distance of endpoints: 0 in the same part of a zone, 1 in the zone, 2 in the region, 3 elsewhere, 4 elsewhere
/// where another region goes before.
fn by_place(policy: &LocalityPolicy, own: &Locality<'_>, place: &Locality<'_>) -> usize {
    if own.region == place.region {
        return match (own.zone == place.zone, own.sub_zone == place.sub_zone) {
            (true, true) => 0,
            (true, false) => 1,
            _ => 2,
        };
    }
    let next = policy.failover.iter().find(|failover| failover.from == own.region);
    if next.is_none_or(|failover| failover.to == place.region) { 3 } else { 4 }
}

/// The distance of endpoints: how many of the preferences aren't met, from the first one that isn't.
fn by_preference(
    policy: &LocalityPolicy,
    own: &Locality<'_>,
    place: &Locality<'_>,
    hints: &EndpointHints,
    view: &View,
) -> usize {
    let met = policy.prefer.iter().enumerate().take_while(|(i, preference)| match preference.as_str() {
        LocalityPolicy::REGION => own.region == place.region,
        LocalityPolicy::ZONE => own.zone == place.zone,
        LocalityPolicy::SUB_ZONE => own.sub_zone == place.sub_zone,
        LocalityPolicy::NODE => hints.on_node == view.node,
        // A label with its value. Beyond 32 there is none.
        _ => hints.agreeing.checked_shr(*i as u32).is_some_and(|bits| bits & 1 == 1),
    });
    policy.prefer.len() - met.count()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::Ipv4Addr};

    use proptest::prelude::*;
    use slotmesh_xds::{LocalityShare, RegionFailover};

    use super::*;

    const REGIONS: [&str; 3] = ["eu", "us", "ap"];
    const ZONES: [&str; 3] = ["a", "b", "c"];

    /// A region and a zone of it.
    type Place = (usize, usize);

    fn endpoint(i: usize, locality: usize, weight: u32) -> Endpoint {
        Endpoint {
            ip: Ipv4Addr::from(0x0a00_0000 + i as u32).into(),
            port: 80.try_into().unwrap(),
            locality: locality as u16,
            weight: weight.try_into().unwrap(),
            degraded: false,
        }
    }

    fn view((region, zone): Place) -> View {
        let place = NodePlace {
            region: REGIONS[region].to_owned(),
            zone: ZONES[zone].to_owned(),
            sub_zone: String::new(),
        };
        View { node: "here".to_owned(), place, ..View::default() }
    }

    /// One endpoint in each place, in a locality of its own; those left, by their number, with their weights.
    fn chosen(policy: &LocalityPolicy, at: &[(Place, u32)], view: &View) -> BTreeMap<usize, u32> {
        chosen_without(policy, at, view, &[]).0
    }

    /// The same while some are left out, and whether some stand in for others.
    fn chosen_without(
        policy: &LocalityPolicy,
        at: &[(Place, u32)],
        view: &View,
        left_out: &[usize],
    ) -> (BTreeMap<usize, u32>, Option<bool>) {
        let places = at.iter().map(|&((region, zone), _)| Locality {
            region: REGIONS[region],
            zone: ZONES[zone],
            ..Locality::default()
        });
        let places: Vec<_> = places.collect();
        let mut family: Vec<_> =
            at.iter().enumerate().map(|(i, &(_, weight))| endpoint(i, i, weight)).collect();
        let hints = vec![EndpointHints::default(); at.len()];
        let address = |endpoint: &Endpoint| SocketAddr::new(endpoint.ip, endpoint.port.get());
        let left_out = left_out.iter().map(|i| address(&family[*i])).collect();
        let stand_in = choose(policy, &mut family, &places, &hints, view, Some(&left_out));
        let of = |endpoint: &Endpoint| (usize::from(endpoint.locality), endpoint.weight.get());
        (family.iter().map(of).collect(), stand_in)
    }

    fn shares(from: &str, to: &[(&str, u32)]) -> LocalityShares {
        let to = to.iter().map(|&(to, percent)| LocalityShare { to: to.to_owned(), percent });
        LocalityShares { from: from.to_owned(), to: to.collect() }
    }

    fn place() -> impl Strategy<Value = Place> {
        (0..3_usize, 0..3_usize)
    }

    #[test]
    fn a_pattern_is_of_what_it_begins() {
        let place = Locality { region: "eu", zone: "a", sub_zone: "1", ..Locality::default() };
        for (pattern, is) in [
            ("*", true),
            ("eu", true),
            ("eu/*", true),
            ("eu/a", true),
            ("eu/a/*", true),
            ("eu/a/1", true),
            ("us", false),
            ("eu/b/1", false),
            ("eu/a/2", false),
        ] {
            assert_eq!(matches(pattern, &place), is, "{pattern}");
        }
    }

    #[test]
    fn who_is_nowhere_or_of_whom_nothing_is_said_chooses_from_all() {
        let at = [((0, 0), 1), ((1, 0), 2)];
        let all = BTreeMap::from([(0, 1), (1, 2)]);
        let nearest = LocalityPolicy::default();
        assert_eq!(chosen(&nearest, &at, &View::default()), all);
        let distribute = vec![shares("us", &[("us", 100)])];
        let policy = LocalityPolicy { distribute, ..LocalityPolicy::default() };
        assert_eq!(chosen(&policy, &at, &view((0, 0))), all);
        assert_eq!(chosen(&policy, &at, &view((1, 0))), BTreeMap::from([(1, 100 << 20)]));
    }

    #[test]
    fn preferences_count_from_the_first_one_that_is_not_met() {
        let prefer = ["tier=gold", LocalityPolicy::ZONE, LocalityPolicy::NODE].map(str::to_owned).to_vec();
        let policy = LocalityPolicy { prefer, ..LocalityPolicy::default() };
        let places = [Locality { region: "eu", zone: "a", ..Locality::default() }, Locality::default()];
        let hints = |agreeing, on_node: &str| EndpointHints {
            agreeing,
            on_node: on_node.to_owned(),
            ..EndpointHints::default()
        };
        let own = Locality { region: "eu", zone: "a", ..Locality::default() };
        let view = view((0, 0));
        for (place, hints, distance) in [
            (0, hints(1, "here"), 0),
            (0, hints(1, "there"), 1),
            (1, hints(1, "here"), 2),
            (0, hints(0, "here"), 3),
        ] {
            assert_eq!(by_preference(&policy, &own, &places[place], &hints, &view), distance, "{hints:?}");
        }
    }

    #[test]
    fn the_next_nearest_stand_in_for_those_that_are_left_out() {
        let policy = LocalityPolicy::default();
        // Two of the zone, one of the region, two elsewhere.
        let at = [((0, 0), 3), ((0, 0), 1), ((0, 1), 2), ((1, 0), 1), ((2, 0), 3)];
        let of = |left_out: &[usize]| chosen_without(&policy, &at, &view((0, 0)), left_out);
        let map = |of: &[(usize, u32)]| of.iter().copied().collect::<BTreeMap<_, _>>();
        assert_eq!(of(&[]), (map(&[(0, 3), (1, 1)]), Some(false)));
        assert_eq!(of(&[0]), (map(&[(0, 3), (1, 1)]), Some(false)), "one of the zone is left");
        assert_eq!(of(&[2, 3, 4]), (map(&[(0, 3), (1, 1)]), Some(false)), "none of them is asked");
        let by = STANDING_IN;
        assert_eq!(of(&[0, 1]), (map(&[(0, 1), (1, 1), (2, 2 * by)]), Some(true)));
        // And so on, by their own weights.
        let all = map(&[(0, 1), (1, 1), (2, 1), (3, by), (4, 3 * by)]);
        assert_eq!(of(&[0, 1, 2]), (all, Some(true)));
        assert_eq!(of(&[0, 1, 2, 3, 4]), (map(&[(0, 3), (1, 1), (2, 2), (3, 1), (4, 3)]), Some(true)));
        // Where there is nobody farther away there is nobody to stand in.
        let (found, stand_in) = chosen_without(&policy, &at[..2], &view((0, 0)), &[0, 1]);
        assert_eq!((found, stand_in), (map(&[(0, 3), (1, 1)]), None));
        // Weights that are large already stay in proportion.
        let heavy = [((0, 0), 1), ((1, 0), u32::MAX / 2), ((1, 1), u32::MAX / 4)];
        let (found, _) = chosen_without(&policy, &heavy, &view((0, 0)), &[0]);
        assert!(found[&1] / found[&2] == 2 && found[&0] == 1, "{found:?}");
    }

    proptest! {
        #[test]
        fn the_nearest_are_taken(
            at in prop::collection::vec(place(), 0..6), own in place(),
            failover in prop::option::of((0..3_usize, 0..3_usize)),
        ) {
            let policy = LocalityPolicy {
                failover: failover.into_iter().map(|(from, to)| RegionFailover {
                    from: REGIONS[from].to_owned(), to: REGIONS[to].to_owned(),
                }).collect(),
                ..LocalityPolicy::default()
            };
            let found = chosen(&policy, &at.iter().map(|&at| (at, 1)).collect::<Vec<_>>(), &view(own));
            // As it is written down: the zone, else the region, else the region that is named, else all.
            let next = failover.filter(|(from, _)| *from == own.0).map(|(_, to)| to);
            let rules: [&dyn Fn(&Place) -> bool; 4] = [
                &|at| *at == own,
                &|at| at.0 == own.0,
                &|at| next.is_none_or(|to| to == at.0),
                &|_| true,
            ];
            let expected = rules.iter().find_map(|rule| {
                let some: Vec<usize> = (0..at.len()).filter(|&i| rule(&at[i])).collect();
                (!some.is_empty()).then_some(some)
            });
            prop_assert_eq!(found.into_keys().collect::<Vec<_>>(), expected.unwrap_or_default());
        }

        #[test]
        fn each_locality_has_its_share(
            at in prop::collection::vec((place(), 1..100_u32), 1..12), own in place(), percent in 1..100_u32,
        ) {
            let distribute = vec![shares("*", &[("eu/a", percent), ("eu", 100 - percent)])];
            let policy = LocalityPolicy { distribute, ..LocalityPolicy::default() };
            let found = chosen(&policy, &at, &view(own));
            let of = |rule: &dyn Fn(Place) -> bool| -> f64 {
                found.iter().filter(|(i, _)| rule(at[**i].0)).map(|(_, weight)| f64::from(*weight)).sum()
            };
            let is_first = |at: Place| at == (0, 0);
            let is_second = |at: Place| at.0 == 0 && at.1 != 0;
            let (first, second) = (of(&is_first), of(&is_second));
            prop_assert_eq!(of(&|at| !is_first(at) && !is_second(at)), 0.0);
            let exists = |rule: &dyn Fn(Place) -> bool| at.iter().any(|(at, _)| rule(*at));
            match (exists(&is_first), exists(&is_second)) {
                (true, true) => {
                    let share = 100.0 * first / (first + second);
                    prop_assert!((share - f64::from(percent)).abs() < 0.01, "{share} for {percent}");
                }
                (one, other) => prop_assert_eq!((first > 0.0, second > 0.0), (one, other)),
            }
            // Within a locality as by their own weights.
            for (i, weight) in &found {
                for (j, other) in &found {
                    if is_first(at[*i].0) == is_first(at[*j].0) {
                        let (one, other) = (u64::from(*weight) * u64::from(at[*j].1), u64::from(*other) * u64::from(at[*i].1));
                        prop_assert!(one.abs_diff(other) <= 2 * 100 * 100, "{one} {other}");
                    }
                }
            }
        }
    }
}
