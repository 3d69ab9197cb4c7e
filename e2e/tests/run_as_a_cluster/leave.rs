//! The owner asks whether all is well, and takes slotmesh away.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::{ClientSpec, bpf::Footprint, client::LEAST};

use crate::world::{NODES, SYSTEM, World, agents, all_ready, enrolled, on_node, reached};

pub fn helm_test(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let said = cluster.helm(&["test", "slotmesh", "--namespace", SYSTEM])?;
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        ensure!(
            field("TEST SUITE:") == Some("slotmesh-check") && field("Phase:") == Some("Succeeded"),
            "{said}"
        );
        Ok(())
    })
}

/// An uninstall that was given up half-way leaves agents that have cleaned their nodes: a rollback lets them
/// route again.
pub fn undone(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let world = World::look(cluster).await?;
        world.lead_to(cluster, &world.v2).await?;
        // Helm doesn't wait as long as the nodes take; the hook goes on.
        let given_up = cluster.helm(&["uninstall", "slotmesh", "--namespace", SYSTEM, "--timeout", "1s"]);
        ensure!(given_up.is_err(), "the nodes were clean within a second");
        wait::until_true("all nodes to be clean", async || {
            let roots = NODES.iter().map(|node| pin_root(cluster, node));
            Ok(roots.collect::<Result<Vec<_>>>()?.iter().all(|root| !root.exists()))
        })
        .await?;
        let log = world.connect(cluster, &world.near, 1_000).await?;
        ensure!(reached(&log) == &world.v1 | &world.v2, "{:?}", log.by_backend());
        // (Helm upgrades no release that is being uninstalled.)
        let status = cluster.helm(&["status", "slotmesh", "--namespace", SYSTEM, "-o", "json"])?;
        let revision = serde_json::from_str::<serde_json::Value>(&status)?["version"].to_string();
        cluster.helm(&["rollback", "slotmesh", &revision, "--namespace", SYSTEM, "--wait"])?;
        all_ready(cluster).await?;
        enrolled(cluster).await?;
        world.lead_to(cluster, &world.v2).await
    })
}

pub fn uninstall(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let world = World::look(cluster).await?;
        world.lead_to(cluster, &world.v2).await?;
        let agents = agents(cluster).await?;
        let mut footprints = Vec::new();
        for node in NODES {
            let [process] = cluster.processes(on_node(&agents, node)?)?[..] else {
                anyhow::bail!("an agent is one process")
            };
            let footprint = Footprint::at(process, &pin_root(cluster, node)?);
            footprints.push(footprint.with_context(|| format!("the agent of node {node}"))?);
        }
        let load = ClientSpec::load(&[world.vip]).gap(1_000).limit(300);
        let running = world.start(cluster, &world.near, &load).await?;
        cluster.helm(&["uninstall", "slotmesh", "--namespace", SYSTEM, "--wait"])?;
        running.client.stop()?.expect_all(LEAST)?;
        for (node, footprint) in NODES.iter().zip(&footprints) {
            footprint.expect_gone().with_context(|| format!("node {node}"))?;
            ensure!(!pin_root(cluster, node)?.exists(), "the pin root of node {node} stays");
        }
        wait::until_true("what the chart made to be gone", async || {
            let kinds = "pods,jobs,daemonsets,deployments,services,secrets,configmaps,serviceaccounts,roles,rolebindings,\
                         networkpolicies,clusterroles,clusterrolebindings";
            let left = cluster.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=slotmesh", "-o", "name"])?;
            Ok(left.is_empty())
        })
        .await?;
        // As without slotmesh: to any pod of the Service.
        let log = world.connect(cluster, &world.near, 1_000).await?;
        ensure!(reached(&log) == &world.v1 | &world.v2, "{:?}", log.by_backend());
        Ok(())
    })
}

/// A node's pin root, as this process sees it.
fn pin_root(cluster: &Cluster, node: &str) -> Result<PathBuf> {
    Ok(PathBuf::from(format!("/proc/{}/root/sys/fs/bpf/slotmesh", cluster.node_pid(node)?)))
}
