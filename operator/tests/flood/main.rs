//! The operator's port under a flood: silent connections, idle ones, bad tokens; and agents that want in.
//!
//! The API server is a stub that judges tokens by their first letters and counts what it is asked. With
//! `SLOTMESH_FLOOD=10000` there are so many silent and so many idle connections, and 1,000 bad tokens a second.

mod site;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use self::site::{Site, read_to_end};

const AGENTS: u32 = 50;
/// Addresses that the flood comes from.
const ADDRESSES: u32 = 20;
/// Bad tokens under way at a time: a slow machine asks less often.
const ASKING: usize = 256;
/// As operator/serve/src/gate.rs has it.
const UNKNOWN: usize = 1_024;
/// After this time something is wrong, whatever the machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn flooder(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + number % ADDRESSES)
}

/// Starts the flood; it goes on until `stop`.
fn flood(site: &Site, size: u32, stop: &CancellationToken) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for number in 0..2 * size {
        let (site, stop) = (site.clone(), stop.clone());
        let silent = number % 2 == 0;
        tasks.spawn(async move {
            let connect = async {
                // Spread over two seconds, and anew when they are thrown out.
                tokio::time::sleep(Duration::from_millis(u64::from(number % 2_000))).await;
                while let Ok(tcp) = site.tcp(flooder(number)).await {
                    if silent {
                        read_to_end(tcp).await;
                    } else if let Ok(tls) = site.tls(tcp).await {
                        read_to_end(tls).await;
                    }
                    tokio::time::sleep(Duration::from_secs(20)).await;
                }
            };
            _ = stop.run_until_cancelled(connect).await;
        });
    }
    let (site, stop) = (site.clone(), stop.clone());
    tasks.spawn(async move {
        let mut each = tokio::time::interval(Duration::from_secs(1) / (size / 10).max(1));
        let mut asking = JoinSet::new();
        for number in 0_u32.. {
            if stop.run_until_cancelled(each.tick()).await.is_none() {
                return;
            }
            while asking.try_join_next().is_some() {}
            if asking.len() >= ASKING {
                continue;
            }
            let (site, stop) = (site.clone(), stop.clone());
            asking.spawn(async move {
                let token = format!("bad-{number}");
                let ask = site.stream(flooder(number), "nowhere", &token);
                _ = stop.run_until_cancelled(ask).await;
            });
        }
    });
    tasks
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_get_in_while_strangers_flood_the_port() {
    let size: u32 = std::env::var("SLOTMESH_FLOOD").map_or(1_500, |size| size.parse().expect("a number"));
    let begun_at_all = Instant::now();
    let site = Site::start().await;
    let home = Ipv4Addr::LOCALHOST;
    // Half of the agents were here before.
    for number in (0..AGENTS).step_by(2) {
        site.stream(home, &format!("n{number}"), &format!("good-n{number}")).await.expect("let in");
    }
    let stop = CancellationToken::new();
    let begun = Instant::now();
    let mut strangers = flood(&site, size, &stop);
    // Until there are as many as there may be, and bad tokens are known for what they are.
    while site.gate.unknown() < UNKNOWN || site.reviews.bad() < 20 {
        let (unknown, bad) = (site.gate.unknown(), site.reviews.bad());
        assert!(begun.elapsed() < PATIENCE, "the flood doesn't come: {unknown} unknown, {bad} bad");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let started = Instant::now();
    let mut agents = JoinSet::new();
    for number in 0..AGENTS {
        let site = site.clone();
        agents.spawn(async move {
            let (node, token) = (format!("n{number}"), format!("good-n{number}"));
            // An agent tries again.
            while let Err(error) = site.stream(home, &node, &token).await {
                println!("{node}: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
    }
    timeout(PATIENCE, agents.join_all()).await.expect("all agents get in");
    let took = started.elapsed();
    assert!(site.gate.unknown() <= UNKNOWN, "{} are unknown", site.gate.unknown());
    // What is spent on strangers is bounded however long it takes.
    let most = 10.0 + begun.elapsed().as_secs_f64() * 5.0;
    let (bad, good) = (site.reviews.bad(), site.reviews.good());
    assert!(f64::from(bad) <= most, "{bad} TokenReviews came out bad; {most} may");
    assert_eq!(good, AGENTS, "each good token was asked about once");
    // In no second more than ten, whatever comes out.
    let most = (begun_at_all.elapsed().as_secs() + 1) * 10;
    assert!(u64::from(good + bad) <= most, "{good} good and {bad} bad TokenReviews; {most} may be");
    println!(
        "{size} silent, {size} idle, {} bad tokens a second: {AGENTS} agents in {took:?}; {bad} bad reviews in {:?}; {}",
        size / 10,
        begun.elapsed(),
        site::memory()
    );
    stop.cancel();
    while strangers.join_next().await.is_some() {}
    // Nothing of them stays.
    timeout(PATIENCE, async {
        while site.gate.unknown() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the strangers are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_comes_at_once_is_let_in_as_fast_as_the_api_server_may_be_asked() {
    const FLEET: u32 = 30;
    let site = Site::start().await;
    let started = Instant::now();
    let mut agents = JoinSet::new();
    for number in 0..FLEET {
        let site = site.clone();
        agents.spawn(async move {
            let (node, token) = (format!("n{number}"), format!("good-n{number}"));
            // The second stream's token is known.
            for _ in 0..2 {
                while let Err(error) = site.stream(Ipv4Addr::LOCALHOST, &node, &token).await {
                    println!("{node}: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    timeout(PATIENCE, agents.join_all()).await.expect("all agents get in");
    // A clock can't run too fast for that: the 21st is asked about two seconds after the first at the earliest.
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    let most = (started.elapsed().as_secs() + 1) * 10;
    assert!(u64::from(site.reviews.good()) <= most, "{} TokenReviews; {most} may be", site.reviews.good());
    assert_eq!(site.reviews.bad(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_is_refused_is_disconnected() {
    let site = Site::start().await;
    let silent = site.tcp(Ipv4Addr::LOCALHOST).await.unwrap();
    let idle = site.tls(site.tcp(Ipv4Addr::LOCALHOST).await.unwrap()).await.unwrap();
    assert!(site.stream(Ipv4Addr::LOCALHOST, "n1", "bad").await.unwrap_err().contains("refused"));
    timeout(PATIENCE, read_to_end(silent)).await.expect("the silent one is");
    timeout(PATIENCE, read_to_end(idle)).await.expect("the idle one is");
    let late = site.gate.shed(slotmesh_serve::Shed::Late);
    assert!(late >= 2, "{late}");
    // A bad token is asked about once.
    for _ in 0..3 {
        assert!(site.stream(Ipv4Addr::LOCALHOST, "n1", "bad").await.is_err());
    }
    assert_eq!(site.reviews.bad(), 1);
}
