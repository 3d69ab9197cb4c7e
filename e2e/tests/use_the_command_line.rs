//! A user asks a running slotmesh by its command line.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
};

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
        let wide = ask(&mut mesh, &["version", "-o", "wide"])?;
        ensure!(wide.contains("connect4") && wide.contains("THE KERNEL LACKS"), "{wide}");
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

        // Nobody looks at requests here.
        let (status, _, said) =
            run(&mut mesh, &["explain", "--from", "default/client", "--to", "reviews:80", "--path", "/api"])?;
        ensure!(status == 1 && said.contains("nobody looks at requests"), "{status}: {said}");

        // A route to a version without pods.
        mesh.manifests.write("mesh.yaml", &reviews::objects_without(&[31]))?;
        mesh.manifests.write("route.yaml", &[route(&[("v3", 100)])])?;
        wait::until_true("the refusal", || Ok(explain(&mut mesh, "default/client", "reviews:80")?.0 == 3))?;
        mesh.stop()
    });
}

#[test]
fn for_what_was_changed() {
    isolated(|| {
        let route = |weights: &[(&str, i64)]| virtual_service("reviews").http("reviews", weights).build();
        let mut mesh = Mesh::new()?;
        mesh.manifests.write("mesh.yaml", &reviews::objects())?;
        mesh.manifests.write("route.yaml", &[route(&[("v1", 75), ("v2", 25)])])?;
        mesh.start()?;
        mesh.manifests.write("route.yaml", &[route(&[("v1", 25), ("v2", 75)])])?;
        let mut last = String::new();
        let told = wait::until_true("the change to be told", || {
            last = ask(&mut mesh, &["changes", "--since", "1h"])?;
            let of = |by: &str, change: &str, of: &str| {
                last.lines().any(|line| {
                    line.contains(&format!(" {by} "))
                        && line.contains(&format!(" {change} "))
                        && line.contains(of)
                })
            };
            Ok(of("operator", "applied", "VirtualService default/reviews (")
                && of("node", "has", "listener 10.96.0.10_80"))
        });
        told.with_context(|| last.clone())?;
        let one = ask(&mut mesh, &["changes", "default/reviews", "-o", "json"])?;
        let one: Vec<Value> = serde_json::from_str(&one)?;
        let by = |by: &str| one.iter().filter(|told| told["by"] == by).count();
        ensure!(by("operator") > 0 && by("node") > 0, "{one:?}");
        let before = ask(&mut mesh, &["changes", "--until", "2020-01-01T00:00:00Z", "-o", "json"])?;
        ensure!(before == "[]\n", "{before}");
        mesh.stop()
    });
}

#[test]
fn for_how_full_the_table_is() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let table = ask(&mut mesh, &["slots"])?;
        ensure!(table.contains("SLOT BYTES") && table.contains("not full: "), "{table}");
        let all: Value = serde_json::from_str(&ask(&mut mesh, &["slots", "-o", "json"])?)?;
        let busy = all["classes"].as_array().and_then(|all| all.iter().find(|class| class["used"] != 0));
        let busy = busy.context("something is used")?;
        let bytes = busy["bytes"].to_string();
        let slabs: Vec<Value> =
            serde_json::from_str(&ask(&mut mesh, &["slots", "--class", &bytes, "-o", "json"])?)?;
        let used: u64 = slabs.iter().filter_map(|slab| slab["used"].as_u64()).sum();
        ensure!(used == busy["used"], "{used}: {busy}");
        let map = ask(&mut mesh, &["slots", "--class", &bytes])?;
        ensure!(map.starts_with(&format!("Slots of {bytes} bytes: ")), "{map}");
        let (status, _, said) = run(&mut mesh, &["slots", "--class", "65"])?;
        ensure!(status == 1 && said.contains("/slots/65"), "{status}: {said}");
        mesh.stop()
    });
}

#[test]
fn for_envoy_s_json() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        for (kind, ty) in [
            ("listeners", "config.listener.v3.Listener"),
            ("clusters", "config.cluster.v3.Cluster"),
            ("endpoints", "config.endpoint.v3.ClusterLoadAssignment"),
        ] {
            let found: Vec<Value> = serde_json::from_str(&ask(&mut mesh, &["get", kind, "-o", "envoy"])?)?;
            let ty = format!("type.googleapis.com/envoy.{ty}");
            ensure!(!found.is_empty() && found.iter().all(|one| one["@type"] == ty), "{kind}: {found:?}");
        }
        mesh.stop()
    });
}

/// Exit status of `slotmesh explain` on manifests alone, and all that it says.
fn explain_manifests(objects: &[Value], to: &str, args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().expect("a folder");
    let text: String = objects.iter().map(|object| format!("---\n{object}\n")).collect();
    std::fs::write(dir.path().join("mesh.yaml"), text).expect("a file");
    let mut command = Command::new(names::binary("slotmesh", "slotmesh").expect("the binary"));
    command.args(["explain", "--from", "default/client", "--to", to, "--manifests"]).arg(dir.path());
    let output = command.args(args).output().expect("slotmesh");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.code(), said.concat())
}

