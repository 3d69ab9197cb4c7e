//! A new agent takes over exactly what the old one left when it was stopped. (What one leaves that is
//! killed in the middle of a change is for the scenarios of `slotmesh-e2e`.)

use std::net::SocketAddr;

use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener};

use crate::{
    Bench,
    config::{cluster, endpoints, tcp_listener},
};

fn used(bench: &Bench) -> u64 {
    bench.stats().classes.iter().map(|(_, class)| class.used).sum()
}

#[test]
fn everything_is_in_force_after_a_restart_and_nothing_leaks() {
    let mut bench = Bench::new(Config { initial: 4, ..Config::default() });
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let to: SocketAddr = "10.0.0.1:8080".parse().unwrap();
    assert_eq!(bench.upsert(Cluster, vec![cluster("web"), cluster("gone")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[(to, 1)])]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
    let (held, used_before) = (bench.held(), used(&bench));
    for _ in 0..3 {
        bench.stop();
        bench.start();
        assert_eq!(bench.held(), held);
        assert_eq!(used(&bench), used_before);
        let outcome = bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap();
        assert!(matches!(outcome, ConnectOutcome::Redirect { to: found, .. } if found == to), "{outcome:?}");
    }
    bench.remove(Listener, &["l"]);
    bench.remove(Cluster, &["web", "gone"]);
    bench.remove(Endpoints, &["web"]);
    bench.stop();
    bench.start();
    assert_eq!(bench.held(), []);
    assert_eq!(bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap(), ConnectOutcome::Pass);
    assert!(used(&bench) <= 2, "superblock and directory: {}", used(&bench));
}
