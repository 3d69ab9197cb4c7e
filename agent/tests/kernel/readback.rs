//! What the kernel holds equals what was configured: every choice the programs can make, with its
//! probability, for random configurations.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome, Options};
use slotmesh_records::name_hash;
use slotmesh_slots::Config;
use slotmesh_xds::{
    ResourceType::{Cluster, Endpoints, Listener, Route, Settings},
    SlotSettings,
};

use crate::{
    Bench,
    choice::hashing,
    config::{cluster, endpoints, http_listener, route, settings, tcp_listener},
};

/// A cluster and an endpoint; `None` for a refused connection.
type Outcome = Option<(u64, SocketAddr)>;
type Shares = BTreeMap<Outcome, f64>;

/// The exact distribution of outcomes, by asking each element of each alias table with the numbers
/// around its threshold. `sizes`: by the hash of a cluster's name, how many endpoints it has for the
/// family of `vip`.
fn distribution(bench: &Bench, vip: SocketAddr, sizes: &[(u64, usize)]) -> Shares {
    let ask = |randoms| match bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing(randoms)) {
        Ok(ConnectOutcome::Redirect { cluster, to }) => Some((cluster, to)),
        Ok(ConnectOutcome::Refuse) => None,
        other => panic!("{vip}: {other:?}"),
    };
    let cluster_of = |random| ask((random, 0)).map(|(cluster, _)| cluster);
    let mut shares = Shares::new();
    for (random, share) in steps(sizes.len(), cluster_of) {
        let Some(cluster) = cluster_of(random) else {
            *shares.entry(None).or_default() += share;
            continue;
        };
        let size = sizes.iter().find(|(hash, _)| *hash == cluster).map_or(1, |&(_, size)| size);
        for (endpoint_random, endpoint_share) in steps(size, |endpoint| ask((random, endpoint))) {
            *shares.entry(ask((random, endpoint_random))).or_default() += share * endpoint_share;
        }
    }
    shares
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

/// An endpoint's weight, and whether its address is IPv6.
type EndpointSetup = (u32, bool);

/// Addresses that a listener may have, for each family.
const ADDRESSES: u8 = 3;

#[derive(Clone, Debug)]
struct Setup {
    clusters: Vec<Vec<EndpointSetup>>,
    /// Whether endpoints are chosen by the source.
    hash: bool,
    /// The weights of the clusters in the route.
    weights: Vec<u32>,
    vips: Vec<SocketAddr>,
    http: bool,
}

fn setup() -> impl Strategy<Value = Setup> {
    let endpoint = || (1..100_u32, any::<bool>());
    let few = prop::collection::vec(endpoint(), 1..12);
    // More than a chunk holds (126), with borders of families and chunks anywhere.
    let many = prop::collection::vec(endpoint(), 127..400);
    let endpoints = prop_oneof![6 => few, 1 => many];
    let vips = prop::sample::subsequence(all_vips(), 1..=usize::from(ADDRESSES) * 2).prop_shuffle();
    let clusters = prop::collection::vec(endpoints, 1..4);
    (clusters, vips, any::<bool>(), any::<bool>()).prop_flat_map(|(clusters, vips, http, hash)| {
        let weights = prop::collection::vec(1..1000_u32, clusters.len());
        weights.prop_map(move |weights| Setup {
            clusters: clusters.clone(),
            hash,
            weights,
            vips: vips.clone(),
            http,
        })
    })
}

fn all_vips() -> Vec<SocketAddr> {
    let of = |i: u8| -> [IpAddr; 2] {
        [Ipv4Addr::new(10, 96, 0, i).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(i)).into()]
    };
    (0..ADDRESSES).flat_map(of).map(|ip| SocketAddr::new(ip, 80)).collect()
}

fn name(cluster: usize) -> String {
    format!("c{cluster}")
}

