//! From validated message to current records: a cluster with 10 endpoints, beside one update of the
//! outer map, which is what each record of the published design costs.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use slotmesh_agent::{
    RecordType,
    config::{Balance, Cluster, Endpoint, Endpoints, Limits, Locality, Model, Source},
    flatten::{EndpointsView, flush},
};
use slotmesh_bench::{Samples, row, section, show, time, verdict};
use slotmesh_kernel::{Lock, Outer, bpf_calls, ensure_bpffs};
use slotmesh_slots::{Backing, Config, Engine};

use crate::pin_root;

const FLUSHES_PER_ROUND: usize = 200;
const ROUNDS: usize = 60;

/// An engine over real maps.
struct Bench {
    engine: Engine,
    outer: Arc<Outer>,
    root: std::path::PathBuf,
    _lock: Lock,
}

impl Bench {
    fn new(name: &str) -> anyhow::Result<Self> {
        let config = Config { initial: 64, cap: 1024, low_watermark: 16, batch: 64, ..Config::default() };
        Self::with(name, config)
    }

    fn with(name: &str, config: Config) -> anyhow::Result<Self> {
        let root = pin_root(name);
        ensure_bpffs(&root)?;
        let lock = Lock::take(&root)?;
        let (outer, arena) = Outer::open(&root, std::num::NonZeroUsize::MIN)?;
        let outer = Arc::new(outer);
        let backing: Arc<dyn Backing> = outer.clone();
        let (engine, _) = Engine::open(&backing, arena, config, &[], Arc::new(|| {}))?;
        Ok(Self { engine, outer, root, _lock: lock })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.root) {
            eprintln!("{}: {error}", self.root.display());
        }
    }
}

fn models(n: u16) -> (Model<'static>, Model<'static>) {
    let cluster = Cluster {
        source: Source::Assignment("web"),
        connect_timeout_ms: 10_000,
        balance: Balance::Random,
        limits: Limits::default(),
        affinity: None,
        outliers: None,
        rate: None,
    };
    let endpoint = |i: u16| Endpoint {
        ip: [192, 168, 127, (i % 250) as u8].into(),
        port: (9090 + i).try_into().expect("not zero"),
        locality: 0,
        weight: std::num::NonZeroU32::MIN,
        degraded: false,
    };
    let localities = vec![Locality::default()];
    let v4 = (n..n + 10).map(endpoint).collect();
    let endpoints = Endpoints { v4, localities, ..Endpoints::default() };
    (Model::Cluster(cluster), Model::Endpoints(endpoints))
}

/// One cluster with 10 endpoints: both of its resources.
fn flush_cluster(
    engine: &mut Engine,
    name: &str,
    version: u64,
    models: &(Model<'_>, Model<'_>),
) -> anyhow::Result<()> {
    flush(engine.draft(), name, version, &models.0, EndpointsView::default())?;
    flush(engine.draft(), name, version, &models.1, EndpointsView::default())?;
    Ok(())
}

pub fn run() -> anyhow::Result<()> {
    section("flush: a cluster with 10 endpoints, from validated message to current");
    let mut bench = Bench::new("flush")?;
    let models: Vec<_> = (0..8).map(models).collect();
    for i in 0..1_000 {
        flush_cluster(&mut bench.engine, &format!("other-{i}"), 1, &models[0])?;
    }
    let (mut updates, mut creates, mut outer) = (Vec::new(), Vec::new(), Vec::new());
    let mut calls = BTreeSet::new();
    for round in 0..ROUNDS {
        for i in 0..FLUSHES_PER_ROUND {
            let before = bpf_calls();
            let model = &models[i % models.len()];
            let (result, took) = time(|| flush_cluster(&mut bench.engine, "web", i as u64 + 1, model));
            result?;
            calls.insert(bpf_calls() - before);
            updates.push(took);
        }
        for i in 0..FLUSHES_PER_ROUND / 10 {
            let name = format!("new-{round}-{i}");
            let (result, took) = time(|| flush_cluster(&mut bench.engine, &name, 1, &models[0]));
            result?;
            creates.push(took);
        }
        bench.engine.settle();
        let (result, took) = time(|| bench.outer.barrier());
        result?;
        outer.push(took);
    }
    let (updates, creates, outer) = (Samples::new(updates), Samples::new(creates), Samples::new(outer));
    let met = updates.p50().as_nanos() <= 3_000;
    row("update of an existing cluster, p50", &show(updates.p50()), &verdict(met, "3 us"));
    row("update of an existing cluster, p99", &show(updates.quantile(0.99)), "");
    row("create of a new cluster, p50", &show(creates.p50()), "");
    row("one update of the outer map, p50", &show(outer.p50()), "");
    row("outer map update / update of a cluster", &format!("{:.0} x", outer.ratio(&updates)), "");
    row(
        "bpf(2) calls of an update (own count)",
        &format!("{calls:?}"),
        &verdict(calls == BTreeSet::from([0]), "0"),
    );
    drop(bench);
    const COUNT: usize = 1_000;
    let (traced, own) = strace("child-flush", COUNT)?;
    ensure!(own == traced, "own count {own}, strace's {traced}");
    let figure = format!("{traced} in {COUNT} updates");
    row("bpf(2) calls of the writing thread (strace)", &figure, &verdict(traced == 0, "0"));
    let (traced, _) = strace("child-at-the-cap", COUNT)?;
    let figure = format!("{traced} in {COUNT} updates");
    row(
        "  at the cap, where each waits for what the ones before retired",
        &figure,
        &verdict(traced == 0, "0"),
    );
    let (traced, own) = strace("child-hash", COUNT)?;
    let figure = format!("{traced} and {own} in {COUNT} updates");
    row("the same of hash packed: strace and own count", &figure, &verdict(traced == own, "equal"));
    Ok(())
}

