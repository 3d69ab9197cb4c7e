//! `slotmesh up`: the embedded mode.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use anyhow::{Context as _, anyhow, bail};
use axum::Router;
use clap::Args;
use slotmesh_ads::Sink as _;
use slotmesh_agent::{
    Agent, FixedCallers, FixedWorkloads, Options, ProxyFeed, Recorder, Remembered, Workload, admin::Admin,
    metrics::Metrics,
};
use slotmesh_operator::{CompileOptions, Operator, OperatorOptions, watch::LocalNode};
use slotmesh_serve::Store;
use slotmesh_xds::ResourceType;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Site},
    changes,
    compile::CompileFlags,
    domain::DomainFlag,
    embedded,
    flags::{ADMIN, CLUSTER_METRICS, LogFlag, MapFlags, PINS, SlotFlags, address},
    listen::listen,
    origins,
    own_proxy::{self, OwnProxy},
    process::{GRACE, LIMIT, Parts, raise_descriptor_limit, stop_on_signals},
    proxies::PROXIED_PAGE,
    reports, served,
    traffic_flags::TrafficFlags,
};

/// The heading of flags that say what this node is to SlotProfiles.
const NODE: &str = "Node";

/// The end of `slotmesh up --help`.
const EXAMPLES: &str = "Examples:
  # Connections of every process in this cgroup are routed by the manifests in ./shop
  mkdir /sys/fs/cgroup/shop-client
  slotmesh up --manifests ./shop --workload shop/client=/sys/fs/cgroup/shop-client

  # What there is to say about the manifests, and what the kernel holds
  curl 127.0.0.1:15020/reports
  slotmesh slots

  # Leave the data path in place at the end, and remove it later
  slotmesh up --manifests ./shop --workload shop/client=/sys/fs/cgroup/shop-client --keep
  slotmesh agent --cleanup";

/// The flags of `slotmesh up`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Up {
    /// Directory of manifests (YAML or JSON, with subdirectories); changes are picked up
    #[arg(long, env = "SLOTMESH_MANIFESTS", value_name = "DIR")]
    manifests: PathBuf,

    /// A workload whose connections are routed, and its cgroup v2 directory; may be repeated (the variable: separated
    /// by commas)
    #[arg(
        long = "workload",
        env = "SLOTMESH_WORKLOADS",
        value_delimiter = ',',
        value_name = "NAMESPACE/NAME=CGROUP"
    )]
    workloads: Vec<WorkloadArg>,

    /// The name of this node: SlotProfiles that name it, or have a label of it, are for it
    #[arg(long, env = "SLOTMESH_NODE_NAME", default_value = "standalone", value_name = "NAME",
        help_heading = NODE)]
    node_name: String,

    /// The labels of this node, by which SlotProfiles select it
    #[arg(long, env = "SLOTMESH_NODE_LABELS", value_delimiter = ',', value_name = "KEY=VALUE",
        help_heading = NODE)]
    node_labels: Vec<Label>,

    /// Where maps and links are pinned: a directory of its own on a BPF file system. Where there is none,
    /// one is mounted on the directory above, if that is /sys/fs/bpf, empty or missing
    #[arg(long, env = "SLOTMESH_PIN_ROOT", default_value = "/sys/fs/bpf/slotmesh", value_name = "DIR",
        help_heading = PINS)]
    pin_root: PathBuf,

    /// Leave the data path in place on exit: connections are routed on without an agent, until the next start or
    /// `slotmesh agent --cleanup`. Without it, the data path is removed
    #[arg(long, env = "SLOTMESH_KEEP", help_heading = PINS)]
    keep: bool,

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
    slots: SlotFlags,

    #[command(flatten)]
    maps: MapFlags,

    #[command(flatten)]
    compile: CompileFlags,

    #[command(flatten)]
    domain: DomainFlag,

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
                for word in [namespace, name] {
                    if !is_name(word) {
                        return Err(format!(
                            "{word:?} can't be a name in Kubernetes: lower-case letters, digits, - and ., at most 253 \
                             of them, with a letter or digit at both ends"
                        ));
                    }
                }
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

