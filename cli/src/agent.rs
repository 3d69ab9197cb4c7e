//! `slotmesh agent`: the agent of a cluster's node.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use clap::Args;
use slotmesh_ads::{Client, Config, Connector, Subscription, Tcp, Tls};
use slotmesh_agent::{
    Agent, Enrolment, Options, admin, cleanup,
    metrics::{Metrics, NodeMetrics},
    report,
};
use slotmesh_xds::ResourceType;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use crate::{
    flags::{LogFlag, SlotFlags, warn_if_public},
    listen::listen,
};

/// The operator is told of the agent's slots at most this often, and only when they changed.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// The flags of `slotmesh agent`.
#[derive(Debug, Args)]
pub struct AgentCommand {
    /// The operator's address, such as https://slotmesh-operator.slotmesh-system.svc:15010
    #[arg(long, env = "SLOTMESH_OPERATOR", value_name = "URL", required_unless_present_any = ["cleanup", "drain"])]
    operator: Option<String>,

    /// File with the certificates of which one has signed the operator's; read again for each connection
    #[arg(
        long,
        env = "SLOTMESH_OPERATOR_CA",
        default_value = "/var/run/slotmesh/ca/ca.crt",
        value_name = "FILE"
    )]
    operator_ca: PathBuf,

    /// File with the service account token for the operator; read again for each connection
    #[arg(
        long,
        env = "SLOTMESH_OPERATOR_TOKEN",
        default_value = "/var/run/slotmesh/token/token",
        value_name = "FILE"
    )]
    operator_token: PathBuf,

    /// Expect the operator's certificate to be for this name, whatever its address
    #[arg(long, env = "SLOTMESH_OPERATOR_NAME", value_name = "HOST")]
    operator_name: Option<String>,

    /// The name of this node, as Kubernetes knows it
    #[arg(long, env = "SLOTMESH_NODE", value_name = "NODE", required_unless_present_any = ["cleanup", "drain"])]
    node: Option<String>,

    /// Where the host's cgroup v2 hierarchy is mounted [default: as /proc/self/mountinfo says]
    #[arg(long, env = "SLOTMESH_CGROUP_ROOT", value_name = "DIR")]
    cgroup_root: Option<PathBuf>,

    /// Where maps and links are pinned: a directory of its own on a BPF file system. Where there is none,
    /// one is mounted on the directory above, if that is /sys/fs/bpf, empty or missing
    #[arg(long, env = "SLOTMESH_PIN_ROOT", default_value = "/sys/fs/bpf/slotmesh", value_name = "DIR")]
    pin_root: PathBuf,

    /// Address of the admin interface: /metrics, /readyz, /livez, /slots. It asks nobody who they are
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = "127.0.0.1:15020", value_name = "ADDRESS")]
    admin: SocketAddr,

    #[command(flatten)]
    slots: SlotFlags,

    /// Remove everything that an agent left on this node, and end. Refused while an agent runs
    #[arg(long, env = "SLOTMESH_CLEANUP")]
    cleanup: bool,

    /// Remove everything that an agent left on this node, then stay, ready: what `slotmesh drain` makes of
    /// the agents before an uninstall
    #[arg(long, env = "SLOTMESH_DRAIN")]
    drain: bool,

    #[command(flatten)]
    log: LogFlag,
}

