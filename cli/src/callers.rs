//! `slotmesh callers`: which workloads connect to a Service, by what agents count of their nodes' connections.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::{
    ask::AskedAgent,
    in_force::is_meant,
    progress::ProgressSign,
    render::{Columns, OutputForm, or_dash, print},
    scraped::{MetricSample, samples},
};

/// The end of `slotmesh callers --help`.
const EXAMPLES: &str = "Examples:
  slotmesh callers shop/reviews
  kubectl slotmesh callers shop/reviews                     # on all nodes
  kubectl slotmesh callers shop/reviews --node worker-1";

/// The flags of `slotmesh callers`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CallersCommand {
    /// The Service: NAMESPACE/NAME, or its host
    service: String,

    #[command(flatten)]
    asked: AskedAgent,

    /// Form of the answer
    #[arg(long, short, env = "SLOTMESH_OUTPUT", default_value = "table")]
    output: OutputForm,
}

/// Connections of a workload to a port of a Service, from one node.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Talk {
    source: String,
    node: String,
    destination: String,
    port: String,
    open: f64,
    opened: f64,
    closed: f64,
    failed: f64,
    refused: f64,
    sent_bytes: f64,
    received_bytes: f64,
}

impl CallersCommand {
    /// Asks the agents and prints.
    ///
    /// # Errors
    /// Where none answers, or none counts.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { service, asked, output } = self;
        let nodes = asked.nodes()?;
        let progress = ProgressSign::of_steps("asking agents", nodes.len());
        let mut talks = Vec::new();
        let mut counts = false;
        for node in nodes {
            progress.step(node.as_deref().unwrap_or("the agent"));
            let text = asked.site_at(node.as_deref())?.text("/metrics")?;
            let samples = samples(&text);
            counts |= samples.iter().any(|sample| sample.name == OPENED);
            talks.extend(talks_with(&samples, &service, node.as_deref().unwrap_or("-")));
        }
        drop(progress);
        if !counts {
            bail!("no agent that was asked counts traffic; --traffic-metrics turns that on");
        }
        talks.sort_by(|a, b| b.opened.total_cmp(&a.opened).then_with(|| a.source.cmp(&b.source)));
        print(&output.of(&talks, |wide| table(&talks, wide))?)?;
        if talks.is_empty() {
            eprintln!("nobody who is shown has connected to {service} since its agent's start");
        }
        Ok(())
    }
}

const OPENED: &str = "istio_tcp_connections_opened_total";

/// The connections to a Service among samples.
fn talks_with(samples: &[MetricSample], service: &str, node: &str) -> Vec<Talk> {
    let mut talks: BTreeMap<[String; 3], Talk> = BTreeMap::new();
    for sample in samples {
        let (host, name) = (sample.label("destination_service"), sample.label("destination_service_name"));
        let whole = format!("{}/{name}", sample.label("destination_service_namespace"));
        if !is_meant(host, service) && whole != service {
            continue;
        }
        let source =
            format!("{}/{}", sample.label("source_workload_namespace"), sample.label("source_workload"));
        let port = sample.label("destination_port").to_owned();
        let talk = talks.entry([source.clone(), host.to_owned(), port.clone()]).or_insert_with(|| Talk {
            source,
            node: node.to_owned(),
            destination: host.to_owned(),
            port,
            ..Talk::default()
        });
        let count = match sample.name.as_str() {
            OPENED => &mut talk.opened,
            "istio_tcp_connections_closed_total" => &mut talk.closed,
            "istio_tcp_sent_bytes_total" => &mut talk.sent_bytes,
            "istio_tcp_received_bytes_total" => &mut talk.received_bytes,
            "slotmesh_tcp_connections_open" => &mut talk.open,
            "slotmesh_tcp_connections_failed_total" => &mut talk.failed,
            "slotmesh_tcp_connections_refused_total" => &mut talk.refused,
            _ => continue,
        };
        *count += sample.value;
    }
    talks.into_values().collect()
}

fn table(talks: &[Talk], wide: bool) -> Columns {
    let mut header = vec!["SOURCE", "NODE", "TO", "PORT", "OPEN", "OPENED", "FAILED", "REFUSED"];
    if wide {
        header.extend(["CLOSED", "SENT-BYTES", "RECEIVED-BYTES"]);
    }
    let mut table = Columns::new(header);
    for talk in talks {
        let port = or_dash(Some(&talk.port).filter(|port| !port.is_empty()));
        let mut row = vec![talk.source.clone(), talk.node.clone(), talk.destination.clone(), port];
        row.extend([talk.open, talk.opened, talk.failed, talk.refused].map(|count| count.to_string()));
        if wide {
            row.extend([talk.closed, talk.sent_bytes, talk.received_bytes].map(|count| count.to_string()));
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_a_service_are_told_with_what_became_of_their_connections() {
        let labels = |source: &str, name: &str| {
            format!(
                "source_workload=\"{source}\",source_workload_namespace=\"shop\",destination_service=\"{name}.shop.svc.cluster.local\",\
                 destination_service_name=\"{name}\",destination_service_namespace=\"shop\""
            )
        };
        let text = format!(
            "{OPENED}{{{}}} 5\n{OPENED}{{{}}} 7\n{OPENED}{{{}}} 9\nslotmesh_tcp_connections_refused_total{{{},reason=\"limit\"}} 2\n\
             slotmesh_tcp_connections_refused_total{{{},reason=\"rate\"}} 1\n",
            labels("client", "reviews"),
            labels("other", "reviews"),
            labels("client", "ratings"),
            labels("client", "reviews"),
            labels("client", "reviews"),
        );
        for service in ["shop/reviews", "reviews.shop", "reviews"] {
            let talks = talks_with(&samples(&text), service, "n1");
            let told: Vec<_> =
                talks.iter().map(|talk| (talk.source.as_str(), talk.opened, talk.refused)).collect();
            assert_eq!(told, [("shop/client", 5.0, 3.0), ("shop/other", 7.0, 0.0)], "{service}");
        }
    }
}
