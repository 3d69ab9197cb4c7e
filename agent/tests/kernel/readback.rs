//! What the kernel holds equals what was configured: every choice the programs can make, with its
//! probability, for random configurations.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use proptest::prelude::*;
use slotmesh_agent::{Decision, Options};
use slotmesh_records::name_hash;
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener, Route};

use crate::{
    Bench,
    config::{cluster, endpoints, http_listener, route, tcp_listener},
};

type Shares = BTreeMap<(u64, SocketAddr), f64>;

/// The exact distribution over clusters and endpoints, by asking each element of each alias table with
/// the numbers around its threshold.
fn distribution(bench: &Bench, vip: SocketAddr, clusters: usize, largest: usize) -> Option<Shares> {
    let ask = |randoms| bench.agent().datapath().ask(vip, randoms).expect("the question is answered");
    let cluster_of = |random| match ask((random, 0)) {
        Decision::Redirect { cluster, .. } => Some(cluster),
        _ => None,
    };
    let mut shares = Shares::new();
    for (random, share) in steps(clusters, cluster_of) {
        let endpoint_of = |endpoint| match ask((random, endpoint)) {
            Decision::Redirect { to, .. } => Some(to),
            _ => None,
        };
        let cluster = cluster_of(random)?;
        for (endpoint_random, endpoint_share) in steps(largest, endpoint_of) {
            let to = endpoint_of(endpoint_random)?;
            *shares.entry((cluster, to)).or_default() += share * endpoint_share;
        }
    }
    Some(shares)
}

/// Cuts the range of a random number into pieces of equal answer: the borders of `n` equal parts are
/// known, and within each there is at most one border more, found by bisection.
fn steps<T: PartialEq>(n: usize, answer: impl Fn(u32) -> T) -> Vec<(u32, f64)> {
    const RANGE: u64 = 1 << 32;
    let border = |i: usize| (i as u64 * RANGE).div_ceil(n as u64);
    let mut steps = Vec::new();
    for i in 0..n {
        let (first, end) = (border(i), border(i + 1));
        let (mut same, mut other) = (first, end);
        if answer(first as u32) == answer((end - 1) as u32) {
            steps.push((first as u32, (end - first) as f64 / RANGE as f64));
            continue;
        }
        while other - same > 1 {
            let middle = same.midpoint(other);
            if answer(middle as u32) == answer(first as u32) { same = middle } else { other = middle }
        }
        steps.push((first as u32, (other - first) as f64 / RANGE as f64));
        steps.push((other as u32, (end - other) as f64 / RANGE as f64));
    }
    steps
}

#[derive(Clone, Debug)]
struct Setup {
    /// Per cluster, its endpoints' weights.
    clusters: Vec<Vec<u32>>,
    v6: bool,
    http: bool,
    /// The weights of the clusters in the route.
    weights: Vec<u32>,
}

fn setup() -> impl Strategy<Value = Setup> {
    let endpoint_weights = prop::collection::vec(1..100_u32, 1..12);
    (prop::collection::vec(endpoint_weights, 1..4), any::<bool>(), any::<bool>())
        .prop_flat_map(|(clusters, v6, http)| {
            let weights = prop::collection::vec(1..1000_u32, clusters.len());
            (Just(clusters), Just(v6), Just(http), weights)
        })
        .prop_map(|(clusters, v6, http, weights)| Setup { clusters, v6, http, weights })
}

fn endpoint(setup: &Setup, cluster: usize, i: usize) -> SocketAddr {
    let port = 1000 + i as u16;
    if setup.v6 {
        SocketAddr::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, cluster as u16, i as u16).into(), port)
    } else {
        SocketAddr::new(Ipv4Addr::new(192, 168, cluster as u8, i as u8).into(), port)
    }
}

fn vip(setup: &Setup) -> SocketAddr {
    let ip: IpAddr = if setup.v6 { "fd00:96::1".parse().unwrap() } else { "10.96.0.1".parse().unwrap() };
    SocketAddr::new(ip, 80)
}

