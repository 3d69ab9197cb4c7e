//! Start, first flush, recovery and memory of the slot engine.

use std::{
    num::NonZeroUsize,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use slotmesh_ads::{Sink as _, Update};
use slotmesh_agent::{
    Agent, Datapath, MapSizes, Options, Pins as AgentPins,
    config::Model,
    flatten::{self, EndpointsView},
    metrics::Metrics,
};
use slotmesh_bench::{Samples, report, row, show, time, verdict};
use slotmesh_kernel::{Host, Map, Outer};
use slotmesh_records::{SLAB_BYTES, UNITS_PER_SLAB};
use slotmesh_slots::{Backing, Config, Engine, Growth, SLAB_COST};
use slotmesh_xds::ResourceType;

use crate::{
    messages::{Kind, Sample},
    pin_root,
    sides::Pins,
};

const TIMES: usize = 7;

pub fn run() -> anyhow::Result<()> {
    report::section("Start, recovery, memory");
    let period = grace_period()?;
    row("one grace period (an update of the outer map), p50", &show(period), "");
    for (slots, target) in [(100_000, None), (1_000_000, Some(Duration::from_millis(100)))] {
        ready(slots, target)?;
    }
    first_flush(period)?;
    recovery(100_000)?;
    memory(10_000)
}

fn grace_period() -> anyhow::Result<Duration> {
    let pins = Pins::new("period")?;
    let (outer, _arena) = Outer::open(&pins.dir, NonZeroUsize::MIN)?;
    let times: Result<Vec<_>, _> = (0..25)
        .map(|_| {
            let (result, took) = time(|| outer.barrier());
            result.map(|()| took)
        })
        .collect();
    Ok(Samples::new(times?).p50())
}

/// An engine over the pins in `dir`, with all that it takes to open it.
fn open(dir: &Path, config: Config) -> anyhow::Result<Engine> {
    let (outer, arena) = Outer::open(dir, config.threads)?;
    let backing: Arc<dyn Backing> = Arc::new(outer);
    Ok(Engine::open(&backing, arena, config, &[], Arc::new(|| {}))?.0)
}

fn two() -> NonZeroUsize {
    NonZeroUsize::MIN.saturating_add(1)
}

/// Time and memory until so many 64-byte slots are ready.
fn ready(slots: u32, target: Option<Duration>) -> anyhow::Result<()> {
    let slabs = slots.div_ceil(UNITS_PER_SLAB);
    let config =
        Config { growth: Growth::Eager, initial: slabs, cap: slabs, threads: two(), ..Config::default() };
    let mut times = Vec::new();
    let mut memory = 0;
    for _ in 0..TIMES {
        let pins = Pins::new("ready")?;
        let (engine, took) = time(|| open(&pins.dir, config));
        let engine = engine?;
        ensure!(engine.stats().slabs == slabs, "{} slabs of {slabs}", engine.stats().slabs);
        memory = u64::from(slabs) * charged(&pins.dir.join("slabs/0"))?;
        times.push(took);
    }
    let took = Samples::new(times).p50();
    let what = format!("{slots} slots of 64 bytes ready, from nothing ({slabs} slabs)");
    let target =
        target.map_or(String::new(), |target| verdict(took <= target, &format!("at most {}", show(target))));
    row(&what, &show(took), &target);
    row("  and their kernel memory", &format!("{:.1} MiB", memory as f64 / f64::from(1 << 20)), "");
    Ok(())
}

/// What the kernel charges for one slab.
fn charged(pin: &Path) -> anyhow::Result<u64> {
    let slab = Map::<u32, [u8; SLAB_BYTES]>::open(pin)?.context("a slab is pinned")?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", slab.as_fd().as_raw_fd()))?;
    let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("memlock")?;
    Ok(memlock.trim().parse()?)
}

/// A whole agent, from nothing to its first flush.
fn first_flush(period: Duration) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let sample = Sample::new(Kind::Cluster, 1);
    let (mut starts, mut loads, mut flushes, mut visible) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let pin_root = pin_root("first");
        let options = Options {
            pin_root: pin_root.clone(),
            slots: Config::default(),
            sockets: slotmesh_agent::memory::SOCKETS,
            maps: MapSizes::default(),
            workloads: Vec::new(),
            node: String::new(),
        };
        let (agent, start) = time(|| Agent::start(options, Arc::new(Metrics::new())));
        let agent = agent?;
        let update =
            Update { ty: ResourceType::Cluster, upserts: vec![sample.resource.clone()], removed: Vec::new() };
        let handlers = agent.handlers();
        let (refused, flush) = time(|| runtime.block_on(handlers.apply(update)));
        ensure!(refused.is_empty(), "{refused:?}");
        let pins = AgentPins::new(&pin_root);
        let (loaded, load) = time(|| Datapath::load(pins, Host::probe()?, slotmesh_agent::memory::SOCKETS));
        loaded?;
        agent.remove()?;
        starts.push(start);
        loads.push(load);
        flushes.push(flush);
        visible.push((start + flush).saturating_sub(load));
    }
    let p50 = |times: Vec<Duration>| Samples::new(times).p50();
    let (start, load, flush, visible) = (p50(starts), p50(loads), p50(flushes), p50(visible));
    row("agent from nothing until it takes resources (background growth)", &show(start), "");
    row("  of this, loading the programs", &show(load), "");
    row(
        "first flush after the programs are loaded",
        &show(flush),
        &verdict(flush <= 2 * period, "at most 2 grace periods"),
    );
    let periods = visible.as_secs_f64() / period.as_secs_f64();
    row("start and first flush without loading, in grace periods", &format!("{periods:.1}"), "");
    Ok(())
}

