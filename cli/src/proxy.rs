//! `slotmesh proxy`: the proxy of a node, or the HTTP engine alone, by a file that a stock Envoy would take.

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use clap::{Args, ValueEnum};
use slotmesh_proxy::{EngineOptions, Http1Path, ProxyEngine, ProxyResource, bootstrap};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Site},
    flags::{ADMIN, LogFlag, address},
    listen::listen,
    node_proxy,
    process::{GRACE, Parts, raise_descriptor_limit, stop_on_signals},
};

/// How long requests in flight have for their end.
pub const DRAIN: Duration = Duration::from_secs(5);
/// How long the process has for its end: the drain, and a little.
pub const LIMIT: Duration = Duration::from_secs(7);

/// Text that `slotmesh proxy --help` ends with.
const EXAMPLES: &str = "Examples:
  # Serve the listeners of a file, then look at it
  slotmesh proxy --config envoy.yaml
  curl 127.0.0.1:15021/metrics

  # Only say what of a file can't be served
  slotmesh proxy --config envoy.yaml --check

  # Serve the pods of a node, as the chart does
  slotmesh proxy --agent /run/slotmesh/proxy.sock --broker /run/slotmesh/sockets.sock";

/// The pages of the admin interface.
pub const PAGES: [(&str, &str); 4] = [
    ("/metrics", "counts of requests and connections, for Prometheus"),
    ("/livez", "200 while the process runs"),
    ("/readyz", "200 once all that is to be served is, 503 before and while it ends"),
    ("/config", "the resources that are served, by name"),
];

/// The flags of `slotmesh proxy`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Proxy {
    /// An Envoy bootstrap, YAML or JSON: its static listeners with HTTP connection managers, routes and clusters are
    /// served. A field that isn't supported is refused by name
    #[arg(
        long,
        env = "SLOTMESH_PROXY_CONFIG",
        value_name = "FILE",
        required_unless_present = "agent",
        conflicts_with = "agent"
    )]
    config: Option<PathBuf>,

    /// Say what of the file can't be served, and end
    #[arg(long, env = "SLOTMESH_PROXY_CHECK", conflicts_with = "agent")]
    check: bool,

    /// Unix socket of the node's agent (its --proxy-socket), which says what is served to which pods
    #[arg(long, env = "SLOTMESH_PROXY_AGENT", value_name = "SOCKET", requires = "broker")]
    agent: Option<PathBuf>,

    /// Unix socket of the node's socket broker, which makes sockets in pods
    #[arg(long, env = "SLOTMESH_PROXY_BROKER", value_name = "SOCKET", requires = "agent")]
    broker: Option<PathBuf>,

    /// Threads that serve, each for itself [default: the processors]
    #[arg(long, env = "SLOTMESH_PROXY_WORKERS", value_name = "THREADS")]
    workers: Option<NonZeroUsize>,

    /// Who serves HTTP/1.1: the path of our own, and hyper where a request isn't an ordinary one, or hyper alone
    #[arg(long, env = "SLOTMESH_PROXY_HTTP1", value_enum, default_value_t = Http1Flag::Hyper, value_name = "PATH")]
    http1: Http1Flag,

    /// Address of the admin interface, whose page / lists the others. Beyond loopback it answers /metrics, /readyz and
    /// /livez only
    #[arg(long, env = "SLOTMESH_PROXY_ADMIN", default_value = "127.0.0.1:15021", value_name = "ADDRESS",
        help_heading = ADMIN, value_parser = address)]
    admin: SocketAddr,

    #[command(flatten)]
    log: LogFlag,
}

/// Who serves HTTP/1.1.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Http1Flag {
    Own,
    Hyper,
}

