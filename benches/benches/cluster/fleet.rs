//! Many agents on one replica: what they cost while nothing changes, and how soon a change reaches all.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube::Client;
use serde_json::Value;
use slotmesh_bench::{Samples, effort, is_quick, row, section, show, verdict};
use tokio::time::sleep;

use crate::{
    change::{Watch, apply, quantile},
    load,
    process::{cpu, memory, show_bytes},
    simulated::Simulated,
    world::{AUDIENCE, World},
};

/// The pause between two changes.
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(150);

pub async fn run(world: &mut World, agents: usize) -> Result<()> {
    eprintln!("{agents} nodes …");
    section(&format!("{agents} simulated agents on one replica, {} Services", world.services()));
    let nodes: Vec<String> = (0..agents).map(|i| format!("sim-{i}")).collect();
    world.enrol_nodes(&nodes).await?;
    // A new one: nothing of what was before is in its memory.
    world.start_operator()?;
    world.operator_is_ready().await?;
    let before = memory_at_rest(world).await?;
    let (started, used) = (Instant::now(), cpu(world.operator()?)?);
    let fleet = Simulated::connect(world, &nodes)?;
    let synced = fleet.synced().await?;
    row(
        "all connect at once (TLS, TokenReview, all resources): the last is in sync after",
        &show(synced - started),
        "",
    );
    let each = (cpu(world.operator()?)? - used) / u32::try_from(agents)?;
    row("  processor time of the operator, of each", &show(each), "");
    reviews(world, &nodes).await?;
    let told = settled(world, agents).await?;
    row("the last MeshNode is written after", &show(told - started), "");
    let rss = memory(world.operator()?, "VmRSS")?;
    let each = rss.saturating_sub(before) / agents as u64;
    row(
        &format!("memory of the operator (RSS) of each idle agent; all of it: {}", show_bytes(rss)),
        &format!("{:.0} kB", each as f64 / 1e3),
        &verdict(each <= 150_000, "at most 150 kB"),
    );
    idle(world, agents).await?;
    changes(world, &fleet).await
}

/// Many agents that hold what many Services make: what all of it takes of the operator's memory.
pub async fn hold_all(world: &mut World, agents: usize) -> Result<()> {
    const MOST: u64 = 512 << 20;
    eprintln!("{agents} nodes with {} Services …", world.services());
    section(&format!("{agents} simulated agents on one replica, {} Services each", world.services()));
    let nodes: Vec<String> = (0..agents).map(|i| format!("wide-{i}")).collect();
    world.enrol_nodes(&nodes).await?;
    world.start_operator()?;
    world.operator_is_ready().await?;
    let before = memory_at_rest(world).await?;
    let (started, used) = (Instant::now(), cpu(world.operator()?)?);
    let fleet = Simulated::connect(world, &nodes)?;
    let synced = fleet.synced().await?;
    let least = 3 * world.services() * agents;
    ensure!(fleet.resources() >= least, "{} resources of {least} came", fleet.resources());
    let what = format!(
        "all connect at once, {} resources each: the last is in sync after",
        fleet.resources() / agents
    );
    row(&what, &show(synced - started), "");
    let each = (cpu(world.operator()?)? - used) / u32::try_from(agents)?;
    row("  processor time of the operator, of each", &show(each), "");
    // Until what the first rounds needed has gone.
    settled(world, agents).await?;
    let rss = memory(world.operator()?, "VmRSS")?;
    let each = rss.saturating_sub(before) / agents as u64;
    row(
        "memory of the operator (RSS) of each agent that is in sync",
        &format!("{:.0} kB", each as f64 / 1e3),
        &verdict(each <= 150_000, "at most 150 kB"),
    );
    row(
        &format!("  all of it; {} before they came", show_bytes(before)),
        &show_bytes(rss),
        &verdict(rss <= MOST, "at most 512 MiB"),
    );
    row("  its peak", &show_bytes(memory(world.operator()?, "VmHWM")?), "");
    Ok(())
}

/// What the API server takes to judge one token.
async fn reviews(world: &World, nodes: &[String]) -> Result<()> {
    let mut times = Vec::new();
    for node in nodes.iter().take(50) {
        let token = std::fs::read_to_string(world.token(node))?;
        let started = Instant::now();
        let answers = load::create(&world.client, [load::review_of(&token, AUDIENCE)]).await?;
        ensure!(answers[0]["status"]["authenticated"] == true, "the token of {node} isn't good");
        times.push(started.elapsed());
    }
    row("  the API server's own: one TokenReview, p50", &show(Samples::new(times).p50()), "");
    Ok(())
}

/// Memory of the operator (RSS, bytes) once it has come to rest: it has hardly used a processor for a moment.
async fn memory_at_rest(world: &World) -> Result<u64> {
    const MOMENT: Duration = Duration::from_millis(500);
    const HARDLY: Duration = Duration::from_millis(20);
    let (operator, started) = (world.operator()?, Instant::now());
    loop {
        let used = cpu(operator)?;
        sleep(MOMENT).await;
        if cpu(operator)? - used <= HARDLY {
            return memory(operator, "VmRSS");
        }
        ensure!(started.elapsed() < PATIENCE, "the operator isn't at rest after {PATIENCE:?}");
    }
}

