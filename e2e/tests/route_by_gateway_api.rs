//! A user splits the connections of a service by HTTPRoute and TCPRoute, between services of its own
//! namespace and of another one that allows it.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Mesh, isolated,
    manifests::{gateway_route, service, slice},
    mesh::at,
    stats,
};

/// So many that a split which is off by two percent is always seen.
const CONNECTS: u64 = 20_000;
const VIP: &str = "10.96.0.20";

/// A service with one pod, `127.2.number.1`, whose id is the number.
fn backend(name: &str, namespace: &str, number: u8) -> [Value; 2] {
    let slice = slice(name, name).namespace(namespace).port(8080).endpoint(&format!("127.2.{number}.1"));
    let ip = format!("10.96.2.{number}");
    [service(name).namespace(namespace).ip(&ip).port(80).build(), slice.build()]
}

fn objects() -> Vec<Value> {
    let mut objects = vec![service("web").ip(VIP).port(80).build()];
    objects.extend(backend("web-v1", "default", 1));
    objects.extend(backend("web-v2", "default", 2));
    objects.extend(backend("web-v3", "other", 3));
    objects
}

fn mesh() -> Result<Mesh> {
    let mut mesh = Mesh::with(&objects())?;
    (1..=3).try_for_each(|n| mesh.backends.open(&format!("127.2.{n}.1:8080"), n))?;
    Ok(mesh)
}

/// How many connects each of the three got, of those that went well.
fn split(mesh: &Mesh, connects: u64) -> Result<[u64; 3]> {
    let log = mesh.connect(at(VIP, 80), connects)?;
    log.expect_all(connects as usize)?;
    let counts = log.by_backend();
    Ok([1, 2, 3].map(|id| counts.get(&id).copied().unwrap_or_default()))
}

fn weights(kind: &str) -> Result<()> {
    let mut mesh = mesh()?;
    let route = |weights: &[(&str, i64)]| gateway_route(kind, "web", "web", weights).build();
    let carries = if kind == "HTTPRoute" { "route" } else { "listener" };
    let agent = mesh.agent()?;
    agent.published("listener", || {
        mesh.manifests.write("route.yaml", &[route(&[("web-v1", 80), ("web-v2", 20)])])
    })?;
    let counts = split(&mesh, CONNECTS)?;
    stats::expect_fit(&counts[..2], &[80, 20])?;
    ensure!(counts[2] == 0);
    agent.published(carries, || {
        mesh.manifests.write("route.yaml", &[route(&[("web-v1", 1), ("web-v2", 1)])])
    })?;
    stats::expect_fit(&split(&mesh, CONNECTS)?[..2], &[50, 50])?;

    // To another namespace, which a mesh needs no grant for.
    let across = route(&[("other/web-v3", 1)]);
    agent.published(carries, || mesh.manifests.write("route.yaml", &[across]))?;
    ensure!(split(&mesh, 500)? == [0, 0, 500]);
    agent.expect_no_report(&[kind])?;
    mesh.stop()
}

#[test]
fn the_weights_of_an_http_route() {
    isolated(|| weights("HTTPRoute"));
}

#[test]
fn the_weights_of_a_tcp_route() {
    isolated(|| weights("TCPRoute"));
}

#[test]
fn what_a_connection_can_not_tell_is_reported_by_field() {
    isolated(|| {
        let mut mesh = mesh()?;
        let mut route = gateway_route("HTTPRoute", "web", "web", &[("web-v1", 1)]).build();
        let rules = &mut route["spec"]["rules"];
        let mut by_path = rules[0].clone();
        by_path["matches"] = json!([{"path": {"type": "PathPrefix", "value": "/api"}}]);
        by_path["backendRefs"][0]["name"] = json!("web-v2");
        let always = rules[0].take();
        *rules = json!([by_path, always]);
        let agent = mesh.agent()?;
        agent.published("listener", || mesh.manifests.write("route.yaml", &[route]))?;
        agent.expect_report(&["HTTPRoute default/web", "spec.rules[0].matches[0].path", "not supported"])?;
        ensure!(split(&mesh, 500)? == [500, 0, 0]);
        mesh.stop()
    });
}
