//! The proxy of `slotmesh up --proxy`: broker, agent's end and engine in one process.
//!
//! ```text
//!  ProxyFeed --publish--> ProxyServer ==Unix socket==> ResourceSink --> engine (threads of its own)
//!  steward --enrols this process' network namespace--> broker (a thread) --listener, sockets--> PodSockets --> engine
//! ```
//!
//! It is for workloads in the network namespace of this process. Connections of others go where the rule for every
//! request says.

use std::{
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use slotmesh_agent::{AcknowledgedPods, Handle, ProxiedPods, PublishToProxies};
use slotmesh_broker::{Broker, Counterpart, Key, NamespaceAt, PeerRole};
use slotmesh_feed::{FeedMetrics, PodSockets, ResourceSink, follow_agent};
use slotmesh_proxy::{EngineOptions, ProxyEngine, ProxyMetrics};
use slotmesh_xds::Workload;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{broker, process::Parts, proxies::ProxyServer};

/// How long requests in flight have for their end.
const DRAIN: Duration = Duration::from_secs(2);
/// What this process' namespace is called at the broker.
const KEY: &str = "this-machine";
/// The page with the proxy's metrics.
pub const PAGE: (&str, &str) =
    ("/proxy/metrics", "counts of requests and connections of the proxy, for Prometheus");

/// A private folder, which goes with this.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The proxy, before anything is fed to it.
pub struct OwnProxy {
    folder: Folder,
    server: ProxyServer,
    broker: oneshot::Receiver<std::io::Result<()>>,
    sockets: PodSockets,
    engine: Arc<ProxyEngine>,
}

/// The proxy at work.
pub struct RunningProxy {
    engine: Arc<ProxyEngine>,
    metrics: Arc<ProxyMetrics>,
    _folder: Folder,
}

impl OwnProxy {
    /// Starts broker and engine.
    ///
    /// # Errors
    /// Where there is no folder for their sockets, or no thread.
    pub fn start() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("slotmesh-{}", std::process::id()));
        // One that is there is of a process of this number that was killed.
        drop(std::fs::remove_dir_all(&path));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("{} can't be created", path.display()))?;
        let folder = Folder(path);
        let at = |name: &str| folder.0.join(name);
        let mut broker = Broker::new("/run/netns");
        broker::listen(&mut broker, PeerRole::Steward, &at("steward"), None)?;
        broker::listen(&mut broker, PeerRole::Proxy, &at("sockets"), None)?;
        let server = ProxyServer::at(&at("agent"), None)?;
        let broker = broker::start(broker)?;
        let sockets = PodSockets::new(&at("sockets"))?;
        let dial = Arc::new(sockets.clone());
        let engine = ProxyEngine::start(EngineOptions { dial, bind: false, ..EngineOptions::default() })?;
        Ok(Self { server, broker, sockets, engine: Arc::new(engine), folder })
    }

    /// Takes what is published for proxies.
    pub fn publisher(&self) -> PublishToProxies {
        self.server.publisher()
    }

    /// The pages about what it is fed.
    pub fn router(&self) -> Router {
        self.server.router()
    }

    /// Serves the workloads in this process' network namespace until `stop`, as parts of the process. `source`: how they are
    /// called in metrics, where that is known.
    pub fn serve(
        self,
        parts: &mut Parts,
        stop: &CancellationToken,
        (agent, pods): (Handle, ProxiedPods),
        source: Option<(String, String)>,
    ) -> RunningProxy {
        let Self { folder, server, broker, sockets, engine } = self;
        let (acknowledge, acknowledged) = watch::channel(None);
        server.serve(parts, stop, acknowledge);
        let sink = ResourceSink::new(engine.clone(), sockets);
        let (following, handle) = follow_agent(folder.0.join("agent"), sink.clone(), stop.clone());
        let metrics = engine.metrics_with(|registry| {
            FeedMetrics::register(sink, handle.stats().clone(), registry);
        });
        parts.add("the proxy's delta ADS client", async move {
            // It can be told otherwise as long as this runs.
            let _subscriptions = handle;
            following.await;
            Ok(())
        });
        let (steward, stopped) = (folder.0.join("steward"), stop.clone());
        parts.add("the socket broker", async move {
            let broken = |ended: Result<std::io::Result<()>, _>| match ended {
                Ok(Err(error)) => anyhow!(error),
                _ => anyhow!("its thread has ended"),
            };
            tokio::select! {
                biased;
                outcome = attend(&steward, &stopped, (agent, pods), source, acknowledged) => outcome,
                ended = broker => Err(broken(ended)),
            }
        });
        RunningProxy { engine, metrics: Arc::new(metrics), _folder: folder }
    }
}

/// Lets no connection of this process' network namespace go to the proxy that an earlier one had.
///
/// # Errors
/// Where there can be no socket, or the kernel refuses.
pub fn forget(agent: &Handle) -> std::io::Result<()> {
    let any = std::net::UdpSocket::bind("0.0.0.0:0")?;
    agent.set_proxy(any.as_fd(), None)
}

/// Sends connections of this process' network namespace to the proxy as long as it takes them, until `stop`.
async fn attend(
    steward: &Path,
    stop: &CancellationToken,
    (agent, pods): (Handle, ProxiedPods),
    source: Option<(String, String)>,
    mut acknowledged: watch::Receiver<AcknowledgedPods>,
) -> anyhow::Result<()> {
    let key = Key::new(KEY).context("a key")?;
    let own = NamespaceAt::Process(std::process::id());
    let broker = Counterpart::connect(steward).context("the broker can't be reached")?;
    let (socket, port) = tokio::task::block_in_place(|| broker.enrol(&key, &own, None))?;
    let (namespace, name) = source.unwrap_or_default();
    let workload =
        Workload { uid: KEY.to_owned(), namespace, name, proxy_port: port.into(), ..Workload::default() };
    let resource = workload.resource_name();
    pods.serve(&workload);
    let takes = |pods: &AcknowledgedPods| pods.as_ref().is_some_and(|pods| pods.contains_key(&resource));
    let mut sent = false;
    loop {
        let now = takes(&acknowledged.borrow_and_update());
        if now != sent {
            agent.set_proxy(socket.as_fd(), now.then_some(port))?;
            tracing::info!(port, "{}", if now { "requests go to the proxy" } else { "the proxy is away" });
            sent = now;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = acknowledged.changed() => if changed.is_err() { break },
        }
    }
    if sent {
        agent.set_proxy(socket.as_fd(), None)?;
    }
    stop.cancelled().await;
    Ok(())
}

impl RunningProxy {
    /// The pages about it.
    pub fn router(&self) -> Router {
        const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let metrics = self.metrics.clone();
        Router::new()
            .route(PAGE.0, get(move || std::future::ready(([(CONTENT_TYPE, TEXT)], metrics.render()))))
    }

    /// Finishes the requests in flight, once all that feeds it has ended.
    pub fn end(self) {
        let Self { engine, metrics, _folder } = self;
        drop(metrics);
        if let Some(engine) = Arc::into_inner(engine) {
            engine.drain(DRAIN);
        }
    }
}
