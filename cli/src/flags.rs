//! Flags that several commands share.

use std::{io::IsTerminal as _, net::SocketAddr, num::NonZeroUsize};

use anyhow::bail;
use clap::{Args, ValueEnum};
use slotmesh_agent::{MapSizes, memory};
use slotmesh_slots::{Config, Growth, MemoryBudget};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// The headings of flags in `--help`.
pub const MEMORY: &str = "Memory";
pub const LOG: &str = "Log";
pub const ADMIN: &str = "Metrics and diagnosis";
pub const PINS: &str = "Data path";

/// Of how many clusters connections are shown in metrics, where nobody says: three series each, on each node.
pub const CLUSTER_METRICS: u32 = 50;

/// How slots are created.
#[derive(Debug, Args)]
pub struct SlotFlags {
    /// When slabs (64 KiB of records each) are created: all at start, ahead of demand, or when a change needs them
    #[arg(long, env = "SLOTMESH_GROWTH", default_value = "background", help_heading = MEMORY)]
    growth: GrowthArg,

    /// How many threads share the creation of slabs [default: the processors, at most 4]
    #[arg(long, env = "SLOTMESH_GROWTH_THREADS", value_name = "THREADS", help_heading = MEMORY)]
    growth_threads: Option<NonZeroUsize>,

    /// Slabs to create before the agent is ready [default: 32, at most the cap]
    #[arg(long, env = "SLOTMESH_SLAB_INITIAL", value_name = "SLABS", help_heading = MEMORY,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_initial: Option<u32>,

    /// The most slabs to create; a change that needs more is refused [default: what the memory budget holds]
    #[arg(long, env = "SLOTMESH_SLAB_CAP", value_name = "SLABS", help_heading = MEMORY,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_cap: Option<u32>,

    /// The most memory that slabs may take, such as 128Mi; one costs 68Ki [default: 136Mi]
    #[arg(long, env = "SLOTMESH_MEMORY_BUDGET", value_name = "BYTES", help_heading = MEMORY)]
    memory_budget: Option<MemoryBudget>,

    /// Create more slabs in the background when fewer than this are wholly idle
    #[arg(long, env = "SLOTMESH_SLAB_LOW_WATERMARK", value_name = "SLABS", help_heading = MEMORY,
        default_value_t = Config::default().low_watermark)]
    slab_low_watermark: u32,

    /// Give slabs back when more than this are wholly idle
    #[arg(long, env = "SLOTMESH_SLAB_HIGH_WATERMARK", value_name = "SLABS", help_heading = MEMORY,
        default_value_t = Config::default().high_watermark)]
    slab_high_watermark: u32,

    /// How many slabs the background creates at a time
    #[arg(long, env = "SLOTMESH_SLAB_BATCH", value_name = "SLABS", help_heading = MEMORY,
        default_value_t = Config::default().batch,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_batch: u32,

    /// How many open connections the node's workloads may have that are remembered; each costs 400 bytes. A
    /// further one is redirected, but getpeername shows its endpoint, it isn't counted, and where its cluster
    /// has a limit of connections it is refused
    #[arg(long, env = "SLOTMESH_MAX_SOCKETS", value_name = "SOCKETS", default_value_t = memory::SOCKETS,
        help_heading = MEMORY)]
    max_sockets: u32,
}

impl SlotFlags {
    /// The settings of the slots, and how many sockets may be recorded.
    ///
    /// # Errors
    /// Where they contradict each other.
    pub fn config(self) -> anyhow::Result<(Config, u32)> {
        let Self {
            growth,
            growth_threads,
            slab_initial,
            slab_cap,
            memory_budget,
            slab_low_watermark,
            slab_high_watermark,
            slab_batch,
            max_sockets,
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
        if let Err(error) = memory::check(&slots, max_sockets) {
            // Who names a budget means it; who doesn't may never need all of the default.
            if memory_budget.is_some() {
                bail!(error);
            }
            tracing::warn!(%error, "the memory limit may be met before the cap");
        }
        Ok((slots, max_sockets))
    }
}

/// How much the maps beside the slots hold.
#[derive(Debug, Args)]
pub struct MapFlags {
    /// How many virtual addresses can be routed; connections to further ones go to kube-proxy
    #[arg(long, env = "SLOTMESH_MAX_ADDRESSES", help_heading = MEMORY, value_name = "ADDRESSES",
        default_value_t = MapSizes::default().addresses, value_parser = elements())]
    max_addresses: u32,

    /// Of how many clusters connections can be counted at the same time
    #[arg(long, env = "SLOTMESH_MAX_COUNTED_CLUSTERS", help_heading = MEMORY, value_name = "CLUSTERS",
        default_value_t = MapSizes::default().clusters, value_parser = elements())]
    max_counted_clusters: u32,

    /// At how many endpoints connections can be counted at the same time
    #[arg(long, env = "SLOTMESH_MAX_COUNTED_ENDPOINTS", help_heading = MEMORY, value_name = "ENDPOINTS",
        default_value_t = MapSizes::default().endpoints, value_parser = elements())]
    max_counted_endpoints: u32,

    /// How many session affinities are remembered, by workload, Service port and address family; each costs 120 bytes
    /// from the start. Where there is no room, the one that was used longest ago goes
    #[arg(long, env = "SLOTMESH_MAX_AFFINITIES", help_heading = MEMORY, value_name = "AFFINITIES",
        default_value_t = MapSizes::default().affinities, value_parser = elements())]
    max_affinities: u32,
}

