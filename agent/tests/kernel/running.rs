//! What runs of a cluster: its limit of connections, and whose turn it is. With real sockets.

use std::{
    io::{BufRead as _, BufReader, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use slotmesh_agent::{ConnectionCounts, Pins};
use slotmesh_kernel::Map;
use slotmesh_records::{ClusterState, LaneKey, LaneState, name_hash};
use slotmesh_xds::{
    Resource,
    ResourceType::{Cluster, Listener},
    envoy::{
        envoy::config::{
            cluster::v3::{self as cluster, circuit_breakers::Thresholds, cluster::ClusterDiscoveryType},
            endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints},
        },
        google::protobuf::UInt32Value,
    },
};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{lb_endpoint, tcp_listener},
    start::{bench, start},
};

/// A cluster, chosen from in turn, with at most so many connections.
pub(crate) fn publish(bench: &Bench, vip: SocketAddr, to: &[(SocketAddr, u32)], most: Option<u32>) {
    let thresholds =
        Thresholds { max_connections: most.map(|value| UInt32Value { value }), ..Default::default() };
    publish_as(bench, vip, to, |cluster| {
        cluster.circuit_breakers =
            Some(cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() });
    });
}

/// As [`publish`], with what else there is to the cluster.
pub(crate) fn publish_as(
    bench: &Bench,
    vip: SocketAddr,
    to: &[(SocketAddr, u32)],
    change: impl FnOnce(&mut cluster::Cluster),
) {
    let mut message = cluster::Cluster {
        name: "web".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(0)),
        load_assignment: Some(ClusterLoadAssignment {
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: to.iter().map(|&(to, weight)| lb_endpoint(to, weight)).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut message);
    assert_eq!(bench.upsert(Cluster, vec![Resource::encode(Cluster, "web", &message)]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
}

fn states(bench: &Bench) -> Map<u64, ClusterState> {
    Map::open(&Pins::new(&bench.options().pin_root).clusters()).unwrap().expect("it is pinned")
}

fn lanes(bench: &Bench) -> Map<LaneKey, LaneState> {
    Map::open(&Pins::new(&bench.options().pin_root).lanes()).unwrap().expect("it is pinned")
}

/// Counts of the cluster `web`; see [`counts_of`].
fn counts(bench: &Bench) -> Option<ConnectionCounts> {
    counts_of(bench, "web")
}

/// Counts of a cluster, in its word and in its lanes; `None` where nothing is left of it.
pub(crate) fn counts_of(bench: &Bench, cluster: &str) -> Option<ConnectionCounts> {
    let cluster = name_hash(cluster);
    let all = states(bench).get(&cluster).unwrap().map(|state| ConnectionCounts {
        active: state.active.get().into(),
        opened: state.opened,
        refused: state.refused,
        too_fast: 0,
    });
    let of_lane = |lane| lanes(bench).get(&LaneKey::new(cluster, lane)).unwrap();
    let lanes = (0..LaneKey::LANES).filter_map(of_lane).map(|state| ConnectionCounts {
        active: state.active.get().into(),
        opened: state.opened,
        refused: 0,
        too_fast: 0,
    });
    all.into_iter().chain(lanes).reduce(|a, b| ConnectionCounts {
        active: a.active + b.active,
        opened: a.opened + b.opened,
        refused: a.refused + b.refused,
        too_fast: 0,
    })
}

pub(crate) fn active(bench: &Bench) -> u64 {
    counts(bench).map_or(0, |counts| counts.active)
}

pub(crate) fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn is_refused<T>(connected: std::io::Result<T>) -> bool {
    connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Where the map of clusters is full, nothing is known of how many connections a cluster has that isn't in it.
#[test]
fn a_cluster_for_which_there_is_no_room_is_refused_where_it_has_a_limit() {
    const MOST: u64 = 65_536;
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.8.9:80".parse().unwrap(), [(server.local_addr().unwrap(), 1)]);
    let map = states(&bench);
    let others: Vec<u64> = (1..=MOST).collect();
    let values: Vec<ClusterState> = others.iter().map(|&cluster| ClusterState::none(cluster)).collect();
    map.update_batch(&others, &values).unwrap();
    let uncounted = || bench.running().sockets.uncounted;
    publish(&bench, vip, &to, Some(2));
    assert!(is_refused(pod.connect(vip)), "a limit lets nothing pass that it can't count");
    assert_eq!((uncounted(), map.get(&name_hash("web")).unwrap()), (1, None), "and that is told");
    // Without a limit it passes.
    publish(&bench, vip, &to, None);
    drop(pod.connect(vip).unwrap());
    // With a place the limit holds.
    map.delete(&others[0]).unwrap();
    publish(&bench, vip, &to, Some(2));
    let held = [pod.connect(vip).unwrap(), pod.connect(vip).unwrap()];
    assert!(is_refused(pod.connect(vip)), "the third");
    assert_eq!((active(&bench), uncounted()), (2, 1));
    drop(held);
}

#[test]
fn a_cluster_has_at_most_its_connections() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.8.1:80".parse().unwrap(), [(server.local_addr().unwrap(), 1)]);
    publish(&bench, vip, &to, Some(2));
    let first = pod.connect(vip).unwrap();
    let second = pod.connect(vip).unwrap();
    assert_eq!(active(&bench), 2);
    assert!(is_refused(pod.connect(vip)), "the third");
    // A flush doesn't touch what runs.
    publish(&bench, vip, &to, Some(3));
    assert_eq!(active(&bench), 2);
    let third = pod.connect(vip).unwrap();
    assert!(is_refused(pod.connect(vip)), "the fourth");
    let now = counts(&bench).unwrap();
    assert_eq!((now.opened, now.refused), (3, 2));
    // Whichever side closes first.
    drop(server.accept().unwrap());
    assert_eq!(active(&bench), 3, "one side is open");
    drop(first);
    assert_eq!(active(&bench), 2, "as soon as it is closed");

    // A process that is killed has closed its connections.
    let script = format!(
        "echo $$ > {}/cgroup.procs; exec 3<>/dev/tcp/{}/{}; echo up; read -r line",
        pod.0.display(),
        vip.ip(),
        vip.port()
    );
    let mut child = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash can be started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), active(&bench)), ("up\n", 3));
    assert!(is_refused(pod.connect(vip)), "the killed one's place isn't free yet");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(server);
    assert_eq!(active(&bench), 2, "the killed one has ended");

    // With the server gone every connect fails, and none counts afterwards.
    drop(third);
    for _ in 0..10 {
        assert!(is_refused(pod.connect(vip)));
    }
    drop(second);
    assert_eq!(active(&bench), 0);
    bench.remove(Cluster, &["web"]);
    until("what ran goes with its cluster", || counts(&bench).is_none());
}