impl AgentCommand {
    /// Runs until SIGINT or SIGTERM. The data path stays in place then, unless nothing is enrolled.
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn run(self) -> anyhow::Result<()> {
        let Self {
            operator,
            operator_ca,
            operator_token,
            operator_name,
            node,
            cgroup_root,
            pin_root,
            admin,
            slots,
            cleanup: clean,
            drain,
            log,
        } = self;
        log.init()?;
        if clean || drain {
            cleanup(&pin_root)?;
            tracing::info!(pin_root = %pin_root.display(), "nothing of slotmesh is left on this node");
            return if drain { stay(admin) } else { Ok(()) };
        }
        let operator = operator.context("--operator (SLOTMESH_OPERATOR) is missing")?;
        let node = node.context("--node (SLOTMESH_NODE) is missing")?;
        let slots = slots.config()?;
        warn_if_public(admin);
        let options = Options { pin_root, slots, workloads: Vec::new() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let running = Running { options, cgroup_root, admin, node };
        if operator.starts_with("http://") {
            tracing::warn!(
                "the operator is reached without TLS: whoever is on the way can route connections"
            );
            return runtime.block_on(running.run(Tcp::new(&operator)?));
        }
        let mut tls = Tls::new(&operator, operator_ca)?.with_token(operator_token);
        if let Some(name) = operator_name {
            tls = tls.with_server_name(name);
        }
        runtime.block_on(running.run(tls))
    }
}

/// Tells whoever asks that this node is clean, until it is told to end.
fn stay(admin: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let socket = listen(admin).await.with_context(|| format!("--admin {admin} can't be used"))?;
        let stop = CancellationToken::new();
        let server = tokio::spawn(admin::serve(socket, admin::drained_router(), stop.clone()));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
        Ok(server.await??)
    })
}

struct Running {
    options: Options,
    cgroup_root: Option<PathBuf>,
    admin: SocketAddr,
    node: String,
}

impl Running {
    async fn run(self, connector: impl Connector) -> anyhow::Result<()> {
        let Self { options, cgroup_root, admin, node } = self;
        let signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        let socket = listen(admin)
            .await
            .with_context(|| format!("--admin {admin} can't be used; is another agent running?"))?;
        let metrics = Arc::new(Metrics::new());
        let agent = tokio::task::block_in_place(|| Agent::start_enrolling(options, metrics))?;
        let root = cgroup_root.unwrap_or_else(|| agent.datapath().host().cgroup2.clone());
        let enrolment = Enrolment::new(agent.handle(), agent.datapath().clone(), root)?;
        let stop = CancellationToken::new();
        let (client, handle) = Client::new(Config::new(node.as_str()), connector, enrolment.clone());
        let (reports, told) = watch::channel(None);
        let client = client.reporting(told);
        // Ends with the client or the agent, whichever is first.
        let reporter = tokio::spawn(report::follow(agent.handle(), reports, REPORT_EVERY));
        for ty in ResourceType::ALL {
            let wanted = match ty {
                ResourceType::Settings => [node.as_str()].into_iter().collect(),
                _ => Subscription::Wildcard,
            };
            handle.set(ty, wanted);
        }
        let client = tokio::spawn(client.run(stop.clone()));
        let node_metrics = {
            let (enrolment, metrics) = (enrolment.clone(), NodeMetrics::new(handle.stats().clone()));
            move || metrics.render(enrolment.enrolled())
        };
        let router = admin::router_with(agent.handle(), node_metrics);
        let admin_server = tokio::spawn(admin::serve(socket, router, stop.clone()));
        tracing::info!(%admin, node, "running");
        let outcome = until_signal(&agent, signals).await;
        tracing::info!("stopping");
        stop.cancel();
        let (client, admin_server) = (client.await, admin_server.await);
        reporter.await?;
        // With nothing enrolled nothing is routed: nobody misses what is pinned, and an uninstalled agent
        // leaves nothing behind. Before the first sync nobody knows what is enrolled.
        let synced = *agent.synced().borrow();
        let drained = outcome.is_ok() && synced && enrolment.enrolled().named == 0;
        drop(enrolment);
        tokio::task::block_in_place(|| {
            if drained {
                return agent.remove().context("what is pinned can't be removed");
            }
            drop(agent);
            tracing::info!("the data path stays in place");
            Ok(())
        })?;
        outcome?;
        client?;
        Ok(admin_server??)
    }
}

async fn until_signal(agent: &Agent, [mut interrupt, mut terminate]: [Signal; 2]) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        () = agent.ended().cancelled() => {
            Err(anyhow!("the thread that owns the maps has ended; what it said stands above"))
        }
    }
}
