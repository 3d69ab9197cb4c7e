//! A user writes what the specifications of Kubernetes, Gateway API and Istio allow, and connections go where these
//! say: small inputs, each with one thing in it, that were found to go wrong.
//!
//! `reviews` (10.96.0.13) has the pods 10.244.4.1 and 2 of version v1, 3 of v2, and 4 of v3, which no route names:
//! nobody should reach it. `reviews-v1`, `-v2` and `-v3` are Services of their own.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use slotmesh_e2e::{Cgroup, ClientSpec, Log, Mesh, isolated, mesh::at, net, stats, wait};

/// So many that a split which is off by two percent is always seen.
const CONNECTS: u64 = 20_000;
const REVIEWS: &str = "10.96.0.13";

fn text(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// `reviews` with its pods, and these files of a case.
fn shop(case: &str, files: &[&str]) -> Result<Mesh> {
    shop_as(&["default/client"], case, files).map(|(mesh, _)| mesh)
}

/// The same with several workloads, of which those after the first have the cgroups that are returned.
fn shop_as(workloads: &[&str], case: &str, files: &[&str]) -> Result<(Mesh, Vec<Cgroup>)> {
    // On the loopback interface that makes all of the range local.
    net::ip("addr add 10.244.0.1/16 dev lo")?;
    let mut mesh = Mesh::new()?;
    (1..=4).try_for_each(|pod| mesh.backends.open(&format!("10.244.4.{pod}:8080"), pod))?;
    mesh.manifests.write_text("reviews.yaml", &text("reviews.yaml")?)?;
    for file in files {
        mesh.manifests.write_text(file, &text(&format!("{case}/{file}"))?)?;
    }
    let cgroups = workloads.iter().skip(1).map(|_| Cgroup::new()).collect::<Result<Vec<_>>>()?;
    for (name, cgroup) in workloads.iter().skip(1).zip(&cgroups) {
        mesh.spec().workloads.push(((*name).to_owned(), cgroup.path().to_owned()));
    }
    mesh.start()?;
    Ok((mesh, cgroups))
}

/// Connects as whoever is in this cgroup.
fn reviews_of(cgroup: &Cgroup, connects: u64) -> Result<[u64; 4]> {
    split(&ClientSpec::to(at(REVIEWS, 80)).count(connects).run(Some(cgroup))?)
}

/// How many connects v1, v2, v3 and nobody got; nothing else may become of one.
fn split(log: &Log) -> Result<[u64; 4]> {
    let by_pod = log.by_backend();
    let of = |pods: &[u16]| pods.iter().filter_map(|pod| by_pod.get(pod)).sum::<u64>();
    let failed: Vec<_> = log.connects.iter().filter(|c| c.errno != 0 || c.backend.is_none()).collect();
    if let Some(other) = failed.iter().find(|c| c.errno != Errno::ECONNREFUSED as i32) {
        anyhow::bail!("neither connected nor refused: {other}");
    }
    Ok([of(&[1, 2]), of(&[3]), of(&[4]), failed.len() as u64])
}

fn reviews(mesh: &Mesh, connects: u64) -> Result<[u64; 4]> {
    split(&mesh.connect(at(REVIEWS, 80), connects)?)
}

#[test]
fn a_rule_that_needs_a_request_takes_no_other_along() {
    isolated(|| {
        const CASE: &str = "header_rule_of_weight_0";
        let mut mesh = shop(CASE, &["route.yaml"])?;
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2], &[80, 20])?;
        ensure!([v3, refused] == [0, 0], "{v3} to v3, {refused} refused");
        let agent = mesh.agent()?;
        let next = text(&format!("{CASE}/next.yaml"))?;
        agent.published("route", || mesh.manifests.write_text("route.yaml", &next))?;
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2], &[50, 50])?;
        ensure!([v3, refused] == [0, 0], "{v3} to v3, {refused} refused");
        agent.expect_report(&["HTTPRoute shop/reviews", "spec.rules[1].matches[0].headers"])?;
        mesh.stop()
    });
}

