//! slotmesh in a cluster: from the API server to the kernel's maps, with 10,000 Services, and with 1,000
//! agents. The tables are printed and written to `docs/benchmarks-cluster.md`.
//!
//! ```text
//!  etcd, API server <--write, watch-- this process --ask--> the kernel's maps
//!        |                                                        ^
//!  slotmesh operator ----------- delta ADS over TLS ----> slotmesh agent
//!                    +---------- the same --------------> simulated agents (in this process)
//! ```
//!
//! Root; all in a network namespace without a way out. Whatever is started ends with this process. With
//! `SLOTMESH_BENCH=quick` a tenth of the rounds, Services and agents is made and the page is left alone;
//! further words name the parts to run: change, scale, wide, fleet, beside.

mod beside;
mod change;
#[path = "../shared/clients.rs"]
mod clients;
mod fleet;
mod load;
mod process;
mod scale;
mod simulated;
mod world;

use anyhow::Context as _;
use slotmesh_bench::{effort, introduce, is_quick, write_page};

/// Services of the small cluster.
const FEW: usize = 100;

fn main() -> anyhow::Result<()> {
    let parts: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    // The benchmark starts itself again for whoever connects.
    if let [child, batch, rounds, target] = parts.as_slice()
        && child == "child-connect"
    {
        return clients::child(batch.parse()?, rounds.parse()?, target.parse()?);
    }
    introduce()?;
    slotmesh_e2e::net::enter()?;
    slotmesh_e2e::net::ip(&format!("addr add {} dev lo", load::LOCAL))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&parts))?;
    if parts.is_empty() && !is_quick() {
        write_page("docs/benchmarks-cluster.md", include_str!("page.md"))?;
    }
    Ok(())
}

async fn run(parts: &[String]) -> anyhow::Result<()> {
    let is_wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    if is_wanted("beside") {
        let mut world = world::World::start("middle", effort(1_000)).await?;
        beside::run(&mut world).await.with_context(|| world.logs())?;
    }
    if parts.iter().any(|part| part != "beside") || parts.is_empty() {
        clusters(is_wanted).await?;
    }
    Ok(())
}

/// The parts that need the small cluster.
async fn clusters(is_wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let mut small = world::World::start("small", FEW).await?;
    small.start_operator()?;
    small.start_agent().await?;
    if is_wanted("change") {
        change::run(&small).await.with_context(|| small.logs())?;
    }
    if is_wanted("scale") || is_wanted("wide") {
        let mut large = world::World::start("large", effort(10_000)).await?;
        if is_wanted("scale") {
            scale::run(&small, &mut large).await.with_context(|| large.logs())?;
        }
        if is_wanted("wide") {
            fleet::hold_all(&mut large, effort(1_000)).await.with_context(|| large.logs())?;
        }
    }
    if is_wanted("fleet") {
        fleet::run(&mut small, effort(1_000)).await.with_context(|| small.logs())?;
    }
    Ok(())
}
