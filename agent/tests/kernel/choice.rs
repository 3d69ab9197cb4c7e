//! How connections choose among endpoints: the less busy of two, and by the source.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
};

use slotmesh_agent::{ChoiceNumbers, ConnectAttempt, ConnectOutcome, Pins};
use slotmesh_kernel::Map;
use slotmesh_records::{Count, EndpointKey, EndpointState, name_hash, source_hash, words};
use slotmesh_slots::Config;
use slotmesh_xds::{
    Resource,
    ResourceType::{Cluster, Endpoints, Listener, Route},
    envoy::{
        envoy::{
            config::{
                cluster::v3::{
                    self as cluster, LoadBalancingPolicy,
                    cluster::{ClusterDiscoveryType, LbPolicy},
                    load_balancing_policy::Policy,
                },
                core::v3::TypedExtensionConfig,
                route::v3::{
                    self as route,
                    route_action::{
                        HashPolicy,
                        hash_policy::{ConnectionProperties, PolicySpecifier},
                    },
                },
            },
            extensions::{
                filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy},
                load_balancing_policies::{common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev},
            },
            r#type::v3 as ty,
        },
        google::protobuf::Any,
    },
};
use socket2::{Domain, Socket, Type};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{chain, cluster_route, endpoints, http_listener, listener_of, tcp_listener},
    running::until,
    start::bench,
};

const WEB: &str = "web";

/// A cluster over a load assignment, that of [`WEB`] or another.
fn over(assignment: &str, name: &str, policy: LbPolicy, extension: Option<LoadBalancingPolicy>) -> Resource {
    let message = cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig {
            service_name: assignment.to_owned(),
            ..Default::default()
        }),
        lb_policy: policy.into(),
        load_balancing_policy: extension,
        ..Default::default()
    };
    Resource::encode(Cluster, name, &message)
}

pub(crate) fn eds(name: &str, policy: LbPolicy) -> Resource {
    over(WEB, name, policy, None)
}

fn source_policy() -> HashPolicy {
    let source = ConnectionProperties { source_ip: true };
    HashPolicy { policy_specifier: Some(PolicySpecifier::ConnectionProperties(source)), ..Default::default() }
}

fn any(url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/envoy.extensions.{url}"), value: message.encode_to_vec() }
}

/// A cluster that says itself that the source is hashed.
pub(crate) fn hashing(name: &str, assignment: &str) -> Resource {
    let hash = ConsistentHashingLbConfig { hash_policy: vec![source_policy()], ..Default::default() };
    let maglev = Maglev { consistent_hashing_lb_config: Some(hash), ..Default::default() };
    let config = TypedExtensionConfig {
        name: "maglev".to_owned(),
        typed_config: Some(any("load_balancing_policies.maglev.v3.Maglev", &maglev)),
    };
    let policies = vec![Policy { typed_extension_config: Some(config) }];
    over(assignment, name, LbPolicy::LoadBalancingPolicyConfig, Some(LoadBalancingPolicy { policies }))
}

fn publish(bench: &Bench, vip: SocketAddr, cluster: Resource, to: &[(SocketAddr, u32)]) {
    assert_eq!(bench.upsert(Cluster, vec![cluster]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, to)]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[(WEB.to_owned(), 1)])]), []);
}

fn ask(bench: &Bench, vip: SocketAddr, numbers: impl Into<ChoiceNumbers>) -> SocketAddr {
    match bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing(numbers)).unwrap() {
        ConnectOutcome::Redirect { to, .. } => to,
        other => panic!("{other:?}"),
    }
}

fn counts(bench: &Bench) -> Map<EndpointKey, EndpointState> {
    Map::open(&Pins::new(&bench.options().pin_root).endpoints()).unwrap().expect("it is pinned")
}

/// How many connections count at each endpoint that has any.
fn counted(bench: &Bench) -> BTreeMap<SocketAddr, u32> {
    let all = counts(bench).entries().unwrap();
    all.into_iter()
        .map(|(key, state)| {
            assert_eq!(key.cluster, name_hash(WEB));
            (key.at.socket_addr(), state.active.of(key.tag()).expect("its own element"))
        })
        .filter(|&(_, active)| active != 0)
        .collect()
}

