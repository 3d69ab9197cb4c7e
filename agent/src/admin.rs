//! The agent's admin interface, HTTP: `/metrics`, `/readyz`, `/livez`, `/slots`, and
//! `/resources/TYPE/NAME`: what the kernel's records hold of a resource.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use slotmesh_slots::Stats;
use slotmesh_xds::ResourceType;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{agent::Handle, metrics::render_running};

/// The slot table as `/slots` shows it.
#[derive(Debug, Serialize, Deserialize)]
pub struct SlotsReport {
    /// By slot size, smallest first.
    pub classes: Vec<ClassReport>,
    /// Outer records (slabs of 64 KiB) that exist.
    pub outer_records: u32,
    /// Of these, wholly idle: any class can have them.
    pub outer_records_empty: u32,
    /// Outer records not created yet, up to the cap.
    pub outer_records_remaining: u32,
    /// Slots and handles that wait for a grace period.
    pub quarantined: usize,
    /// Named resources that have a handle.
    pub handles: usize,
    /// Grace periods since the agent started.
    pub grace_periods: u64,
    /// Why the last growth failed, if it did.
    pub growth_error: Option<String>,
}

/// Slots of one class.
#[derive(Debug, Serialize, Deserialize)]
pub struct ClassReport {
    /// The slot size.
    pub bytes: usize,
    /// In use.
    pub used: u64,
    /// Free, in slabs of this class.
    pub idle: u64,
    /// Waiting for a grace period.
    pub retired: u64,
}

impl From<Stats> for SlotsReport {
    fn from(stats: Stats) -> Self {
        Self {
            outer_records: stats.slabs,
            outer_records_empty: stats.empty_slabs,
            outer_records_remaining: stats.remaining(),
            quarantined: stats.quarantined,
            handles: stats.handles,
            grace_periods: stats.grace_periods,
            growth_error: stats.growth_error,
            classes: stats
                .classes
                .iter()
                .map(|(class, counts)| ClassReport {
                    bytes: class.bytes(),
                    used: counts.used,
                    idle: counts.idle,
                    retired: counts.retired,
                })
                .collect(),
        }
    }
}

/// Metrics that somebody adds to those of the agent: complete lines of exposition text.
type More = Arc<dyn Fn() -> String + Send + Sync>;

/// What the routes answer from.
#[derive(Clone)]
struct Admin {
    agent: Handle,
    more: More,
}

/// The routes of an agent.
pub fn router(agent: Handle) -> Router {
    router_with(agent, String::new)
}

/// The routes of an agent, with metrics besides its own: complete lines of exposition text.
pub fn router_with(agent: Handle, more: impl Fn() -> String + Send + Sync + 'static) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready))
        .route("/slots", get(slots))
        .route("/resources/{type}/{name}", get(resource))
        .with_state(Admin { agent, more: Arc::new(more) })
}

/// The routes of what is left of an agent that has taken the data path away.
pub fn drained_router() -> Router {
    const DRAINED: &str = "nothing of slotmesh is left on this node\n";
    Router::new().route("/livez", get(|| async { DRAINED })).route("/readyz", get(|| async { DRAINED }))
}

/// Serves `router` until `shutdown`.
///
/// # Errors
/// Where the socket fails.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn metrics(State(Admin { agent, more }): State<Admin>) -> Response {
    match agent.stats().await {
        Some((stats, vips)) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            with_more(
                agent.metrics().render(&stats, vips),
                &(render_running(agent.running().await) + &more()),
            ),
        )
            .into_response(),
        None => stopped(),
    }
}

/// The end mark of the exposition comes once.
fn with_more(mut text: String, more: &str) -> String {
    const END: &str = "# EOF\n";
    if let Some(lines) = text.strip_suffix(END) {
        text.truncate(lines.len());
    }
    text + more + END
}

async fn live(State(Admin { agent, .. }): State<Admin>) -> Response {
    if agent.has_ended() { stopped() } else { (StatusCode::OK, "live\n").into_response() }
}

async fn ready(State(Admin { agent, .. }): State<Admin>) -> Response {
    if agent.is_synced() {
        (StatusCode::OK, "ready\n").into_response()
    } else if agent.has_ended() {
        stopped()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready: waiting for the first sync\n").into_response()
    }
}

async fn slots(State(Admin { agent, .. }): State<Admin>) -> Response {
    match agent.stats().await {
        Some((stats, _)) => Json(SlotsReport::from(stats)).into_response(),
        None => stopped(),
    }
}

async fn resource(
    State(Admin { agent, .. }): State<Admin>,
    Path((ty, name)): Path<(String, String)>,
) -> Response {
    let Some(ty) = ResourceType::RECORDS.into_iter().find(|known| known.as_str() == ty) else {
        let known = ResourceType::RECORDS.map(ResourceType::as_str).join(", ");
        return (StatusCode::NOT_FOUND, format!("no type {ty:?}; there are {known}\n")).into_response();
    };
    match agent.show(ty, name.as_str().into()).await {
        Some(shown) => Json(shown).into_response(),
        None if agent.has_ended() => stopped(),
        None => (StatusCode::NOT_FOUND, format!("no {ty} {name:?} is in force\n")).into_response(),
    }
}

fn stopped() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent has stopped\n").into_response()
}