fn fill(engine: &mut Engine, clusters: u32) -> anyhow::Result<()> {
    for n in 0..clusters {
        let sample = Sample::new(Kind::Cluster, n);
        let model = Model::new(&sample.name, &sample.message)?;
        flatten::flush(engine.draft(), &sample.name, 1, &model, EndpointsView::default())?;
        if n % 64 == 0 {
            engine.poll();
        }
    }
    engine.settle();
    Ok(())
}

fn used(engine: &Engine) -> u64 {
    engine.stats().classes.iter().map(|(_, counts)| counts.used).sum()
}

/// A new engine takes over what an old one left.
fn recovery(slots: u64) -> anyhow::Result<()> {
    let pins = Pins::new("recovery")?;
    let config =
        Config { cap: 4_096, initial: 512, high_watermark: 1_024, threads: two(), ..Config::default() };
    let mut engine = open(&pins.dir, config)?;
    // A handle, a cluster and its endpoints.
    fill(&mut engine, (slots / 3 + 1) as u32)?;
    let (before, slabs) = (used(&engine), engine.stats().slabs);
    ensure!(before >= slots, "{before} slots in use");
    drop(engine);
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let (engine, took) = time(|| open(&pins.dir, config));
        let engine = engine?;
        ensure!(used(&engine) == before, "{} slots found of {before}", used(&engine));
        times.push(took);
    }
    let took = Samples::new(times).p50();
    let what = format!("recovery of {before} used slots in {slabs} slabs, one grace period of it");
    row(&what, &show(took), &verdict(took <= Duration::from_millis(50), "at most 50 ms"));
    Ok(())
}

/// Kernel memory of a stored ClusterFlush.
fn memory(clusters: u32) -> anyhow::Result<()> {
    let pins = Pins::new("memory")?;
    let mut engine = open(&pins.dir, Config { cap: 4_096, ..Config::default() })?;
    let started = Instant::now();
    fill(&mut engine, clusters)?;
    let took = started.elapsed();
    let stats = engine.stats();
    let bytes = f64::from(stats.slabs - stats.empty_slabs) * SLAB_COST as f64 / f64::from(clusters);
    let what =
        format!("kernel memory of a ClusterFlush, of {clusters} (handle, names, directory and slabs' rest)");
    row(&what, &format!("{bytes:.0} B"), &verdict(bytes <= 2_500.0, "at most 2500 B"));
    row(&format!("{clusters} ClusterFlushes one after the other, growth in the background"), &show(took), "");
    Ok(())
}
