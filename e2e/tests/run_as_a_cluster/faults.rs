//! What may happen to slotmesh while pods connect all the time. Every connect is logged, and none may fail, or
//! leave the route.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd,
};
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::{ClientSpec, Held, Log, client::LEAST, names::binary};
use tokio::time::{sleep, timeout};

use crate::world::{
    OPERATORS, SYSTEM, World, agents, all_ready, enrolled, on_node, operators, reached, volume_file,
};

/// How long nobody answers: longer than an attempt to reach the API server takes, and than a Lease lasts.
const API_SERVER_AWAY: Duration = Duration::from_secs(30);
const ETCD_AWAY: Duration = Duration::from_secs(3);
/// How soon a change is in force after the API server's first answer: some 2 s, on a machine that does nothing else.
/// Where each kind waits for itself, up to half a minute and once more, it takes longer.
const FOLLOWED: Duration = Duration::from_secs(25);
/// How many connections are held meanwhile.
const HELD: usize = 50;

/// Does something to the cluster while pods of two nodes connect, `LEAST` times at least, all by the same route; then
/// the mesh must still do what it is told.
pub async fn meanwhile(
    cluster: &mut Cluster,
    fault: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
) -> Result<()> {
    let (world, logs) = under_load(cluster, fault).await?;
    for log in logs {
        ensure!(reached(&log) == world.v2, "connects left the route: {:?}", log.by_backend());
    }
    all_ready(cluster).await?;
    world.lead_to(cluster, &world.v1).await
}

/// The same, for what may change the route.
pub async fn under_load(
    cluster: &mut Cluster,
    fault: impl AsyncFnOnce(&mut Cluster) -> Result<()>,
) -> Result<(World, Vec<Log>)> {
    all_ready(cluster).await?;
    enrolled(cluster).await?;
    let world = World::look(cluster).await?;
    world.lead_to(cluster, &world.v2).await?;
    let load = ClientSpec::load(&[world.vip]).least(LEAST as u64 / 2).gap(1_000).limit(900);
    let near = world.start(cluster, &world.near, &load).await?;
    let far = world.start(cluster, &world.far, &load).await?;
    fault(cluster).await?;
    let mut logs = Vec::new();
    for (name, running) in [("near", near), ("far", far)] {
        let log = running.client.stop()?;
        log.expect_all(LEAST / 2).with_context(|| format!("connects from {name}"))?;
        let other = log.connects.iter().find(|connect| connect.peer != Some(world.vip));
        ensure!(other.is_none(), "getpeername says {other:?}");
        logs.push(log);
    }
    Ok((world, logs))
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
        let (world, logs) = under_load(cluster, async |cluster| {
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
            .await?;
            // No kind waits for long once one request is answered.
            let world = World::look(cluster).await?;
            let followed = timeout(FOLLOWED, world.lead_to(cluster, &world.v1)).await;
            followed
                .with_context(|| format!("a change isn't in force {FOLLOWED:?} after the first answer"))?
        })
        .await?;
        let routes = &world.v1 | &world.v2;
        for log in logs {
            ensure!(reached(&log).is_subset(&routes), "connects left the route: {:?}", log.by_backend());
        }
        all_ready(cluster).await?;
        world.lead_to(cluster, &world.v2).await?;
        awake(cluster).await
    })
}

/// Waits until Kubernetes' own programs work again, which rest up to a minute after such an outage: controllers,
/// scheduler and the API server's own watches make a pod run. The scenarios that follow need them.
async fn awake(cluster: &Cluster) -> Result<()> {
    const NAME: &str = "awake";
    let labels = json!({"app": NAME});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "main", "image": "e2e.test/load:1"}]},
        }},
    });
    cluster.apply(&deployment.to_string())?;
    cluster.rolled_out("default", NAME).await?;
    cluster.kubectl(&["delete", "deployment", NAME, "-n", "default"])?;
    Ok(())
}

/// Years pass for the certificate authority, as its Secret tells the time: the next one is made and published, then it
/// signs. Agents that connect afterwards trust it.
pub fn rotated(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        meanwhile(cluster, async |cluster| {
            let before = bundle(cluster)?;
            older(cluster, "current", 1_100)?;
            wait::until_true("the next certificate to be published", async || {
                let now = bundle(cluster)?;
                Ok(now.starts_with(&before) && now.len() > before.len())
            })
            .await?;
            // It has been published for longer than nodes take to read it.
            older(cluster, "next", 2)?;
            wait::until_true("the next certificate to sign", async || {
                Ok(authority(cluster)?["next"].is_null())
            })
            .await?;
            let current = authority(cluster)?["current"]["certificate"].clone();
            let current = current.as_str().context("a certificate is text")?;
            ensure!(!before.contains(current), "the old certificate signs");
            let files = async || -> Result<bool> {
                let mut all = true;
                for agent in agents(cluster).await? {
                    all &= fs::read_to_string(volume_file(cluster, &agent, "ca/ca.crt")?)?.contains(current);
                }
                Ok(all)
            };
            wait::until_true("the nodes to have the certificate", files).await?;
            let old = operators(cluster).await?;
            for pod in &old {
                cluster.kubectl(&["delete", "pod", "-n", SYSTEM, &pod.name_any()])?;
            }
            all_ready(cluster).await
        })
        .await
    })
}

/// What is published for agents to trust.
fn bundle(cluster: &Cluster) -> Result<String> {
    cluster.kubectl(&["get", "configmap", "slotmesh-ca", "-n", SYSTEM, "-o", r"jsonpath={.data.ca\.crt}"])
}

/// The certificate authority as it is stored.
fn authority(cluster: &Cluster) -> Result<Value> {
    let path = r#"go-template={{index .data "authority.json" | base64decode}}"#;
    let stored = cluster.kubectl(&["get", "secret", "slotmesh-authority", "-n", SYSTEM, "-o", path])?;
    Ok(serde_json::from_str(&stored)?)
}

/// Lets one of its certificates be older.
fn older(cluster: &Cluster, which: &str, days: u64) -> Result<()> {
    let mut stored = authority(cluster)?;
    let since =
        stored[which]["since"].as_u64().with_context(|| format!("there is no {which} certificate"))?;
    stored[which]["since"] = (since - days * 24 * 3_600).into();
    let patch = json!({"stringData": {"authority.json": stored.to_string()}}).to_string();
    cluster.kubectl(&["patch", "secret", "slotmesh-authority", "-n", SYSTEM, "-p", &patch])?;
    Ok(())
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
            let world = World::look(cluster).await?;
            let mut exec = cluster.exec_command(&world.near, "main", &["/holder"]).await?;
            let mut held = Held::start_by(&mut exec.command)?;
            for _ in 0..HELD {
                held.open(world.vip)?;
            }
            let before = agents(cluster).await?;
            let changed = "podAnnotations.e2e\\.test/changed=yes";
            upgrade(cluster, &[&format!("agent.{changed}"), &format!("operator.{changed}")])?;
            all_ready(cluster).await?;
            for pod in agents(cluster).await? {
                ensure!(before.iter().all(|old| old.uid() != pod.uid()), "{} isn't new", pod.name_any());
            }
            held.expect_peers().context("connections that were made before the upgrade")
        })
        .await
    })
}

/// `helm upgrade` with these values besides those of before.
pub fn upgrade(cluster: &Cluster, values: &[&str]) -> Result<()> {
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
pub async fn kill_all(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
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
