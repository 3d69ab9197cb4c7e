//! Connections of a cluster without a limit count by CPU; a limit that comes later counts them all. With real sockets.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Barrier,
    time::Duration,
};

use slotmesh_kernel::Map;
use slotmesh_records::{ClusterState, name_hash};

use crate::{
    Bench,
    cgroup::Cgroup,
    running::{active, is_refused, publish},
    start::bench,
};

fn sockets(bench: &Bench) -> slotmesh_records::SocketTotals {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(bench.agent().handle().running(0)).sockets
}

/// Connections that count in the one word of the cluster, which all CPUs share.
fn among_all(bench: &Bench) -> u64 {
    let pins = slotmesh_agent::Pins::new(&bench.options().pin_root);
    let states: Map<u64, ClusterState> = Map::open(&pins.clusters()).unwrap().unwrap();
    states.get(&name_hash("web")).unwrap().map_or(0, |state| state.active.get().into())
}

/// Accepts and keeps whatever comes.
fn server() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    std::thread::spawn(move || drop(server.incoming().collect::<Vec<_>>()));
    at
}

#[test]
fn what_began_without_a_limit_counts_in_one_that_comes() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (vip, to) = ("198.18.11.1:80".parse().unwrap(), [(server(), 1)]);
    publish(&bench, vip, &to, None);
    let mut held: Vec<TcpStream> = (0..3).map(|_| pod.connect(vip).unwrap()).collect();
    assert_eq!((active(&bench), among_all(&bench)), (3, 0), "no word is shared by all CPUs");
    for (limit, fits) in [(5, 2), (4, 0), (6, 1)] {
        publish(&bench, vip, &to, Some(limit));
        for _ in 0..fits {
            held.push(pod.connect(vip).unwrap());
        }
        assert!(is_refused(pod.connect(vip)), "of {limit} there are {}", held.len());
        assert_eq!(active(&bench), held.len() as u64);
    }
    // Of the first three, that count elsewhere.
    drop(held.remove(0));
    held.push(pod.connect(vip).unwrap());
    assert!(is_refused(pod.connect(vip)));
    publish(&bench, vip, &to, None);
    held.extend((0..3).map(|_| pod.connect(vip).unwrap()));
    assert_eq!((active(&bench), held.len()), (9, 9));
    held.clear();
    assert_eq!((active(&bench), among_all(&bench)), (0, 0));
}

/// Threads on all CPUs connect and close while the limit comes and goes.
#[test]
fn nothing_is_lost_whatever_the_cpu_that_closes() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 6;
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let (vip, to) = ("198.18.11.2:80".parse().unwrap(), [(server(), 1)]);
    let mut held: Vec<TcpStream> = Vec::new();
    for round in 0..ROUNDS {
        let limit = [None, Some(30), None, Some(200)][round % 4];
        publish(&bench, vip, &to, limit);
        let barrier = Barrier::new(THREADS);
        let connect = || {
            barrier.wait();
            let some = || TcpStream::connect_timeout(&vip, Duration::from_secs(3)).ok();
            // Each other one is closed at once, by another thread than that which holds the rest.
            (0..20).filter_map(|i| some().filter(|_| i % 2 == 0)).collect::<Vec<_>>()
        };
        held.extend(pod.within(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            })
        }));
        assert_eq!(active(&bench), held.len() as u64, "round {round}");
        assert_eq!(sockets(&bench).recorded, held.len() as u64, "round {round}");
        held.truncate(20 + round);
        assert_eq!(active(&bench), held.len() as u64, "round {round}");
    }
    held.clear();
    assert_eq!((active(&bench), sockets(&bench).recorded), (0, 0));
}
