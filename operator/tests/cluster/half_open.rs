//! The way to the API server is cut without a word: packets vanish, no connection ends.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use slotmesh_cluster::ControlPlane;
use slotmesh_operator::connect;
use slotmesh_xds::ResourceType::Cluster;

use crate::support::{Watched, apply, namespace, service};

/// Drops the packets of some connections while it lives.
struct Cut(String);

impl Cut {
    /// Cuts the connections that are open to this port now; later ones go through.
    fn now(port: u16) -> Result<Self> {
        let own: Vec<String> = open_to(port)?.iter().map(u16::to_string).collect();
        ensure!(!own.is_empty(), "nobody is connected to {port}");
        let (table, own) = (format!("slotmesh_half_open_{}", std::process::id()), own.join(", "));
        nft(&format!(
            "table inet {table} {{ chain output {{ type filter hook output priority 0; \
             tcp dport {port} tcp sport {{ {own} }} drop; tcp sport {port} tcp dport {{ {own} }} drop; }}; }}"
        ))?;
        Ok(Self(table))
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        nft(&format!("delete table inet {}", self.0)).expect("the table is ours");
    }
}

fn nft(rules: &str) -> Result<()> {
    let output = Command::new("nft").arg(rules).output().context("nft (nftables) is needed")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The local ports of established connections to a port of 127.0.0.1.
fn open_to(port: u16) -> Result<BTreeSet<u16>> {
    const ESTABLISHED: &str = "01";
    let port_of = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let own = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, ..] = fields[..] else { return None };
        (state == ESTABLISHED && port_of(remote) == Some(port)).then(|| port_of(local)).flatten()
    };
    Ok(fs::read_to_string("/proc/net/tcp")?.lines().filter_map(own).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_cut_without_a_word_is_given_up_within_a_minute() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    apply(&client, namespace("shop", json!({}))).await?;
    apply(&client, service("early")).await?;
    let file = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let port = config.cluster_url.port_u16().context("a port")?;
    let watched = Watched::start_on(connect(config)?).await?;
    watched.has(Cluster, "early.shop", true).await?;

    let _cut = Cut::now(port)?;
    // By a connection that is new.
    let client = cluster.client().await?;
    apply(&client, service("late")).await?;
    watched.has(Cluster, "late.shop", true).await
}
