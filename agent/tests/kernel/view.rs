//! Endpoints that are chosen by where the node is.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use prost::Message as _;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_slots::Config;
use slotmesh_xds::{
    EndpointHints, Resource,
    ResourceType::{Cluster, Endpoints, Listener, Settings},
    SlotSettings,
    envoy::{
        envoy::config::{
            core::v3::{HealthStatus, Metadata},
            endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints},
        },
        google::protobuf::Any,
    },
};

use crate::{
    Bench,
    config::{cluster, lb_endpoint, tcp_listener},
};

const VIP: &str = "198.18.22.1:80";

/// An assignment of one endpoint for each of these; some degraded.
fn assignment(of: &[(EndpointHints, &str, bool)]) -> Resource {
    let group = |(hints, at, degraded): &(EndpointHints, &str, bool)| {
        let any = Any { type_url: EndpointHints::TYPE_URL.to_owned(), value: hints.encode_to_vec() };
        let mut endpoint = lb_endpoint(at.parse().unwrap(), 1);
        if *degraded {
            endpoint.set_health_status(HealthStatus::Degraded);
        }
        LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            metadata: Some(Metadata {
                typed_filter_metadata: [(EndpointHints::KEY.to_owned(), any)].into(),
                ..Metadata::default()
            }),
            ..LocalityLbEndpoints::default()
        }
    };
    let message = ClusterLoadAssignment {
        cluster_name: "web".to_owned(),
        endpoints: of.iter().map(group).collect(),
        ..ClusterLoadAssignment::default()
    };
    Resource::encode(Endpoints, "web", &message)
}

fn zone(name: &str) -> EndpointHints {
    EndpointHints { for_zones: vec![name.to_owned()], ..EndpointHints::default() }
}

fn only(node: &str) -> EndpointHints {
    EndpointHints { only_node: node.to_owned(), ..EndpointHints::default() }
}

fn settings(zone: &str) -> Resource {
    Resource::encode(Settings, "node-a", &SlotSettings { zone: zone.to_owned(), ..SlotSettings::default() })
}

fn bench(endpoints: Resource) -> Bench {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints]), []);
    let listener = tcp_listener("l", &[VIP.parse().unwrap()], &[("web".to_owned(), 1)]);
    assert_eq!(bench.upsert(Listener, vec![listener]), []);
    bench
}

/// All endpoints that connections can go to; empty where they are refused.
fn reached(bench: &Bench) -> BTreeSet<SocketAddr> {
    let ask = |i: u32| {
        bench
            .agent()
            .datapath()
            .explain(ConnectAttempt::to(VIP.parse().unwrap()).choosing((0, i << 28)))
            .unwrap()
    };
    let to = |outcome| match outcome {
        ConnectOutcome::Redirect { to, .. } => Some(to),
        ConnectOutcome::Refuse => None,
        ConnectOutcome::Pass => panic!("it is ours"),
    };
    (0..16).filter_map(|i| to(ask(i))).collect()
}

fn set(of: &[&str]) -> BTreeSet<SocketAddr> {
    of.iter().map(|at| at.parse().unwrap()).collect()
}

#[test]
fn callers_of_a_node_have_its_own_endpoints_only() {
    let all = [
        (only("node-b"), "10.0.0.1:80", false),
        (only("node-a"), "10.0.0.2:80", false),
        (only("node-a"), "10.0.0.3:80", true),
    ];
    let bench = bench(assignment(&all));
    assert_eq!(reached(&bench), set(&["10.0.0.2:80"]));
    // When none is ready any more, those that still serve.
    assert_eq!(bench.upsert(Endpoints, vec![assignment(&[all[0].clone(), all[2].clone()])]), []);
    assert_eq!(reached(&bench), set(&["10.0.0.3:80"]));
    assert_eq!(bench.upsert(Endpoints, vec![assignment(&all[..1])]), []);
    assert_eq!(reached(&bench), set(&[]), "refused: there is none on this node");
}

#[test]
fn a_node_that_moves_asks_for_what_it_chose_from() {
    let all = [(zone("a"), "10.0.0.1:80", false), (zone("b"), "10.0.0.2:80", false)];
    let mut bench = bench(assignment(&all));
    // Nobody has said yet in which zone it is.
    assert_eq!(reached(&bench), set(&["10.0.0.1:80", "10.0.0.2:80"]));
    let ask_again = |bench: &Bench| bench.retries_within(Duration::from_secs(10), || ());
    for (zone, at) in [("a", "10.0.0.1:80"), ("b", "10.0.0.2:80")] {
        assert_eq!(bench.upsert(Settings, vec![settings(zone)]), []);
        assert_eq!(ask_again(&bench), [(Endpoints, "web".into())]);
        assert_eq!(bench.upsert(Endpoints, vec![assignment(&all)]), []);
        assert_eq!(reached(&bench), set(&[at]));
        assert_eq!(bench.show(Endpoints, "web").unwrap()["chosenForThisNode"], true);
    }
    // The same zone once more is no news.
    assert_eq!(bench.upsert(Settings, vec![settings("b")]), []);
    assert_eq!(bench.retries_within(Duration::from_millis(200), || ()), []);
    // The next agent doesn't know by what it was chosen: it asks for it as for something that it doesn't have.
    let version = assignment(&all).version;
    assert_eq!(bench.version(Endpoints, "web"), Some(version));
    let of_cluster = bench.version(Cluster, "web");
    bench.stop();
    bench.start();
    assert_eq!(reached(&bench), set(&["10.0.0.2:80"]));
    assert_ne!(bench.version(Endpoints, "web"), Some(version));
    assert!(bench.version(Endpoints, "web").is_some(), "else its removal would never be told");
    assert_eq!(bench.version(Cluster, "web"), of_cluster);
    assert_eq!(bench.upsert(Settings, vec![settings("a")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![assignment(&all)]), []);
    assert_eq!(reached(&bench), set(&["10.0.0.1:80"]));
    assert_eq!(bench.version(Endpoints, "web"), Some(version));
    // Without settings, without a zone.
    bench.remove(Settings, &["node-a"]);
    assert_eq!(ask_again(&bench), [(Endpoints, "web".into())]);
    assert_eq!(bench.upsert(Endpoints, vec![assignment(&all)]), []);
    assert_eq!(reached(&bench).len(), 2);
}
