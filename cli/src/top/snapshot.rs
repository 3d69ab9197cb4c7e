//! Nodes, clusters and failures at one moment.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context as _, anyhow};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use slotmesh_admin::{SlotsReport, paths};
use slotmesh_crds::own::MeshNode;
use tokio::runtime::Runtime;

use crate::{
    ask::{AdminSite, AskedAgent},
    cluster::reach,
    is_plugin,
    scraped::{MetricSample, quantile, samples},
};

/// A node and its slot table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeBar {
    pub name: String,
    pub ready: bool,
    pub used: u64,
    pub idle: u64,
    /// Slabs that hold nothing, or aren't created yet.
    pub slabs_left: u32,
    pub slabs_cap: u32,
    /// Resources that its agent refuses, and why it isn't ready.
    pub trouble: String,
}

/// A cluster and its connections from the selected node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BusyCluster {
    pub name: String,
    pub active: f64,
    pub opened: f64,
    pub refused: f64,
}

/// How long changes of a type of resources took.
#[derive(Clone, Debug, PartialEq)]
pub struct FlushLatency {
    pub ty: String,
    pub count: f64,
    /// Seconds.
    pub p50: f64,
    pub p99: f64,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct TopSnapshot {
    pub at: Instant,
    pub nodes: Vec<NodeBar>,
    /// The node of which the rest is.
    pub node: String,
    pub clusters: Vec<BusyCluster>,
    pub flushes: Vec<FlushLatency>,
    /// Counts of what went wrong, by what it is.
    pub failures: Vec<(&'static str, f64)>,
}

/// Where nodes are listed.
enum Nodes {
    /// One agent.
    One,
    /// The MeshNodes of a cluster.
    Cluster(Runtime, Client),
}

/// Asks for snapshots.
pub struct TopAsker {
    asked: AskedAgent,
    nodes: Nodes,
    /// The agent that was asked last, and its node.
    site: Option<(Option<String>, AdminSite)>,
}

impl TopAsker {
    /// # Errors
    /// Where the cluster can't be reached.
    pub fn new(asked: AskedAgent) -> anyhow::Result<Self> {
        let nodes = if is_plugin() || asked.node().is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let client = runtime.block_on(reach())?;
            Nodes::Cluster(runtime, client)
        } else {
            Nodes::One
        };
        Ok(Self { asked, nodes, site: None })
    }

    /// The state now; `node`: of which the details are.
    ///
    /// # Errors
    /// Where somebody who is asked doesn't answer.
    pub fn ask(&mut self, node: Option<&str>) -> anyhow::Result<TopSnapshot> {
        let mut nodes = match &self.nodes {
            Nodes::One => Vec::new(),
            Nodes::Cluster(runtime, client) => {
                let api = Api::<MeshNode>::all(client.clone());
                let all = ListParams::default();
                let found = runtime.block_on(api.list(&all)).context("MeshNodes can't be listed")?;
                found.items.into_iter().map(bar).collect()
            }
        };
        nodes.sort_by(|a: &NodeBar, b: &NodeBar| (a.ready, &a.name).cmp(&(b.ready, &b.name)));
        let wanted = node.or(self.asked.node()).map(str::to_owned);
        let wanted = wanted.or_else(|| nodes.iter().find(|node| node.ready).map(|node| node.name.clone()));
        let text = self.metrics(wanted.clone());
        if matches!(self.nodes, Nodes::One) {
            // There is nobody else.
            text.as_ref().map_err(|error| anyhow!("{error:#}"))?;
            let (_, site) = self.site.as_ref().context("it was asked")?;
            nodes = vec![own_bar(&site.get(paths::SLOTS)?)];
        }
        let node = wanted.unwrap_or_else(|| nodes.first().map(|node| node.name.clone()).unwrap_or_default());
        // Of a node whose agent doesn't answer there is its MeshNode.
        let found = text.map(|text| samples(&text)).unwrap_or_default();
        let (clusters, flushes, failures) = (clusters(&found), flushes(&found), failures(&found));
        Ok(TopSnapshot { at: Instant::now(), nodes, node, clusters, flushes, failures })
    }

    /// The metrics of an agent, whose way is kept until another one is asked, or it doesn't answer.
    fn metrics(&mut self, node: Option<String>) -> anyhow::Result<String> {
        if self.site.as_ref().is_none_or(|(known, _)| *known != node) {
            self.site = None;
            self.site = Some((node.clone(), self.asked.site_at(node.as_deref())?));
        }
        let (_, site) = self.site.as_ref().context("it was just made")?;
        let text = site.text("/metrics");
        if text.is_err() {
            self.site = None;
        }
        text
    }
}

fn bar(node: MeshNode) -> NodeBar {
    let name = node.name_any();
    let status = node.status.unwrap_or_default();
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let is_ready = ready.is_some_and(|ready| ready.status == "True");
    let refused = status.refused_resources.unwrap_or_default();
    let trouble = match (is_ready, refused) {
        (false, _) => ready.map_or("NeverConnected", |ready| ready.reason.as_str()).to_owned(),
        (true, 0) => String::new(),
        (true, refused) => format!("refuses {refused}"),
    };
    let slots = status.slots.as_ref();
    NodeBar {
        name,
        ready: is_ready,
        used: slots.map_or(0, |slots| slots.used),
        idle: slots.map_or(0, |slots| slots.idle),
        slabs_left: slots.map_or(0, |slots| slots.remaining),
        slabs_cap: slots.map_or(0, |slots| slots.cap),
        trouble,
    }
}

fn own_bar(report: &SlotsReport) -> NodeBar {
    NodeBar {
        name: "this node".to_owned(),
        ready: true,
        used: report.classes.iter().map(|class| class.used).sum(),
        idle: report.classes.iter().map(|class| class.idle).sum(),
        slabs_left: report.outer_records_empty + report.outer_records_remaining,
        slabs_cap: report.outer_records + report.outer_records_remaining,
        trouble: report.growth_error.clone().unwrap_or_default(),
    }
}

fn clusters(samples: &[MetricSample]) -> Vec<BusyCluster> {
    let mut found: BTreeMap<&str, BusyCluster> = BTreeMap::new();
    for sample in samples {
        let Some(name) = sample.labels.get("cluster") else { continue };
        let cluster =
            found.entry(name).or_insert_with(|| BusyCluster { name: name.clone(), ..BusyCluster::default() });
        match sample.name.as_str() {
            "slotmesh_agent_cluster_connections_active" => cluster.active = sample.value,
            "slotmesh_agent_cluster_connections_total" => cluster.opened = sample.value,
            "slotmesh_agent_cluster_connections_refused_total"
            | "slotmesh_agent_cluster_connections_too_fast_total" => cluster.refused += sample.value,
            _ => {}
        }
    }
    found.into_values().collect()
}

fn flushes(samples: &[MetricSample]) -> Vec<FlushLatency> {
    const BUCKET: &str = "slotmesh_agent_flush_seconds_bucket";
    let mut by_type: BTreeMap<&str, Vec<&MetricSample>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name == BUCKET) {
        by_type.entry(sample.label("type")).or_default().push(sample);
    }
    let of_type = |(ty, buckets): (&str, Vec<&MetricSample>)| {
        let quantile = |share| quantile(buckets.iter().copied(), share);
        let whole = buckets.iter().filter(|sample| sample.label("le") == "+Inf");
        let count = whole.map(|sample| sample.value).sum();
        Some(FlushLatency { ty: ty.to_owned(), count, p50: quantile(0.5)?, p99: quantile(0.99)? })
    };
    by_type.into_iter().filter_map(of_type).collect()
}