fn apply(bench: &Bench, setup: &Setup) {
    let names: Vec<String> = (0..setup.clusters.len()).map(|i| format!("c{i}")).collect();
    assert_eq!(bench.upsert(Cluster, names.iter().map(|name| cluster(name)).collect()), []);
    let assignments = setup.clusters.iter().enumerate().map(|(c, weights)| {
        let list: Vec<_> = weights.iter().enumerate().map(|(i, &w)| (endpoint(setup, c, i), w)).collect();
        endpoints(&names[c], &list)
    });
    assert_eq!(bench.upsert(Endpoints, assignments.collect()), []);
    let weighted: Vec<_> = names.into_iter().zip(setup.weights.iter().copied()).collect();
    let listener = if setup.http {
        assert_eq!(bench.upsert(Route, vec![route("r", &weighted)]), []);
        http_listener("l", vip(setup), "r")
    } else {
        tcp_listener("l", vip(setup), &weighted)
    };
    assert_eq!(bench.upsert(Listener, vec![listener]), []);
}

fn expected(setup: &Setup) -> Shares {
    let total: f64 = setup.weights.iter().map(|&w| f64::from(w)).sum();
    let mut shares = Shares::new();
    for (c, weights) in setup.clusters.iter().enumerate() {
        let sum: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for (i, &weight) in weights.iter().enumerate() {
            let share = f64::from(setup.weights[c]) / total * f64::from(weight) / sum;
            shares.insert((name_hash(&format!("c{c}")), endpoint(setup, c, i)), share);
        }
    }
    shares
}

#[test]
fn the_kernel_holds_what_was_configured() {
    // One agent for all cases: each configuration replaces the one before it, of another family and
    // another kind of listener too.
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    let result = runner.run(&setup(), |setup| {
        apply(&bench, &setup);
        let largest = setup.clusters.iter().map(Vec::len).product::<usize>();
        let found = distribution(&bench, vip(&setup), setup.clusters.len(), largest);
        let found = found.expect("every connection is redirected");
        let expected = expected(&setup);
        prop_assert_eq!(found.keys().collect::<BTreeSet<_>>(), expected.keys().collect::<BTreeSet<_>>());
        for (target, share) in expected {
            prop_assert!((found[&target] - share).abs() < 1e-6, "{target:?}: {} for {share}", found[&target]);
        }
        let other = if setup.v6 { "10.96.0.1:80" } else { "[fd00:96::1]:80" };
        let other = bench.agent().datapath().ask(other.parse().unwrap(), (0, 0)).unwrap();
        prop_assert_eq!(other, Decision::Pass, "the address of the configuration before is gone");
        Ok(())
    });
    result.unwrap();
}

