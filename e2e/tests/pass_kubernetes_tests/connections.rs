//! Which Services slotmesh routed connections to, while the tests ran.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use slotmesh_cluster::Cluster;

use crate::mesh::SYSTEM;

/// Services that slotmesh routed connections to, seen while they are there.
pub struct Connections {
    ended: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<String>>>,
    thread: JoinHandle<()>,
}

impl Connections {
    /// Looks at the agents' metrics until it is stopped.
    pub fn watch(cluster: &Cluster) -> Result<Self> {
        let agents = cluster.kubectl(&[
            "get",
            "pods",
            "--namespace",
            SYSTEM,
            "--selector",
            "app.kubernetes.io/component=agent",
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ])?;
        let agents: Vec<SocketAddr> = agents
            .split_whitespace()
            .map(|address| Ok(SocketAddr::new(address.parse()?, 15020)))
            .collect::<Result<_>>()?;
        let (ended, seen) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<BTreeSet<_>>>::default());
        let (until, into) = (ended.clone(), seen.clone());
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            while !until.load(Ordering::Relaxed) {
                for agent in &agents {
                    // A busy one answers next time.
                    let Ok(answer) = ureq::get(format!("http://{agent}/metrics")).call() else { continue };
                    let text = answer.into_body().read_to_string().unwrap_or_default();
                    let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                    seen.extend(text.lines().filter_map(routed));
                }
                thread::sleep(Duration::from_millis(500));
            }
        })?;
        Ok(Self { ended, seen, thread })
    }

    /// How many Services there were.
    pub async fn stop(self) -> Result<usize> {
        self.ended.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || self.thread.join()).await?.ok().context("the thread panicked")?;
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).len())
    }
}

/// The cluster of a line of metrics that tells of connections.
fn routed(line: &str) -> Option<String> {
    let rest = line.strip_prefix("slotmesh_agent_cluster_connections_total{cluster=\"")?;
    let (cluster, value) = rest.split_once("\"}")?;
    let value: f64 = value.trim().parse().ok()?;
    (value > 0.0).then(|| cluster.to_owned())
}
