//! An agent moves from one replica to another, whose watches are kept back.

use anyhow::{Result, ensure};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use slotmesh_cluster::{ControlPlane, wait};
use slotmesh_xds::ResourceType::Cluster;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    replica::{Agent, Replica},
    status::prepare,
    support::{apply, delete, service},
};

/// A way to the API server on which what that says can be kept back.
struct Way {
    client: Client,
    open: watch::Sender<bool>,
}

impl Way {
    async fn to(cluster: &ControlPlane) -> Result<Self> {
        let file = Kubeconfig::read_from(cluster.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        let server = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        config.cluster_url = format!("https://{}", listener.local_addr()?).parse()?;
        let (open, gate) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, server.clone(), gate.clone()));
            }
        });
        Ok(Self { client: Client::try_from(config)?, open })
    }
}

async fn carry(near: TcpStream, server: String, mut gate: watch::Receiver<bool>) -> Result<()> {
    let (mut requests, mut responses) = near.into_split();
    let (mut from, mut to) = TcpStream::connect(server).await?.into_split();
    let there = tokio::spawn(async move { tokio::io::copy(&mut requests, &mut to).await });
    let mut some = vec![0; 1 << 14];
    loop {
        let n = from.read(&mut some).await?;
        gate.wait_for(|open| *open).await?;
        if n == 0 {
            break;
        }
        responses.write_all(&some[..n]).await?;
    }
    there.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_moves_to_a_replica_that_lags_behind_is_not_taken_back() -> Result<()> {
    let (cluster, client) = prepare().await?;
    apply(&client, service("early")).await?;
    let way = Way::to(&cluster).await?;
    let behind = Replica::start_on(way.client.clone(), "behind").await?;
    let ahead = Replica::start(&cluster, "ahead").await?;

    way.open.send_replace(false);
    delete(&client, &service("early")).await?;
    apply(&client, service("late")).await?;
    let before = Agent::connect("n1", &ahead).await?;
    wait::until_true("the first replica to tell what is new", async || {
        Ok(before.has(Cluster, "late.shop") && !before.has(Cluster, "early.shop"))
    })
    .await?;
    let source = before.source().unwrap_or_default();
    ensure!(source.contains("Service="), "{source}");

    // Who comes from nowhere is told what this one knows.
    let fresh = Agent::connect("n1", &behind).await?;
    wait::until_true("the second replica to tell what is old", async || Ok(fresh.has(Cluster, "early.shop")))
        .await?;
    ensure!(!fresh.has(Cluster, "late.shop"), "it lags behind");
    let moved = Agent::connect_from("n1", &behind, Some(&source)).await?;
    wait::until_true("the moved agent to be kept waiting", async || Ok(behind.held_back.begun() == 1))
        .await?;
    ensure!(moved.responses() == 0);
    way.open.send_replace(true);
    wait::until_true("the second replica to catch up", async || Ok(moved.has(Cluster, "late.shop"))).await?;
    ensure!(!moved.ever_had(Cluster, "early.shop"), "it was taken back");
    ensure!(behind.held_back.given_up() == 0);
    behind.stop().await?;
    ahead.stop().await
}