fn failures(samples: &[MetricSample]) -> Vec<(&'static str, f64)> {
    let sum = |name: &str| -> f64 {
        samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).sum()
    };
    let kinds = [
        ("resources refused", "slotmesh_agent_nacked_resources_total"),
        ("connects refused at a limit", "slotmesh_agent_cluster_connections_refused_total"),
        ("connects that came too fast", "slotmesh_agent_cluster_connections_too_fast_total"),
        ("connects that failed", "slotmesh_tcp_connections_failed_total"),
        ("endpoints left out", "slotmesh_agent_endpoints_ejected"),
        ("connections without a record", "slotmesh_agent_connections_unrecorded_total"),
        ("datagrams refused", "slotmesh_agent_udp_refused_total"),
    ];
    kinds.into_iter().map(|(what, name)| (what, sum(name))).filter(|(_, count)| *count > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_what_is_shown() {
        let text = "slotmesh_agent_cluster_connections_active{cluster=\"a\"} 3\n\
                    slotmesh_agent_cluster_connections_total{cluster=\"a\"} 40\n\
                    slotmesh_agent_cluster_connections_refused_total{cluster=\"a\"} 2\n\
                    slotmesh_agent_flush_seconds_bucket{le=\"0.000001\",type=\"cluster\"} 9\n\
                    slotmesh_agent_flush_seconds_bucket{le=\"+Inf\",type=\"cluster\"} 10\n\
                    slotmesh_agent_nacked_resources_total{type=\"route\"} 0\n";
        let samples = samples(text);
        let expected = BusyCluster { name: "a".to_owned(), active: 3.0, opened: 40.0, refused: 2.0 };
        assert_eq!(clusters(&samples), [expected]);
        let flushes = flushes(&samples);
        assert_eq!((flushes[0].count, flushes[0].p50), (10.0, 0.000_001));
        assert_eq!(
            failures(&samples),
            [("connects refused at a limit", 2.0)],
            "nothing is told of what never was"
        );
    }

    #[test]
    fn a_node_without_an_agent_is_a_node_all_the_same() {
        let node = bar(MeshNode::new("n1", Default::default()));
        assert_eq!((node.name.as_str(), node.ready, node.trouble.as_str()), ("n1", false, "NeverConnected"));
    }
}
