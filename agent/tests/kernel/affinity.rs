//! Session affinity: a workload keeps to its endpoint, whatever else changes. With real sockets.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::Barrier,
    time::Duration,
};

use prost::Message as _;
use slotmesh_agent::MapSizes;
use slotmesh_slots::Config;
use slotmesh_xds::{
    Resource,
    ResourceType::{Cluster, Endpoints, Listener},
    SessionAffinity,
    envoy::{
        envoy::config::{
            cluster::v3::{self as cluster, cluster::ClusterDiscoveryType},
            core::v3::Metadata,
        },
        google::protobuf::Any,
    },
};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{endpoints, tcp_listener},
    start::{bench, start},
};

const LONG: u32 = 10_800;

/// A cluster of its load assignment, chosen from by chance, with an affinity of so many seconds.
fn sticky(name: &str, seconds: u32) -> Resource {
    let affinity = SessionAffinity { seconds };
    let any = Any { type_url: SessionAffinity::TYPE_URL.to_owned(), value: affinity.encode_to_vec() };
    let message = cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        lb_policy: 3,
        metadata: (seconds != 0).then(|| Metadata {
            typed_filter_metadata: [(SessionAffinity::KEY.to_owned(), any)].into(),
            ..Metadata::default()
        }),
        ..cluster::Cluster::default()
    };
    Resource::encode(Cluster, name, &message)
}

fn publish(bench: &Bench, vip: SocketAddr, seconds: u32, to: &[SocketAddr]) {
    assert_eq!(bench.upsert(Cluster, vec![sticky("web", seconds)]), []);
    change(bench, to);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
}

fn change(bench: &Bench, to: &[SocketAddr]) {
    let weighted: Vec<_> = to.iter().map(|&to| (to, 1)).collect();
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &weighted)]), []);
}

/// A server at all addresses of the loopback interface.
struct Server(TcpListener);

impl Server {
    fn new() -> Self {
        Self(TcpListener::bind("0.0.0.0:0").unwrap())
    }

    fn at(&self, host: u16) -> SocketAddr {
        let [high, low] = host.to_be_bytes();
        SocketAddr::from((Ipv4Addr::new(127, 9, high, low), self.0.local_addr().unwrap().port()))
    }

    /// Which of its addresses a connection from there reaches.
    fn reached(&self, from: &Cgroup, vip: SocketAddr) -> SocketAddr {
        let _stream = from.connect(vip).unwrap();
        self.0.accept().unwrap().0.local_addr().unwrap()
    }
}

#[test]
fn a_workload_keeps_to_its_endpoint_while_that_is_there() {
    let (pod, other) = (Cgroup::new(), Cgroup::new());
    let workloads = [pod.workload("pod"), other.workload("other")];
    let mut bench = bench(&workloads);
    let server = Server::new();
    let vip = "198.18.20.1:80".parse().unwrap();
    // In one slot, and in several.
    let few: Vec<_> = (1..=5).map(|i| server.at(i * 100)).collect();
    let many: Vec<_> = (1..=700).map(|i| server.at(i)).collect();
    publish(&bench, vip, LONG, &few);
    let kept = server.reached(&pod, vip);
    for _ in 0..50 {
        assert_eq!(server.reached(&pod, vip), kept);
    }
    // Others come, before and behind it, and the order in the message is any.
    let mut shuffled = many.clone();
    shuffled.reverse();
    for list in [&many, &shuffled, &few] {
        change(&bench, list);
        for _ in 0..20 {
            assert_eq!(server.reached(&pod, vip), kept);
        }
    }
    // Each workload has its own.
    change(&bench, &many);
    let of_other = server.reached(&other, vip);
    assert_eq!(server.reached(&other, vip), of_other);
    assert_eq!(bench.affinities().held, 2);
    // An agent that starts anew changes nothing.
    bench.stop();
    bench.agent = Some(start(&bench, &workloads).unwrap());
    assert_eq!((server.reached(&pod, vip), server.reached(&other, vip)), (kept, of_other));
    // The endpoint goes: another one is chosen, and kept, also when the first is back.
    let without: Vec<_> = many.iter().copied().filter(|&at| at != kept).collect();
    change(&bench, &without);
    let next = server.reached(&pod, vip);
    assert_ne!(next, kept);
    change(&bench, &many);
    for _ in 0..20 {
        assert_eq!(server.reached(&pod, vip), next);
    }
    assert_eq!(server.reached(&other, vip), of_other);
    assert_eq!((bench.affinities().held, bench.affinities().evicted), (2, 0));
    // Without affinity it is by chance again.
    assert_eq!(bench.upsert(Cluster, vec![sticky("web", 0)]), []);
    let reached: BTreeSet<_> = (0..20).map(|_| server.reached(&pod, vip)).collect();
    assert!(reached.len() > 10, "{reached:?}");
}