impl Setup {
    fn endpoints(&self, cluster: usize) -> Vec<(SocketAddr, u32)> {
        let endpoint = |(i, &(weight, v6)): (usize, &EndpointSetup)| {
            let (c, high, low) = (cluster as u8, (i >> 8) as u8, i as u8);
            let ip: IpAddr = if v6 {
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, c.into(), i as u16).into()
            } else {
                Ipv4Addr::new(10, c, high, low).into()
            };
            (SocketAddr::new(ip, 1000 + i as u16), weight)
        };
        self.clusters[cluster].iter().enumerate().map(endpoint).collect()
    }

    /// The endpoints that a connection of this family can have.
    fn of_family(&self, cluster: usize, v6: bool) -> Vec<(SocketAddr, u32)> {
        self.endpoints(cluster).into_iter().filter(|(to, _)| to.is_ipv6() == v6).collect()
    }

    /// How many equal parts the numbers for each cluster's endpoints have.
    fn sizes(&self, bench: &Bench, v6: bool) -> Vec<(u64, usize)> {
        let size = |c: usize| {
            let shown = bench.show(Endpoints, &name(c)).expect("it is in force");
            let places = shown["hashPlaces"][if v6 { "v6" } else { "v4" }].as_u64();
            places.map_or(0, |places| places as usize).max(self.of_family(c, v6).len())
        };
        (0..self.clusters.len()).map(|c| (name_hash(&name(c)), size(c))).collect()
    }

    /// How far a share may be off: two places of the smallest table, where there is one.
    fn tolerance(&self) -> f64 {
        if self.hash { 2.0 / 4_079.0 } else { 1e-6 }
    }

    fn expected(&self, v6: bool) -> Shares {
        let total: f64 = self.weights.iter().map(|&w| f64::from(w)).sum();
        let mut shares = Shares::new();
        for (c, &weight) in self.weights.iter().enumerate() {
            let share = f64::from(weight) / total;
            let endpoints = self.of_family(c, v6);
            if endpoints.is_empty() {
                *shares.entry(None).or_default() += share;
            }
            let sum: f64 = endpoints.iter().map(|&(_, w)| f64::from(w)).sum();
            for (to, weight) in endpoints {
                shares.insert(Some((name_hash(&name(c)), to)), share * f64::from(weight) / sum);
            }
        }
        shares
    }

    fn apply(&self, bench: &Bench) {
        let names: Vec<String> = (0..self.clusters.len()).map(name).collect();
        let of = |name: &String| if self.hash { hashing(name, name) } else { cluster(name) };
        assert_eq!(bench.upsert(Cluster, names.iter().map(of).collect()), []);
        let assignments = names.iter().enumerate().map(|(c, name)| endpoints(name, &self.endpoints(c)));
        assert_eq!(bench.upsert(Endpoints, assignments.collect()), []);
        let weighted: Vec<_> = names.into_iter().zip(self.weights.iter().copied()).collect();
        let listener = if self.http {
            assert_eq!(bench.upsert(Route, vec![route("r", &weighted)]), []);
            http_listener("l", &self.vips, "r")
        } else {
            tcp_listener("l", &self.vips, &weighted)
        };
        assert_eq!(bench.upsert(Listener, vec![listener]), []);
    }
}

#[test]
fn the_kernel_holds_what_was_configured() {
    // One agent for all cases: each configuration replaces the one before it, of other addresses and
    // another kind of listener too.
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(60));
    let result = runner.run(&setup(), |setup| {
        setup.apply(&bench);
        for vip in all_vips() {
            if !setup.vips.contains(&vip) {
                let other = bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap();
                prop_assert_eq!(other, ConnectOutcome::Pass, "{} is an address of before", vip);
                continue;
            }
            let v6 = vip.is_ipv6();
            let sizes = setup.sizes(&bench, v6);
            let (found, expected) = (distribution(&bench, vip, &sizes), setup.expected(v6));
            let known = found.keys().all(|outcome| expected.contains_key(outcome));
            prop_assert!(known && (setup.hash || found.len() == expected.len()), "{vip}: {found:?}");
            for (outcome, share) in expected {
                // A small weight may have no place.
                let found = found.get(&outcome).copied().unwrap_or(0.0);
                prop_assert!(
                    (found - share).abs() < setup.tolerance(),
                    "{vip} {outcome:?}: {found} for {share}"
                );
            }
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn three_hundred_endpoints_are_all_chosen() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    for count in [1_usize, 126, 127, 300, 1000, 5000] {
        let at = |i| SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + i as u32).into(), 8080);
        let list: Vec<_> = (0..count).map(|i| (at(i), 1)).collect();
        assert_eq!(bench.upsert(Cluster, vec![cluster("c0")]), []);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("c0", &list)]), []);
        let only = [("c0".to_owned(), 1)];
        assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &only)]), []);
        let chosen: BTreeSet<SocketAddr> = (0..count)
            .map(|i| {
                let random = ((i as u64 * (1 << 32)).div_ceil(count as u64)) as u32;
                match bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((0, random))).unwrap()
                {
                    ConnectOutcome::Redirect { to, .. } => to,
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
    let ask = |to| bench.agent().datapath().explain(ConnectAttempt::to(to)).unwrap();
    assert_eq!(ask(vip), ConnectOutcome::Pass);
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[])]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
    assert_eq!(ask(vip), ConnectOutcome::Refuse);
    assert_eq!(ask("10.96.0.1:81".parse().unwrap()), ConnectOutcome::Pass, "another port");
    let six = [("[fd00::1]:80".parse().unwrap(), 1)];
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &six)]), []);
    assert_eq!(ask(vip), ConnectOutcome::Refuse, "an IPv4 socket can't reach an IPv6 endpoint");
    bench.remove(Listener, &["l"]);
    assert_eq!(ask(vip), ConnectOutcome::Pass);
}

