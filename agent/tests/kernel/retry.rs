//! What was refused for want of room, or for an address that another listener has, is asked for again when it may be
//! accepted, and not before.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use slotmesh_slots::Config;
use slotmesh_xds::{
    ResourceType::{self, Cluster, Endpoints, Listener, Settings},
    SlotSettings,
};

use crate::{
    Bench,
    config::{cluster, endpoints, settings, tcp_listener},
};

/// Longer than the first delay, which is a second at most.
const PATIENCE: Duration = Duration::from_secs(3);

fn names(due: &[(ResourceType, slotmesh_xds::ResourceName)]) -> Vec<&str> {
    due.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn only_what_has_room_now_is_asked_for_again() {
    let cap = Config { initial: 3, cap: 3, low_watermark: 0, high_watermark: 32, ..Config::default() };
    let bench = Bench::new(cap);
    let list = |n: u8| -> Vec<(SocketAddr, u32)> {
        (0..120).map(|i| (SocketAddr::from(([10, 0, n, i], 80)), 1)).collect()
    };
    let large = |name: &str| bench.upsert(Endpoints, vec![endpoints(name, &list(1))]);
    let mut last = 0;
    while large(&format!("e{last}")).is_empty() {
        last += 1;
    }
    let refused = [format!("e{last}"), "another".to_owned()];
    assert_eq!(large(&refused[1]).len(), 1);
    // Small changes free slots that are too small; each passes grace periods.
    let small = || {
        let list = [("10.0.0.1:80".parse().unwrap(), 1)];
        assert_eq!(bench.upsert(Endpoints, vec![endpoints("small", &list)]), []);
    };
    let before = bench.stats().grace_periods;
    let due = bench.retries_within(PATIENCE, small);
    assert!(bench.stats().grace_periods > before + 5, "grace periods passed");
    assert_eq!(names(&due), Vec::<&str>::new(), "no slot that is large enough became idle");
    // Room for one: one is asked for.
    bench.remove(Endpoints, &["e0"]);
    let due = bench.retries_within(PATIENCE, small);
    assert_eq!(due.len(), 1, "{due:?}");
    assert!(refused.iter().any(|name| *name == names(&due)[0]), "{due:?}");
    assert_eq!(large(names(&due)[0]), []);
    assert_eq!(bench.retries_within(PATIENCE, small), [], "and no room for the other");
}

/// Refused so often that the next try were minutes away. A cap that is raised, then, lets all in that fits.
#[test]
fn a_raised_cap_lets_in_all_that_fits_however_often_it_was_refused() {
    const MANY: usize = 200;
    /// Far less than the delay after so many refusals, which is two minutes at least; far more than is needed.
    const SOON: Duration = Duration::from_secs(60);
    let cap =
        Config { initial: 3, cap: 3, low_watermark: 1, high_watermark: 32, batch: 2, ..Config::default() };
    let bench = Bench::new(cap);
    let list: Vec<(SocketAddr, u32)> = (0..120).map(|i| (SocketAddr::from(([10, 0, 0, i], 80)), 1)).collect();
    let all: Vec<String> = (0..MANY).map(|i| format!("e{i}")).collect();
    let upsert = |names: &[&str]| -> Vec<String> {
        let refused = bench.upsert(Endpoints, names.iter().map(|name| endpoints(name, &list)).collect());
        refused.into_iter().map(|one| one.name.to_string()).collect()
    };
    let mut refused = upsert(&all.iter().map(String::as_str).collect::<Vec<_>>());
    for _ in 0..8 {
        refused = upsert(&refused.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert!(refused.len() > MANY / 2, "{} of {MANY} are refused", refused.len());
    // Room for a part of them, then for all.
    for (raised, are_all) in [(6, false), (64, true)] {
        assert_eq!(
            bench.upsert(Settings, vec![settings(&SlotSettings { cap: Some(raised), ..Default::default() })]),
            []
        );
        // 16 of them in a slab, beside what else there is.
        let least = if are_all { MANY } else { 16 * (raised as usize - 2) };
        let started = Instant::now();
        while started.elapsed() < SOON && MANY - refused.len() < least {
            let due = bench.retries_within(Duration::from_secs(2), || ());
            let again = upsert(&names(&due));
            refused.retain(|name| !names(&due).contains(&name.as_str()) || again.contains(name));
        }
        let held = bench.held().into_iter().filter(|(ty, _)| *ty == Endpoints).count();
        assert_eq!(held, MANY - refused.len());
        assert!(held >= least, "{held} are in force at a cap of {raised}");
    }
}

#[test]
fn an_address_that_another_listener_has_is_asked_for_when_that_one_has_gone() {
    let bench = Bench::new(Config { initial: 4, ..Config::default() });
    assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let listener = |name: &str| tcp_listener(name, &[vip], &[("web".to_owned(), 1)]);
    assert_eq!(bench.upsert(Listener, vec![listener("first")]), []);
    assert_eq!(bench.upsert(Listener, vec![listener("second")]).len(), 1);
    let change = || assert_eq!(bench.upsert(Cluster, vec![cluster("web")]), []);
    assert_eq!(bench.retries_within(PATIENCE, change), [], "its holder is there");
    bench.remove(Listener, &["first"]);
    let due = bench.retries_within(PATIENCE, change);
    assert_eq!(names(&due), ["second"]);
    assert_eq!(bench.upsert(Listener, vec![listener("second")]), []);
    assert_eq!(bench.retries_within(PATIENCE, change), []);
}
