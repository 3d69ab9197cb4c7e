//! `slotmesh agent`: the agent of a cluster's node.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::Router;
use clap::Args;
use slotmesh_ads::{Client, Config, Connector, Tcp, Tls};
use slotmesh_agent::{
    Agent, Enrolment, Options, ProxyFeed, Recorder, Remembered, StewardParts,
    admin::{Admin, drained_routes},
    cleanup,
    metrics::{Metrics, NodeMetrics},
    report, start_steward,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Site},
    changes,
    flags::{ADMIN, CLUSTER_METRICS, LogFlag, MapFlags, PINS, SlotFlags, address},
    listen::listen,
    process::{GRACE, LIMIT, Parts, raise_descriptor_limit, stop_on_signals},
    proxies::{PROXIED_PAGE, PROXY, ProxyServer, ProxySocketFlags},
    traffic_flags::TrafficFlags,
    up::owner_ended,
};

/// The operator is told of the agent's slots at most this often, and only when they changed.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// The heading of flags that say how the operator is reached.
const OPERATOR: &str = "Operator";

/// The flags of `slotmesh agent`.
#[derive(Debug, Args)]
pub struct AgentCommand {
    /// The operator's address, such as https://slotmesh-operator.slotmesh-system.svc:15010
    #[arg(long, env = "SLOTMESH_OPERATOR", value_name = "URL", required_unless_present_any = ["cleanup", "drain"],
        help_heading = OPERATOR)]
    operator: Option<String>,

    /// File with the certificates of which one has signed the operator's; read again for each connection
    #[arg(long, env = "SLOTMESH_OPERATOR_CA", default_value = "/var/run/slotmesh/ca/ca.crt", value_name = "FILE",
        help_heading = OPERATOR)]
    operator_ca: PathBuf,

    /// File with the service account token for the operator; read again for each connection
    #[arg(long, env = "SLOTMESH_OPERATOR_TOKEN", default_value = "/var/run/slotmesh/token/token",
        value_name = "FILE", help_heading = OPERATOR)]
    operator_token: PathBuf,

    /// Expect the operator's certificate to be for this name, whatever its address
    #[arg(long, env = "SLOTMESH_OPERATOR_NAME", value_name = "HOST", help_heading = OPERATOR)]
    operator_name: Option<String>,

    /// The name of this node, as Kubernetes knows it
    #[arg(long, env = "SLOTMESH_NODE", value_name = "NODE", required_unless_present_any = ["cleanup", "drain"])]
    node: Option<String>,

    /// Where the host's cgroup v2 hierarchy is mounted [default: as /proc/self/mountinfo says]
    #[arg(long, env = "SLOTMESH_CGROUP_ROOT", value_name = "DIR", help_heading = PINS)]
    cgroup_root: Option<PathBuf>,

    /// Where maps and links are pinned: a directory of its own on a BPF file system. Where there is none,
    /// one is mounted on the directory above, if that is /sys/fs/bpf, empty or missing
    #[arg(long, env = "SLOTMESH_PIN_ROOT", default_value = "/sys/fs/bpf/slotmesh", value_name = "DIR",
        help_heading = PINS)]
    pin_root: PathBuf,

    /// Remove everything that an agent left on this node, and end. Refused while an agent runs
    #[arg(long, env = "SLOTMESH_CLEANUP", help_heading = PINS)]
    cleanup: bool,

    /// Remove everything that an agent left on this node, then stay, ready: what `slotmesh drain` makes of
    /// the agents before an uninstall
    #[arg(long, env = "SLOTMESH_DRAIN", help_heading = PINS)]
    drain: bool,

    /// Address of the admin interface, whose page / lists the others. Beyond loopback it answers /metrics, /readyz and
    /// /livez only
    #[arg(long, env = "SLOTMESH_ADMIN", default_value = "127.0.0.1:15020", value_name = "ADDRESS",
        help_heading = ADMIN, value_parser = address)]
    admin: SocketAddr,

    /// Of how many clusters, the busiest, /metrics shows connections: three series each
    #[arg(long, env = "SLOTMESH_CLUSTER_METRICS", default_value_t = CLUSTER_METRICS, value_name = "CLUSTERS",
        help_heading = ADMIN, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    cluster_metrics: u32,

    #[command(flatten)]
    traffic: TrafficFlags,

    #[command(flatten)]
    proxies: ProxySocketFlags,

    /// Unix socket of the node's socket broker (its --steward-socket): connections of pods whose requests are looked at go
    /// to the proxy that takes them. Without it all go where the rule for every request says
    #[arg(long, env = "SLOTMESH_BROKER", value_name = "SOCKET", requires = "proxy_socket", help_heading = PROXY)]
    broker: Option<PathBuf>,

    #[command(flatten)]
    slots: SlotFlags,

    #[command(flatten)]
    maps: MapFlags,

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
            cleanup: clean,
            drain,
            admin,
            cluster_metrics,
            traffic,
            proxies,
            broker,
            slots,
            maps,
            log,
        } = self;
        log.init()?;
        raise_descriptor_limit();
        if clean || drain {
            let found = cleanup(&pin_root)?;
            let pin_root = pin_root.display();
            if found {
                tracing::info!(%pin_root, "what slotmesh had pinned there is removed");
            } else {
                tracing::info!(%pin_root, "nothing of slotmesh was pinned there; other pin roots aren't looked at");
            }
            return if drain { stay(admin) } else { Ok(()) };
        }
        let operator = operator.context("--operator (SLOTMESH_OPERATOR) is missing")?;
        let node = node.context("--node (SLOTMESH_NODE) is missing")?;
        let (slots, sockets) = slots.config()?;
        let options = Options {
            pin_root,
            slots,
            sockets,
            maps: traffic.sizes(maps.sizes()),
            workloads: Vec::new(),
            node: node.clone(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let clusters = cluster_metrics as usize;
        let running = Running { options, cgroup_root, admin, clusters, traffic, proxies, broker, node };
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
        let stop = stop_on_signals(LIMIT)?;
        let socket = listen(admin).await.with_context(|| format!("--admin {admin} can't be used"))?;
        let site = Site::new(drained_routes(), Router::new(), &Admin::PAGES[1..3]);
        let mut parts = Parts::new(stop.clone());
        parts.add("the admin server", admin::serve(socket, site, stop));
        let outcome = parts.run().await;
        outcome.and(parts.end(GRACE).await)
    })
}

