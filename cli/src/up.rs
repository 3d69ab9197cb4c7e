//! `slotmesh up`: the embedded mode.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use axum::{Json, Router, extract::State, routing::get};
use clap::{Args, ValueEnum};
use serde::Serialize;
use slotmesh_agent::{Agent, Options, Workload, admin, memory, metrics::Metrics};
use slotmesh_compile::{Report, Severity};
use slotmesh_operator::{Operator, Status, watch::LocalNode};
use slotmesh_serve::Store;
use slotmesh_slots::{Config, Growth, MemoryBudget};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::embedded::Stream;

/// The flags of `slotmesh up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Directory of manifests (YAML or JSON, with subdirectories); changes are picked up
    #[arg(long, env = "SLOTMESH_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,

    /// A workload whose connections are routed, and its cgroup v2 directory; may be repeated
    #[arg(
        long = "workload",
        env = "SLOTMESH_WORKLOADS",
        value_delimiter = ',',
        value_name = "NAMESPACE/NAME=CGROUP"
    )]
    workloads: Vec<WorkloadArg>,

    /// The name of this node: SlotProfiles that name it, or have a label of it, are for it
    #[arg(long, env = "SLOTMESH_NODE_NAME", default_value = "standalone", value_name = "NAME")]
    node_name: String,

    /// The labels of this node, by which SlotProfiles select it
    #[arg(long, env = "SLOTMESH_NODE_LABELS", value_delimiter = ',', value_name = "KEY=VALUE")]
    node_labels: Vec<Label>,

    /// Where maps and links are pinned: a directory of its own on a BPF file system. Where there is none,
    /// one is mounted on the directory above, if that is /sys/fs/bpf, empty or missing
    #[arg(long, env = "SLOTMESH_PIN_ROOT", default_value = "/sys/fs/bpf/slotmesh", value_name = "DIR")]
    pin_root: PathBuf,

    /// Address of the admin interface: /metrics, /readyz, /slots, /reports. It asks nobody who they are
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = "127.0.0.1:15020", value_name = "ADDRESS")]
    admin: SocketAddr,

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

    /// Leave the data path in place on exit: connections are routed on without an agent
    #[arg(long, env = "SLOTMESH_KEEP")]
    keep: bool,

    /// What to log, as in RUST_LOG: error, warn, info, debug, or module=level
    #[arg(long, env = "SLOTMESH_LOG", default_value = "info")]
    log: String,
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

/// `KEY=VALUE`
#[derive(Clone, Debug)]
struct Label(String, String);

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self(key.to_owned(), value.to_owned())),
            _ => Err("expected KEY=VALUE, such as topology.kubernetes.io/zone=a".to_owned()),
        }
    }
}

/// `NAMESPACE/NAME=CGROUP`
#[derive(Clone, Debug)]
struct WorkloadArg(Workload);

impl FromStr for WorkloadArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(id, cgroup)| Some((id.split_once('/')?, cgroup)));
        match parts {
            Some(((namespace, name), cgroup))
                if !namespace.is_empty() && !name.is_empty() && !cgroup.is_empty() =>
            {
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                Ok(Self(Workload { namespace, name, cgroup: cgroup.into() }))
            }
            _ => {
                Err("expected NAMESPACE/NAME=CGROUP, such as shop/client=/sys/fs/cgroup/shop-client"
                    .to_owned())
            }
        }
    }
}

impl Up {
    /// Runs until SIGINT or SIGTERM.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn run(self) -> anyhow::Result<()> {
        let Self {
            manifests,
            workloads,
            node_name,
            node_labels,
            pin_root,
            admin,
            growth,
            growth_threads,
            slab_initial,
            slab_cap,
            memory_budget,
            slab_low_watermark,
            slab_high_watermark,
            slab_batch,
            keep,
            log,
        } = self;
        let filter = EnvFilter::try_new(&log).with_context(|| format!("--log {log}"))?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .init();
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
        let workloads: Vec<Workload> = workloads.into_iter().map(|arg| arg.0).collect();
        let mut names = BTreeSet::new();
        for workload in &workloads {
            if !names.insert((&workload.namespace, &workload.name)) {
                bail!("--workload {}/{} is given twice", workload.namespace, workload.name);
            }
        }
        if node_name.is_empty() {
            bail!("--node-name is empty; leave it out, or give the node a name");
        }
        let labels = node_labels.into_iter().map(|Label(key, value)| (key, value)).collect();
        let node = LocalNode { name: node_name, labels };
        if !manifests.is_dir() {
            bail!(
                "--manifests {}: no such directory; create it (mkdir -p {0}), or name the one with your \
                 YAML or JSON files",
                manifests.display()
            );
        }
        if workloads.is_empty() {
            tracing::warn!("no --workload is given: nothing will be routed until one is");
        }
        if !admin.ip().is_loopback() {
            tracing::warn!(
                %admin,
                "--admin isn't a loopback address: whoever can reach it can read metrics, slots and reports; \
                 the admin interface asks nobody who they are"
            );
        }
        let options = Options { pin_root, slots, workloads };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(serve(manifests, node, options, admin, keep))
    }
}