/// Flushes in a process of its own, under strace: bpf(2) calls of the thread that flushed, as strace saw
/// them and as the process counted them.
fn strace(child: &str, count: usize) -> anyhow::Result<(u64, u64)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([child, &count.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(child.stdout.take().context("piped")?).lines();
    let ready = lines.next().context("the child says that it is ready")??;
    ensure!(ready == "ready", "{ready}");
    let trace = tempfile::NamedTempFile::new()?;
    let mut strace = Command::new("strace")
        .args(["-e", "trace=bpf", "-p", &child.id().to_string(), "-o"])
        .arg(trace.path())
        .stderr(Stdio::piped())
        .spawn()
        .context("strace can't be started; run `make setup`")?;
    let mut attached = String::new();
    std::io::BufReader::new(strace.stderr.take().context("piped")?).read_line(&mut attached)?;
    ensure!(attached.contains("attached"), "strace: {attached}");
    child.stdin.take().context("piped")?.write_all(b"go\n")?;
    let done = lines.next().context("the child says that it is done")??;
    let own = done.strip_prefix("done ").with_context(|| format!("the child said {done:?}"))?.parse()?;
    ensure!(child.wait()?.success(), "the child failed");
    strace.wait()?;
    let text = std::fs::read_to_string(trace.path())?;
    // The one call that the child makes on purpose, last, shows that calls are seen at all.
    let calls = text.lines().filter(|line| line.starts_with("bpf(")).count() as u64;
    ensure!(calls >= 1, "strace saw no call, not even the child's last:\n{text}");
    Ok((calls - 1, own))
}

/// Tells that it is ready, waits, does the work, and tells how many bpf(2) calls it took; then makes one
/// more.
fn traced(
    mut work: impl FnMut() -> anyhow::Result<()>,
    last: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    println!("ready");
    let mut go = String::new();
    std::io::stdin().read_line(&mut go)?;
    let before = bpf_calls();
    work()?;
    let calls = bpf_calls() - before;
    last()?;
    println!("done {calls}");
    Ok(())
}

pub fn child(count: usize) -> anyhow::Result<()> {
    let mut bench = Bench::new("child")?;
    let models: Vec<_> = (0..8).map(models).collect();
    flush_cluster(&mut bench.engine, "web", 1, &models[0])?;
    bench.engine.settle();
    let outer = bench.outer.clone();
    traced(
        || {
            for i in 0..count {
                flush_cluster(&mut bench.engine, "web", i as u64 + 2, &models[i % models.len()])?;
            }
            Ok(())
        },
        || Ok(outer.barrier()?),
    )
}

/// The same where all slabs that there may be are in use: an update finds no idle slot until grace periods have passed.
pub fn child_at_the_cap(count: usize) -> anyhow::Result<()> {
    let config = Config { initial: 2, cap: 2, low_watermark: 0, ..Config::default() };
    let mut bench = Bench::with("child-at-the-cap", config)?;
    let models: Vec<_> = (0..8).map(models).collect();
    flush_cluster(&mut bench.engine, "web", 1, &models[0])?;
    let mut filling = 0;
    while flush_cluster(&mut bench.engine, &format!("other-{filling}"), 1, &models[0]).is_ok() {
        filling += 1;
    }
    ensure!(filling > 10, "{filling} clusters fit");
    // Room for one version more.
    flush_cluster_away(&mut bench.engine, "other-0");
    bench.engine.settle();
    let outer = bench.outer.clone();
    let mut waiting = 0;
    traced(
        || {
            for i in 0..count {
                flush_cluster(&mut bench.engine, "web", i as u64 + 2, &models[i % models.len()])?;
                waiting = waiting.max(bench.engine.stats().quarantined);
            }
            Ok(())
        },
        || Ok(outer.barrier()?),
    )?;
    ensure!(waiting > 0, "nothing waited for a grace period");
    Ok(())
}

/// Both resources of a cluster go.
fn flush_cluster_away(engine: &mut Engine, name: &str) {
    for ty in [RecordType::Cluster, RecordType::Endpoints] {
        if let Some(handle) = engine.find(ty.kind(), name) {
            engine.remove(handle);
        }
    }
}

/// The same of a side that makes system calls, so that the two counts can be held against each other.
pub fn child_hash(count: usize) -> anyhow::Result<()> {
    let mut side = crate::sides::hash("packed", 0)?;
    let sample = crate::messages::Sample::new(crate::messages::Kind::Cluster, 1);
    side.flush(&sample.name, &sample.message)?;
    let last = slotmesh_kernel::Map::<u32, u32>::create(
        &slotmesh_kernel::MapSpec {
            name: "bench_last",
            kind: slotmesh_kernel::MapKind::Array,
            max_entries: 1,
            flags: 0,
        },
        None,
    )?;
    traced(
        || (0..count).try_for_each(|_| side.flush(&sample.name, &sample.message)),
        || Ok(last.update(&0, &1)?),
    )
}
