//! Endpoints to which connects fail are left out for some time. With real sockets.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use slotmesh_agent::{ConnectAttempt, ConnectOutcome, Ejections, Pins};
use slotmesh_kernel::Map;
use slotmesh_records::{OutlierState, name_hash, words};
use slotmesh_xds::envoy::{
    envoy::{
        config::cluster::v3::{OutlierDetection, cluster::CommonLbConfig},
        r#type::v3::Percent,
    },
    google::protobuf::{Duration as ProtoDuration, UInt32Value},
};
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    Bench,
    cgroup::Cgroup,
    counts::{accepting, nobody, server},
    running::{is_refused, publish_as, until},
    start::bench,
};

/// How outliers are detected.
#[derive(Clone, Copy)]
struct Detection {
    failures: u32,
    seconds: i64,
    most_percent: u32,
    panic_percent: u32,
}

/// So long that nothing comes back while a test lasts.
const LONG: Detection = Detection { failures: 3, seconds: 3_600, most_percent: 50, panic_percent: 0 };

fn publish(bench: &Bench, vip: SocketAddr, to: &[SocketAddr], detection: Detection) {
    let Detection { failures, seconds, most_percent, panic_percent } = detection;
    let number = |value| Some(UInt32Value { value });
    let to: Vec<_> = to.iter().map(|to| (*to, 1)).collect();
    publish_as(bench, vip, &to, |cluster| {
        cluster.outlier_detection = Some(OutlierDetection {
            consecutive_5xx: number(failures),
            base_ejection_time: Some(ProtoDuration { seconds, nanos: 0 }),
            max_ejection_percent: number(most_percent),
            ..Default::default()
        });
        cluster.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: panic_percent.into() }),
            ..Default::default()
        });
    });
}

/// How many of so many connects fail; those that don't are closed.
pub(crate) fn failing(pod: &Cgroup, vip: SocketAddr, connects: usize) -> usize {
    pod.within(|| {
        (0..connects)
            .filter(|_| is_refused(TcpStream::connect_timeout(&vip, Duration::from_secs(10))))
            .count()
    })
}

fn ejections(bench: &Bench) -> Ejections {
    bench.running().ejections
}

/// What is known of an endpoint of `web`.
fn state(bench: &Bench, at: SocketAddr) -> Option<OutlierState> {
    let map: Map<u64, OutlierState> =
        Map::open(&Pins::new(&bench.options().pin_root).outliers()).unwrap().expect("it is pinned");
    map.get(&OutlierState::key(name_hash("web"), words(at.ip()), at.port().to_be())).unwrap()
}

fn failures(bench: &Bench, at: SocketAddr) -> u32 {
    state(bench, at).map_or(0, |state| state.failures.get())
}

#[test]
fn an_endpoint_that_refuses_is_left_out_whatever_is_flushed_and_whoever_is_the_agent() {
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = bench(std::slice::from_ref(&workload));
    let (good, bad) = (accepting(), nobody());
    let vip = "198.18.30.1:80".parse().unwrap();
    publish(&bench, vip, &[good, bad], LONG);
    // After exactly as many in a row, and never again.
    assert_eq!(failing(&pod, vip, 200), 3);
    assert_eq!(ejections(&bench), Ejections { active: 1, total: 1 });
    let left = bench.left_out("web");
    assert_eq!(left.keys().copied().collect::<Vec<_>>(), [bad]);
    assert!(left[&bad] > Duration::from_secs(1_800), "{left:?}");
    assert_eq!(state(&bench, bad).unwrap().times, 1);
    assert_eq!(state(&bench, good), None, "of an endpoint that works nothing is kept");

    // Another version of the cluster, and another agent.
    publish(&bench, vip, &[bad, good], Detection { failures: 4, ..LONG });
    assert_eq!(failing(&pod, vip, 100), 0);
    bench.stop();
    assert_eq!(failing(&pod, vip, 100), 0);
    bench.start();
    bench.agent().datapath().attach(&[workload]).unwrap();
    assert_eq!(failing(&pod, vip, 100), 0);
    assert_eq!(ejections(&bench), Ejections { active: 1, total: 1 });
    // Without outlier detection it is an endpoint as any other.
    publish_as(&bench, vip, &[(bad, 1)], |_| ());
    assert_eq!(failing(&pod, vip, 3), 3);
}

#[test]
fn no_more_are_left_out_than_may_be() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let good = accepting();
    let bad = [nobody(), nobody(), nobody()];
    let vip = "198.18.30.2:80".parse().unwrap();
    publish(&bench, vip, &[good, bad[0], bad[1], bad[2]], LONG);
    until("two of four to be left out", || {
        failing(&pod, vip, 20);
        ejections(&bench).active == 2
    });
    assert_ne!(failing(&pod, vip, 100), 0, "the third one is in");
    assert_eq!(ejections(&bench), Ejections { active: 2, total: 2 });
    // Where fewer than so many are left, all are used; those that are left out stay so.
    publish(&bench, vip, &[good, bad[0], bad[1], bad[2]], Detection { panic_percent: 51, ..LONG });
    let mut reached = BTreeMap::<SocketAddr, u32>::new();
    for number in 0..64 {
        let to =
            bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((0, number << 26))).unwrap();
        if let ConnectOutcome::Redirect { to, .. } = to {
            *reached.entry(to).or_default() += 1;
        }
    }
    assert_eq!(reached.len(), 4, "{reached:?}");
    assert_eq!(ejections(&bench).active, 2);
}