async fn serve(
    manifests: PathBuf,
    node: LocalNode,
    options: Options,
    admin: SocketAddr,
    keep: bool,
) -> anyhow::Result<()> {
    let interrupt = signal(SignalKind::interrupt())?;
    let terminate = signal(SignalKind::terminate())?;
    let socket = TcpListener::bind(admin)
        .await
        .with_context(|| format!("--admin {admin} can't be used; is another agent running?"))?;

    let metrics = Arc::new(Metrics::new());
    let agent = tokio::task::block_in_place(|| Agent::start(options, metrics))?;
    let outcome = run(&manifests, &node, &agent, socket, [interrupt, terminate]).await;
    tokio::task::block_in_place(|| match outcome {
        // As after a kill: what is in force stays so until the next start.
        Err(error) if agent.ended().is_cancelled() => {
            Err(error.context("connections are routed on by what was in force; start slotmesh again"))
        }
        // What an earlier agent left was in force before this start, and is no part of its failure.
        Err(error) if keep || agent.took_over() => {
            drop(agent);
            Err(error.context("the data path stays in place"))
        }
        Err(error) => {
            if let Err(stays) = agent.remove() {
                tracing::error!(error = %stays, "the data path can't be removed");
            }
            Err(error)
        }
        Ok(()) if keep => {
            drop(agent);
            tracing::info!("the data path stays in place");
            Ok(())
        }
        Ok(()) => agent.remove().context("the data path can't be removed"),
    })
}

/// Runs until a signal comes, or the agent ends.
async fn run(
    manifests: &Path,
    node: &LocalNode,
    agent: &Agent,
    socket: TcpListener,
    signals: [Signal; 2],
) -> anyhow::Result<()> {
    let [mut interrupt, mut terminate] = signals;
    let admin = socket.local_addr()?;
    let stop = CancellationToken::new();
    let store = Store::new();
    let operator = {
        let store = store.clone();
        Operator::from_manifests_on(Some(node), manifests, move |changes| store.apply(changes))?
    };
    let stream = Stream::start(store, agent.handle(), &node.name, &stop);
    let router = admin::router(agent.handle()).merge(reports(operator.status()));
    let admin_server = tokio::spawn(admin::serve(socket, router, stop.clone()));

    let ready = async {
        // An agent that ends before is noticed as such.
        if agent.synced().wait_for(|synced| *synced).await.is_ok() {
            tracing::info!(%admin, manifests = %manifests.display(), "ready");
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = agent.ended().cancelled() => Err(anyhow!("the thread that owns the maps has ended; what it said stands above")),
        () = ready => Ok(()),
    };
    tracing::info!("stopping");
    stop.cancel();
    // The compile thread may be handing changes over: it ends before what it hands them to.
    tokio::task::block_in_place(|| drop(operator));
    let (stream, admin_server) = (stream.stopped().await, admin_server.await);
    outcome?;
    stream?;
    Ok(admin_server??)
}

/// A report as `/reports` shows it.
#[derive(Debug, Serialize)]
struct ReportView {
    object: String,
    field: Option<String>,
    file: Option<String>,
    severity: &'static str,
    message: String,
}

impl From<&Report> for ReportView {
    fn from(report: &Report) -> Self {
        Self {
            object: report.object.to_string(),
            field: report.field.clone(),
            file: report.object.source.as_ref().map(ToString::to_string),
            severity: match report.severity {
                Severity::Refused => "refused",
                Severity::NotSupported => "not supported",
                Severity::Note => "note",
            },
            message: report.message.clone(),
        }
    }
}

fn reports(status: watch::Receiver<Status>) -> Router {
    async fn show(State(status): State<watch::Receiver<Status>>) -> Json<Vec<ReportView>> {
        let reports = status.borrow().reports.clone();
        Json(reports.iter().map(ReportView::from).collect())
    }
    Router::new().route("/reports", get(show)).with_state(status)
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
    fn workloads_are_named_with_their_cgroup() {
        let arg: WorkloadArg = "shop/web-0=/sys/fs/cgroup/a=b".parse().unwrap();
        assert_eq!(
            arg.0,
            Workload { namespace: "shop".into(), name: "web-0".into(), cgroup: "/sys/fs/cgroup/a=b".into() }
        );
        for bad in ["", "shop=/x", "shop/web", "/web=/x", "shop/=/x", "shop/web="] {
            assert!(bad.parse::<WorkloadArg>().is_err(), "{bad:?}");
        }
    }
}