#[test]
fn the_less_busy_of_two_is_taken() {
    let pod = Cgroup::new();
    let workloads = [pod.workload("pod")];
    let mut bench = bench(&workloads);
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let [a, b] = [10, 11].map(|i| SocketAddr::from(([127, 0, 0, i], port)));
    let vip = "198.18.9.1:80".parse().unwrap();
    let with = |bench: &Bench, to: &[(SocketAddr, u32)]| {
        publish(bench, vip, eds(WEB, LbPolicy::LeastRequest), to);
    };
    let of = |bench: &Bench, endpoint, other| ask(bench, vip, ChoiceNumbers { cluster: 0, endpoint, other });
    const A: u32 = 0;
    const B: u32 = 1 << 31;

    with(&bench, &[(a, 1)]);
    let first = pod.connect(vip).unwrap();
    let second = pod.connect(vip).unwrap();
    with(&bench, &[(a, 1), (b, 1)]);
    assert_eq!(counted(&bench), BTreeMap::from([(a, 2)]));
    assert_eq!([of(&bench, A, B), of(&bench, B, A), of(&bench, A, A)], [b, b, a]);
    let accepted = |server: &TcpListener| server.accept().unwrap().0.local_addr().unwrap();
    assert_eq!([accepted(&server), accepted(&server)], [a, a]);
    // The busy one is taken only by those that choose it twice: every fourth. By chance it would be half.
    let taken = (0..200).filter(|_| {
        let _client = pod.connect(vip).unwrap();
        accepted(&server) == a
    });
    let taken = taken.count();
    assert!((10..80).contains(&taken), "{taken} of 200");

    // The numbers outlive the agent; each closed connection counts no more.
    bench.stop();
    bench.agent = Some(crate::start::start(&bench, &workloads).unwrap());
    assert_eq!(of(&bench, A, B), b);
    with(&bench, &[(b, 1)]);
    let third = pod.connect(vip).unwrap();
    // Three times the weight: two connections there are less than one here.
    with(&bench, &[(a, 3), (b, 1)]);
    until("only those that are open to count", || counted(&bench) == BTreeMap::from([(a, 2), (b, 1)]));
    assert_eq!([of(&bench, A, B), of(&bench, B, A)], [a, a]);
    drop(first);
    drop(third);
    until("the closed ones not to count", || counted(&bench) == BTreeMap::from([(a, 1)]));
    assert_eq!([of(&bench, A, B), of(&bench, B, A)], [b, b]);
    drop(second);
    assert_eq!(counted(&bench), BTreeMap::new());
    until("nothing to be left", || counts(&bench).entries().unwrap().is_empty());
    assert_eq!([of(&bench, A, B), of(&bench, B, A)], [a, b]);
}

#[test]
fn only_clusters_that_choose_so_count_at_endpoints() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.9.2:80".parse().unwrap(), server.local_addr().unwrap());
    publish(&bench, vip, eds(WEB, LbPolicy::Random), &[(to, 1)]);
    let _random = pod.connect(vip).unwrap();
    assert_eq!(counted(&bench), BTreeMap::new());
    publish(&bench, vip, eds(WEB, LbPolicy::LeastRequest), &[(to, 1)]);
    let counts_once = pod.connect(vip).unwrap();
    assert_eq!(counted(&bench), BTreeMap::from([(to, 1)]));
    // One that began to count goes on, whatever its cluster does then.
    publish(&bench, vip, eds(WEB, LbPolicy::Random), &[(to, 1)]);
    assert_eq!(counted(&bench), BTreeMap::from([(to, 1)]));
    drop(counts_once);
    drop(server);
    until("the closed one not to count", || counted(&bench).is_empty());
}

#[test]
fn a_full_map_of_counts_breaks_no_connect() {
    const MOST: u32 = 65_536;
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.9.3:80".parse().unwrap(), server.local_addr().unwrap());
    publish(&bench, vip, eds(WEB, LbPolicy::LeastRequest), &[(to, 1)]);
    let map = counts(&bench);
    let keys: Vec<EndpointKey> =
        (0..MOST).map(|i| EndpointKey::new(name_hash("other"), [0, 0, 0, i], 80)).collect();
    let one = |key: &EndpointKey| Count::from_bits(EndpointState::none(key).active.bits() + 1);
    let values: Vec<EndpointState> =
        keys.iter().map(|key| EndpointState { active: one(key), ..EndpointState::none(key) }).collect();
    map.update_batch(&keys, &values).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let running = || runtime.block_on(bench.agent().handle().running(0));
    assert_eq!(running().endpoints, MOST as usize, "that it is full can be seen");
    let client = pod.connect(vip).unwrap();
    assert_eq!(running().sockets.uncounted, 1, "and what it costs");
    let key = EndpointKey::new(name_hash(WEB), words(to.ip()), to.port().to_be());
    assert_eq!(map.get(&key).unwrap(), None);
    // The end of one that didn't count takes nothing from one that does.
    map.delete(&keys[0]).unwrap();
    let counts = pod.connect(vip).unwrap();
    let number = || map.get(&key).unwrap().map_or(0, |state| state.active.get());
    assert_eq!(number(), 1);
    drop(server.accept().unwrap());
    drop(client);
    let again = pod.connect(vip).unwrap();
    assert_eq!(number(), 2);
    drop((counts, again, server));
    assert_eq!(number(), 0);
}

