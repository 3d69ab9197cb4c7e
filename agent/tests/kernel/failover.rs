//! Endpoints that are farther away stand in for the nearest ones while connects to all of those fail. With real sockets.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_agent::{ConnectAttempt, ConnectOutcome};
use slotmesh_xds::{
    EndpointHints, LocalityPolicy, Resource,
    ResourceType::{Cluster, Endpoints, Listener, Settings},
    SlotSettings,
    envoy::{
        envoy::config::{
            cluster::v3::{
                self as clusters, OutlierDetection,
                cluster::{ClusterDiscoveryType, CommonLbConfig},
            },
            core::v3::{Locality, Metadata},
            endpoint::v3::{ClusterLoadAssignment, LocalityLbEndpoints},
        },
        envoy::r#type::v3::Percent,
        google::protobuf::{Any, Duration as ProtoDuration, UInt32Value},
    },
};

use crate::{
    Bench,
    cgroup::Cgroup,
    config::{lb_endpoint, tcp_listener},
    counts::{accepting, nobody, server},
    outliers::failing,
    start::bench,
};

/// One endpoint in each of these places.
fn assignment(of: &[(&str, &str, SocketAddr)]) -> Resource {
    let policy = EndpointHints { policy: Some(LocalityPolicy::default()), ..EndpointHints::default() };
    let any = Any { type_url: EndpointHints::TYPE_URL.to_owned(), value: policy.encode_to_vec() };
    let metadata = Metadata {
        typed_filter_metadata: [(EndpointHints::KEY.to_owned(), any)].into(),
        ..Metadata::default()
    };
    let mut endpoints: Vec<_> = of
        .iter()
        .map(|&(region, zone, at)| LocalityLbEndpoints {
            locality: Some(Locality { region: region.into(), zone: zone.into(), ..Locality::default() }),
            lb_endpoints: vec![lb_endpoint(at, 1)],
            ..LocalityLbEndpoints::default()
        })
        .collect();
    endpoints[0].metadata = Some(metadata);
    let message = ClusterLoadAssignment {
        cluster_name: "web".to_owned(),
        endpoints,
        ..ClusterLoadAssignment::default()
    };
    Resource::encode(Endpoints, "web", &message)
}

/// A node in zone a of region eu, and a Service whose endpoints are left out for so long after two failed connects.
fn publish(bench: &Bench, vip: SocketAddr, seconds: i64, endpoints: &Resource) {
    let settings = SlotSettings { region: "eu".into(), zone: "a".into(), ..SlotSettings::default() };
    assert_eq!(bench.upsert(Settings, vec![Resource::encode(Settings, "node-a", &settings)]), []);
    let number = |value| Some(UInt32Value { value });
    let cluster = clusters::Cluster {
        name: "web".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        lb_policy: 3,
        outlier_detection: Some(OutlierDetection {
            consecutive_5xx: number(2),
            base_ejection_time: Some(ProtoDuration { seconds, nanos: 0 }),
            max_ejection_percent: number(100),
            ..Default::default()
        }),
        // However many are left out, none of those is used.
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert_eq!(bench.upsert(Cluster, vec![Resource::encode(Cluster, "web", &cluster)]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints.clone()]), []);
    assert_eq!(bench.upsert(Listener, vec![tcp_listener("l", &[vip], &[("web".to_owned(), 1)])]), []);
}

/// All endpoints that connections can go to.
fn reached(bench: &Bench, vip: SocketAddr) -> BTreeSet<SocketAddr> {
    let ask =
        |i: u32| bench.agent().datapath().explain(ConnectAttempt::to(vip).choosing((0, i << 26))).unwrap();
    let to = |outcome| match outcome {
        ConnectOutcome::Redirect { to, .. } => Some(to),
        _ => None,
    };
    (0..64).filter_map(|i| to(ask(i))).collect()
}

/// Sends the assignment once more when it is asked for.
fn send_again(bench: &Bench, within: Duration, endpoints: &Resource) -> bool {
    let asked = bench.retries_within(within, || ());
    if asked.is_empty() {
        return false;
    }
    assert_eq!(asked, [(Endpoints, "web".into())]);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints.clone()]), []);
    true
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !reached() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_next_nearest_stand_in_for_those_to_which_connects_fail() {
    const LONG: Duration = Duration::from_secs(60);
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = bench(std::slice::from_ref(&workload));
    let vip = "198.18.34.1:80".parse().unwrap();
    let (near, other) = (nobody(), nobody());
    let ((far, far_at), farthest) = (server(), accepting());
    let endpoints =
        assignment(&[("eu", "a", near), ("eu", "a", other), ("eu", "b", far_at), ("us", "c", farthest)]);
    publish(&bench, vip, 3_600, &endpoints);
    while send_again(&bench, Duration::from_millis(200), &endpoints) {}
    assert_eq!(reached(&bench, vip), [near, other].into());
    // One of two is left out: nobody else is asked.
    until("both of the zone to be left out", || {
        failing(&pod, vip, 4);
        bench.running().ejections.active == 2
    });
    assert!(send_again(&bench, LONG, &endpoints), "it is to be chosen from others");
    until("the other zone to stand in", || reached(&bench, vip) == [far_at].into());
    assert_eq!(failing(&pod, vip, 50), 0);

    // And on to another region.
    drop(far);
    until("that of the other zone to be left out", || {
        failing(&pod, vip, 4);
        bench.running().ejections.active == 3
    });
    assert!(send_again(&bench, LONG, &endpoints), "all that it holds are left out");
    until("the other region to stand in", || reached(&bench, vip) == [farthest].into());
    assert_eq!(failing(&pod, vip, 50), 0);

    // The next agent finds who is left out, and chooses by it at once.
    bench.stop();
    bench.start();
    bench.agent().datapath().attach(&[workload]).unwrap();
    publish(&bench, vip, 3_600, &endpoints);
    while send_again(&bench, Duration::from_millis(200), &endpoints) {}
    assert_eq!(reached(&bench, vip), [farthest].into());
    assert_eq!(failing(&pod, vip, 50), 0);

    // Without outlier detection they are endpoints as any others.
    assert_eq!(bench.upsert(Cluster, vec![crate::config::cluster("web")]), []);
    assert!(send_again(&bench, LONG, &endpoints), "nobody is left out");
    assert_eq!(reached(&bench, vip), [near, other].into());
}

#[test]
fn the_nearest_take_over_again_when_their_time_is_over() {
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let vip = "198.18.34.2:80".parse().unwrap();
    let (near, far) = (nobody(), accepting());
    let endpoints = assignment(&[("eu", "a", near), ("eu", "b", far)]);
    publish(&bench, vip, 3, &endpoints);
    until("the other zone to stand in", || {
        failing(&pod, vip, 4);
        send_again(&bench, Duration::from_millis(200), &endpoints);
        reached(&bench, vip) == [far].into()
    });
    let _server = TcpListener::bind(near).unwrap();
    until("the nearest to be back", || {
        send_again(&bench, Duration::from_millis(200), &endpoints);
        reached(&bench, vip) == [near].into()
    });
    assert_eq!(failing(&pod, vip, 20), 0);
}