#[test]
fn where_all_are_left_out_connects_are_refused_at_once() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let bad = nobody();
    let vip = "198.18.30.3:80".parse().unwrap();
    publish(&bench, vip, &[bad], Detection { most_percent: 100, ..LONG });
    until("the only one to be left out", || {
        failing(&pod, vip, 1);
        ejections(&bench).active == 1
    });
    // The server is back, but nobody asks it.
    let _server = TcpListener::bind(bad).unwrap();
    assert_eq!(failing(&pod, vip, 20), 20);
    // Unless all are used then.
    publish(&bench, vip, &[bad], Detection { most_percent: 100, panic_percent: 1, ..LONG });
    assert_eq!(failing(&pod, vip, 20), 0);
}

#[test]
fn an_endpoint_comes_back_by_itself_and_may_be_left_out_again() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (good, bad) = (accepting(), nobody());
    let vip = "198.18.30.4:80".parse().unwrap();
    publish(&bench, vip, &[good, bad], Detection { seconds: 1, ..LONG });
    for round in 1..3 {
        until("it to be left out", || {
            failing(&pod, vip, 10);
            ejections(&bench).total >= round
        });
        // Nobody connects meanwhile: time alone brings it back, and it counts as in.
        until("it to come back", || state(&bench, bad).is_some_and(|state| state.until == 0));
        assert_eq!(ejections(&bench).active, 0);
    }
}

#[test]
fn a_connect_that_succeeds_ends_the_row() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let at = nobody();
    let vip = "198.18.30.5:80".parse().unwrap();
    publish(&bench, vip, &[at], Detection { most_percent: 100, ..LONG });
    assert_eq!(failing(&pod, vip, 2), 2);
    assert_eq!(failures(&bench, at), 2);
    let server = TcpListener::bind(at).unwrap();
    drop(pod.connect(vip).unwrap());
    assert_eq!(failures(&bench, at), 0);
    // One that stays open is as good.
    drop(server);
    assert_eq!(failing(&pod, vip, 2), 2);
    let _server = TcpListener::bind(at).unwrap();
    let mut open = Vec::new();
    // It is told of when the agent looks between two seconds and four after it began; a busy one may miss that.
    for _ in 0..6 {
        open.push(pod.connect(vip).unwrap());
        for _ in 0..50 {
            if failures(&bench, at) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert_eq!(failures(&bench, at), 0, "it is seen that a connection is open");
    assert_eq!(ejections(&bench), Ejections::default());
}

#[test]
fn a_reset_counts_until_a_byte_has_come() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (server, at) = server();
    let vip = "198.18.30.6:80".parse().unwrap();
    publish(&bench, vip, &[at], Detection { most_percent: 100, ..LONG });
    let reset = |bytes: &[u8]| {
        let mut client = pod.connect(vip).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        accepted.write_all(bytes).unwrap();
        let mut read = vec![0; bytes.len()];
        client.read_exact(&mut read).unwrap();
        SockRef::from(&accepted).set_linger(Some(Duration::ZERO)).unwrap();
        drop(accepted);
        // Until the reset is there.
        assert!(client.read(&mut [0]).is_err());
    };
    reset(&[]);
    assert_eq!(failures(&bench, at), 1);
    reset(b"x");
    assert_eq!(failures(&bench, at), 0, "it had begun to answer");
    // The end of what a server sends is an answer, too.
    reset(&[]);
    let mut client = pod.connect(vip).unwrap();
    drop(server.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    client.shutdown(std::net::Shutdown::Both).unwrap();
    drop(client);
    assert_eq!(failures(&bench, at), 0);
}

#[test]
fn a_connect_that_nobody_answers_counts() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    // One connection waits to be accepted, and there is room for no other: further ones get no answer.
    let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    server.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    server.listen(0).unwrap();
    let at = server.local_addr().unwrap().as_socket().unwrap();
    let _waiting = TcpStream::connect(at).unwrap();
    let vip: SocketAddr = "198.18.30.7:80".parse().unwrap();
    publish(&bench, vip, &[at], Detection { most_percent: 100, ..LONG });
    let given_up = |after| pod.within(|| TcpStream::connect_timeout(&vip, after)).unwrap_err();
    assert_eq!(given_up(Duration::from_millis(500)).kind(), std::io::ErrorKind::TimedOut);
    assert_eq!(failures(&bench, at), 1);
}
