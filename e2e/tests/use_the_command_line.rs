//! A user asks a running slotmesh by its command line.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_e2e::{Mesh, isolated, manifests::virtual_service, mesh::reviews, names, wait};

/// Exit status and answer of a command, and what it said on its standard error.
fn run(mesh: &mut Mesh, args: &[&str]) -> Result<(i32, String, String)> {
    let admin = mesh.spec().admin();
    let mut command = Command::new(names::binary("slotmesh", "slotmesh")?);
    let output = command.args(args).args(["--admin", &admin]).output().context("slotmesh")?;
    let status = output.status.code().context("it was killed")?;
    Ok((status, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

/// The answer of a command that has to succeed.
fn ask(mesh: &mut Mesh, args: &[&str]) -> Result<String> {
    let (status, out, err) = run(mesh, args)?;
    ensure!(status == 0, "{args:?} ends with {status}: {out}{err}");
    Ok(out)
}

#[test]
fn for_reports_and_versions() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "deny", "namespace": "default" },
        });
        mesh.manifests.write("policy.yaml", &[policy])?;
        wait::until_true("the report", || {
            Ok(ask(&mut mesh, &["reports"])?.contains("not supported   AuthorizationPolicy default/deny"))
        })?;
        let wide = ask(&mut mesh, &["reports", "-o", "wide"])?;
        ensure!(wide.contains("policy.yaml:1"), "{wide}");
        let found: Vec<Value> = serde_json::from_str(&ask(&mut mesh, &["reports", "-o", "json"])?)?;
        ensure!(found.iter().any(|found| found["kind"] == "AuthorizationPolicy"), "{found:?}");
        ensure!(ask(&mut mesh, &["reports", "elsewhere", "-o", "yaml"])? == "[]\n", "a namespace's only");
        let version = ask(&mut mesh, &["version"])?;
        let agent = version.lines().find(|line| line.starts_with("agent")).context(version.clone())?;
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        ensure!(agent.contains(release.trim()), "{version}");
        mesh.stop()
    });
}

#[test]
fn for_what_is_in_force() {
    isolated(|| {
        let mut objects = reviews::objects();
        objects.push(virtual_service("reviews").http("reviews", &[("v1", 75), ("v2", 25)]).build());
        let mut mesh = Mesh::with(&objects)?;
        let host = "reviews.default.svc.cluster.local";
        let listeners = ask(&mut mesh, &["get", "listeners", "default/reviews"])?;
        ensure!(listeners.lines().any(|line| line.starts_with("10.96.0.10_80 ")), "{listeners}");
        let routes = ask(&mut mesh, &["get", "routes", "reviews", "-o", "wide"])?;
        let [v1, v2] = ["v1", "v2"].map(|subset| format!("outbound|80|{subset}|{host}"));
        ensure!(routes.contains(&format!("{v1} 75, {v2} 25")), "{routes}");
        let clusters: Vec<Value> =
            serde_json::from_str(&ask(&mut mesh, &["get", "clusters", "-o", "json"])?)?;
        ensure!(clusters.iter().any(|cluster| cluster["name"] == v2), "{clusters:?}");
        let endpoints = ask(&mut mesh, &["get", "endpoints", &v1])?;
        ensure!(
            endpoints.lines().any(|line| line.contains("127.1.1.2:8080") && line.contains("50.0%")),
            "{endpoints}"
        );
        let cgroup = mesh.cgroup.path().display().to_string();
        let workloads = ask(&mut mesh, &["get", "workloads"])?;
        ensure!(workloads.contains("client") && workloads.contains(&cgroup), "{workloads}");
        for kind in ["listeners", "routes", "clusters", "endpoints"] {
            let differing = ask(&mut mesh, &["get", kind, "--diff", "-o", "json"])?;
            ensure!(differing == "[]\n", "{kind}: {differing}");
        }
        let (status, _, said) = run(&mut mesh, &["get", "clusters", "nobody"])?;
        ensure!(status == 1 && said.contains("nobody"), "{status}: {said}");
        mesh.stop()
    });
}

/// Exit status and answer of `slotmesh explain`.
fn explain(mesh: &mut Mesh, from: &str, to: &str) -> Result<(i32, Value)> {
    let (status, out, err) = run(mesh, &["explain", "--from", from, "--to", to, "-o", "json"])?;
    let explained = serde_json::from_str(&out).with_context(|| format!("{from} -> {to}: {status}: {err}"))?;
    Ok((status, explained))
}

#[test]
fn for_where_a_connection_goes() {
    isolated(|| {
        let route = |weights: &[(&str, i64)]| virtual_service("reviews").http("reviews", weights).build();
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.manifests.write("route.yaml", &[route(&[("v1", 75), ("v2", 25)])])?;
        mesh.start()?;
        for to in ["reviews:80", "reviews.default:80", "10.96.0.10:80", "[fd00:96::10]:80"] {
            let (status, explained) = explain(&mut mesh, "default/client", to)?;
            ensure!(status == 0 && explained["verdict"] == "routed", "{to}: {status}: {explained}");
            ensure!(explained["differences"] == json!([]), "{to}: {explained}");
            let [mut v1, mut all] = [0; 2];
            for share in explained["routed"].as_array().context("shares")? {
                let count = share["count"].as_u64().context("a count")?;
                all += count;
                v1 += if share["cluster"].as_str().is_some_and(|name| name.contains("|v1|")) {
                    count
                } else {
                    0
                };
            }
            ensure!(Some(all) == explained["asked"].as_u64(), "{to}: {explained}");
            // The numbers that are asked with are always the same.
            ensure!((all * 74..all * 76).contains(&(v1 * 100)), "{to}: {v1} of {all}");
        }
        let table = ask(&mut mesh, &["explain", "--from", "default/client", "--to", "reviews:80"])?;
        let row = table.lines().find(|line| line.contains("127.1.2.1:8080")).context(table.clone())?;
        ensure!(row.contains("12.5%") && row.ends_with("in"), "{table}");
        ensure!(table.contains("connects are routed"), "{table}");
        // Which objects it is because of, and where they stand.
        ensure!(
            table.contains("  VirtualService default/reviews (") && table.contains("route.yaml:1"),
            "{table}"
        );
        let out =
            table.split("Endpoints that these connections don't go to:").nth(1).context(table.clone())?;
        ensure!(out.contains("127.1.3.1: ready, but in no cluster that they are led to"), "{table}");

        let (status, explained) = explain(&mut mesh, "default/client", "10.1.1.1:80")?;
        ensure!(status == 4 && explained["verdict"] == "notOurs", "{status}: {explained}");
        let (status, explained) = explain(&mut mesh, "default/other", "10.96.0.10:80")?;
        ensure!(status == 4 && explained["verdict"] == "notAttached", "{status}: {explained}");
        let (status, _, said) =
            run(&mut mesh, &["explain", "--from", "default/client", "--to", "nobody:80"])?;
        ensure!(status == 1 && said.contains("nobody:80"), "{status}: {said}");

        // A route to a version without pods.
        mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[31]))?;
        mesh.manifests.write("route.yaml", &[route(&[("v3", 100)])])?;
        wait::until_true("the refusal", || Ok(explain(&mut mesh, "default/client", "reviews:80")?.0 == 3))?;
        mesh.stop()
    });
}