#[test]
fn endpoints_of_one_ipv6_address_are_told_apart() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let servers: Vec<_> = (0..9).map(|_| TcpListener::bind("[::1]:0").unwrap()).collect();
    servers.iter().for_each(|server| server.set_nonblocking(true).unwrap());
    let mut at: Vec<_> = servers.iter().map(|server| server.local_addr().unwrap()).collect();
    let vip = "[fd00:198:18::20]:80".parse().unwrap();
    publish(&bench, vip, LONG, &at);
    let reached = || {
        let _stream = pod.connect(vip).unwrap();
        let found = servers.iter().find_map(|server| server.accept().ok());
        found.map(|(stream, _)| stream.local_addr().unwrap()).unwrap()
    };
    let kept = reached();
    for _ in 0..9 {
        for _ in 0..5 {
            assert_eq!(reached(), kept);
        }
        if let Some(gone) = at.iter().position(|&other| other != kept) {
            at.remove(gone);
            change(&bench, &at);
        }
    }
    assert_eq!(at, [kept]);
}

#[test]
fn connections_made_at_the_same_time_go_the_same_way() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = Server::new();
    let vip = "198.18.20.2:80".parse().unwrap();
    let all: Vec<_> = (1..=200).map(|i| server.at(i)).collect();
    publish(&bench, vip, LONG, &all);
    const THREADS: usize = 16;
    let barrier = Barrier::new(THREADS);
    let streams = pod.within(|| {
        std::thread::scope(|scope| {
            let connect = || {
                barrier.wait();
                std::net::TcpStream::connect_timeout(&vip, Duration::from_secs(10)).unwrap()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    });
    let reached: BTreeSet<_> =
        streams.iter().map(|_| server.0.accept().unwrap().0.local_addr().unwrap()).collect();
    assert_eq!(reached.len(), 1, "{reached:?}");
}

#[test]
fn after_the_time_it_is_by_chance_again() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = Server::new();
    let vip = "198.18.20.3:80".parse().unwrap();
    let all: Vec<_> = (1..=500).map(|i| server.at(i)).collect();
    publish(&bench, vip, 1, &all);
    let first = server.reached(&pod, vip);
    let later = (0..4).map(|_| {
        std::thread::sleep(Duration::from_millis(1_050));
        server.reached(&pod, vip)
    });
    assert!(later.collect::<Vec<_>>().iter().any(|&at| at != first), "1 of 6 * 10^10 by chance");
    assert_eq!(bench.affinities().held, 1);
}

#[test]
fn where_there_is_no_room_the_oldest_goes() {
    const ROOM: u32 = 1_024;
    const SERVICES: u16 = 1_500;
    let pod = Cgroup::new();
    let workloads = [pod.workload("pod")];
    let maps = MapSizes { affinities: ROOM, ..MapSizes::default() };
    let mut bench = Bench::with_maps(Config { initial: 4, ..Config::default() }, maps);
    bench.agent.take().unwrap().remove().unwrap();
    bench.agent = Some(start(&bench, &workloads).unwrap());
    let server = Server::new();
    let names: Vec<_> = (0..SERVICES).map(|i| format!("web-{i}")).collect();
    let vip = |i: usize| SocketAddr::from(([198, 18, 21, 1], 1 + i as u16));
    let to: Vec<_> = (1..=200).map(|i| (server.at(i), 1)).collect();
    let of = |i: usize| tcp_listener(&names[i], &[vip(i)], &[(names[i].clone(), 1)]);
    assert_eq!(bench.upsert(Cluster, names.iter().map(|name| sticky(name, LONG)).collect()), []);
    assert_eq!(bench.upsert(Endpoints, names.iter().map(|name| endpoints(name, &to)).collect()), []);
    assert_eq!(bench.upsert(Listener, (0..names.len()).map(of).collect()), []);
    pod.within(|| {
        for i in 0..names.len() {
            drop(std::net::TcpStream::connect(vip(i)).unwrap());
            drop(server.0.accept().unwrap());
        }
    });
    let now = bench.affinities();
    assert!(now.held <= u64::from(ROOM), "{now:?}");
    assert_eq!(now.held + now.evicted, u64::from(SERVICES));
    // What was used last is kept.
    let last = vip(names.len() - 1);
    let kept = server.reached(&pod, last);
    for _ in 0..10 {
        assert_eq!(server.reached(&pod, last), kept);
    }
}

#[test]
fn an_affinity_that_cannot_be_is_refused() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    let mut message = cluster::Cluster::decode(sticky("web", 1).content.as_ref()).unwrap();
    let any = message.metadata.as_mut().unwrap().typed_filter_metadata.values_mut().next().unwrap();
    any.value = SessionAffinity { seconds: 0 }.encode_to_vec();
    let refused = bench.upsert(Cluster, vec![Resource::encode(Cluster, "web", &message)]);
    assert_eq!(refused[0].reason, "metadata: an affinity of 0 seconds is none");
}
