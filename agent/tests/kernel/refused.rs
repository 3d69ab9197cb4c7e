//! The share of a route that leads nowhere is refused, whatever the node has of the cluster that stands for it.

use std::net::SocketAddr;

use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_records::name_hash;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener, Route};

use crate::{
    Bench,
    config::{cluster, endpoints, http_listener, route, tcp_listener},
    start::bench,
};

const NOWHERE: &str = "BlackHoleCluster";

/// How many of a hundred even choices of the cluster are refused, and how many go to `web`.
fn shares(bench: &Bench, vip: SocketAddr) -> (usize, usize) {
    let outcomes = (0..100_u32).map(|i| {
        let number = (u64::from(i) * (u64::from(u32::MAX) + 1) / 100) as u32;
        bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((number, 0))).unwrap()
    });
    let mut shares = (0, 0);
    for outcome in outcomes {
        match outcome {
            ConnectOutcome::Refuse => shares.0 += 1,
            ConnectOutcome::Redirect { cluster, .. } if cluster == name_hash("web") => shares.1 += 1,
            other => panic!("{other:?}"),
        }
    }
    shares
}

#[test]
fn a_share_is_refused_though_the_refusing_cluster_is_not_in_force() {
    let bench = bench(&[]);
    let [tcp, http, alone]: [SocketAddr; 3] =
        ["198.18.12.1:80", "198.18.12.2:80", "198.18.12.3:80"].map(|vip| vip.parse().unwrap());
    let split = [("web".to_owned(), 7), (NOWHERE.to_owned(), 3)];
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[("10.0.0.1:80".parse().unwrap(), 1)])]), []);
    assert_eq!(bench.upsert(Route, vec![route("r", &split)]), []);
    let listeners = vec![
        tcp_listener("tcp", &[tcp], &split),
        http_listener("http", &[http], "r"),
        tcp_listener("alone", &[alone], &[(NOWHERE.to_owned(), 1)]),
    ];
    assert_eq!(bench.upsert(Listener, listeners), []);
    let check = || {
        assert_eq!(shares(&bench, alone), (100, 0));
        for vip in [tcp, http] {
            let (refused, web) = shares(&bench, vip);
            assert!(refused + web == 100 && (29..=31).contains(&refused), "{refused} of {web}");
        }
        for (ty, name) in [(Listener, "tcp"), (Listener, "alone"), (Route, "r")] {
            assert!(bench.show(ty, name).unwrap().to_string().contains(NOWHERE), "{name}");
        }
    };
    check();
    // One that could lead somewhere is refused by name.
    let refused = bench.upsert(Cluster, vec![cluster(NOWHERE)]);
    assert!(refused.len() == 1 && refused[0].reason.contains("has no endpoints"), "{refused:?}");
    assert_eq!(bench.upsert(Endpoints, vec![endpoints(NOWHERE, &[("10.0.0.2:80".parse().unwrap(), 1)])]), []);
    check();
}
