//! A user gives machines outside the cluster an address by ServiceEntries, and splits connections between them.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    Mesh, isolated,
    manifests::{destination_rule, istio, pod, service, slice, virtual_service},
    mesh::at,
    stats,
};

/// So many that a split which is off by two percent is always seen.
const CONNECTS: u64 = 20_000;
const HOST: &str = "db.example.com";
const VIP: &str = "240.0.0.1";
const TARGET: u16 = 8080;

/// A machine or Pod; its number is its backend's id.
fn ip(number: u16) -> String {
    format!("127.3.{number}.1")
}

fn entry(spec: &Value) -> Value {
    let mut whole = json!({
        "hosts": [HOST], "addresses": [VIP], "location": "MESH_INTERNAL", "resolution": "STATIC",
        "ports": [{"number": 3306, "name": "tcp", "protocol": "TCP", "targetPort": TARGET}],
    });
    if let Some((whole, more)) = whole.as_object_mut().zip(spec.as_object()) {
        whole.extend(more.clone());
    }
    istio("ServiceEntry", "db", &whole)
}

fn machine(name: &str, number: u16, labels: &Value) -> Value {
    istio("WorkloadEntry", name, &json!({"address": ip(number), "labels": labels}))
}

/// With servers 1 to 4, and the clients' connections counted by server.
fn mesh(objects: &[Value]) -> Result<Mesh> {
    let mut mesh = Mesh::with(objects)?;
    (1..=4).try_for_each(|n| mesh.backends.open(&at(&ip(n), TARGET).to_string(), n))?;
    Ok(mesh)
}

fn split(mesh: &Mesh, vip: &str, port: u16, connects: u64) -> Result<[u64; 4]> {
    let log = mesh.connect(at(vip, port), connects)?;
    log.expect_all(connects as usize)?;
    let counts = log.by_backend();
    Ok([1, 2, 3, 4].map(|id| counts.get(&id).copied().unwrap_or_default()))
}

#[test]
fn weights_of_endpoints_and_routes_to_subsets_of_a_host() {
    isolated(|| {
        let endpoint = |n: u16, version: &str, weight: u32| json!({"address": ip(n), "labels": {"version": version}, "weight": weight});
        let endpoints = json!([endpoint(1, "v1", 3), endpoint(2, "v1", 1), endpoint(3, "v2", 1)]);
        let mut mesh = mesh(&[entry(&json!({"endpoints": endpoints}))])?;
        stats::expect_fit(&split(&mesh, VIP, 3306, CONNECTS)?[..3], &[3, 1, 1])?;

        let rule = destination_rule(HOST).version("v1").version("v2").build();
        let route = virtual_service(HOST).tcp(HOST, &[("v1", 20), ("v2", 80)]).build();
        let agent = mesh.agent()?;
        agent.published("listener", || mesh.manifests.write("route.yaml", &[rule, route]))?;
        // 20 of 100 to v1, of which 3 of 4 to the first.
        stats::expect_fit(&split(&mesh, VIP, 3306, CONNECTS)?[..3], &[15, 5, 80])?;
        agent.expect_no_report(&[HOST])?;
        mesh.stop()
    });
}

#[test]
fn selected_machines_and_pods_of_an_entry_and_of_a_service() {
    isolated(|| {
        let objects = |app: &str| {
            vec![
                entry(&json!({"workloadSelector": {"labels": {"app": "db"}}})),
                machine("m1", 1, &json!({"app": app})),
                pod("p2", &ip(2)).label("app", "db").build(),
                // A Service with a slice of its own, and a machine beside it.
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
                "clusterIP": "10.96.0.30", "clusterIPs": ["10.96.0.30"], "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": TARGET}]}}),
                slice("web", "web").port(TARGET).endpoint(&ip(3)).build(),
                machine("m4", 4, &json!({"app": "web"})),
            ]
        };
        let mut mesh = mesh(&objects("db"))?;
        stats::expect_fit(&split(&mesh, VIP, 3306, CONNECTS)?[..2], &[1, 1])?;
        stats::expect_fit(&split(&mesh, "10.96.0.30", 80, CONNECTS)?[2..], &[1, 1])?;

        // The machine moves to the Service.
        let agent = mesh.agent()?;
        agent.published("endpoints", || mesh.manifests.write("mesh.yaml", &objects("web")))?;
        ensure!(split(&mesh, VIP, 3306, 500)? == [0, 500, 0, 0]);
        let [one, _, three, four] = split(&mesh, "10.96.0.30", 80, CONNECTS)?;
        stats::expect_fit(&[one, three, four], &[1, 1, 1])?;
        agent.expect_no_report(&["WorkloadEntry"])?;
        mesh.stop()
    });
}

#[test]
fn what_belongs_to_another_is_refused_until_that_one_goes() {
    isolated(|| {
        let endpoints = |n: u16| json!({"endpoints": [{"address": ip(n)}]});
        let mut other = entry(&endpoints(2));
        other["metadata"]["name"] = json!("other");
        other["spec"]["hosts"] = json!(["other.example.com"]);
        let mut mesh = mesh(&[entry(&endpoints(1)), service("web").ip("10.96.0.31").port(80).build()])?;
        mesh.manifests.write("other.yaml", &[other])?;
        let agent = mesh.agent()?;
        agent.expect_report(&["ServiceEntry default/other", "spec.addresses", "ServiceEntry default/db"])?;
        ensure!(split(&mesh, VIP, 3306, 500)? == [500, 0, 0, 0]);
        agent.published("listener", || mesh.manifests.write("mesh.yaml", &[service("web").build()]))?;
        ensure!(split(&mesh, VIP, 3306, 500)? == [0, 500, 0, 0]);
        mesh.stop()
    });
}

#[test]
fn several_entries_of_one_host_are_one_service() {
    isolated(|| {
        let endpoints = |n: u16| json!({"endpoints": [{"address": ip(n)}]});
        let mut more = entry(&endpoints(2));
        more["metadata"]["name"] = json!("more");
        let mut mesh = mesh(&[entry(&endpoints(1)), service("web").build()])?;
        let agent = mesh.agent()?;
        agent.published("endpoints", || mesh.manifests.write("more.yaml", &[more]))?;
        stats::expect_fit(&split(&mesh, VIP, 3306, CONNECTS)?[..2], &[1, 1])?;
        agent.expect_no_report(&["ServiceEntry"])?;
        agent.published("endpoints", || mesh.manifests.write("mesh.yaml", &[service("web").build()]))?;
        ensure!(split(&mesh, VIP, 3306, 500)? == [0, 500, 0, 0]);
        mesh.stop()
    });
}