fn address(i: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a02_0000 + i), 8080).into()
}

fn list(count: u32) -> Vec<(SocketAddr, u32)> {
    let six = |i: u16| (SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 2, i], 8080)), 1);
    (0..count).map(|i| (address(i), 1)).chain([six(1), six(2)]).collect()
}

/// The endpoints of a thousand sources.
fn of_sources(bench: &Bench, vip: SocketAddr) -> Vec<SocketAddr> {
    let source = |i: u32| source_hash(words(Ipv4Addr::from_bits(0x0a80_0000 + i).into()));
    (0..1000).map(|i| ask(bench, vip, (i, source(i)))).collect()
}

fn places(bench: &Bench) -> serde_json::Value {
    bench.show(Endpoints, WEB).expect("it is in force")["hashPlaces"].clone()
}

fn used(bench: &Bench) -> u64 {
    let stats = bench.stats();
    assert_eq!(stats.classes.iter().map(|(_, class)| class.retired).sum::<u64>(), 0);
    stats.classes.iter().map(|(_, class)| class.used).sum()
}

/// When no grace period is waited for any more.
fn used_then(bench: &Bench) -> u64 {
    until("grace periods to pass", || {
        bench.remove(Listener, &["another"]);
        bench.stats().quarantined == 0
    });
    used(bench)
}

#[test]
fn a_source_keeps_its_endpoint() {
    let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
    let (vip, vip6) = ("10.96.0.1:80".parse().unwrap(), "[fd00:96::1]:80".parse().unwrap());
    // More than a chunk holds, and so many that the table has many chunks.
    for count in [2, 200, 300] {
        publish(&bench, vip, hashing(WEB, WEB), &list(count));
        let before = of_sources(&bench, vip);
        let chosen: BTreeSet<_> = before.iter().collect();
        let most = f64::from(count) * (1.0 - (-1000.0 / f64::from(count)).exp());
        assert!(chosen.len() as f64 > 0.95 * most.floor(), "{} of {count}", chosen.len());

        // In another order, and by another agent.
        let mut reversed = list(count);
        reversed.reverse();
        assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &reversed)]), []);
        bench.stop();
        bench.start();
        assert_eq!(of_sources(&bench, vip), before);

        // One that goes: its sources move, and hardly any other.
        let gone = before[0];
        reversed.retain(|(to, _)| *to != gone);
        assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &reversed)]), []);
        let after = of_sources(&bench, vip);
        let others = before.iter().zip(&after).filter(|(old, _)| **old != gone);
        let moved = others.filter(|(old, new)| old != new).count();
        assert!(moved < 60 && !after.contains(&gone), "{moved} of 1000 moved, of {count} endpoints");
    }
    // IPv6 has a table of its own.
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("six", &[vip6], &[(WEB.to_owned(), 1)])]), []);
    let six: BTreeSet<_> = of_sources(&bench, vip6).into_iter().collect();
    assert_eq!(six.len(), 2);
    assert!(six.iter().all(SocketAddr::is_ipv6));
}

#[test]
fn five_thousand_endpoints_have_their_sources() {
    const COUNT: u32 = 5_000;
    let bench = Bench::new(Config { initial: 16, ..Config::default() });
    let vip = "10.96.0.1:80".parse().unwrap();
    publish(&bench, vip, hashing(WEB, WEB), &list(COUNT));
    let size = places(&bench)["v4"].as_u64().unwrap();
    let mut found: BTreeMap<SocketAddr, u64> = BTreeMap::new();
    for place in 0..size {
        let number = (place << 32).div_ceil(size) as u32;
        *found.entry(ask(&bench, vip, (0, number))).or_default() += 1;
    }
    assert_eq!(found.len(), COUNT as usize);
    let (least, most) = (size / u64::from(COUNT), size.div_ceil(COUNT.into()));
    assert!(found.values().all(|places| (least..=most).contains(places)));
}