#[test]
fn three_hundred_endpoints_are_all_chosen() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    for count in [1_usize, 126, 127, 300, 1000, 5000] {
        let weights = vec![1; count];
        let setup = Setup { clusters: vec![vec![]], v6: false, http: false, weights: vec![1] };
        let list: Vec<_> = weights
            .iter()
            .enumerate()
            .map(|(i, &weight)| {
                let ip = Ipv4Addr::from_bits(0x0a00_0000 + i as u32);
                (SocketAddr::new(ip.into(), 8080), weight)
            })
            .collect();
        assert_eq!(bench.upsert(Cluster, vec![cluster("c0")]), []);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("c0", &list)]), []);
        let only = [("c0".to_owned(), 1)];
        assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", vip(&setup), &only)]), []);
        let chosen: BTreeSet<SocketAddr> = (0..count)
            .map(|i| {
                let random = ((i as u64 * (1 << 32)).div_ceil(count as u64)) as u32;
                match bench.agent().datapath().ask(vip(&setup), (0, random)).unwrap() {
                    Decision::Redirect { to, .. } => to,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        assert_eq!(chosen.len(), count);
    }
}

#[test]
fn a_service_without_endpoints_refuses_and_an_unknown_address_passes() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let ask = |to| bench.agent().datapath().ask(to, (0, 0)).unwrap();
    assert_eq!(ask(vip), Decision::Pass);
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[])]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", vip, &[("web".to_owned(), 1)])]), []);
    assert_eq!(ask(vip), Decision::Refuse);
    assert_eq!(ask("10.96.0.1:81".parse().unwrap()), Decision::Pass, "another port");
    let six = [("[fd00::1]:80".parse().unwrap(), 1)];
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &six)]), []);
    assert_eq!(ask(vip), Decision::Refuse, "an IPv4 socket can't reach an IPv6 endpoint");
    bench.remove(Listener, &["l"]);
    assert_eq!(ask(vip), Decision::Pass);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_good_ones_take_effect() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let zero = tcp_listener("bad", vip, &[("a".to_owned(), 0), ("b".to_owned(), 0)]);
    let good = tcp_listener("good", "10.96.0.2:80".parse().unwrap(), &[("a".to_owned(), 1)]);
    let refused = bench.upsert(Listener, vec![zero, good]);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name.as_str(), "bad");
    assert!(refused[0].reason.contains("weights sum to 0"), "{}", refused[0].reason);
    assert_eq!(bench.held(), [(Listener, "good".to_owned())]);
    let long = "x".repeat(253);
    assert_eq!(bench.upsert(Cluster, vec![cluster(&long)]), []);
    assert!(bench.held().contains(&(Cluster, long)));
}

#[test]
fn at_the_cap_a_flush_is_refused_whole_and_the_old_version_stays() {
    let bench = Bench::new(Config { initial: 1, cap: 3, low_watermark: 0, batch: 1, ..Config::default() });
    let many: Vec<_> = (0..120).map(|i| (SocketAddr::from(([10, 0, 0, i], 80)), 1)).collect();
    let names: Vec<String> = (0..60).map(|i| format!("c{i}")).collect();
    let refused = bench.upsert(Endpoints, names.iter().map(|name| endpoints(name, &many)).collect());
    assert!(!refused.is_empty());
    for rejection in &refused {
        assert!(rejection.reason.contains("--slab-cap"), "{}", rejection.reason);
    }
    let held = bench.held();
    assert_eq!(held.len() + refused.len(), 60);
    let changed: Vec<_> = (0..121).map(|i| (SocketAddr::from(([10, 0, 1, i], 80)), 1)).collect();
    let first = endpoints(&held[0].1, &changed);
    bench.upsert(Endpoints, vec![first]);
    assert_eq!(bench.held(), held, "what was in force stays in force");
}

#[test]
fn a_second_agent_on_the_same_pin_root_is_refused() {
    let bench = Bench::new(Config { initial: 1, ..Config::default() });
    let Options { pin_root, .. } = bench.options();
    let error = slotmesh_agent::Agent::start(bench.options(), bench.metrics.clone()).map(drop).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("another slotmesh agent") && text.contains(&pin_root.display().to_string()),
        "{text}"
    );
}

#[test]
fn an_update_of_an_existing_service_makes_no_bpf_call() {
    let bench = Bench::new(Config { initial: 8, ..Config::default() });
    let list = |n: u8| [(SocketAddr::from(([10, 0, 0, n], 80)), 1)];
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &list(1))]), []);
    let resource = endpoints("web", &list(2));
    let mut fewest = u64::MAX;
    for _ in 0..50 {
        let before = slotmesh_kernel::bpf_calls();
        assert_eq!(bench.upsert(Endpoints, vec![resource.clone()]), []);
        fewest = fewest.min(slotmesh_kernel::bpf_calls() - before);
    }
    // Grace periods of this and other tests' agents are counted too, as they pass by.
    assert_eq!(fewest, 0);
}