#[test]
fn a_bad_resource_is_refused_by_name_and_the_good_ones_take_effect() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let zero = tcp_listener("bad", &[vip], &[("a".to_owned(), 0), ("b".to_owned(), 0)]);
    let good = tcp_listener("good", &["10.96.0.2:80".parse().unwrap()], &[("a".to_owned(), 1)]);
    let refused = bench.upsert(Listener, vec![zero, good]);
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].name.as_str(), "bad");
    assert!(refused[0].reason.contains("weights sum to 0"), "{}", refused[0].reason);
    assert_eq!(bench.held(), [(Listener, "good".to_owned())]);
    let long = "x".repeat(253);
    assert_eq!(bench.upsert(Cluster, vec![cluster(&long)]), []);
    assert!(bench.held().contains(&(Cluster, long)));
}

/// All endpoints that 120 equal shares lead to.
fn chosen(bench: &Bench, vip: SocketAddr) -> BTreeSet<SocketAddr> {
    let random = |i: u64| (i << 32).div_ceil(120) as u32;
    let ask = |i| bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((0, random(i)))).unwrap();
    (0..120)
        .map(|i| match ask(i) {
            ConnectOutcome::Redirect { to, .. } => to,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn at_the_cap_a_flush_is_refused_whole_and_the_old_version_stays() {
    let bench = Bench::new(Config { initial: 1, cap: 3, low_watermark: 0, batch: 1, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let many =
        |net: u8| -> Vec<_> { (0..120).map(|i| (SocketAddr::from(([10, 0, net, i], 80)), 1)).collect() };
    let addresses = |net| many(net).into_iter().map(|(to, _)| to).collect::<BTreeSet<_>>();
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &many(1))]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
    let fillers: Vec<String> = (0..60).map(|i| format!("c{i}")).collect();
    let refused = bench.upsert(Endpoints, fillers.iter().map(|name| endpoints(name, &many(0))).collect());
    assert!(!refused.is_empty());
    for rejection in &refused {
        assert!(rejection.reason.contains("--slab-cap"), "{}", rejection.reason);
    }
    let held = bench.held();
    assert_eq!(held.len() - 3 + refused.len(), 60);
    assert_eq!(bench.stats().remaining(), 0, "the cap is reached");

    let refused = bench.upsert(Endpoints, vec![endpoints("web", &many(2))]);
    assert_eq!(refused.iter().map(|refused| refused.name.as_str()).collect::<Vec<_>>(), ["web"]);
    assert!(refused[0].reason.contains("--slab-cap"), "{}", refused[0].reason);
    assert_eq!(bench.held(), held, "what was in force stays in force");
    assert_eq!(chosen(&bench, vip), addresses(1), "the old endpoints are still what the kernel answers");

    // Room is there a grace period after something has gone.
    let filler = held.iter().map(|(_, name)| name.as_str()).find(|name| name.starts_with('c')).unwrap();
    bench.remove(Endpoints, &[filler]);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !bench.upsert(Endpoints, vec![endpoints("web", &many(2))]).is_empty() {
        assert!(Instant::now() < deadline, "no room after {filler} was removed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(chosen(&bench, vip), addresses(2));
}

#[test]
fn a_cap_that_is_raised_while_running_makes_room() {
    let config = Config { initial: 1, cap: 2, low_watermark: 0, batch: 1, ..Config::default() };
    let bench = Bench::new(config);
    let many: Vec<_> = (0..120).map(|i| (SocketAddr::from(([10, 0, 0, i], 80)), 1)).collect();
    let fillers: Vec<_> = (0..30).map(|i| endpoints(&format!("c{i}"), &many)).collect();
    let refused = bench.upsert(Endpoints, fillers.clone());
    assert!(!refused.is_empty());
    let refused =
        bench.upsert(Settings, vec![settings(&SlotSettings { initial: Some(9), ..Default::default() })]);
    let text = &refused[0].reason;
    assert!(text.contains("9 initial slabs are more than the cap, 2"), "{text}");
    assert_eq!(
        bench.upsert(Settings, vec![settings(&SlotSettings { cap: Some(8), ..Default::default() })]),
        []
    );
    assert_eq!(bench.upsert(Endpoints, fillers), []);
    assert!(bench.stats().slabs > 2);
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
