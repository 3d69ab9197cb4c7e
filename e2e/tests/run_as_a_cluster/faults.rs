//! What may happen to slotmesh while pods connect all the time. Every connect is logged, and none may fail, or
//! leave the route.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd,
};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::{ClientSpec, client::LEAST, names::binary};
use tokio::time::sleep;

use crate::world::{OPERATORS, SYSTEM, World, agents, all_ready, enrolled, on_node, operators, reached};

/// How long nobody answers: longer than an attempt to reach the API server takes.
const API_SERVER_AWAY: Duration = Duration::from_secs(10);
const ETCD_AWAY: Duration = Duration::from_secs(3);

/// Does something to the cluster while pods of two nodes connect, `LEAST` times at least; then the mesh
/// must still do what it is told.
async fn meanwhile(cluster: &mut Cluster, fault: impl AsyncFnOnce(&mut Cluster) -> Result<()>) -> Result<()> {
    all_ready(cluster).await?;
    enrolled(cluster).await?;
    let world = World::look(cluster).await?;
    world.lead_to(cluster, &world.v2).await?;
    let load = ClientSpec::load(&[world.vip]).least(LEAST as u64 / 2).gap(1_000).limit(300);
    let near = world.start(cluster, &world.near, &load).await?;
    let far = world.start(cluster, &world.far, &load).await?;
    fault(cluster).await?;
    for (name, running) in [("near", near), ("far", far)] {
        let log = running.client.stop()?;
        log.expect_all(LEAST / 2).with_context(|| format!("connects from {name}"))?;
        ensure!(reached(&log) == world.v2, "connects from {name} left the route: {:?}", log.by_backend());
        let other = log.connects.iter().find(|connect| connect.peer != Some(world.vip));
        ensure!(other.is_none(), "getpeername says {other:?}");
    }
    all_ready(cluster).await?;
    world.lead_to(cluster, &world.v1).await
}

pub fn agent_replaced(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            for node in ["a", "b"] {
                let before = agents(cluster).await?;
                let old = on_node(&before, node)?;
                cluster.kubectl(&["delete", "pod", "-n", SYSTEM, &old.name_any()])?;
                wait::until_true("another agent to be ready", async || {
                    let now = agents(cluster).await?;
                    Ok(on_node(&now, node).is_ok_and(|pod| pod.uid() != old.uid()))
                })
                .await?;
            }
            // And one that is killed has no time to say goodbye.
            let now = agents(cluster).await?;
            kill_all(cluster, std::slice::from_ref(on_node(&now, "a")?)).await
        })
        .await
    })
}

pub fn operator_killed(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let before = operators(cluster).await?;
            kill_all(cluster, &before[..1]).await?;
            kill_all(cluster, &before).await?;
            // Nobody serves for a while; whoever asks is told.
            check(cluster, 60)?;
            scale_operator(cluster, 0)?;
            cluster.kubectl(&[
                "wait",
                "pod",
                "-n",
                SYSTEM,
                "-l",
                OPERATORS,
                "--for=delete",
                "--timeout=60s",
            ])?;
            let said = check(cluster, 0).err().context("slotmesh check misses no operator")?.to_string();
            ensure!(said.contains("operator: no pods") && said.contains("on a: not in sync"), "{said}");
            scale_operator(cluster, 2)?;
            all_ready(cluster).await
        })
        .await
    })
}

fn scale_operator(cluster: &Cluster, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl(&["scale", "deployment/slotmesh-operator", "-n", SYSTEM, &replicas])?;
    Ok(())
}

/// What `helm test` runs, from here.
fn check(cluster: &Cluster, seconds: u8) -> Result<()> {
    let output = Command::new(binary("slotmesh", "slotmesh")?)
        .args(["check", "--timeout", &seconds.to_string()])
        .env("KUBECONFIG", cluster.control_plane().kubeconfig())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

pub fn api_server_away(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            cluster.control_plane_mut().stop_api_server()?;
            // Watches can't be resumed then.
            cluster.control_plane().compact()?;
            sleep(API_SERVER_AWAY).await;
            cluster.control_plane_mut().start_api_server().await?;
            // What it stands on goes, too.
            cluster.control_plane_mut().stop_etcd()?;
            sleep(ETCD_AWAY).await;
            cluster.control_plane_mut().start_etcd()?;
            wait::until_true("the API server to answer", async || {
                Ok(cluster.kubectl(&["get", "namespaces"]).is_ok())
            })
            .await
        })
        .await
    })
}

/// All that a node had in its kernel is gone then, and its pods have other addresses.
pub fn node_restarted(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let world = World::look(cluster).await?;
        world.lead_to(cluster, &world.v2).await?;
        cluster.stop_node("b")?;
        cluster.start_node("b")?;
        cluster.node_is_ready("b").await?;
        wait::until_true("the pods of the restarted node to be routed", async || {
            let Ok(world) = World::look(cluster).await else { return Ok(false) };
            let log = world.connect(cluster, &world.far, 100).await;
            Ok(log.is_ok_and(|log| reached(&log) == world.v2))
        })
        .await?;
        all_ready(cluster).await?;
        enrolled(cluster).await
    })
}

pub fn upgraded(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let before = agents(cluster).await?;
            let changed = "podAnnotations.e2e\\.test/changed=yes";
            upgrade(cluster, &[&format!("agent.{changed}"), &format!("operator.{changed}")])?;
            all_ready(cluster).await?;
            for pod in agents(cluster).await? {
                ensure!(before.iter().all(|old| old.uid() != pod.uid()), "{} isn't new", pod.name_any());
            }
            Ok(())
        })
        .await
    })
}

/// `helm upgrade` with these values besides those of before.
fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/slotmesh");
    let mut args =
        vec!["upgrade", "slotmesh", chart, "--namespace", SYSTEM, "--reset-then-reuse-values", "--wait"];
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    cluster.helm(&args)?;
    Ok(())
}

/// How often containers of slotmesh were started again.
async fn restarts(cluster: &Cluster) -> Result<i32> {
    let pods = cluster.pods(SYSTEM, "app.kubernetes.io/name=slotmesh").await?;
    let statuses = pods.iter().filter_map(|pod| pod.status.as_ref()?.container_statuses.as_ref());
    Ok(statuses.flatten().map(|status| status.restart_count).sum())
}

/// Kills the processes of pods, and waits until they run again and all are ready.
async fn kill_all(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let mut expected = restarts(cluster).await?;
    for pod in pods {
        for process in cluster.processes(pod)? {
            kill(unistd::Pid::from_raw(i32::try_from(process)?), Signal::SIGKILL)?;
        }
        expected += 1;
    }
    wait::until_true("what was killed to run again", async || Ok(restarts(cluster).await? >= expected))
        .await?;
    all_ready(cluster).await
}
