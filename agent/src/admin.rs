//! The agent's admin interface, HTTP: `/metrics`, `/readyz`, `/livez`, `/slots`, and
//! `/resources/TYPE/NAME`: what the kernel's records hold of a resource.
//!
//! Invariant: what costs more than a look at a few numbers is asked for by one client at a time, and is worked out
//! elsewhere than on the thread that owns the maps.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use slotmesh_ads::Sink as _;
use slotmesh_slots::Stats;
use slotmesh_xds::ResourceType;
use tokio::{sync::Mutex, time::timeout};

use crate::{agent::Handle, metrics::render_running};

/// The thread that owns the maps answers within this, or the agent doesn't live.
const HEARTBEAT: Duration = Duration::from_secs(5);

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
pub struct Admin {
    agent: Handle,
    more: More,
    /// Of how many clusters connections are shown.
    clusters: usize,
    /// Held by the one client whose answer costs something.
    turn: Arc<Mutex<()>>,
}

impl Admin {
    /// The pages, and what each shows.
    pub const PAGES: [(&str, &str); 5] = [
        ("/metrics", "OpenMetrics"),
        ("/readyz", "200 once all that there was at start is in force"),
        ("/livez", "200 while the thread that owns the maps answers"),
        ("/slots", "the slot table, JSON"),
        (
            "/resources",
            "the types of resources; /resources/TYPE lists names, /resources/TYPE/NAME shows records",
        ),
    ];

    /// Answers for an agent, with the connections of the `clusters` busiest clusters.
    pub fn new(agent: Handle, clusters: usize) -> Self {
        Self::with(agent, clusters, String::new)
    }

    /// As [`new`](Self::new), with metrics besides the agent's own: complete lines of exposition text.
    pub fn with(agent: Handle, clusters: usize, more: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self { agent, more: Arc::new(more), clusters, turn: Arc::default() }
    }

    /// What tells nothing of routes: metrics and probes.
    pub fn open_routes(&self) -> Router {
        Router::new()
            .route("/livez", get(live))
            .route("/metrics", get(metrics))
            .route("/readyz", get(ready))
            .with_state(self.clone())
    }

    /// The other pages.
    pub fn local_routes(&self) -> Router {
        Router::new()
            .route("/slots", get(slots))
            .route("/resources", get(types))
            .route("/resources/{type}", get(names))
            .route("/resources/{type}/{name}", get(resource))
            .with_state(self.clone())
    }
}

/// The routes of what is left of an agent that has taken the data path away.
pub fn drained_routes() -> Router {
    const DRAINED: &str = "nothing of slotmesh is left on this node\n";
    Router::new().route("/livez", get(|| async { DRAINED })).route("/readyz", get(|| async { DRAINED }))
}

/// An answer of JSON that ends its line.
pub fn json(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn metrics(State(Admin { agent, more, clusters, turn }): State<Admin>) -> Response {
    let _turn = turn.lock().await;
    match agent.stats().await {
        Some((stats, vips)) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            with_more(
                agent.metrics().render(&stats, vips),
                &(render_running(agent.running(clusters).await) + &more()),
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
    match timeout(HEARTBEAT, agent.stats()).await {
        Ok(Some(_)) => (StatusCode::OK, "live\n").into_response(),
        Ok(None) => stopped(),
        Err(_elapsed) => {
            let text = format!("the thread that owns the maps hasn't answered for {HEARTBEAT:?}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
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
        Some((stats, _)) => json(&SlotsReport::from(stats)),
        None => stopped(),
    }
}

async fn types() -> Response {
    ResourceType::RECORDS.map(|ty| format!("/resources/{ty}\n")).concat().into_response()
}

async fn names(State(Admin { agent, turn, .. }): State<Admin>, Path(ty): Path<String>) -> Response {
    let ty = match known(&ty) {
        Ok(ty) => ty,
        Err(unknown) => return (StatusCode::NOT_FOUND, unknown).into_response(),
    };
    let _turn = turn.lock().await;
    let held = agent.held().await;
    if agent.has_ended() {
        return stopped();
    }
    let mut names: Vec<_> =
        held.into_iter().filter(|(held, ..)| *held == ty).map(|(_, name, _)| format!("{name}\n")).collect();
    names.sort_unstable();
    names.concat().into_response()
}

async fn resource(
    State(Admin { agent, turn, .. }): State<Admin>,
    Path((ty, name)): Path<(String, String)>,
) -> Response {
    let ty = match known(&ty) {
        Ok(ty) => ty,
        Err(unknown) => return (StatusCode::NOT_FOUND, unknown).into_response(),
    };
    let _turn = turn.lock().await;
    match agent.show(ty, name.as_str().into()).await {
        Some(mut shown) => {
            if ty == ResourceType::Cluster {
                // No record: it is of the cluster's name, whatever version is in force.
                let out = agent.left_out(&name).await.into_iter();
                let out =
                    out.map(|(at, left)| serde_json::json!({ "address": at, "seconds": left.as_secs() + 1 }));
                shown["ejected"] = out.collect();
            }
            json(&shown)
        }
        None if agent.has_ended() => stopped(),
        None => {
            let text = format!("no {ty} {name:?} is in force; /resources/{ty} lists those that are\n");
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

fn known(ty: &str) -> Result<ResourceType, String> {
    ResourceType::RECORDS.into_iter().find(|known| known.as_str() == ty).ok_or_else(|| {
        let known = ResourceType::RECORDS.map(ResourceType::as_str).join(", ");
        format!("no type {ty:?}; there are {known}\n")
    })
}

fn stopped() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent has stopped\n").into_response()
}
