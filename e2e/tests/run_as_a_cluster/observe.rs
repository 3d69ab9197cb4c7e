//! What shows an owner how it runs: the plugin of kubectl; and the dashboards that the chart brings, on a Prometheus
//! that scrapes what the chart says.

use std::{os::unix::fs::symlink, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use slotmesh_cluster::{Cluster, prometheus::Prometheus, scenarios::Story, wait};
use slotmesh_e2e::names::binary;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{
    crds,
    faults::upgrade,
    panels,
    world::{NODES, SYSTEM, World, all_ready, route},
};

/// Pods of slotmesh: two of the operator, and an agent on each node.
const SCRAPED: f64 = 5.0;

/// `kubectl slotmesh`, which reaches pods as kubectl does.
pub struct Plugin(TempDir);

impl Plugin {
    /// Makes it a plugin.
    pub fn new() -> Result<Self> {
        let plugins = tempfile::tempdir()?;
        symlink(binary("slotmesh", "slotmesh")?, plugins.path().join("kubectl-slotmesh"))?;
        Ok(Self(plugins))
    }

    /// Exit status of a command, and all that it says.
    pub fn run(&self, cluster: &Cluster, args: &[&str]) -> Result<(Option<i32>, String)> {
        let mut kubectl = cluster.control_plane().kubectl()?;
        let programs = Path::new(kubectl.get_program()).parent().context("a folder")?.to_owned();
        let path = std::env::join_paths([self.0.path(), &programs])?;
        let output = kubectl.arg("slotmesh").args(args).env("PATH", path).output()?;
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok((output.status.code(), text.concat()))
    }
}

/// The commands of the plugin.
pub fn commands(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let plugin = Plugin::new()?;
        let run = |args: &[&str]| plugin.run(cluster, args);
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
        let established = ["wait", "--for=condition=Established", "--timeout=60s"];
        let kinds = ["crd/podmonitors.monitoring.coreos.com", "crd/prometheusrules.monitoring.coreos.com"];
        cluster.kubectl(&[&established[..], &kinds].concat())?;
        upgrade(
            cluster,
            &[
                "podMonitor.enabled=true",
                "podMonitor.interval=1s",
                "dashboards.enabled=true",
                "alerts.enabled=true",
                "agent.accessLog.format=json",
            ],
        )?;
        all_ready(cluster).await?;
        let monitors = panels::objects(cluster, SYSTEM, "podmonitors")?;
        let pods = cluster.pods(SYSTEM, "").await?;
        let prometheus = Prometheus::start(cluster.control_plane(), &pods, &monitors).await?;
        wait::until_true("all pods of slotmesh to be scraped", async || {
            Ok(prometheus.query("sum(up)")?.first().is_some_and(|sum| sum.value == SCRAPED))
        })
        .await?;

        let mut outstanding = Vec::new();
        for (file, dashboard) in panels::dashboards(cluster, SYSTEM)? {
            // That of the proxy shows something where there is one.
            if file != "proxy.json" {
                panels::variables(&prometheus, &dashboard, &NODES).with_context(|| file.clone())?;
                outstanding.extend(panels::queries(&dashboard).with_context(|| file.clone())?);
            }
        }
        ensure!(outstanding.len() > 40, "the dashboards have {} queries only", outstanding.len());
        for rules in panels::objects(cluster, SYSTEM, "prometheusrules")? {
            outstanding.extend(alerts(&prometheus, &rules)?);
        }
        let world = World::look(cluster).await?;
        // Rates and percentiles are of changes.
        let mut turn = 0;
        let shown = wait::until_true("every panel to show something", async || {
            turn ^= 1;
            route(cluster, turn, 1 - turn)?;
            world.connect(cluster, &world.near, 20).await?;
            outstanding = panels::empty(&prometheus, std::mem::take(&mut outstanding))?;
            sleep(Duration::from_millis(500)).await;
            Ok(outstanding.is_empty())
        });
        shown.await.with_context(|| format!("these show nothing: {outstanding:#?}"))?;
        for pod in &pods {
            Prometheus::check(&panels::metrics_of(pod)?)?;
        }
        told(cluster, &prometheus, &world).await?;
        upgrade(cluster, &["agent.accessLog.format=off"])?;
        all_ready(cluster).await?;
        world.lead_to(cluster, &world.v1).await
    })
}

/// The metrics that alerts are about, each with the name of its alert. Prometheus understands each expression, and each has a
/// runbook.
fn alerts(prometheus: &Prometheus, rules: &Value) -> Result<Vec<(String, String)>> {
    let runbooks = include_str!("../../../docs/runbooks.md");
    let groups = rules["spec"]["groups"].as_array().context("it has groups")?;
    let all: Vec<&Value> = groups.iter().filter_map(|group| group["rules"].as_array()).flatten().collect();
    ensure!(all.len() > 10, "there are {} alerts", all.len());
    let mut found = Vec::new();
    for rule in all {
        let name = rule["alert"].as_str().context("an alert has a name")?;
        let expression = rule["expr"].as_str().with_context(|| format!("{name} asks nothing"))?;
        prometheus.query(expression).with_context(|| name.to_owned())?;
        ensure!(runbooks.contains(&format!("\n## {name}\n")), "{name} has no runbook");
        let link = rule["annotations"]["runbook_url"].as_str().unwrap_or_default();
        ensure!(link.ends_with(&format!("#{}", name.to_lowercase())), "{name} links to {link}");
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics = words.filter(|word| word.starts_with("slotmesh_") || word.starts_with("istio_"));
        found.extend(metrics.map(|metric| (name.to_owned(), metric.to_owned())));
    }
    ensure!(found.len() > 10, "alerts are about {found:?} only");
    Ok(found)
}

/// Traffic is told of by names: in metrics, and in the agents' access logs.
async fn told(cluster: &Cluster, prometheus: &Prometheus, world: &World) -> Result<()> {
    let query = "sum(istio_tcp_connections_opened_total{source_workload=\"near\", source_workload_namespace=\"load\", \
        destination_service_name=\"web\", destination_service_namespace=\"load\", destination_port=\"80\"})";
    wait::until_true("the pod's connections to the Service to be counted", async || {
        Ok(prometheus.query(query)?.first().is_some_and(|sample| sample.value >= 20.0))
    })
    .await?;
    wait::until_true("an agent to log the pod's connections", async || {
        world.connect(cluster, &world.near, 1).await?;
        let args = ["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/component=agent", "--tail=2000"];
        let said = cluster.kubectl(&args)?;
        let lines = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut lines = lines.filter(|line| line["source_pod"] == "near" && line["ending"] == "closed");
        Ok(lines.any(|line| line["destination_service_name"] == "web" && !line["endpoint"].is_null()))
    })
    .await
}
