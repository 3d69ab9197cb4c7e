//! Flags that several commands share.

use std::{io::IsTerminal as _, net::SocketAddr, num::NonZeroUsize};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use slotmesh_agent::memory;
use slotmesh_slots::{Config, Growth, MemoryBudget};
use tracing_subscriber::EnvFilter;

/// How slots are created.
#[derive(Debug, Args)]
pub struct SlotFlags {
    /// When outer records are created: all at start, ahead of demand, or when a flush needs them
    #[arg(long, env = "SLOTMESH_GROWTH", default_value = "background")]
    growth: GrowthArg,

    /// How many threads share the creation of outer records [default: the processors, at most 4]
    #[arg(long, env = "SLOTMESH_GROWTH_THREADS", value_name = "THREADS")]
    growth_threads: Option<NonZeroUsize>,

    /// Outer records (slabs of 64 KiB) to create before the agent is ready [default: 32, at most the cap]
    #[arg(long, env = "SLOTMESH_SLAB_INITIAL", value_name = "SLABS",
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_initial: Option<u32>,

    /// The most outer records to create; a flush that needs more is refused [default: what the memory
    /// budget holds]
    #[arg(long, env = "SLOTMESH_SLAB_CAP", value_name = "SLABS",
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_cap: Option<u32>,

    /// The most memory that outer records may take, such as 128Mi; one costs 68Ki [default: 136Mi]
    #[arg(long, env = "SLOTMESH_MEMORY_BUDGET", value_name = "BYTES")]
    memory_budget: Option<MemoryBudget>,

    /// Create more outer records in the background when fewer than this are wholly idle
    #[arg(long, env = "SLOTMESH_SLAB_LOW_WATERMARK", default_value_t = Config::default().low_watermark)]
    slab_low_watermark: u32,

    /// Give outer records back when more than this are wholly idle
    #[arg(long, env = "SLOTMESH_SLAB_HIGH_WATERMARK", default_value_t = Config::default().high_watermark)]
    slab_high_watermark: u32,

    /// How many outer records the background creates at a time
    #[arg(long, env = "SLOTMESH_SLAB_BATCH", default_value_t = Config::default().batch,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_batch: u32,
}

impl SlotFlags {
    /// The settings of the slots.
    ///
    /// # Errors
    /// Where they contradict each other.
    pub fn config(self) -> anyhow::Result<Config> {
        let Self {
            growth,
            growth_threads,
            slab_initial,
            slab_cap,
            memory_budget,
            slab_low_watermark,
            slab_high_watermark,
            slab_batch,
        } = self;
        let cap = cap(slab_cap, memory_budget)?;
        let slots = Config {
            growth: growth.into(),
            initial: slab_initial.unwrap_or(Config::default().initial.min(cap)),
            cap,
            low_watermark: slab_low_watermark,
            high_watermark: slab_high_watermark,
            batch: slab_batch,
            threads: growth_threads.unwrap_or_else(default_growth_threads),
        };
        if let Some(contradiction) = slots.contradiction() {
            bail!(
                "{contradiction} (--slab-initial, --slab-cap, --slab-low-watermark, --slab-high-watermark, --slab-batch)"
            );
        }
        if let Err(error) = memory::check(&slots) {
            // Who names a budget means it; who doesn't may never need all of the default.
            if memory_budget.is_some() {
                bail!(error);
            }
            tracing::warn!(%error, "the memory limit may be met before the cap");
        }
        Ok(slots)
    }
}

/// When outer records are created.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum GrowthArg {
    /// All up to the cap at start
    Eager,
    /// Some at start, more in the background ahead of demand
    Background,
    /// Some at start, more when a flush finds no slot
    OnDemand,
}

impl From<GrowthArg> for Growth {
    fn from(arg: GrowthArg) -> Self {
        match arg {
            GrowthArg::Eager => Self::Eager,
            GrowthArg::Background => Self::Background,
            GrowthArg::OnDemand => Self::OnDemand,
        }
    }
}

/// More threads than this don't make grace periods shorter.
const MOST_GROWTH_THREADS: NonZeroUsize = NonZeroUsize::new(4).expect("4 isn't 0");

fn default_growth_threads() -> NonZeroUsize {
    std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |n| n.min(MOST_GROWTH_THREADS))
}

/// The cap that follows from the two settings that bound memory.
fn cap(slab_cap: Option<u32>, budget: Option<MemoryBudget>) -> anyhow::Result<u32> {
    match (slab_cap, budget) {
        (Some(cap), Some(budget)) if cap > budget.cap() => bail!(
            "--slab-cap {cap} costs {}, more than --memory-budget {budget}, which holds {} slabs; give only one \
             of the two",
            MemoryBudget::of_slabs(cap),
            budget.cap()
        ),
        (Some(cap), _) => Ok(cap),
        (None, Some(budget)) => Ok(budget.cap()),
        (None, None) => Ok(Config::default().cap),
    }
}

/// What is logged.
#[derive(Debug, Args)]
pub struct LogFlag {
    /// What to log, as in RUST_LOG: error, warn, info, debug, or module=level
    #[arg(long, env = "SLOTMESH_LOG", default_value = "info")]
    log: String,
}

impl LogFlag {
    /// Logs to standard error from now on.
    ///
    /// # Errors
    /// Where the flag can't be understood.
    pub fn init(self) -> anyhow::Result<()> {
        let Self { log } = self;
        let filter = EnvFilter::try_new(&log).with_context(|| format!("--log {log}"))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
        Ok(())
    }
}

/// Says what an admin interface on this address means.
pub fn warn_if_public(admin: SocketAddr) {
    if !admin.ip().is_loopback() {
        tracing::warn!(
            %admin,
            "--admin isn't a loopback address: whoever can reach it can read metrics, slots and reports; \
             the admin interface asks nobody who they are"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_budget_and_cap_is_enough_and_they_may_not_contradict() {
        let budget = |text: &str| Some(text.parse().unwrap());
        assert_eq!(cap(None, None).unwrap(), Config::default().cap);
        assert_eq!(cap(None, budget("68Mi")).unwrap(), 1024);
        assert_eq!(cap(Some(1000), budget("68Mi")).unwrap(), 1000);
        let error = cap(Some(1025), budget("68Mi")).unwrap_err().to_string();
        assert!(error.contains("--slab-cap 1025") && error.contains("holds 1024 slabs"), "{error}");
    }
}