/// A map takes 16 bytes from the start for each element that there may be.
fn elements() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1_024..=1 << 20)
}

impl MapFlags {
    /// The sizes of the maps.
    pub fn sizes(self) -> MapSizes {
        let Self { max_addresses, max_counted_clusters, max_counted_endpoints, max_affinities } = self;
        MapSizes {
            addresses: max_addresses,
            clusters: max_counted_clusters,
            endpoints: max_counted_endpoints,
            affinities: max_affinities,
            ..MapSizes::default()
        }
    }
}

/// When slabs are created.
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

/// What is logged, and how.
#[derive(Debug, Args)]
pub struct LogFlag {
    /// What slotmesh logs: error, warn, info, debug, trace or off. For single modules, of slotmesh or of its
    /// libraries: MODULE=LEVEL, separated by commas
    #[arg(long, env = "SLOTMESH_LOG", default_value = "info", value_name = "LEVEL", help_heading = LOG,
        value_parser = directives)]
    log: String,

    /// How it is logged, on standard error
    #[arg(long, env = "SLOTMESH_LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = LOG)]
    log_format: LogFormat,
}

/// A form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// Lines for people
    Text,
    /// A JSON object a line
    Json,
}

/// What `--log` says, as a filter's directives. A level alone is that of slotmesh's own modules: its libraries say what
/// nobody has asked for, so they only warn.
fn directives(text: &str) -> Result<String, String> {
    let one = |part: &str| {
        let part = part.trim();
        if part.contains('=') {
            return Ok(part.to_owned());
        }
        // An empty text counts as a level, too.
        let level = part.parse::<LevelFilter>().ok().filter(|_| !part.is_empty());
        let level = level.ok_or_else(|| {
            format!(
                "{part:?} is no level; there are error, warn, info, debug, trace and off, and MODULE=LEVEL, such as \
                 slotmesh_ads=debug"
            )
        })?;
        Ok(format!("{},slotmesh={level}", level.min(LevelFilter::WARN)))
    };
    let directives = text.split(',').map(one).collect::<Result<Vec<_>, String>>()?.join(",");
    EnvFilter::try_new(&directives).map_err(|error| error.to_string())?;
    Ok(directives)
}

impl LogFlag {
    /// Logs to standard error from now on.
    ///
    /// # Errors
    /// Where the flag can't be understood.
    pub fn init(self) -> anyhow::Result<()> {
        let Self { log, log_format } = self;
        let logger = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::try_new(log)?)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr);
        match log_format {
            LogFormat::Text => logger.init(),
            LogFormat::Json => logger.json().flatten_event(true).init(),
        }
        Ok(())
    }
}

/// `ADDRESS:PORT`
///
/// # Errors
/// Says what is expected.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected ADDRESS:PORT, such as 127.0.0.1:15020 or [::1]:15020; host names aren't resolved".to_owned()
    })
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

    #[test]
    fn a_level_alone_is_that_of_slotmesh() {
        assert_eq!(directives("debug").unwrap(), "warn,slotmesh=debug");
        assert_eq!(directives("ERROR").unwrap(), "error,slotmesh=error");
        assert_eq!(directives("info,h2=trace").unwrap(), "warn,slotmesh=info,h2=trace");
        for bad in ["verbose", "", "slotmesh_ads", "slotmesh=infoo", "info,,"] {
            assert!(directives(bad).is_err(), "{bad:?}");
        }
        assert!(directives("verbose").unwrap_err().contains("error, warn, info, debug"));
    }
}
