//! What shows an owner how it runs: the plugin of kubectl; and the dashboards that the chart brings, on a Prometheus
//! that scrapes what the chart says.

use std::{os::unix::fs::symlink, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use slotmesh_cluster::{Cluster, prometheus::Prometheus, scenarios::Story, wait};
use slotmesh_e2e::names::binary;
use tokio::time::sleep;

use crate::{
    crds,
    faults::upgrade,
    world::{NODES, SYSTEM, World, all_ready, route},
};

/// Pods of slotmesh: two of the operator, and an agent on each node.
const SCRAPED: f64 = 5.0;
/// What Grafana puts in for `$__rate_interval`: some scrapes.
const RATE_INTERVAL: &str = "10s";

/// `kubectl slotmesh`, which reaches pods as kubectl does.
pub fn commands(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let plugins = tempfile::tempdir()?;
        symlink(binary("slotmesh", "slotmesh")?, plugins.path().join("kubectl-slotmesh"))?;
        let run = |args: &[&str]| -> Result<(Option<i32>, String)> {
            let mut kubectl = cluster.control_plane().kubectl()?;
            let programs = Path::new(kubectl.get_program()).parent().context("a folder")?.to_owned();
            let path = std::env::join_paths([plugins.path(), &programs])?;
            let output = kubectl.arg("slotmesh").args(args).env("PATH", path).output()?;
            let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            Ok((output.status.code(), text.concat()))
        };
        wait::until_true("the plugin to tell of all nodes", async || {
            Ok(run(&["status"])?.1.contains("Nodes: 3 of 3 ready"))
        })
        .await?;
        let mut last = String::new();
        let waited = wait::until_true("the pod to be among the workloads of its node", async || {
            last = run(&["get", "workloads", "--node", "a"])?.1;
            Ok(last.contains(" near "))
        });
        waited.await.with_context(|| last.clone())?;
        let (_, said) = run(&["get", "workloads", "--node", "a"])?;
        ensure!(!said.contains(" far "), "{said}");
        let asked = ["explain", "--from", "load/near", "--to", "web:80", "--node", "a"];
        let waited = wait::until_true("the connections of a pod to be explained", async || {
            let (status, said) = run(&asked)?;
            last = said;
            Ok(status == Some(0))
        });
        waited.await.with_context(|| last.clone())?;
        let (_, said) = run(&asked)?;
        ensure!(said.contains("connects are routed") && said.contains("Service load/web"), "{said}");
        let (status, said) = run(&["reports"])?;
        ensure!(status == Some(0), "{status:?}: {said}");
        let (_, said) = run(&["version"])?;
        ensure!(said.lines().any(|line| line.starts_with("operator ")), "{said}");
        Ok(())
    })
}

pub fn dashboards(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        cluster.apply(&crds::prometheus_operator())?;
        let established = ["wait", "--for=condition=Established", "crd/podmonitors.monitoring.coreos.com"];
        cluster.kubectl(&[&established[..], &["--timeout=60s"]].concat())?;
        upgrade(cluster, &["podMonitor.enabled=true", "podMonitor.interval=1s", "dashboards.enabled=true"])?;
        all_ready(cluster).await?;
        let monitors = objects(cluster, "podmonitors")?;
        let pods = cluster.pods(SYSTEM, "").await?;
        let prometheus = Prometheus::start(cluster.control_plane(), &pods, &monitors).await?;
        wait::until_true("all pods of slotmesh to be scraped", async || {
            Ok(prometheus.query("sum(up)")?.first().is_some_and(|sum| sum.value == SCRAPED))
        })
        .await?;

        let mut outstanding = Vec::new();
        for map in objects(cluster, "configmaps")? {
            for (file, text) in map["data"].as_object().into_iter().flatten() {
                if !file.ends_with(".json") {
                    continue;
                }
                let dashboard: Value = serde_json::from_str(text.as_str().context("a file is text")?)?;
                variables(&prometheus, &dashboard).with_context(|| file.clone())?;
                outstanding.extend(queries(&dashboard).with_context(|| file.clone())?);
            }
        }
        ensure!(outstanding.len() > 20, "the dashboards have {} queries only", outstanding.len());
        let world = World::look(cluster).await?;
        // Rates and percentiles are of changes.
        let mut turn = 0;
        let shown = wait::until_true("every panel to show something", async || {
            turn ^= 1;
            route(cluster, turn, 1 - turn)?;
            let mut empty = Vec::new();
            for (panel, query) in std::mem::take(&mut outstanding) {
                if !prometheus.query(&query)?.iter().any(|sample| sample.value.is_finite()) {
                    empty.push((panel, query));
                }
            }
            outstanding = empty;
            sleep(Duration::from_millis(500)).await;
            Ok(outstanding.is_empty())
        });
        shown.await.with_context(|| format!("these show nothing: {outstanding:#?}"))?;
        world.lead_to(cluster, &world.v1).await
    })
}

/// Objects of slotmesh's namespace.
fn objects(cluster: &Cluster, resource: &str) -> Result<Vec<Value>> {
    let list = cluster.kubectl(&["get", resource, "-n", SYSTEM, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().context("a list has items")?.clone())
}

/// The variables offer the cluster's nodes.
fn variables(prometheus: &Prometheus, dashboard: &Value) -> Result<()> {
    let all = dashboard["templating"]["list"].as_array().context("it has variables")?;
    for variable in all.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"].as_str().context("a variable's query is text")?;
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            inside.and_then(|inside| inside.split_once(", ")).with_context(|| format!("{query}?"))?;
        let values = prometheus.label_values(metric, label)?;
        ensure!(values == NODES, "{query} yields {values:?}");
    }
    Ok(())
}

/// The queries of a dashboard as Grafana sends them, each with its panel's title.
fn queries(dashboard: &Value) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().context("it has panels")? {
        let title = panel["title"].as_str().context("a panel has a title")?;
        let targets = panel["targets"].as_array().filter(|targets| !targets.is_empty());
        for target in targets.with_context(|| format!("{title} asks nothing"))? {
            let query = target["expr"].as_str().with_context(|| format!("{title} asks nothing"))?;
            let query = query.replace("$__rate_interval", RATE_INTERVAL).replace("$node", ".*");
            ensure!(!query.contains('$'), "{title} uses a variable that isn't known here: {query}");
            all.push((title.to_owned(), query));
        }
    }
    Ok(all)
}
