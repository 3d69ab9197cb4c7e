//! The dashboard of the proxy, on a Prometheus that scrapes what the chart says.

use std::time::Duration;

use anyhow::{Context as _, Result};
use slotmesh_cluster::{Cluster, prometheus::Prometheus, scenarios::Story, wait};
use tokio::time::sleep;

use crate::{
    panels,
    world::{self, SHOP, SYSTEM, ask},
};

/// The dashboard whose panels are looked at.
const FILE: &str = "proxy.json";

pub fn dashboard(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        world::monitor(cluster)?;
        let monitors = panels::objects(cluster, SYSTEM, "podmonitors")?;
        let pods = cluster.pods(SYSTEM, "").await?;
        let prometheus = Prometheus::start(cluster.control_plane(), &pods, &monitors).await?;
        let near = cluster.ready(SHOP, "near").await?;
        let all = panels::dashboards(cluster, SYSTEM)?;
        let (_, dashboard) = all.into_iter().find(|(file, _)| file == FILE).context("it has a dashboard")?;
        let mut outstanding = panels::queries(&dashboard)?;
        // Rates and percentiles are of requests.
        let shown = wait::until_true("every panel to show something", async || {
            ask(cluster, &near, &["/split", "/none"]).await?;
            outstanding = panels::empty(&prometheus, std::mem::take(&mut outstanding))?;
            sleep(Duration::from_millis(500)).await;
            Ok::<_, anyhow::Error>(outstanding.is_empty())
        });
        shown.await.with_context(|| format!("these show nothing: {outstanding:#?}"))?;
        // Both nodes have a proxy.
        panels::variables(&prometheus, &dashboard, &["a", "b"])?;
        scraped(&pods)
    })
}

/// promtool finds nothing in what the pods answer.
fn scraped(pods: &[k8s_openapi::api::core::v1::Pod]) -> Result<()> {
    pods.iter().try_for_each(|pod| Prometheus::check(&panels::metrics_of(pod)?))
}
