//! Many Services: start, sync, memory, and what one change costs then.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use slotmesh_bench::{Samples, effort, row, section, show, verdict};
use slotmesh_slots::SLAB_COST;
use tokio::time::sleep;

use crate::{
    change::{Change, Changes},
    load,
    process::{cpu, memory, show_bytes},
    simulated::Simulated,
    world::World,
};

/// A node whose agent is simulated: it takes what it is sent as fast as it comes.
const TAKES: &str = "takes";
/// Agents besides, which hold all.
const AGENTS: usize = 20;
/// How often the operator is started.
const STARTS: usize = 3;

pub async fn run(small: &World, large: &mut World) -> Result<()> {
    section(&format!("{} Services with {} endpoints", large.services(), load::ENDPOINTS));
    lists(large).await?;
    large.enrol_nodes(&[TAKES.to_owned()]).await?;
    // The first start makes the certificates.
    large.start_operator()?;
    large.operator_is_ready().await?;
    start(large).await?;
    let ready = large.start_agent().await?;
    row(
        "agent: from its start until it has all and is ready",
        &show(ready),
        &verdict(ready <= Duration::from_secs(1), "at most 1 s"),
    );
    row("  its processor time until then", &show(cpu(large.agent()?)?), "");
    sizes(large)?;
    more_agents(large).await?;
    compare(small, large).await
}

/// What the API server alone takes.
async fn lists(world: &World) -> Result<()> {
    let services = load::list(&world.client, "/api/v1/services");
    let slices = load::list(&world.client, "/apis/discovery.k8s.io/v1/endpointslices");
    let started = Instant::now();
    let (services, slices) = tokio::try_join!(services, slices)?;
    let bytes = show_bytes((services.1 + slices.1) as u64);
    let what = format!("the API server's own: Services and EndpointSlices listed, {bytes}");
    row(&what, &show(started.elapsed()), "");
    Ok(())
}

/// From the start of the operator until an agent that waits for it has all.
async fn start(world: &mut World) -> Result<()> {
    let (mut times, mut used) = (Vec::new(), Vec::new());
    for _ in 0..effort(STARTS) {
        world.stop_operator()?;
        let agent = Simulated::connect(world, &[TAKES.to_owned()])?;
        let started = world.start_operator()?;
        let synced = agent.synced().await?;
        // A cluster, its endpoints and a listener.
        let least = 3 * world.services();
        ensure!(agent.resources() >= least, "{} resources of {least} came", agent.resources());
        times.push(synced - started);
        used.push(cpu(world.operator()?)?);
    }
    let took = Samples::new(times).p50();
    let target = verdict(took <= Duration::from_secs(3), "at most 3 s");
    row("operator: from its start until all is sent and acknowledged, p50", &show(took), &target);
    row("  its processor time until then, p50", &show(Samples::new(used).p50()), "");
    Ok(())
}

fn sizes(world: &World) -> Result<()> {
    let most = |bytes: u64, limit: u64| verdict(bytes <= limit * 1_000_000, &format!("at most {limit} MB"));
    let rss = memory(world.operator()?, "VmRSS")?;
    row("operator: memory (RSS)", &show_bytes(rss), &most(rss, 250));
    row("  its peak", &show_bytes(memory(world.operator()?, "VmHWM")?), "");
    let anonymous = memory(world.agent()?, "RssAnon")?;
    row("agent: anonymous memory (RssAnon)", &show_bytes(anonymous), &most(anonymous, 60));
    let slabs = world.agent_metrics()?.get("slotmesh_agent_outer_records") as u64;
    let bytes = slabs * SLAB_COST;
    row(&format!("agent: {slabs} slabs in the kernel"), &show_bytes(bytes), &most(bytes, 64));
    Ok(())
}

/// What an agent that holds all costs the operator.
async fn more_agents(world: &World) -> Result<()> {
    let nodes: Vec<String> = (0..AGENTS).map(|i| format!("more-{i}")).collect();
    world.enrol_nodes(&nodes).await?;
    sleep(Duration::from_secs(1)).await;
    let before = memory(world.operator()?, "VmRSS")?;
    let agents = Simulated::connect(world, &nodes)?;
    agents.synced().await?;
    let each = memory(world.operator()?, "VmRSS")?.saturating_sub(before) / AGENTS as u64;
    let what = format!(
        "operator: memory (RSS) of each of {AGENTS} agents more, {} resources",
        agents.resources() / AGENTS
    );
    row(&what, &show_bytes(each), "");
    Ok(())
}

/// The same change with few and with many Services, in turn.
async fn compare(small: &World, large: &World) -> Result<()> {
    section(&format!("One endpoint, {} Services against {}", large.services(), small.services()));
    // Until the MeshNodes tell that the simulated agents are gone.
    sleep(Duration::from_secs(8)).await;
    let (mut few, mut many) = (Side::new(small).await?, Side::new(large).await?);
    for i in 0..10 + effort(300) {
        let counts = i >= 10;
        few.change(counts).await?;
        many.change(counts).await?;
    }
    let (few, many) = (few.end()?, many.end()?);
    let of = |side: &Ended, what: fn(&Change) -> Duration| Samples::new(side.0.iter().map(what).collect());
    for (what, part) in [
        ("from the watch event to the flip", (|c| c.flip) as fn(&Change) -> Duration),
        ("the API server's own: apply until it is answered", |c| c.write),
    ] {
        let (few, many) = (of(&few, part), of(&many, part));
        row(&format!("{what}, {} Services, p50", small.services()), &show(few.p50()), "");
        row(&format!("{what}, {} Services, p50", large.services()), &show(many.p50()), "");
        let ratio = many.ratio(&few);
        let target =
            if what.starts_with("from") { verdict(ratio <= 1.3, "at most 1.3") } else { String::new() };
        row("  many / few", &format!("{ratio:.2}"), &target);
    }
    let each = |what: &str, few: Duration, many: Duration| {
        row(&format!("processor time of the {what} for a change, few"), &show(few), "");
        row(&format!("processor time of the {what} for a change, many"), &show(many), "");
    };
    each("operator", few.1, many.1);
    each("agent", few.2, many.2);
    Ok(())
}

/// One cluster of the two.
struct Side<'w> {
    world: &'w World,
    changes: Changes<'w>,
    seen: Vec<Change>,
    before: Option<(Duration, Duration)>,
}

/// The changes, and what each cost operator and agent.
struct Ended(Vec<Change>, Duration, Duration);

impl<'w> Side<'w> {
    async fn new(world: &'w World) -> Result<Self> {
        Ok(Self { world, changes: Changes::new(world).await?, seen: Vec::new(), before: None })
    }

    fn cpu(&self) -> Result<(Duration, Duration)> {
        Ok((cpu(self.world.operator()?)?, cpu(self.world.agent()?)?))
    }

    async fn change(&mut self, counts: bool) -> Result<()> {
        if counts && self.before.is_none() {
            self.before = Some(self.cpu()?);
        }
        let change = self.changes.next().await?;
        self.seen.extend(counts.then_some(change));
        Ok(())
    }

    fn end(self) -> Result<Ended> {
        let (operator, agent) = self.before.context("changes were made")?;
        let (now_operator, now_agent) = self.cpu()?;
        let count = u32::try_from(self.seen.len())?;
        Ok(Ended(self.seen, (now_operator - operator) / count, (now_agent - agent) / count))
    }
}