#[test]
fn without_weight_nobody_gets_the_connections() {
    isolated(|| {
        const CASE: &str = "only_backend_of_weight_0";
        let mut mesh = shop(CASE, &["route.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        let next = text(&format!("{CASE}/next.yaml"))?;
        mesh.agent()?.published("route", || mesh.manifests.write_text("route.yaml", &next))?;
        ensure!(reviews(&mesh, 500)? == [0, 0, 0, 500]);
        // Other Services work.
        ensure!(split(&mesh.connect(at("10.96.0.21", 80), 500)?)? == [500, 0, 0, 0]);
        mesh.stop()
    });
}

#[test]
fn a_backend_that_is_missing_refuses_its_share() {
    isolated(|| {
        let mut mesh = shop("missing_backend", &["route.yaml"])?;
        for address in [at(REVIEWS, 80), at("10.96.0.14", 6379)] {
            let [v1, v2, v3, refused] = split(&mesh.connect(address, CONNECTS)?)?;
            stats::expect_fit(&[v1, refused], &[20, 80])?;
            ensure!([v2, v3] == [0, 0], "{address}: {v2} to v2, {v3} to others than v1");
        }
        let agent = mesh.agent()?;
        for route in ["HTTPRoute shop/reviews", "TCPRoute shop/cache"] {
            agent.expect_report(&[
                route,
                "spec.rules[0].backendRefs[1].name",
                "its share of the connections",
            ])?;
        }
        ensure!(agent.metrics()?.nacked() == 0, "the agent refused something: {}", agent.said());
        // When nobody leads to what is missing any more, nobody is refused.
        agent.published("listener", || mesh.manifests.remove("route.yaml"))?;
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2, v3], &[2, 1, 1])?;
        ensure!(refused == 0);
        mesh.stop()
    });
}

#[test]
fn destination_rules_of_one_host_are_merged() {
    isolated(|| {
        let mut mesh = shop("two_destination_rules", &["rules.yaml"])?;
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2], &[50, 50])?;
        ensure!([v3, refused] == [0, 0], "{v3} to v3, {refused} refused");
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        mesh.stop()
    });
}

#[test]
fn a_destination_rule_of_a_stranger_has_no_effect() {
    isolated(|| {
        let callers = ["default/client", "shop/client"];
        let (mut mesh, others) = shop_as(&callers, "destination_rule_of_a_stranger", &["rules.yaml"])?;
        // It is for callers of its own namespace, and takes nothing from others.
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        mesh.stop()
    });
}

#[test]
fn a_match_of_gateways_is_for_the_mesh_where_it_says_so() {
    isolated(|| {
        let mut mesh = shop("match_gateways_mesh", &["route.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        mesh.stop()
    });
}

#[test]
fn service_entries_of_one_host_are_merged() {
    isolated(|| {
        net::ip("addr add 10.244.0.1/16 dev lo")?;
        let mut mesh = Mesh::new()?;
        (1..=3).try_for_each(|n| mesh.backends.open(&format!("10.244.9.{n}:8080"), n))?;
        mesh.manifests.write_text("entries.yaml", &text("service_entries_of_one_host/entries.yaml")?)?;
        mesh.start()?;
        for (address, id) in [(at("240.0.0.1", 3306), 1), (at("240.0.0.2", 3307), 2)] {
            let log = mesh.connect(address, 200)?;
            log.expect_all(200)?;
            ensure!(log.by_backend() == [(id, 200)].into(), "{address}: {:?}", log.by_backend());
        }
        mesh.agent()?
            .expect_report(&["ServiceEntry shop/metrics", "belongs to ServiceEntry shop/db-admin"])?;
        mesh.stop()
    });
}

#[test]
fn a_grpc_route_without_matches_can_be_decided() {
    isolated(|| {
        let mut mesh = shop("grpc_route", &["route.yaml"])?;
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2], &[90, 10])?;
        ensure!([v3, refused] == [0, 0], "{v3} to v3, {refused} refused");
        // The other one names no Service of Kubernetes, and is told how to.
        ensure!(split(&mesh.connect(at("10.96.0.22", 80), 200)?)? == [0, 200, 0, 0]);
        mesh.agent()?.expect_report(&[
            "HTTPRoute shop/no-group",
            "spec.parentRefs[0].group",
            "write group: \"\"",
        ])?;
        mesh.stop()
    });
}

/// A case of a shop of its own, on a node of this name and with these labels; its pods answer with the last byte of
/// their address.
fn shop_on(case: &str, node: &[&str], pods: &[&str]) -> Result<Mesh> {
    net::ip("addr add 10.244.0.1/16 dev lo")?;
    let mut mesh = Mesh::new()?;
    for pod in pods {
        let last = pod.rsplit('.').next().context("an address has a last part")?;
        mesh.backends.open(&format!("{pod}:8080"), last.parse()?)?;
    }
    mesh.manifests.write_text("base.yaml", &text(&format!("{case}/base.yaml"))?)?;
    mesh.spec().args.extend(node.iter().map(ToString::to_string));
    mesh.start()?;
    Ok(mesh)
}