/// Waits until nothing more is written of the nodes: when the last was.
async fn settled(world: &World, agents: usize) -> Result<Instant> {
    const QUIET: Duration = Duration::from_secs(8);
    let (mut written, mut last) = (0.0, Instant::now());
    let started = Instant::now();
    loop {
        let now = world.operator_metrics()?.get("slotmesh_operator_status_writes_total{target=\"node\"}");
        if now > written {
            (written, last) = (now, Instant::now());
        }
        if written >= agents as f64 && last.elapsed() > QUIET {
            return Ok(last);
        }
        ensure!(started.elapsed() < PATIENCE, "{written} MeshNodes of {agents} after {PATIENCE:?}");
        sleep(Duration::from_millis(500)).await;
    }
}

/// Nothing happens for a while.
async fn idle(world: &World, agents: usize) -> Result<()> {
    let span = Duration::from_secs(if is_quick() { 6 } else { 60 });
    eprintln!("idle for {span:?} …");
    let (operator, agent) = (world.operator()?, world.agent()?);
    let before = (cpu(operator)?, cpu(agent)?);
    sleep(span).await;
    for (what, used, most) in [
        (format!("operator with {agents} agents"), cpu(operator)? - before.0, 1.0),
        ("agent".to_owned(), cpu(agent)? - before.1, 0.1),
    ] {
        let share = used.as_secs_f64() / span.as_secs_f64() * 100.0;
        row(
            &format!("idle for {span:?}: processor time of the {what}"),
            &format!("{} ({share:.2} %)", show(used)),
            &verdict(share <= most, &format!("at most {most} % of one")),
        );
    }
    Ok(())
}

/// One endpoint after the other; each change has to reach all.
async fn changes(world: &World, fleet: &Simulated) -> Result<()> {
    let mut watch = Watch::open(&world.client).await?;
    let (mut reach, mut used) = (Vec::new(), Vec::new());
    for _ in 0..effort(20) {
        sleep(PAUSE).await;
        let (service, endpoints) = world.next_move();
        let (before, cpu_before) = (fleet.updates(), cpu(world.operator()?)?);
        apply(&world.client, load::slice(&format!("s{service}"), &endpoints)).await?;
        let event = watch.brings(endpoints[load::ENDPOINTS - 1]).await?;
        reach.push(fleet.updated(before).await?.saturating_duration_since(event));
        sleep(PAUSE / 2).await;
        used.push(cpu(world.operator()?)? - cpu_before);
    }
    let reach = Samples::new(reach);
    quantile(
        "one endpoint: from the watch event until all agents have it",
        &reach,
        0.5,
        Some(Duration::from_millis(250)),
    );
    quantile("one endpoint: from the watch event until all agents have it", &reach, 1.0, None);
    row("  processor time of the operator for it, p50", &show(Samples::new(used).p50()), "");
    programmed(world, fleet).await
}

/// One policy after the other, which each agent has to acknowledge: how long after the last one its status says so.
async fn programmed(world: &World, fleet: &Simulated) -> Result<()> {
    const SORTS: [&str; 4] = ["node", "replica", "object", "event"];
    let (mut told, changes) = (Vec::new(), effort(20).max(2));
    let writes = || {
        let metrics = world.operator_metrics()?;
        let of = |sort| metrics.get(&format!("slotmesh_operator_status_writes_total{{target=\"{sort}\"}}"));
        anyhow::Ok(SORTS.map(of))
    };
    let (began, before) = (Instant::now(), writes()?);
    for most in 1..=changes {
        let clusters = fleet.cluster_updates();
        let policy = load::policy("s0", most);
        let path = format!("{}/bench", policy.0);
        apply(&world.client, policy).await?;
        let last = fleet.clusters_updated(clusters).await?;
        told.push(says_so(&world.client, &path).await?.saturating_duration_since(last));
        sleep(PAUSE).await;
    }
    quantile(
        "one TrafficPolicy: from the last agent's having it until its status says Programmed",
        &Samples::new(told),
        0.99,
        Some(Duration::from_secs(2)),
    );
    let (after, span) = (writes()?, began.elapsed().as_secs_f64());
    for (sort, (after, before)) in SORTS.iter().zip(after.into_iter().zip(before)) {
        let rate = (after - before) / span;
        row(
            &format!("  writes a second meanwhile, {sort}"),
            &format!("{rate:.1}"),
            &verdict(rate <= 20.0, "at most 20"),
        );
    }
    Ok(())
}

/// Waits until the status of a TrafficPolicy says that its generation of now is in force on all nodes: when it did.
async fn says_so(client: &Client, path: &str) -> Result<Instant> {
    let started = Instant::now();
    loop {
        let policy: Value = client.request(http::Request::get(path).body(Vec::new())?).await?;
        let generation = &policy["metadata"]["generation"];
        let ancestors = policy["status"]["ancestors"].as_array();
        let conditions = ancestors.into_iter().flatten().flat_map(|of| of["conditions"].as_array());
        let mut conditions = conditions.flatten();
        let says = |c: &Value| {
            c["type"] == "Programmed" && c["status"] == "True" && c["observedGeneration"] == *generation
        };
        if conditions.any(says) {
            return Ok(Instant::now());
        }
        ensure!(started.elapsed() < PATIENCE, "not Programmed after {PATIENCE:?}: {policy}");
        sleep(Duration::from_millis(10)).await;
    }
}
