//! Statuses: what every node has in force, and what became of every object.
//!
//! ```text
//!  streams --StreamEvents--> nodes: NodeStatusReconciler --> MeshReplica, MeshNodes (each replica, of its streams)
//!                                                                 | watch
//!  pipeline --StatusUpdates--> objects: ProgrammedIndex <---------+
//!   (with what is due)                         |
//!  Lease --> lease: Candidate --> only the leader --> conditions, events
//! ```
//!
//! Which resources a node has acknowledged only the replica knows that holds its stream. It tells the
//! others in one MeshReplica for all its nodes, as sketches of fixed size ([`slotmesh_xds::Sketch`]), mostly
//! one; the leader, which compiles the same as all replicas, finds by it which of what a node is due the node
//! lacks. What concerns the node alone stands in its MeshNode.
//!
//! Invariant: everything that is written carries the resource version of what it was compared with, so
//! neither a replica that lags behind nor one that was suspended overwrites what is newer.

mod coalescing_queue;
mod due;
mod events;
mod groups;
mod lacking;
mod lease;
mod nodes;
mod objects;
mod programmed;
mod rate_limited_queue;
mod reconciler;
mod render_status;
mod replicas;
mod updates;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kube::Client;
use slotmesh_serve::{NodeName, StreamEvents};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::{due::Due, updates::StatusUpdates};
use self::{events::Events, lease::Candidate, nodes::NodeWriter, objects::ObjectWriter};

/// The field manager as which the operator writes statuses.
const MANAGER: &str = "slotmesh-operator";
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why something isn't written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("it has changed meanwhile, or exists already")]
    Conflict,
    #[error("the API server doesn't answer")]
    Timeout,
    #[error("there is no Node {0}")]
    NoNode(NodeName),
    #[error(transparent)]
    Api(kube::Error),
}

impl From<kube::Error> for WriteError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            error => Self::Api(error),
        }
    }
}

impl From<tokio::time::error::Elapsed> for WriteError {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

/// A thing that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteTarget {
    /// A MeshNode.
    Node,
    /// The MeshReplica of this process.
    Replica,
    /// Conditions of an object.
    Object,
    /// An event.
    Event,
}

impl WriteTarget {
    /// All targets.
    pub const ALL: [Self; 4] = [Self::Node, Self::Replica, Self::Object, Self::Event];

    /// The target as metrics name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Replica => "replica",
            Self::Object => "object",
            Self::Event => "event",
        }
    }
}

/// Counts what is written. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Counted>);

#[derive(Debug, Default)]
struct Counted {
    leads: AtomicBool,
    writes: [AtomicU64; WriteTarget::ALL.len()],
    errors: [AtomicU64; WriteTarget::ALL.len()],
}

impl Counters {
    /// Tells whether this replica holds the Lease.
    pub fn is_leader(&self) -> bool {
        self.0.leads.load(Ordering::Relaxed)
    }

    /// How many were written.
    pub fn writes(&self, target: WriteTarget) -> u64 {
        self.0.writes[target as usize].load(Ordering::Relaxed)
    }

    /// How many could not be written.
    pub fn errors(&self, target: WriteTarget) -> u64 {
        self.0.errors[target as usize].load(Ordering::Relaxed)
    }

    fn leads(&self, leads: bool) {
        self.0.leads.store(leads, Ordering::Relaxed);
    }

    fn wrote(&self, target: WriteTarget) {
        self.0.writes[target as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, target: WriteTarget) {
        self.0.errors[target as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Who writes, and where the Lease is.
#[derive(Clone, Debug)]
pub struct StatusSettings {
    /// The namespace of the Lease.
    pub namespace: String,
    /// The Lease.
    pub lease: String,
    /// This replica, unlike all others: the name of its pod.
    pub replica: String,
}

/// The sources of statuses.
#[derive(Debug)]
pub struct Sources {
    /// Events of the streams of this replica.
    pub events: StreamEvents,
    /// Updates that the pipeline tells.
    pub updates: StatusUpdates,
}

/// Writes statuses; ends when `stop` is cancelled, after the Lease was given back if it is ours. It ends before
/// that only where a part of it has failed.
pub async fn write(
    client: Client,
    settings: StatusSettings,
    sources: Sources,
    counters: Counters,
    stop: CancellationToken,
) {
    let StatusSettings { namespace, lease, replica } = settings;
    let Sources { events, updates } = sources;
    let (candidate, leadership) = Candidate::new(&client, &namespace, &lease, &replica, counters.clone());
    let (observed, listed) = (nodes::ObservedNodes::default(), CancellationToken::new());
    let nodes = NodeWriter::new(&client, &replica, observed.clone(), listed.clone(), counters.clone());
    let objects = ObjectWriter::new(&client, Events::new(&client, &replica), counters);
    let mut tasks = JoinSet::new();
    tasks.spawn(nodes.run(events, stop.clone()));
    let mut objects = tokio::spawn(objects.run(updates, observed, listed, leadership, stop.clone()));
    let released = CancellationToken::new();
    tasks.spawn(candidate.run(released.clone()));
    let failed = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        ended = &mut objects => Some(ended),
        Some(ended) = tasks.join_next() => Some(ended),
    };
    if let Some(ended) = failed {
        // Whoever waits for this one hears of it.
        tracing::error!(?ended, "a task that writes statuses has ended by itself");
        objects.abort();
        return;
    }
    // The Lease is given back only when nothing more is written.
    if let Err(error) = objects.await {
        tracing::error!(%error, "the task that writes conditions has failed");
    }
    released.cancel();
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a task that writes statuses has failed");
        }
    }
}

/// The text, or as much of it as fits into `longest` bytes and "…".
fn shorten(text: &str, longest: usize) -> std::borrow::Cow<'_, str> {
    if text.len() <= longest {
        return text.into();
    }
    let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end]).into()
}

/// Sleeps until then; for ever where there is no such time.
async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}
