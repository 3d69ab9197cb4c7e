//! The dashboards that the chart brings, as Grafana asks Prometheus for them.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use slotmesh_cluster::{Cluster, prometheus::Prometheus};

/// What Grafana puts in for `$__rate_interval`: some scrapes.
const RATE_INTERVAL: &str = "10s";

/// A dashboard and its file's name.
pub type Dashboard = (String, Value);

/// The dashboards of the chart.
pub fn dashboards(cluster: &Cluster, namespace: &str) -> Result<Vec<Dashboard>> {
    let mut found = Vec::new();
    for map in objects(cluster, namespace, "configmaps")? {
        for (file, text) in map["data"].as_object().into_iter().flatten() {
            if file.ends_with(".json") {
                let text = text.as_str().context("a file is text")?;
                found.push((file.clone(), serde_json::from_str(text).with_context(|| file.clone())?));
            }
        }
    }
    Ok(found)
}

/// Those of these queries that yield nothing now.
pub fn empty(prometheus: &Prometheus, queries: Vec<(String, String)>) -> Result<Vec<(String, String)>> {
    let mut empty = Vec::new();
    for (panel, query) in queries {
        if !prometheus.query(&query)?.iter().any(|sample| sample.value.is_finite()) {
            empty.push((panel, query));
        }
    }
    Ok(empty)
}

/// Objects of a namespace.
pub fn objects(cluster: &Cluster, namespace: &str, resource: &str) -> Result<Vec<Value>> {
    let list = cluster.kubectl(&["get", resource, "-n", namespace, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().context("a list has items")?.clone())
}

/// The variables offer the cluster's nodes.
pub fn variables(prometheus: &Prometheus, dashboard: &Value, nodes: &[&str]) -> Result<()> {
    let all = dashboard["templating"]["list"].as_array().context("it has variables")?;
    for variable in all.iter().filter(|variable| variable["type"] == "query") {
        let query = variable["query"].as_str().context("a variable's query is text")?;
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            inside.and_then(|inside| inside.split_once(", ")).with_context(|| format!("{query}?"))?;
        let values = prometheus.label_values(metric, label)?;
        ensure!(values == nodes, "{query} yields {values:?}");
    }
    Ok(())
}

/// The queries of a dashboard as Grafana sends them, each with its panel's title.
pub fn queries(dashboard: &Value) -> Result<Vec<(String, String)>> {
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

/// Where a pod of slotmesh shows its metrics.
pub fn metrics_of(pod: &Pod) -> Result<String> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).context("it has an address")?;
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some("metrics")).context("it has metrics")?;
    Ok(format!("http://{ip}:{}/metrics", port.container_port))
}