/// Whether this is a name as Kubernetes has them (a DNS subdomain).
fn is_name(text: &str) -> bool {
    let is_alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_good = |label: &str| {
        label.starts_with(is_alphanumeric)
            && label.ends_with(is_alphanumeric)
            && label.chars().all(|c| is_alphanumeric(c) || c == '-')
    };
    text.len() <= 253 && text.split('.').all(is_good)
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
            keep,
            admin,
            cluster_metrics,
            traffic,
            slots,
            maps,
            compile,
            domain,
            log,
        } = self;
        log.init()?;
        domain.on_a_machine().set();
        let (slots, sockets) = slots.config()?;
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
        if manifests.is_file() {
            let folder = manifests.parent().filter(|folder| !folder.as_os_str().is_empty());
            bail!(
                "--manifests {} is a file; name its folder: --manifests {}",
                manifests.display(),
                folder.unwrap_or_else(|| ".".as_ref()).display()
            );
        }
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
        raise_descriptor_limit();
        let options = Options {
            pin_root,
            slots,
            sockets,
            maps: traffic.sizes(maps.sizes()),
            workloads: workloads.clone(),
            node: node.name.clone(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let clusters = cluster_metrics as usize;
        let compile = compile.options();
        runtime.block_on(serve(
            Running { manifests, compile, node, admin, clusters, traffic, keep, workloads },
            options,
        ))
    }
}

/// What `serve` is told.
struct Running {
    manifests: PathBuf,
    compile: CompileOptions,
    node: LocalNode,
    admin: SocketAddr,
    clusters: usize,
    traffic: TrafficFlags,
    keep: bool,
    workloads: Vec<Workload>,
}

async fn serve(running: Running, options: Options) -> anyhow::Result<()> {
    let stop = stop_on_signals(LIMIT)?;
    let admin = running.admin;
    let socket = listen(admin)
        .await
        .with_context(|| format!("--admin {admin} can't be used; is another agent running?"))?;

    let metrics = Arc::new(Metrics::new());
    let agent = tokio::task::block_in_place(|| Agent::start(options, metrics))?;
    let outcome = run(&running, &agent, socket, stop).await;
    tokio::task::block_in_place(|| match outcome {
        // As after a kill: what is in force stays so until the next start.
        Err(error) if agent.ended().is_cancelled() => {
            Err(error.context("connections are routed on by what was in force; start slotmesh again"))
        }
        // What an earlier agent left was in force before this start, and is no part of its failure.
        Err(error) if running.keep || agent.took_over() => {
            drop(agent);
            Err(error.context("the data path stays in place"))
        }
        Err(error) => {
            if let Err(stays) = agent.remove() {
                tracing::error!(error = %stays, "the data path can't be removed");
            }
            Err(error)
        }
        Ok(()) if running.keep => {
            drop(agent);
            tracing::info!("the data path stays in place; `slotmesh agent --cleanup` removes it");
            Ok(())
        }
        Ok(()) => {
            agent.remove().context("the data path can't be removed")?;
            tracing::info!("the data path is removed");
            Ok(())
        }
    })
}