struct Running {
    options: Options,
    cgroup_root: Option<PathBuf>,
    admin: SocketAddr,
    clusters: usize,
    traffic: TrafficFlags,
    proxies: ProxySocketFlags,
    broker: Option<PathBuf>,
    node: String,
}

impl Running {
    async fn run(mut self, connector: impl Connector) -> anyhow::Result<()> {
        let stop = stop_on_signals(LIMIT)?;
        let admin = self.admin;
        let socket = listen(admin)
            .await
            .with_context(|| format!("--admin {admin} can't be used; is another agent running?"))?;
        let options = std::mem::take(&mut self.options);
        let metrics = Arc::new(Metrics::new());
        let agent = tokio::task::block_in_place(|| Agent::start_enrolling(options, metrics))?;
        let root = self.cgroup_root.clone().unwrap_or_else(|| agent.datapath().host().cgroup2.clone());
        let enrolment = match Enrolment::new(&agent, root) {
            Ok(enrolment) => enrolment,
            Err(error) => {
                tokio::task::block_in_place(|| take_back(agent));
                return Err(error.into());
            }
        };
        let outcome = self.serve(connector, &agent, &enrolment, socket, stop).await;
        // With nothing enrolled nothing is routed: nobody misses what is pinned, and an uninstalled agent
        // leaves nothing behind. Before the first sync nobody knows what an earlier agent had enrolled.
        let known = *agent.synced().borrow() || !agent.took_over();
        let drained = known && !agent.ended().is_cancelled() && enrolment.enrolled().named == 0;
        tokio::task::block_in_place(|| enrolment.end());
        drop(enrolment);
        tokio::task::block_in_place(|| {
            if drained {
                agent.remove().context("what is pinned can't be removed")?;
                tracing::info!("no pod took part: the data path is removed");
            } else {
                drop(agent);
                tracing::info!(
                    "the data path stays in place: the next agent takes over, and --cleanup removes it"
                );
            }
            Ok::<(), anyhow::Error>(())
        })?;
        outcome
    }

