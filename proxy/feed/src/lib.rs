//! Resources and sockets for the proxy of a node, from its agent and its socket broker.
//!
//! ```text
//!  agent  --delta ADS: clusters, endpoints, routes, listeners--> ResourceSink --> engine
//!         --delta ADS: pods (Workload)-------------------------> ResourceSink --listener of the pod--> engine
//!  broker --listeners and sockets of pods, SCM_RIGHTS----------> PodSockets   --sockets to dial with--> engine
//! ```
//!
//! Invariants: a resource that is acknowledged is in force on all workers; one that is refused leaves the one before in
//! force; while agent or broker are away, everything that is in force stays so. When a pod is taken back, nothing here
//! keeps its network namespace alive.

mod broker;
mod exposition;
mod pods;
mod sink;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use exposition::FeedMetrics;
pub use pods::PodSockets;
pub use sink::ResourceSink;
use slotmesh_ads::{Backoff, Client, Config, FromStreams, Handle, Subscription};
use slotmesh_xds::ResourceType;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// The resource types that a proxy takes.
const TYPES: [ResourceType; 5] = [
    ResourceType::Cluster,
    ResourceType::Endpoints,
    ResourceType::Route,
    ResourceType::Listener,
    ResourceType::Workload,
];

/// Follows the agent behind a Unix socket until `stop` is cancelled; whenever it is away it is connected to again. Its
/// counters are read through the handle.
pub fn follow_agent(
    socket: PathBuf,
    sink: ResourceSink,
    stop: CancellationToken,
) -> (impl Future<Output = ()> + Send, Handle) {
    let socket: Arc<PathBuf> = Arc::new(socket);
    let connector = FromStreams::new(move || {
        let socket = socket.clone();
        async move { UnixStream::connect(&*socket).await }
    });
    let config = Config {
        backoff: Backoff { initial: Duration::from_millis(50), max: Duration::from_secs(2) },
        ask_again: Backoff { initial: Duration::from_millis(200), max: Duration::from_secs(5) },
        // An agent says nothing until it knows everything itself.
        answer_timeout: Duration::from_secs(600),
        ..Config::new("proxy")
    };
    let (client, handle) = Client::new(config, connector, sink);
    for ty in TYPES {
        handle.set(ty, Subscription::Wildcard);
    }
    (client.run(stop), handle)
}
