//! A user edits the manifests while slotmesh runs, and the connections follow.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::Value;
use slotmesh_e2e::{
    Mesh, client::LEAST, connect::now, isolated, manifests::virtual_service, mesh::reviews, stats,
};

/// How long each split is counted.
const COUNTED: Duration = Duration::from_millis(1_500);

/// Weights, pods that are gone, and what is published when it takes effect.
type Edit<'a> = (&'a [(&'a str, i64)], &'a [u16], &'a str);

fn with_route(mut objects: Vec<Value>, tcp: bool, weights: &[(&str, i64)]) -> Vec<Value> {
    let route = virtual_service("reviews");
    objects.push(if tcp { route.tcp("reviews", weights) } else { route.http("reviews", weights) }.build());
    objects
}

/// 80/20, then 50/50, then all to v2, then v1's pods are gone as well; what is published when the
/// route changes is a route configuration or, for a TCP route, the listener.
fn edits(tcp: bool) -> Result<()> {
    let mut mesh = Mesh::with(&with_route(reviews::objects(), tcp, &[("v1", 80), ("v2", 20)]))?;
    reviews::open(&mut mesh.backends)?;
    let load = mesh.load(&reviews::addresses())?;
    let mut spans = vec![];
    let mut begin = now();
    let carries = if tcp { "listener" } else { "route" };
    let edits: [Edit; 3] = [
        (&[("v1", 50), ("v2", 50)], &[], carries),
        (&[("v2", 100)], &[], carries),
        (&[("v2", 100)], &[11, 12], "endpoints"),
    ];
    for (weights, gone, published) in edits {
        thread::sleep(COUNTED);
        let end = now();
        let objects = with_route(reviews::objects_without(gone), tcp, weights);
        mesh.agent()?.published(published, || mesh.manifests.write("mesh.yaml", &objects))?;
        spans.push((begin, end));
        // A dual-stack service has a listener for each address: the second follows the first.
        thread::sleep(Duration::from_millis(50));
        begin = now();
    }
    thread::sleep(COUNTED);
    spans.push((begin, now()));
    let log = load.stop()?;
    log.expect_all(LEAST)?;
    let counts: Vec<_> =
        spans.iter().map(|(from, to)| reviews::by_version(&log.during(*from, *to), [1, 2, 3])).collect();
    println!("{} connects; v1, v2, v3: {counts:?}", log.len());
    let [first, second, third, fourth] = counts[..] else { anyhow::bail!("four splits") };
    stats::expect_fit(&first[..2], &[80, 20])?;
    stats::expect_fit(&second[..2], &[50, 50])?;
    for counts in [third, fourth] {
        ensure!(counts[0] == 0 && counts[1] > 0, "v1 was removed: {counts:?}");
    }
    ensure!(counts.iter().all(|c| c[2] == 0), "v3 has no weight: {counts:?}");
    mesh.stop()
}

#[test]
fn the_weights_of_an_http_route_and_the_pods_behind_it() {
    isolated(|| edits(false));
}

#[test]
fn the_weights_of_a_tcp_route_and_the_pods_behind_it() {
    isolated(|| edits(true));
}