#[test]
fn for_what_manifests_would_come_to() {
    let mut objects = reviews::objects();
    objects.push(virtual_service("reviews").http("reviews", &[("v1", 75), ("v2", 25)]).build());
    let (status, said) = explain_manifests(&objects, "reviews:80", &[]);
    assert_eq!(status, Some(0), "{said}");
    let row = said.lines().find(|line| line.contains("127.1.2.1:8080")).expect("the row of v2");
    assert!(row.contains("12.5%") && row.ends_with("in"), "{said}");
    assert!(said.contains("VirtualService default/reviews (") && said.contains("mesh.yaml:"), "{said}");
    let (status, said) = explain_manifests(&objects, "10.1.1.1:80", &[]);
    assert_eq!(status, Some(4), "{said}");
}

#[test]
fn for_which_rule_takes_a_request() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.30", "ports": [{"port": 80, "name": "http"}]}});
    let backend = json!([{"name": "web", "port": 80}]);
    let redirect = json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "new.example.com", "statusCode": 301}});
    let path = |of: &str| json!({"path": {"type": "PathPrefix", "value": of}});
    let mut beta = path("/api");
    beta["headers"] = json!([{"name": "x-beta", "value": "1"}]);
    let route = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": [
            {"matches": [beta], "backendRefs": backend},
            {"matches": [path("/old")], "filters": [redirect]},
            {"backendRefs": backend}]}});
    let objects = [service, route];
    let asked = |args: &[&str]| explain_manifests(&objects, "web:80", &[&["--proxy"], args].concat()).1;
    for (args, expected) in [
        (&["--path", "/api", "--header", "x-beta: 1"][..], "Rule      HTTPRoute/default/web/rules[0]\n"),
        (&["--path", "/api"], "Rule      HTTPRoute/default/web/rules[2]\n"),
        (&["--path", "/x/../old"], "Answer    301 to http://new.example.com/old: 100.0%\n"),
        (&["--method", "POST"], "Request   POST / of host web\n"),
    ] {
        let said = asked(args);
        assert!(said.contains(expected), "{args:?}: {expected}: {said}");
    }
    let (status, said) = explain_manifests(&objects, "web:80", &["--path", "/"]);
    assert!(status == Some(1) && said.contains("nobody looks at requests"), "{status:?}: {said}");
}

#[test]
fn on_a_terminal() {
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        let admin = mesh.spec().admin();
        let binary = names::binary("slotmesh", "slotmesh")?;
        let top = format!("stty cols 100 rows 30; exec {} top --admin {admin}", binary.display());
        // script(1) gives it a pseudo-terminal.
        let mut script = Command::new("timeout");
        script.args(["120", "script", "--quiet", "--return", "--flush", "--command", &top, "/dev/null"]);
        script.env("TERM", "xterm").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut script = script.spawn().context("script(1) can't be started")?;
        let mut keys = script.stdin.take().context("it is piped")?;
        let mut out = script.stdout.take().context("it is piped")?;
        let (mut seen, mut bytes) = (String::new(), [0; 4_096]);
        // Between two words it moves the cursor.
        while !seen.contains("Busiest") {
            let read = out.read(&mut bytes)?;
            ensure!(read > 0, "it has ended: {seen}");
            seen += &String::from_utf8_lossy(&bytes[..read]);
        }
        keys.write_all(b"q")?;
        // Else it can't write its last picture.
        std::io::copy(&mut out, &mut std::io::sink())?;
        let status = script.wait()?;
        ensure!(status.success(), "{status}: {seen}");
        let (status, _, said) = run(&mut mesh, &["top"])?;
        ensure!(status == 1 && said.contains("terminal"), "{status}: {said}");
        mesh.stop()
    });
}

#[test]
fn for_all_that_is_needed_to_find_a_fault() {
    const PLANTED: [&str; 2] = ["planted-in-a-header", "eyJwbGFudGVkIjoxfQ.eyJwbGFudGVkIjoyfQ.cGxhbnRlZDM"];
    isolated(|| {
        let mut mesh = Mesh::with(&reviews::objects())?;
        // What is said of it holds it, too.
        let policy = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": { "name": "deny", "namespace": "default", "annotations": {"token": PLANTED[0]} },
        });
        let odd = json!({
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": { "name": "odd", "namespace": "default" },
            "spec": { "hosts": ["reviews"], "http": [{PLANTED[1]: 1, "route": [{"destination": {"host": "reviews"}}]}] },
        });
        mesh.manifests.write("policy.yaml", &[policy, odd])?;
        mesh.agent()?.expect_report(&[PLANTED[1]])?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("report.tar.gz");
        let file_text = file.to_str().context("UTF-8")?.to_owned();
        let listed = ask(&mut mesh, &["bugreport", "--file", &file_text])?;
        ensure!(listed.contains("operator/reports.json: ") && listed.contains("secrets removed"), "{listed}");
        let unpacked = Command::new("tar")
            .args(["--extract", "--gzip", "--file", &file_text, "--to-stdout"])
            .output()?;
        ensure!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
        let text = String::from_utf8_lossy(&unpacked.stdout);
        ensure!(
            text.contains("10.96.0.10_80") && text.contains("CONTENTS") | text.contains("client.txt"),
            "{listed}"
        );
        for planted in PLANTED {
            ensure!(!text.contains(planted), "{planted} is in the archive");
        }
        let (status, _, said) = run(&mut mesh, &["bugreport", "--file", &file_text])?;
        ensure!(status == 1 && said.contains("can't be created"), "{status}: {said}");
        mesh.stop()
    });
}