/// Who got connections, all of which were made.
fn reached(log: &Log, connects: usize) -> Result<BTreeSet<u16>> {
    log.expect_all(connects)?;
    Ok(log.by_backend().into_keys().collect())
}

#[test]
fn a_local_service_has_the_endpoints_of_the_node() {
    isolated(|| {
        let pods = ["10.244.6.1", "10.244.6.2", "10.244.6.3"];
        let mut mesh = shop_on("internal_traffic_policy_local", &["--node-name", "node-a"], &pods)?;
        ensure!(reached(&mesh.connect(at("10.96.0.16", 80), 100)?, 100)? == [1].into());
        ensure!(split(&mesh.connect(at("10.96.0.17", 80), 10)?)? == [0, 0, 0, 10]);
        mesh.stop()
    });
}

#[test]
fn each_workload_keeps_to_one_endpoint_by_session_affinity() {
    isolated(|| {
        net::ip("addr add 10.244.0.1/16 dev lo")?;
        let other = Cgroup::new()?;
        let mut mesh = Mesh::new()?;
        (1..=3).try_for_each(|n| mesh.backends.open(&format!("10.244.7.{n}:8080"), n))?;
        mesh.manifests.write_text("base.yaml", &text("session_affinity/base.yaml")?)?;
        *mesh.spec() = mesh.spec().clone().workload("default/other", other.path());
        mesh.start()?;
        let vip = at("10.96.0.18", 80);
        let mut log = mesh.connect(vip, 200)?;
        let kept = reached(&log, 200)?;
        ensure!(kept.len() == 1, "{kept:?}");
        log = ClientSpec::to(vip).count(200).threads(4).run(Some(&other))?;
        let of_other = reached(&log, 200)?;
        ensure!(of_other.len() == 1, "{of_other:?}");
        ensure!(reached(&mesh.connect(vip, 20)?, 20)? == kept, "whatever the other does");
        mesh.stop()
    });
}

#[test]
fn endpoints_of_the_zone_go_before_others() {
    isolated(|| {
        let pods = ["10.244.11.1", "10.244.11.2", "10.244.11.3", "10.244.11.4"];
        let in_zone_a = ["--node-name", "node-a", "--node-labels", "topology.kubernetes.io/zone=zone-a"];
        let mut mesh = shop_on("zones", &in_zone_a, &pods)?;
        for service in ["10.96.0.51", "10.96.0.52"] {
            ensure!(reached(&mesh.connect(at(service, 80), 500)?, 500)? == [1, 2].into(), "{service}");
        }
        mesh.stop()?;
        // No hint is for this zone.
        mesh.spec().args = ["--node-name", "node-d", "--node-labels", "topology.kubernetes.io/zone=zone-d"]
            .map(str::to_owned)
            .into();
        mesh.start()?;
        for service in ["10.96.0.51", "10.96.0.52"] {
            let reached = reached(&mesh.connect(at(service, 80), 500)?, 500)?;
            ensure!(reached == [1, 2, 3, 4].into(), "{service}: {reached:?}");
        }
        mesh.stop()
    });
}

#[test]
fn what_is_exported_to_some_namespaces_is_for_their_callers() {
    isolated(|| {
        let callers = ["default/client", "shop/client", "istio-ingress/gateway"];
        let (mut mesh, others) = shop_as(&callers, "export_to_own_namespace", &["route.yaml"])?;
        for cgroup in &others {
            ensure!(reviews_of(cgroup, 500)? == [500, 0, 0, 0]);
        }
        // The others get the Service's own endpoints.
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2, v3], &[2, 1, 1])?;
        ensure!(refused == 0);
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        // Also after the agent was killed, and started again.
        mesh.kill()?;
        mesh.start()?;
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        mesh.stop()
    });
}

