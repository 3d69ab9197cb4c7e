//! `slotmesh up`: the embedded mode.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use slotmesh_agent::{Agent, Options, Workload, admin, metrics::Metrics};
use slotmesh_operator::{Operator, watch::LocalNode};
use slotmesh_serve::Store;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

use crate::{
    embedded::Stream,
    flags::{LogFlag, SlotFlags, warn_if_public},
    listen::listen,
    reports,
};

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

    #[command(flatten)]
    slots: SlotFlags,

    /// Leave the data path in place on exit: connections are routed on without an agent
    #[arg(long, env = "SLOTMESH_KEEP")]
    keep: bool,

    #[command(flatten)]
    log: LogFlag,
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
        let Self { manifests, workloads, node_name, node_labels, pin_root, admin, slots, keep, log } = self;
        log.init()?;
        let slots = slots.config()?;
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
        warn_if_public(admin);
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
    let socket = listen(admin)
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
    let router = admin::router(agent.handle()).merge(reports::router(operator.status()));
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
