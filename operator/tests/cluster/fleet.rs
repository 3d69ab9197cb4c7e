//! Many agents on one replica: a change that all acknowledge costs a few writes, `Programmed` follows the last
//! acknowledgement at once and never comes before it, and what a replica told outlives it.
//!
//! `SLOTMESH_STATUS_NODES` says how many there are; `make stress` asks for 1,000, and that `Programmed` follows
//! within 2 s.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
use slotmesh_cluster::wait;
use slotmesh_operator::status::WriteTarget;

use crate::{
    replica::{Agent, Replica},
    status::{becomes, condition, mesh_replicas, policy, prepare, says},
    support::{apply, get, pod},
    writes::{apply_all, node, size},
};

/// Changes that are measured.
const CHANGES: u32 = 10;
const PROGRAMMED: [&str; 3] = ["Programmed", "True", "Programmed"];
const PENDING: [&str; 3] = ["Programmed", "False", "Pending"];

/// Waits until one MeshReplica tells of so many agents, and how many of them are alike.
async fn told(client: &Client, agents: usize, alike: usize) -> Result<()> {
    let mut last = Vec::new();
    let mut patience = 0;
    loop {
        let waited = wait::until_true("the MeshReplica to tell of all", async || {
            last = mesh_replicas(client).await?;
            let tells = |replica: &Value| {
                replica["status"]["agents"] == agents && replica["status"]["alike"] == alike
            };
            Ok(last.iter().any(tells))
        });
        match waited.await {
            Ok(()) => return Ok(()),
            // Twenty nodes a second are claimed.
            Err(_) if patience < 3 => patience += 1,
            Err(error) => return Err(error.context(format!("{} of {agents}: {last:#?}", alike))),
        }
    }
}

async fn connect(names: &[String], replica: &Replica) -> Result<Vec<Agent>> {
    let mut agents = Vec::new();
    for name in names {
        agents.push(Agent::connect(name, replica).await?);
    }
    Ok(agents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_for_many_agents_is_told_at_once_and_with_few_writes() -> Result<()> {
    let many = size("SLOTMESH_STATUS_NODES", 60)?.max(10);
    let (cluster, client) = prepare().await?;
    let names: Vec<String> = (1..=many).map(|n| format!("n{n}")).collect();
    // `prepare` has made the first two, each with a pod.
    apply_all(&client, names.iter().skip(2).map(|name| node(name)).collect()).await?;
    let ip = |i: usize| format!("10.2.{}.{}", i / 250, i % 250 + 1);
    let pods = names.iter().skip(2).enumerate();
    let pods = pods.map(|(i, name)| pod(&format!("on-{name}"), "other", name, &ip(i)));
    apply_all(&client, pods.collect()).await?;
    let a = Replica::start(&cluster, "operator-a").await?;
    let mut agents = connect(&names, &a).await?;
    let (web, api) = (policy("web", 1), {
        let mut api = policy("api", 1);
        api["spec"]["targetRefs"][0]["name"] = "api".into();
        api
    });
    apply(&client, web.clone()).await?;
    apply(&client, api.clone()).await?;
    told(&client, many, many).await?;
    becomes(&client, &web, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
    becomes(&client, &api, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;

    // What all acknowledge is told once, not a thousand times.
    let counted = [WriteTarget::Node, WriteTarget::Replica, WriteTarget::Object];
    let writes = || counted.map(|target| a.counters.writes(target));
    let (before, begun, mut late) = (writes(), Instant::now(), Vec::new());
    for change in 0..CHANGES {
        apply(&client, policy("web", 10 + change)).await?;
        becomes(&client, &web, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
        let now = Instant::now();
        let last = agents.iter().filter_map(Agent::answered).max().context("nobody has answered")?;
        late.push(now.saturating_duration_since(last));
    }
    let written: Vec<u64> = writes().iter().zip(before).map(|(now, before)| now - before).collect();
    late.sort_unstable();
    println!("{many} agents: Programmed after {late:?}; nodes, replicas, objects written {written:?} times");
    ensure!(written[0] == 0, "{} MeshNodes were written", written[0]);
    ensure!(written[1] <= 3 * u64::from(CHANGES), "the MeshReplica was written {} times", written[1]);
    ensure!(written[2] <= 3 * u64::from(CHANGES), "objects were written {} times", written[2]);
    let (all, seconds) = (written.iter().sum::<u64>(), begun.elapsed().as_secs_f64());
    ensure!(all as f64 <= 50.0 + 20.0 * seconds, "{all} writes in {seconds:.1} s");
    if many >= 1_000 {
        let worst = late.last().copied().unwrap_or_default();
        ensure!(worst <= Duration::from_secs(2), "Programmed came {worst:?} after the last acknowledgement");
    }

    // It isn't said before it is true: one agent keeps silent, all others are told to have it.
    let (silent, refuses) = (&agents[3], &agents[4]);
    silent.answer(false);
    apply(&client, policy("web", 50)).await?;
    told(&client, many, many - 1).await?;
    says(&client, &web, PENDING, "nodes are about to acknowledge it").await?;
    silent.answer(true);
    becomes(&client, &web, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
    // One that refuses is named, and keeps nothing else from being programmed.
    refuses.refuse(Some("web"));
    apply(&client, policy("web", 60)).await?;
    says(&client, &web, ["Programmed", "False", "Refused"], "not acknowledged by n5 (refuses cluster/")
        .await?;
    becomes(&client, &api, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
    refuses.refuse(None);
    apply(&client, policy("web", 61)).await?;
    becomes(&client, &web, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
    told(&client, many, many).await?;

    // The replica is killed. All agents but the last go to another one, which begins to lead.
    let version = |object: Option<Value>| object.map(|object| object["metadata"]["resourceVersion"].clone());
    let held = version(get(&client, &api).await?);
    a.kill();
    agents.clear();
    let b = Replica::start(&cluster, "operator-b").await?;
    let (last, others) = names.split_last().context("no nodes")?;
    let _others = connect(others, &b).await?;
    told(&client, many - 1, many - 1).await?;
    wait::until_true("b to lead", async || Ok(b.counters.is_leader())).await?;
    // The last node still has what it had acknowledged, and lacks what comes.
    apply(&client, policy("web", 70)).await?;
    says(&client, &web, PENDING, "").await?;
    told(&client, many - 1, many - 1).await?;
    let now = get(&client, &web).await?.context("no policy")?;
    ensure!(condition(&now, "Programmed").is_some_and(|c| c["status"] == "False"), "{now:#}");
    ensure!(version(get(&client, &api).await?) == held, "what nobody has touched was written");
    ensure!(mesh_replicas(&client).await?.len() == 2, "what the first told of {last} was deleted");
    let _last = Agent::connect(last, &b).await?;
    becomes(&client, &web, PROGRAMMED[0], PROGRAMMED[1], PROGRAMMED[2]).await?;
    wait::until_true("what the first told to go", async || Ok(mesh_replicas(&client).await?.len() == 1))
        .await?;
    b.stop().await
}