#[test]
fn what_runs_stays_while_records_of_another_layout_are_in_force() {
    let pod = Cgroup::new();
    let workloads = [pod.workload("pod")];
    let mut bench = bench(&workloads);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (vip, to) = ("198.18.8.3:80".parse().unwrap(), [(server.local_addr().unwrap(), 1)]);
    publish(&bench, vip, &to, None);
    drop(pod.connect(vip).unwrap());
    drop(server.accept().unwrap());
    assert_eq!(active(&bench), 0);
    let left = counts(&bench).expect("a connection began");
    let gone = name_hash("gone");
    states(&bench).update(&gone, &ClusterState { opened: 1, ..ClusterState::none(gone) }).unwrap();

    bench.stop();
    let pins = Pins::new(&bench.options().pin_root);
    std::fs::rename(pins.records(), pins.records().with_file_name("records-0000000000000001")).unwrap();
    bench.agent = Some(start(&bench, &workloads).unwrap());
    assert_eq!(counts(&bench), Some(left), "the programs in force count there");
    publish(&bench, vip, &to, None);
    bench.sync();
    until("what runs of no cluster goes", || states(&bench).get(&gone).unwrap().is_none());
    assert_eq!(counts(&bench), Some(left));
}

#[test]
fn endpoints_have_their_turns() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let server = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let ip = |i: u8| Ipv4Addr::new(127, 0, 0, 10 + i);
    let vip = "198.18.8.2:80".parse().unwrap();
    let taken = |count: usize| -> Vec<IpAddr> {
        (0..count)
            .map(|_| {
                let _client = pod.connect(vip).unwrap();
                server.accept().unwrap().0.local_addr().unwrap().ip()
            })
            .collect()
    };
    let equal: Vec<(SocketAddr, u32)> = (0..3).map(|i| (SocketAddr::from((ip(i), port)), 1)).collect();
    publish(&bench, vip, &equal, None);
    let expected: Vec<IpAddr> = (0..12).map(|i| ip(i % 3).into()).collect();
    assert_eq!(taken(12), expected);
    // Three to one: any twelve in a row have nearly that.
    publish(&bench, vip, &[(equal[0].0, 3), (equal[1].0, 1)], None);
    let taken = taken(48);
    for window in taken.windows(12) {
        let lesser = window.iter().filter(|&&at| at == IpAddr::from(ip(1))).count();
        assert!((2..=4).contains(&lesser), "{lesser} of 12: {window:?}");
    }
}