impl Proxy {
    /// Serves until SIGINT or SIGTERM; then requests in flight are finished.
    ///
    /// # Errors
    /// Names the field of the file that can't be served, or the address that can't be used.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { config, check, agent, broker, workers, http1, admin, log } = self;
        log.init()?;
        let defaults = EngineOptions::default();
        let workers = workers.map_or(defaults.workers, NonZeroUsize::get);
        let http1 = match http1 {
            Http1Flag::Own => Http1Path::Own,
            Http1Flag::Hyper => Http1Path::Hyper,
        };
        let options = EngineOptions { workers, http1, ..defaults };
        if let (Some(agent), Some(broker)) = (agent, broker) {
            return node_proxy::run(agent, &broker, options, admin);
        }
        let config = config.context("--config (SLOTMESH_PROXY_CONFIG) is missing")?;
        let file = config.display().to_string();
        let text = std::fs::read_to_string(&config).with_context(|| format!("{file} can't be read"))?;
        let resources = bootstrap::parse(&text).with_context(|| file.clone())?;
        let bind = !check;
        let engine = ProxyEngine::start(EngineOptions { bind, ..options })?;
        let applied = apply(&engine, &resources).with_context(|| file.clone());
        if check || applied.is_err() {
            engine.drain(Duration::ZERO);
            return applied;
        }
        raise_descriptor_limit();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = runtime.block_on(serve(&engine, admin, &file, &resources));
        drop(runtime);
        engine.drain(if outcome.is_ok() { DRAIN } else { Duration::ZERO });
        outcome
    }
}

/// Puts the resources in force. A route with a field that isn't supported would answer 500: in a file that is a fault.
fn apply(engine: &ProxyEngine, resources: &[ProxyResource]) -> anyhow::Result<()> {
    for resource in resources {
        let at = || format!("{} {:?}", kind(resource), resource.name());
        let faults = engine.apply(resource).with_context(at)?;
        if !faults.is_empty() {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            return Err(anyhow!(faults.join("\n  "))).with_context(at);
        }
    }
    Ok(())
}

const fn kind(resource: &ProxyResource) -> &'static str {
    match resource {
        ProxyResource::Listener(_) => "listener",
        ProxyResource::Route(_) => "route configuration",
        ProxyResource::Cluster(_) => "cluster",
        ProxyResource::Endpoints(_) => "load assignment",
    }
}

async fn serve(
    engine: &ProxyEngine,
    admin: SocketAddr,
    file: &str,
    resources: &[ProxyResource],
) -> anyhow::Result<()> {
    let stop = stop_on_signals(LIMIT)?;
    let socket = listen(admin)
        .await
        .with_context(|| format!("--admin {admin} can't be used; is another proxy running?"))?;
    engine.settled().await;
    let admin = socket.local_addr()?;
    let mut parts = Parts::new(stop.clone());
    let site = site(engine, resources, &stop);
    parts.add_last("the admin server", admin::serve(socket, site, stop.clone()));
    tracing::info!(%admin, config = file, "ready");
    let outcome = parts.run().await;
    outcome.and(parts.end(GRACE).await)
}

fn site(engine: &ProxyEngine, resources: &[ProxyResource], stop: &CancellationToken) -> Site {
    let listening = engine.listening();
    let mut config = String::new();
    for resource in resources {
        let bound = listening
            .iter()
            .find(|(name, _)| matches!(resource, ProxyResource::Listener(_)) && name == resource.name());
        let address = bound.map(|(_, address)| format!(" {address}")).unwrap_or_default();
        config += &format!("{} {}{address}\n", kind(resource), resource.name());
    }
    let (metrics, config, stop) = (Arc::new(engine.metrics()), Arc::<str>::from(config), stop.clone());
    let ready = move || {
        let ended = stop.is_cancelled();
        async move {
            if ended {
                (http::StatusCode::SERVICE_UNAVAILABLE, "ending\n")
            } else {
                (http::StatusCode::OK, "ready\n")
            }
        }
    };
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let open = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || std::future::ready(([(CONTENT_TYPE, TEXT)], metrics.render()))));
    let local = Router::new().route("/config", get(move || std::future::ready(config.to_string())));
    Site::new(open, local, &PAGES)
}
