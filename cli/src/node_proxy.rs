//! `slotmesh proxy --agent`: the proxy of a node, told by the agent what it looks at and given its sockets by the broker.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use slotmesh_feed::{FeedMetrics, PodSockets, ResourceSink, follow_agent};
use slotmesh_proxy::{EngineOptions, ProxyEngine};

use crate::{
    admin::{self, Site},
    listen::listen,
    process::{GRACE, Parts, raise_descriptor_limit, stop_on_signals},
    proxy::{DRAIN, LIMIT, PAGES},
};

/// Serves the pods of a node until SIGINT or SIGTERM; then requests in flight are finished.
///
/// # Errors
/// Where no threads can be started, or the address of the admin interface can't be used.
pub fn run(agent: PathBuf, broker: &Path, options: EngineOptions, admin: SocketAddr) -> anyhow::Result<()> {
    raise_descriptor_limit();
    let sockets = PodSockets::new(broker)?;
    let options = EngineOptions { dial: Arc::new(sockets.clone()), bind: false, ..options };
    let engine = Arc::new(ProxyEngine::start(options)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(serve(&engine, agent, sockets, admin));
    // With all that feeds the engine.
    drop(runtime);
    if let Some(engine) = Arc::into_inner(engine) {
        engine.drain(if outcome.is_ok() { DRAIN } else { Duration::ZERO });
    }
    outcome
}

async fn serve(
    engine: &Arc<ProxyEngine>,
    agent: PathBuf,
    sockets: PodSockets,
    admin: SocketAddr,
) -> anyhow::Result<()> {
    let stop = stop_on_signals(LIMIT)?;
    let socket = listen(admin)
        .await
        .with_context(|| format!("--admin {admin} can't be used; is another proxy running?"))?;
    let admin = socket.local_addr()?;
    let sink = ResourceSink::new(engine.clone(), sockets);
    let agent_socket = agent.display().to_string();
    let (following, handle) = follow_agent(agent, sink.clone(), stop.clone());
    let metrics = Arc::new(
        engine.metrics_with(|registry| FeedMetrics::register(sink.clone(), handle.stats().clone(), registry)),
    );
    let mut parts = Parts::new(stop.clone());
    parts.add("the delta ADS client", async move {
        // It can be told otherwise as long as this runs.
        let _subscriptions = handle;
        following.await;
        Ok(())
    });
    let ready = {
        let (sink, stop) = (sink.clone(), stop.clone());
        move || {
            let answer = match (stop.is_cancelled(), sink.is_synced()) {
                (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "ending\n"),
                (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "the agent hasn't said what to serve\n"),
                (false, true) => (StatusCode::OK, "ready\n"),
            };
            std::future::ready(answer)
        }
    };
    const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let open = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(move || std::future::ready(([(CONTENT_TYPE, TEXT)], metrics.render()))));
    let local = Router::new().route("/config", get(move || std::future::ready(sink.list())));
    parts.add_last("the admin server", admin::serve(socket, Site::new(open, local, &PAGES), stop));
    tracing::info!(%admin, agent = agent_socket, "running");
    let outcome = parts.run().await;
    outcome.and(parts.end(GRACE).await)
}
