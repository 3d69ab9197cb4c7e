//! The agent's admin interface, HTTP: `/metrics`, `/readyz`, `/livez`, `/slots`, and
//! `/resources/TYPE/NAME`: what the kernel's records hold of a resource.
//!
//! Invariant: what costs more than a look at a few numbers is asked for by one client at a time, and is worked out
//! elsewhere than on the thread that owns the maps.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use serde_json::Value;
use slotmesh_admin::{
    ClassReport, ConnectionsInForce, FeatureView, NodeInForce, SlabReport, SlotsReport, VersionView, paths,
};
use slotmesh_records::LAYOUT_HASH;
use slotmesh_slots::{ClassStats, SlotClass, Stats};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    RecordType, agent::Handle, config::NodePlace, decided, metrics::render_running,
    running::ConnectionCounts, view::View,
};

/// The thread that owns the maps answers within this, or the agent doesn't live.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The slot table as `/slots` shows it.
fn slots_report(stats: Stats) -> SlotsReport {
    SlotsReport {
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
    pub const PAGES: [(&str, &str); 10] = [
        ("/metrics", "OpenMetrics"),
        ("/readyz", "200 once all that there was at start is in force"),
        ("/livez", "200 while the thread that owns the maps answers"),
        (paths::SLOTS, "the slot table; /slots/BYTES the slabs with slots of this size, JSON"),
        (paths::VERSION, "the version, the record layout and the kernel, JSON"),
        (
            "/resources",
            "the types of resources; /resources/TYPE lists names, /resources/TYPE/NAME shows records",
        ),
        (
            paths::RECORDS,
            "/records/TYPE shows the first 256 of a type, /records/TYPE/NAME those after that name, JSON",
        ),
        (paths::NODE, "the node and where it is, JSON"),
        (paths::WORKLOADS, "the workloads whose connections are routed, JSON"),
        (
            paths::ASK,
            "/ask/NAMESPACE/NAME/tcp/ADDRESS: where this workload's connections go, by the program in the kernel, JSON",
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
            .route(paths::SLOTS, get(slots))
            .route("/slots/{bytes}", get(slabs_of))
            .route(paths::VERSION, get(version))
            .route("/resources", get(types))
            .route("/resources/{type}", get(names))
            .route("/resources/{type}/{name}", get(resource))
            .route("/records/{type}", get(first_records))
            .route("/records/{type}/{after}", get(further_records))
            .route(paths::WORKLOADS, get(workloads))
            .route(paths::NODE, get(node))
            .route("/ask/{namespace}/{name}/{protocol}/{address}", get(ask))
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
    let Some((stats, vips)) = agent.stats().await else { return stopped() };
    let running = render_running(agent.running(clusters).await);
    let beside = running + &agent.traffic_lines().await + &more();
    (
        [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
        with_more(agent.metrics().render(&stats, vips), &beside),
    )
        .into_response()
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
        Some((stats, _)) => json(&slots_report(stats)),
        None => stopped(),
    }
}

async fn slabs_of(State(Admin { agent, .. }): State<Admin>, Path(bytes): Path<usize>) -> Response {
    let Some(class) = SlotClass::all().find(|class| class.bytes() == bytes) else {
        let sizes: Vec<String> = SlotClass::all().map(|class| class.to_string()).collect();
        return (
            StatusCode::NOT_FOUND,
            format!("no slots have {bytes} bytes; there are {}\n", sizes.join(", ")),
        )
            .into_response();
    };
    let view = |(slab, counts): (u32, ClassStats)| SlabReport {
        slab,
        used: counts.used,
        idle: counts.idle,
        retired: counts.retired,
    };
    match agent.slabs_of(class).await {
        Some(slabs) => json(&slabs.into_iter().map(view).collect::<Vec<_>>()),
        None => stopped(),
    }
}

async fn version(State(Admin { agent, .. }): State<Admin>) -> Response {
    let datapath = agent.datapath();
    let features = datapath.iter().flat_map(|datapath| datapath.features());
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    json(&VersionView {
        component: "agent".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        layout: Some(format!("{LAYOUT_HASH:016x}")),
        kernel: release.map(|release| release.trim().to_owned()),
        hooks: datapath.iter().flat_map(|datapath| datapath.hooks()).map(str::to_owned).collect(),
        features: features
            .map(|(name, available)| FeatureView { name: name.to_owned(), available })
            .collect(),
    })
}

async fn types() -> Response {
    RecordType::ALL.map(|ty| format!("/resources/{ty}\n")).concat().into_response()
}

async fn names(State(Admin { agent, turn, .. }): State<Admin>, Path(ty): Path<String>) -> Response {
    let ty = match known(&ty) {
        Ok(ty) => ty,
        Err(unknown) => return (StatusCode::NOT_FOUND, unknown).into_response(),
    };
    let _turn = turn.lock().await;
    let held = agent.held_records().await;
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
    match shown(&agent, ty, &name).await {
        Some(shown) => {
            let mut shown = vec![shown];
            add_connections(&agent, ty, &mut shown).await;
            json(&shown[0])
        }
        None if agent.has_ended() => stopped(),
        None => {
            let text = format!("no {ty} {name:?} is in force; /resources/{ty} lists those that are\n");
            (StatusCode::NOT_FOUND, text).into_response()
        }
    }
}

/// A resource as its records hold it, and what there is of it beside them.
async fn shown(agent: &Handle, ty: RecordType, name: &str) -> Option<Value> {
    let mut shown = agent.show(ty, name.into()).await?;
    if ty == RecordType::Cluster {
        // No record: it is of the cluster's name, whatever version is in force.
        let watched = !shown["outlierDetection"].is_null();
        let out = if watched { agent.left_out(name).await } else { BTreeMap::new() };
        let out = out.into_iter().map(|(at, left)| {
            let seconds = left.as_secs() + 1;
            serde_json::json!({ "address": at, "seconds": seconds })
        });
        shown["ejected"] = out.collect();
    }
    Some(shown)
}

/// Adds to clusters what runs of them.
async fn add_connections(agent: &Handle, ty: RecordType, shown: &mut [Value]) {
    if ty != RecordType::Cluster {
        return;
    }
    let name = |shown: &Value| shown["name"].as_str().map(str::to_owned);
    let counts = agent.connections(shown.iter().filter_map(name).collect()).await;
    for shown in shown {
        let Some(counts) = name(shown).and_then(|name| counts.get(&name)) else { continue };
        let &ConnectionCounts { active, opened, refused, too_fast } = counts;
        shown["connections"] = serde_json::json!(ConnectionsInForce { active, opened, refused, too_fast });
    }
}

/// Resources in one answer: what they take is held in memory.
const TOGETHER: usize = 256;

async fn first_records(State(admin): State<Admin>, Path(ty): Path<String>) -> Response {
    records(admin, &ty, "").await
}

async fn further_records(State(admin): State<Admin>, Path((ty, after)): Path<(String, String)>) -> Response {
    records(admin, &ty, &after).await
}

/// The next resources behind a name, in the order of names.
async fn records(Admin { agent, turn, .. }: Admin, ty: &str, after: &str) -> Response {
    let ty = match known(ty) {
        Ok(ty) => ty,
        Err(unknown) => return (StatusCode::NOT_FOUND, unknown).into_response(),
    };
    let _turn = turn.lock().await;
    let held = agent.held_records().await.into_iter();
    let mut names: Vec<_> =
        held.filter(|(of, name, _)| *of == ty && name.as_str() > after).map(|(_, name, _)| name).collect();
    names.sort_unstable();
    let mut found = Vec::with_capacity(names.len().min(TOGETHER));
    for name in names.iter().take(TOGETHER) {
        // One that has gone meanwhile isn't there.
        found.extend(shown(&agent, ty, name.as_str()).await);
    }
    add_connections(&agent, ty, &mut found).await;
    if agent.has_ended() { stopped() } else { json(&found) }
}

async fn node(State(Admin { agent, .. }): State<Admin>) -> Response {
    let View { node, place: NodePlace { region, zone, sub_zone }, .. } = agent.view();
    json(&NodeInForce { name: node, region, zone, sub_zone })
}

async fn workloads(State(Admin { agent, .. }): State<Admin>) -> Response {
    json(&agent.datapath().map(|datapath| datapath.workloads()).unwrap_or_default())
}

async fn ask(
    State(Admin { agent, turn, .. }): State<Admin>,
    Path((namespace, name, protocol, address)): Path<(String, String, String, String)>,
) -> Response {
    let Some(protocol) = decided::protocol(&protocol) else {
        return (StatusCode::BAD_REQUEST, format!("{protocol:?} is neither tcp nor udp\n")).into_response();
    };
    let Ok(address) = address.parse() else {
        let text = format!("{address:?} isn't ADDRESS:PORT, such as 10.96.0.10:80 or [fd00::10]:80\n");
        return (StatusCode::BAD_REQUEST, text).into_response();
    };
    let _turn = turn.lock().await;
    match decided::decided(&agent, [&namespace, &name], (address, protocol)).await {
        Ok(decided) => json(&decided),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn known(ty: &str) -> Result<RecordType, String> {
    RecordType::ALL.into_iter().find(|known| known.as_str() == ty).ok_or_else(|| {
        let known = RecordType::ALL.map(RecordType::as_str).join(", ");
        format!("no type {ty:?}; there are {known}\n")
    })
}

fn stopped() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "the agent has stopped\n").into_response()
}