/// A table of many takes long: the thread that owns the maps, for which all updates wait, makes none.
#[test]
fn the_owner_makes_no_table_of_many_endpoints() {
    const COUNT: u32 = 5_000;
    let bench = Bench::new(Config { initial: 16, ..Config::default() });
    let vip = "10.96.0.1:80".parse().unwrap();
    let made_by_owner = || {
        let text = bench.metrics.render(&bench.stats(), 0);
        let line = text.lines().find_map(|line| {
            line.strip_prefix("slotmesh_agent_source_tables_by_owner_total ")?.parse::<u64>().ok()
        });
        line.expect("it is counted")
    };
    publish(&bench, vip, eds(WEB, LbPolicy::Random), &list(COUNT));
    assert!(places(&bench).is_null());
    // A cluster begins to hash what is in force.
    assert_eq!(bench.upsert(Cluster, vec![hashing(WEB, WEB), hashing("other", WEB)]), []);
    assert!(places(&bench)["v4"].as_u64() >= Some(8 * u64::from(COUNT)), "{}", places(&bench));
    let before = of_sources(&bench, vip);
    // What it hashes changes, and it begins anew: with the same endpoints each source has the one that it had.
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &list(COUNT - 1))]), []);
    assert_ne!(of_sources(&bench, vip), before);
    bench.remove(Cluster, &["other"]);
    assert_eq!(bench.upsert(Cluster, vec![eds(WEB, LbPolicy::Random)]), []);
    assert!(places(&bench).is_null());
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &list(COUNT))]), []);
    assert_eq!(bench.upsert(Cluster, vec![hashing(WEB, WEB)]), []);
    assert_eq!(of_sources(&bench, vip), before);
    assert_eq!(made_by_owner(), 0);
}

#[test]
fn there_is_a_table_while_a_cluster_in_force_asks_for_it() {
    let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip = "10.96.0.1:80".parse().unwrap();
    let random = |name| eds(name, LbPolicy::Random);
    publish(&bench, vip, random(WEB), &list(150));
    assert_eq!(bench.upsert(Cluster, vec![random("other")]), []);
    let plain = bench.show(Endpoints, WEB).unwrap();
    let used_before = used_then(&bench);
    assert!(places(&bench).is_null());

    // Whoever asks first has it made, also of what is in force already.
    assert_eq!(bench.upsert(Cluster, vec![hashing(WEB, WEB)]), []);
    let mut with_table = bench.show(Endpoints, WEB).unwrap();
    assert_eq!(with_table["hashPlaces"], serde_json::json!({ "v4": 4056, "v6": 4056 }));
    with_table["hashPlaces"] = serde_json::Value::Null;
    assert_eq!(with_table, plain, "nothing else has changed, nor its version");
    let before = of_sources(&bench, vip);
    assert_eq!(bench.upsert(Cluster, vec![hashing("other", WEB)]), []);
    // A new version, of the cluster and of the endpoints, and another agent.
    assert_eq!(bench.upsert(Cluster, vec![hashing(WEB, WEB)]), []);
    bench.stop();
    bench.start();
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &list(150))]), []);
    assert_eq!(of_sources(&bench, vip), before);

    // The last one takes it along, by another policy or altogether.
    assert_eq!(bench.upsert(Cluster, vec![random(WEB)]), []);
    assert!(!places(&bench).is_null(), "the other one still asks for it");
    assert_eq!(bench.upsert(Cluster, vec![random("other")]), []);
    assert!(places(&bench).is_null());
    assert_eq!(used_then(&bench), used_before);
    assert_eq!(bench.upsert(Cluster, vec![hashing("other", WEB)]), []);
    bench.remove(Cluster, &["other"]);
    assert!(places(&bench).is_null());
}

#[test]
fn without_room_for_its_table_a_cluster_is_refused_and_the_old_one_stays() {
    let bench = Bench::new(Config { initial: 1, cap: 3, low_watermark: 0, batch: 1, ..Config::default() });
    let vip = "10.96.0.1:80".parse().unwrap();
    // 24 slots of 4 KiB, and a table of 32: more than three slabs hold.
    publish(&bench, vip, eds(WEB, LbPolicy::Random), &list(3_000));
    let refused = bench.upsert(Cluster, vec![hashing(WEB, WEB)]);
    assert_eq!(refused.len(), 1);
    assert!(refused[0].reason.contains("--slab-cap"), "{}", refused[0].reason);
    assert!(places(&bench).is_null());
    assert_eq!(bench.show(Cluster, WEB).unwrap()["balance"], "random");
    assert_eq!(ask(&bench, vip, (0, 0)), address(0));
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(WEB, &list(2))]), []);
    assert!(places(&bench).is_null(), "nobody asks for one");
}

