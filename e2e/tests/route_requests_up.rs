//! A user of `slotmesh up --proxy` routes requests: by header, path and weight, on one machine and without a cluster.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{
    HttpAnswer, HttpBackend, Mesh, http, isolated,
    manifests::{service, slice},
    mesh::at,
    stats, wait,
};

const VIP: &str = "10.96.0.20";
/// So many that a split which is off by ten percent is always seen.
const REQUESTS: usize = 600;

/// The Service `web`, and one for each version, whose pod is `127.3.NUMBER.1`.
fn objects() -> Vec<Value> {
    let mut objects = vec![service("web").ip(VIP).port(80).build()];
    for number in [1, 2] {
        let name = format!("web-v{number}");
        objects.push(service(&name).ip(&format!("10.96.3.{number}")).port(80).build());
        objects.push(slice(&name, &name).port(8080).endpoint(&format!("127.3.{number}.1")).build());
    }
    objects
}

fn route(rules: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    })
}

fn to(backends: &[(&str, u32)]) -> Value {
    backends.iter().map(|(name, weight)| json!({"name": name, "port": 80, "weight": weight})).collect()
}

/// The answers that the workload gets, on one connection as long as that lasts.
fn ask(mesh: &Mesh, arguments: &[&str]) -> Result<Vec<HttpAnswer>> {
    http::ask_from(&mesh.cgroup, at(VIP, 80), arguments)
}

/// Waits until a request is answered so.
fn until(mesh: &Mesh, what: &str, arguments: &[&str], is_so: impl Fn(&HttpAnswer) -> bool) -> Result<()> {
    wait::until_true(what, || Ok(ask(mesh, arguments)?.iter().all(&is_so)))
}

#[test]
fn a_header_picks_the_version_and_a_changed_route_counts_from_the_next_request_on() {
    isolated(|| {
        let _backends: Vec<_> = [1, 2]
            .into_iter()
            .map(|number| {
                HttpBackend::start(at(&format!("127.3.{number}.1"), 8080), move |_| format!("v{number}"))
            })
            .collect::<Result<_>>()?;
        let mut mesh = Mesh::new()?;
        mesh.spec().args.push("--proxy".to_owned());
        let rules = json!([
            {"matches": [{"headers": [{"name": "end-user", "value": "tester"}]}],
                "backendRefs": to(&[("web-v2", 1)])},
            {"matches": [{"path": {"value": "/old"}}], "filters": [{"type": "RequestRedirect",
                "requestRedirect": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}]},
            {"matches": [{"path": {"value": "/split"}}], "backendRefs": to(&[("web-v1", 80), ("web-v2", 20)])},
            {"matches": [{"path": {"value": "/gone"}}], "backendRefs": to(&[("gone", 1)])},
        ]);
        mesh.manifests.write("mesh.yaml", &[objects(), vec![route(&rules)]].concat())?;
        mesh.start()?;
        until(&mesh, "requests to be routed", &["/none"], |answer| answer.status == 404)?;
        let answers = ask(&mesh, &["/split", "/old/a?b", "/gone", "/none"])?;
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        ensure!(statuses == [200, 302, 500, 404], "{answers:?}");
        ensure!(answers[1].header("location") == "http://web/new/a?b", "{:?}", answers[1]);
        let tester = ask(&mesh, &["--header", "end-user: tester", "--times", "20", "/none"])?;
        ensure!(tester.iter().all(|answer| answer.by() == "v2"), "{tester:?}");
        let answers = ask(&mesh, &["--times", &REQUESTS.to_string(), "/split"])?;
        let by = |version: &str| answers.iter().filter(|answer| answer.by() == version).count() as u64;
        let counts = ["v1", "v2"].map(by);
        ensure!(counts.iter().sum::<u64>() == REQUESTS as u64, "{counts:?}");
        stats::expect_fit(&counts, &[80, 20])?;

        // What a connection tells is decided in the kernel again.
        let plain = json!([{"backendRefs": to(&[("web-v1", 1)])}]);
        mesh.manifests.write("mesh.yaml", &[objects(), vec![route(&plain)]].concat())?;
        until(&mesh, "v1 to answer", &["/none"], |answer| answer.by() == "v1")?;
        mesh.stop()
    });
}
