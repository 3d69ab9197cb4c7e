//! How much the maps beside the slots hold: what doesn't fit passes, as if nobody had it, and it is said.

use std::{net::SocketAddr, time::Duration};

use slotmesh_agent::{ConnectAttempt, ConnectOutcome, MapSizes};
use slotmesh_slots::Config;
use slotmesh_xds::ResourceType::{Cluster, Endpoints, Listener};

use crate::{
    Bench,
    config::{cluster, endpoints, tcp_listener},
};

fn bench(addresses: u32) -> Bench {
    let maps = MapSizes { addresses, ..MapSizes::default() };
    let bench = Bench::with_maps(Config { initial: 4, ..Config::default() }, maps);
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.upsert(Endpoints, vec![endpoints("web", &[("10.0.0.1:80".parse().unwrap(), 1)])]), []);
    bench
}

/// The addresses of the `n`th of many.
fn addresses(n: u32, count: u32) -> Vec<SocketAddr> {
    let address = |i: u32| SocketAddr::from(((0x0a60_0000 + n * count + i).to_be_bytes(), 80));
    (0..count).map(address).collect()
}

#[test]
fn an_address_that_does_not_fit_passes_until_there_is_room() {
    let mut bench = bench(1_024);
    let listener = |n: u32| tcp_listener(&format!("l{n}"), &addresses(n, 100), &[("web".to_owned(), 1)]);
    assert_eq!(bench.upsert(Listener, (0..10).map(listener).collect()), []);
    let refused = bench.upsert(Listener, vec![listener(10)]);
    assert!(refused[0].reason.contains("--max-addresses"), "{refused:?}");
    let ask = |bench: &Bench, vip| bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap();
    for vip in addresses(10, 100) {
        assert_eq!(ask(&bench, vip), ConnectOutcome::Pass, "{vip}");
    }
    let change = || assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.retries_within(Duration::from_secs(2), change), [], "there is no place");
    bench.remove(Listener, &["l3"]);
    let due = bench.retries_within(Duration::from_secs(5), || ());
    assert_eq!(due, [(Listener, "l10".into())]);
    assert_eq!(bench.upsert(Listener, vec![listener(10)]), []);
    assert!(matches!(ask(&bench, addresses(10, 100)[99]), ConnectOutcome::Redirect { .. }));
    // A map that is there keeps its size, and what it holds.
    bench.stop();
    bench.maps.addresses = 4_096;
    bench.start();
    assert!(matches!(ask(&bench, addresses(10, 100)[99]), ConnectOutcome::Redirect { .. }));
    assert_eq!(bench.upsert(Listener, vec![listener(11)]).len(), 1);
}

#[test]
fn there_may_be_a_million_addresses() {
    let bench = bench(1_000_000);
    let vips = addresses(0, 70_000);
    let listener = tcp_listener("l", &vips, &[("web".to_owned(), 1)]);
    assert_eq!(bench.upsert(Listener, vec![listener]), []);
    for vip in [vips[0], vips[65_536], vips[69_999]] {
        let outcome = bench.agent().datapath().explain(ConnectAttempt::to(vip)).unwrap();
        assert!(matches!(outcome, ConnectOutcome::Redirect { .. }), "{vip}: {outcome:?}");
    }
}
