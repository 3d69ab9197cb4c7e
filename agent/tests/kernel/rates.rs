//! New connections come no faster than they may. With real sockets, and the kernel's own clock.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use slotmesh_agent::{ConnectionCounts, Pins};
use slotmesh_kernel::{Map, monotonic};
use slotmesh_records::{BucketKey, BucketState, name_hash};
use slotmesh_xds::{
    ConnectionRate,
    envoy::{envoy::config::cluster::v3::Filter, google::protobuf::Any},
};

use crate::{
    Bench,
    cgroup::Cgroup,
    counts::accepting,
    running::{counts_of, is_refused, publish_as, until},
    start::bench,
};

fn publish(bench: &Bench, vip: SocketAddr, to: SocketAddr, rate: ConnectionRate) {
    let any =
        Any { type_url: ConnectionRate::TYPE_URL.to_owned(), value: prost::Message::encode_to_vec(&rate) };
    publish_as(bench, vip, &[(to, 1)], |cluster| {
        cluster.filters = vec![Filter { typed_config: Some(any), ..Default::default() }];
    });
}

/// How many of so many connects are made; each is closed, or refused.
fn made(pod: &Cgroup, vip: SocketAddr, connects: usize) -> usize {
    pod.within(|| {
        let connect = || match TcpStream::connect_timeout(&vip, Duration::from_secs(10)) {
            Ok(_) => true,
            refused => {
                assert!(is_refused(refused));
                false
            }
        };
        (0..connects).filter(|_| connect()).count()
    })
}

fn too_fast(bench: &Bench) -> u64 {
    let named = |(name, counts): (String, ConnectionCounts)| (name == "web").then_some(counts.too_fast);
    bench.running().clusters.into_iter().find_map(named).unwrap_or(0)
}

fn buckets(bench: &Bench) -> Vec<(BucketKey, BucketState)> {
    let map: Map<BucketKey, BucketState> =
        Map::open(&Pins::new(&bench.options().pin_root).buckets()).unwrap().expect("it is pinned");
    map.entries().unwrap()
}

#[test]
fn never_more_than_the_burst_and_what_has_flowed_in_since() {
    const BURST: u64 = 20;
    const PER_SECOND: u64 = 50;
    let pod = Cgroup::new();
    let bench = bench(&[pod.workload("pod")]);
    let to = accepting();
    let vip = "198.18.31.1:80".parse().unwrap();
    let rate = ConnectionRate { per_second: PER_SECOND as u32, burst: BURST as u32, per_caller: false };
    publish(&bench, vip, to, rate);
    let began = monotonic();
    let (mut all, mut connects) = (0, 0);
    // Until some have flowed in; however long that takes, it is never more.
    until("tokens to flow in", || {
        all += made(&pod, vip, 100) as u64;
        connects += 100;
        let passed = (monotonic() - began).as_nanos() as u64;
        let most = BURST + passed * PER_SECOND / 1_000_000_000;
        assert!(all <= most, "{all} of {most}");
        all > BURST + 5
    });
    assert_eq!(too_fast(&bench), connects - all, "each is told that was refused");
    assert_eq!(counts_of(&bench, "web").unwrap().refused, 0, "there is no limit");
}

#[test]
fn a_bucket_outlives_versions_and_agents() {
    let pod = Cgroup::new();
    let workload = pod.workload("pod");
    let mut bench = bench(std::slice::from_ref(&workload));
    let to = accepting();
    let vip = "198.18.31.2:80".parse().unwrap();
    // One flows in after a second; the burst is what there is.
    let slow = |burst| ConnectionRate { per_second: 1, burst, per_caller: false };
    publish(&bench, vip, to, slow(1_000));
    assert_eq!(made(&pod, vip, 300), 300);
    // Of the smaller bucket all that was taken is missing.
    publish(&bench, vip, to, slow(200));
    assert_eq!(made(&pod, vip, 5), 0);
    bench.stop();
    assert_eq!(made(&pod, vip, 5), 0);
    bench.start();
    bench.agent().datapath().attach(&[workload]).unwrap();
    assert_eq!(made(&pod, vip, 5), 0);
    // Where there is no rate any more, nobody asks.
    publish_as(&bench, vip, &[(to, 1)], |_| ());
    assert_eq!(made(&pod, vip, 50), 50);
    assert_eq!(buckets(&bench).len(), 1);
}

#[test]
fn each_caller_has_a_bucket_of_its_own_where_that_is_said() {
    let pods = [Cgroup::new(), Cgroup::new()];
    let bench = bench(&[pods[0].workload("one"), pods[1].workload("two")]);
    let to = accepting();
    let vip = "198.18.31.3:80".parse().unwrap();
    let rate = ConnectionRate { per_second: 1, burst: 1_000, per_caller: true };
    publish(&bench, vip, to, rate);
    assert_eq!(made(&pods[0], vip, 300), 300);
    publish(&bench, vip, to, ConnectionRate { burst: 200, ..rate });
    assert_eq!(made(&pods[0], vip, 5), 0, "it has taken what there was");
    assert_eq!(made(&pods[1], vip, 100), 100, "the other one hasn't");
    assert_eq!(too_fast(&bench), 5);
    let keys: Vec<_> = buckets(&bench).into_iter().map(|(key, _)| key.caller).collect();
    assert_eq!(keys.len(), 3, "two callers', and what was refused: {keys:?}");
    assert!(buckets(&bench).iter().all(|(key, _)| key.cluster == name_hash("web")));
    // Much faster: theirs are full at once, and go.
    publish(&bench, vip, to, ConnectionRate { per_second: 1_000_000, burst: 1, per_caller: true });
    let quick = Cgroup::new();
    bench.agent().datapath().enrol(&quick.workload("three")).unwrap();
    assert_eq!(made(&quick, vip, 1), 1);
    let caller = quick.workload("three").id();
    until("a full bucket to go", || buckets(&bench).iter().all(|(key, _)| key.caller != caller));
}