/// With `MAGLEV` and `RING_HASH` it is the route that says what is hashed.
#[test]
fn a_route_may_say_that_the_source_is_hashed() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    publish(&bench, vip, hashing(WEB, WEB), &list(100));
    let by_source = of_sources(&bench, vip);
    let tcp = |hash: bool| {
        let proxy = TcpProxy {
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(WEB.to_owned())),
            hash_policy: Vec::from_iter(hash.then(|| ty::HashPolicy {
                policy_specifier: Some(ty::hash_policy::PolicySpecifier::SourceIp(<_>::default())),
            })),
            ..Default::default()
        };
        let filter = any("filters.network.tcp_proxy.v3.TcpProxy", &proxy);
        assert_eq!(
            bench.upsert(Listener, vec![listener_of("l", &[vip], vec![chain("", None, filter)], None)]),
            []
        );
    };
    let http = |hash: bool| {
        let mut to = cluster_route("", &[(WEB.to_owned(), 1)]);
        if let Some(route::route::Action::Route(action)) = &mut to.action {
            action.hash_policy.extend(hash.then(source_policy));
        }
        let host =
            route::VirtualHost { domains: vec!["*".to_owned()], routes: vec![to], ..Default::default() };
        let config = route::RouteConfiguration {
            name: "r".to_owned(),
            virtual_hosts: vec![host],
            ..Default::default()
        };
        assert_eq!(bench.upsert(Route, vec![Resource::encode(Route, "r", &config)]), []);
        assert_eq!(bench.upsert(Listener, vec![http_listener("l", &[vip], "r")]), []);
    };
    let routes: [&dyn Fn(bool); 2] = [&tcp, &http];
    for policy in [LbPolicy::Maglev, LbPolicy::RingHash] {
        assert_eq!(bench.upsert(Cluster, vec![eds(WEB, policy)]), []);
        for route in routes {
            route(true);
            assert_eq!(of_sources(&bench, vip), by_source);
            route(false);
            // By random numbers: the first leads to the first, the last to the last.
            assert_eq!([0, u32::MAX].map(|number| ask(&bench, vip, (0, number))), [address(0), address(99)]);
        }
    }
    assert_eq!(bench.upsert(Cluster, vec![eds(WEB, LbPolicy::Random)]), []);
    tcp(true);
    assert_eq!(ask(&bench, vip, (0, u32::MAX)), address(99), "a cluster that doesn't hash");
}

#[test]
fn the_source_is_the_bound_address_or_the_workload() {
    let (one, other) = (Cgroup::new(), Cgroup::new());
    let workloads = [one.workload("one"), other.workload("other")];
    let bench = bench(&workloads);
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let vip: SocketAddr = "198.18.9.4:80".parse().unwrap();
    let to: Vec<_> = (10..60).map(|i| (SocketAddr::from(([127, 0, 1, i], port)), 1)).collect();
    publish(&bench, vip, hashing(WEB, WEB), &to);
    let mapped = SocketAddr::new("::ffff:198.18.9.4".parse().unwrap(), 80);
    let accepted = || server.accept().unwrap().0.local_addr().unwrap();
    let bound = |cgroup: &Cgroup, from: Option<IpAddr>, to: SocketAddr| {
        let connected = cgroup.within(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            if let Some(from) = from {
                socket.bind(&SocketAddr::new(from, 0).into())?;
            }
            socket.connect(&to.into())
        });
        connected.unwrap_or_else(|error| panic!("from {from:?} to {to}: {error}"));
        accepted()
    };
    let v4 = |i: u8| IpAddr::from([127, 0, 2, i]);
    let expected = |source: [u32; 4]| ask(&bench, vip, (0, source_hash(source)));
    let mut found = BTreeSet::new();
    for i in 1..20 {
        let from = v4(i);
        let to = expected(words(from));
        assert_eq!(bound(&one, Some(from), vip), to);
        assert_eq!(bound(&other, Some(from), vip), to, "whoever is bound to it");
        let IpAddr::V4(ip) = from else { unreachable!() };
        assert_eq!(bound(&one, Some(ip.to_ipv6_mapped().into()), mapped), to);
        found.insert(to);
    }
    assert!(found.len() > 5, "{found:?}");
    // Those that aren't bound, or to a port only.
    for (cgroup, workload) in [(&one, &workloads[0]), (&other, &workloads[1])] {
        let id = workload.id();
        let to = expected([id as u32, (id >> 32) as u32, 0, 0]);
        for _ in 0..5 {
            assert_eq!(bound(cgroup, None, vip), to);
            assert_eq!(bound(cgroup, Some(Ipv4Addr::UNSPECIFIED.into()), vip), to);
            assert_eq!(bound(cgroup, None, mapped), to);
            assert_eq!(bound(cgroup, Some("::".parse().unwrap()), mapped), to);
            assert_eq!(bound(cgroup, Some("::ffff:0.0.0.0".parse().unwrap()), mapped), to);
        }
    }
}
