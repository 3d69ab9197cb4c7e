//! `slotmesh up`: the embedded mode.

use std::{
    collections::BTreeSet, io::IsTerminal as _, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc,
};

use anyhow::{Context as _, bail};
use axum::{Json, Router, extract::State, routing::get};
use clap::Args;
use serde::Serialize;
use slotmesh_agent::{Agent, Options, Workload, admin, metrics::Metrics};
use slotmesh_compile::{Report, Severity};
use slotmesh_operator::{Operator, Status};
use slotmesh_serve::Store;
use slotmesh_slots::Config;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
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

    /// Where maps and links are pinned: a directory on a BPF file system (mounted if it isn't)
    #[arg(long, env = "SLOTMESH_PIN_ROOT", default_value = "/sys/fs/bpf/slotmesh", value_name = "DIR")]
    pin_root: PathBuf,

    /// Address of the admin interface: /metrics, /readyz, /slots, /reports
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = "127.0.0.1:15020", value_name = "ADDRESS")]
    admin: SocketAddr,

    /// Outer records (slabs of 64 KiB) to create before the agent is ready
    #[arg(long, env = "SLOTMESH_SLAB_INITIAL", default_value_t = Config::default().initial,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_initial: u32,

    /// The most outer records to create; a flush that needs more is refused
    #[arg(long, env = "SLOTMESH_SLAB_CAP", default_value_t = Config::default().cap,
        value_parser = clap::value_parser!(u32).range(1..=16_384))]
    slab_cap: u32,

    /// Create more outer records in the background when fewer than this are wholly idle
    #[arg(long, env = "SLOTMESH_SLAB_LOW_WATERMARK", default_value_t = Config::default().low_watermark)]
    slab_low_watermark: u32,

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
            pin_root,
            admin,
            slab_initial,
            slab_cap,
            slab_low_watermark,
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
        if slab_initial > slab_cap {
            bail!("--slab-initial {slab_initial} is more than --slab-cap {slab_cap}");
        }
        let workloads: Vec<Workload> = workloads.into_iter().map(|arg| arg.0).collect();
        let mut names = BTreeSet::new();
        for workload in &workloads {
            if !names.insert((&workload.namespace, &workload.name)) {
                bail!("--workload {}/{} is given twice", workload.namespace, workload.name);
            }
        }
        if !manifests.is_dir() {
            bail!("--manifests {}: no such directory", manifests.display());
        }
        if workloads.is_empty() {
            tracing::warn!("no --workload is given: nothing will be routed until one is");
        }
        let slots = Config {
            initial: slab_initial,
            cap: slab_cap,
            low_watermark: slab_low_watermark,
            batch: slab_batch,
            ..Config::default()
        };
        let growth_threads = std::thread::available_parallelism()?;
        let options = Options { pin_root, slots, growth_threads, workloads };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(serve(manifests, options, admin, keep))
    }
}

async fn serve(manifests: PathBuf, options: Options, admin: SocketAddr, keep: bool) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let socket = TcpListener::bind(admin)
        .await
        .with_context(|| format!("--admin {admin} can't be used; is another agent running?"))?;

    let metrics = Arc::new(Metrics::new());
    let agent = tokio::task::block_in_place(|| Agent::start(options, metrics))?;
    let stop = CancellationToken::new();
    let store = Store::new();
    let operator = {
        let store = store.clone();
        Operator::from_manifests(&manifests, move |changes| store.apply(changes))?
    };
    let stream = Stream::start(store, agent.handle(), "standalone", &stop);
    let router = admin::router(agent.handle()).merge(reports(operator.status()));
    let admin_server = tokio::spawn(admin::serve(socket, router, stop.clone()));

    let mut synced = agent.synced();
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        result = synced.wait_for(|synced| *synced) => {
            result.context("the agent has stopped")?;
            tracing::info!(%admin, manifests = %manifests.display(), "ready");
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
    }
    tracing::info!("stopping");
    stop.cancel();
    // The compile thread may be handing changes over: it ends before what it hands them to.
    tokio::task::block_in_place(|| drop(operator));
    stream.stopped().await?;
    admin_server.await??;
    tokio::task::block_in_place(|| {
        if keep {
            drop(agent);
            tracing::info!("the data path stays in place");
            Ok(())
        } else {
            agent.remove().context("the data path can't be removed")
        }
    })
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