    /// Runs until the process is to stop, or a part of it ends.
    async fn serve(
        self,
        connector: impl Connector,
        agent: &Agent,
        enrolment: &Enrolment,
        socket: TcpListener,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self { options: _, cgroup_root: _, admin, clusters, traffic, proxies, broker, node } = self;
        let mut parts = Parts::new(stop.clone());
        traffic.start(&agent.handle(), &mut parts, &stop)?;
        let proxies = proxies.bind()?;
        let publish = proxies.as_ref().map(ProxyServer::publisher);
        let handlers = agent.handlers().with(enrolment.clone());
        let wanted: Vec<_> = handlers.subscriptions(&node).collect();
        let feed = ProxyFeed::new(handlers, agent.handle(), publish);
        let (acknowledge, acknowledged) = watch::channel(None);
        let mut local = Router::new();
        if let Some(proxies) = proxies {
            local = proxies.router();
            proxies.serve(&mut parts, &stop, acknowledge);
        }
        match broker {
            Some(broker) => {
                let (attached, proxied) = (enrolment.attached(), feed.pods());
                let steward = StewardParts { broker, attached, proxied, acknowledged };
                // It ends with the process, which may not wait for a broker.
                start_steward(agent, steward, stop.clone())?;
            }
            None => agent.forget_proxies(),
        }
        parts.add("the thread that owns the maps", owner_ended(agent.ended().clone(), stop.clone()));
        let remembered = Remembered::default();
        let sink = Recorder::new(feed, remembered.clone());
        let (client, handle) = Client::new(Config::new(node.as_str()), connector, sink);
        let (reports, told) = watch::channel(None);
        let client = client.reporting(told);
        for (ty, wanted) in wanted {
            handle.set(ty, wanted);
        }
        let node_metrics = {
            let (enrolment, metrics) = (enrolment.clone(), NodeMetrics::new(handle.stats()));
            move || metrics.render(&enrolment.enrolled())
        };
        parts.add("the delta ADS client", {
            let stop = stop.clone();
            async move {
                // It can be told otherwise as long as this runs.
                let _subscriptions = handle;
                client.run(stop).await;
                Ok(())
            }
        });
        parts.add("the reporter to the operator", {
            let (agent, enrolment, stop) = (agent.handle(), enrolment.clone(), stop.clone());
            async move {
                let enrolled = || enrolment.enrolled();
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = report::follow(agent, enrolled, reports, REPORT_EVERY) => {}
                }
                Ok(())
            }
        });
        let pages = Admin::with(agent.handle(), clusters, node_metrics);
        let local = local.merge(pages.local_routes()).merge(changes::updates_router(remembered));
        let index = [&Admin::PAGES[..], &[changes::UPDATES_PAGE, PROXIED_PAGE]].concat();
        let site = Site::new(pages.open_routes(), local, &index);
        parts.add_last("the admin server", admin::serve(socket, site, stop));
        tracing::info!(%admin, node, "running");
        let outcome = parts.run().await;
        outcome.and(parts.end(GRACE).await)
    }
}

/// A start has failed: what it pinned goes, what it found stays.
fn take_back(agent: Agent) {
    if agent.took_over() {
        return;
    }
    if let Err(error) = agent.remove() {
        tracing::error!(%error, "what is pinned can't be removed");
    }
}