/// Runs until the process is to stop, or a part of it ends.
async fn run(
    running: &Running,
    agent: &Agent,
    socket: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let Running { manifests, compile, node, admin: _, clusters, traffic, keep: _, workloads: _ } = running;
    let admin = socket.local_addr()?;
    let store = Store::new();
    let operator = {
        let store = store.clone();
        let publish = move |changes| store.apply(changes);
        let options = OperatorOptions {
            compile: compile.clone(),
            node: Some(node.clone()),
            ..OperatorOptions::default()
        };
        Operator::from_manifests(manifests, options, publish)?
    };
    let mut parts = Parts::new(stop.clone());
    traffic.clone().start(&agent.handle(), &mut parts, &stop)?;
    parts.add("the thread that owns the maps", owner_ended(agent.ended().clone(), stop.clone()));
    parts.add("the compile thread", reports::compile_thread_ended(operator.status(), stop.clone()));
    let handlers = agent.handlers().with(FixedCallers::new(agent, running.workloads.clone()));
    let wanted = handlers.subscriptions(&node.name).collect();
    own_proxy::forget(&agent.handle()).context("what is left of an earlier proxy can't be removed")?;
    let proxy = if compile.proxy { Some(OwnProxy::start()?) } else { None };
    let feed = ProxyFeed::new(handlers, agent.handle(), proxy.as_ref().map(OwnProxy::publisher));
    let proxied = proxy.as_ref().map_or_else(Router::new, OwnProxy::router);
    let proxy = proxy.map(|proxy| {
        let source = match &running.workloads[..] {
            [only] => Some((only.namespace.clone(), only.name.clone())),
            _ => None,
        };
        proxy.serve(&mut parts, &stop, (agent.handle(), feed.pods()), source)
    });
    let remembered = Remembered::default();
    let sink = Recorder::new(feed, remembered.clone());
    embedded::stream(&mut parts, store.clone(), sink, (&node.name, wanted), &stop);
    let pages = Admin::new(agent.handle(), *clusters);
    let local = pages
        .local_routes()
        .merge(reports::router(operator.status()))
        .merge(served::router(store.clone()))
        .merge(origins::router(operator.inquiry(), operator.history()))
        .merge(changes::router(operator.history()))
        .merge(changes::updates_router(remembered))
        .merge(proxied);
    let of_operator = [reports::PAGE, served::PAGE, origins::PAGE, changes::PAGE, changes::UPDATES_PAGE];
    let mut index = [&Admin::PAGES[..], &of_operator].concat();
    let mut open = pages.open_routes();
    if let Some(proxy) = &proxy {
        open = open.merge(proxy.router());
        index.extend([own_proxy::PAGE, PROXIED_PAGE]);
    }
    let site = Site::new(open, local, &index);
    parts.add_last("the admin server", admin::serve(socket, site, stop.clone()));

    let ready = async {
        // An agent that ends before is noticed as such.
        if agent.synced().wait_for(|synced| *synced).await.is_ok() {
            let workloads = running.workloads.clone();
            // Until the first sync is over, another build's programs may be attached.
            let kept =
                tokio::task::block_in_place(|| FixedWorkloads::keep(agent.datapath().clone(), workloads));
            if let Err(error) = &kept {
                tracing::warn!(%error, "a workload whose cgroup is made again goes unrouted until the next start");
            }
            let held = agent.handlers().held().await;
            let count = |ty| held.iter().filter(|(held, ..)| *held == ty).count();
            let summary = reports::summary(&operator.status().borrow());
            tracing::info!(
                %admin,
                manifests = %manifests.display(),
                workloads = running.workloads.len(),
                listeners = count(ResourceType::Listener),
                routes = count(ResourceType::Route),
                clusters = count(ResourceType::Cluster),
                "ready: {summary}"
            );
            let _kept = kept;
            std::future::pending::<()>().await;
        }
        std::future::pending().await
    };
    let outcome = tokio::select! {
        biased;
        outcome = parts.run() => outcome,
        () = ready => Ok(()),
    };
    stop.cancel();
    // The compile thread may be handing changes over: it ends before what it hands them to.
    tokio::task::block_in_place(|| drop(operator));
    let ended = parts.end(GRACE).await;
    tokio::task::block_in_place(|| {
        if let Some(proxy) = proxy {
            proxy.end();
        }
    });
    outcome.and(ended)
}

/// Ends when the agent does, which is before the process only where something is wrong.
pub async fn owner_ended(ended: CancellationToken, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        biased;
        () = ended.cancelled() => Err(anyhow!("it has ended; what it said stands above")),
        () = stop.cancelled() => Ok(()),
    }
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
        for bad in ["Shop/web=/x", "shop/Web=/x", "shop/-web=/x", "shop/a..b=/x", "shop/a_b=/x"] {
            let refusal = bad.parse::<WorkloadArg>().unwrap_err();
            assert!(refusal.contains("lower-case"), "{bad:?}: {refusal}");
        }
        assert!("shop/web.example-1=/x".parse::<WorkloadArg>().is_ok());
    }
}