#[test]
fn a_consumers_route_is_for_callers_of_its_namespace() {
    isolated(|| {
        let callers = ["default/client", "shop/client"];
        let (mut mesh, others) = shop_as(&callers, "consumer_route", &["routes.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [0, 500, 0, 0]);
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        mesh.stop()
    });
}

#[test]
fn a_callers_labels_choose_its_route_and_may_change() {
    isolated(|| {
        const CASE: &str = "match_source";
        let callers = ["default/client", "shop/client"];
        let (mut mesh, others) = shop_as(&callers, CASE, &["route.yaml", "client.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        ensure!(reviews_of(&others[0], 500)? == [0, 0, 500, 0]);
        // Its connections are the other version's as soon as its labels have changed; it stays attached.
        mesh.manifests.write_text("client.yaml", &text(&format!("{CASE}/next.yaml"))?)?;
        wait::until_true("the caller to be of another class", || Ok(reviews(&mesh, 20)? == [0, 20, 0, 0]))?;
        ensure!(reviews_of(&others[0], 500)? == [0, 0, 500, 0]);
        mesh.manifests.remove("client.yaml")?;
        wait::until_true("the caller to be as all of its namespace", || {
            Ok(reviews(&mesh, 20)? == [20, 0, 0, 0])
        })?;
        mesh.stop()
    });
}

#[test]
fn a_destination_rule_of_the_callers_namespace_goes_before() {
    isolated(|| {
        let callers = ["default/client", "shop/client"];
        let (mut mesh, others) = shop_as(&callers, "rule_of_the_callers_namespace", &["rules.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [0, 500, 0, 0]);
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        ensure!(mesh.agent()?.reports()?.is_empty(), "{:?}", mesh.agent()?.reports());
        mesh.stop()
    });
}

#[test]
fn the_narrowest_host_counts() {
    isolated(|| {
        let mut mesh = shop("wildcard_hosts", &["rules.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        ensure!(split(&mesh.connect(at("10.96.0.23", 80), 500)?)? == [0, 500, 0, 0]);
        mesh.stop()
    });
}

#[test]
fn a_delegate_decides_and_a_missing_one_refuses() {
    isolated(|| {
        let mut mesh = shop("delegate", &["routes.yaml"])?;
        ensure!(reviews(&mesh, 500)? == [500, 0, 0, 0]);
        ensure!(split(&mesh.connect(at("10.96.0.23", 80), 200)?)? == [0, 0, 0, 200]);
        mesh.agent()?.expect_report(&[
            "VirtualService shop/lost",
            "spec.http[0].delegate",
            "teams/nobody",
        ])?;
        mesh.stop()
    });
}

#[test]
fn a_service_entry_is_for_those_who_see_it() {
    isolated(|| {
        let (mut mesh, _) = shop_as(&["default/client"], "service_entry_for_some", &["entries.yaml"])?;
        ensure!(split(&mesh.connect(at("240.0.0.1", 3306), 200)?)? == [200, 0, 0, 0]);
        mesh.connect(at("240.0.0.2", 6379), 3)?.expect_errno(Errno::ENETUNREACH)?;
        mesh.stop()
    });
}

#[test]
fn a_sidecar_says_what_callers_see_and_what_becomes_of_the_rest() {
    isolated(|| {
        const CASE: &str = "sidecar";
        let callers = ["default/client", "shop/client"];
        let (mut mesh, others) = shop_as(&callers, CASE, &["rules.yaml"])?;
        // What isn't seen has no routes, but the Service's own endpoints.
        let [v1, v2, v3, refused] = reviews(&mesh, CONNECTS)?;
        stats::expect_fit(&[v1, v2, v3], &[2, 1, 1])?;
        ensure!(refused == 0);
        ensure!(split(&mesh.connect(at("10.96.0.22", 80), 200)?)? == [0, 0, 200, 0]);
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        // Or is refused. The older object of that name stands in two files then, so the first one goes.
        let rules = text(&format!("{CASE}/rules.yaml"))?;
        let (_, routes) = rules.split_once("---\n").context("several documents")?;
        let strict = format!("{}---\n{routes}", text(&format!("{CASE}/strict.yaml"))?);
        mesh.agent()?.published("listener", || mesh.manifests.write_text("rules.yaml", &strict))?;
        wait::until_true("what isn't seen to be refused", || Ok(reviews(&mesh, 20)? == [0, 0, 0, 20]))?;
        ensure!(split(&mesh.connect(at("10.96.0.22", 80), 200)?)? == [0, 0, 200, 0]);
        ensure!(reviews_of(&others[0], 500)? == [500, 0, 0, 0]);
        mesh.stop()
    });
}
