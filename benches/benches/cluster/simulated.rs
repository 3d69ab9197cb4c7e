//! Agents without a kernel: real streams over TLS with tokens, of the product's own client, whose content is
//! counted and dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use slotmesh_ads::{Backoff, Client, Config, Sink, Subscription, Tls, Update};
use slotmesh_xds::{Rejection, ResourceName, ResourceType, Version};
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::world::{SERVER, World};

/// What all simulated agents have seen.
#[derive(Debug)]
struct Board {
    epoch: Instant,
    /// Agents in sync.
    synced: AtomicUsize,
    /// Resources, of all types and agents.
    resources: AtomicUsize,
    /// Updates of endpoints.
    updates: AtomicUsize,
    /// Updates of clusters.
    clusters: AtomicUsize,
    /// When the last of any of these came, in nanoseconds since the epoch.
    last: AtomicU64,
}

impl Board {
    fn noted(&self, count: &AtomicUsize, more: usize) {
        self.last.store(self.epoch.elapsed().as_nanos() as u64, Ordering::Relaxed);
        count.fetch_add(more, Ordering::Release);
    }
}

struct Counting(Arc<Board>);

impl Sink for Counting {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        Vec::new()
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        self.0.noted(&self.0.resources, update.upserts.len());
        match update.ty {
            ResourceType::Endpoints if !update.upserts.is_empty() => self.0.noted(&self.0.updates, 1),
            ResourceType::Cluster if !update.upserts.is_empty() => self.0.noted(&self.0.clusters, 1),
            _ => {}
        }
        Vec::new()
    }

    fn synced(&self) {
        self.0.noted(&self.0.synced, 1);
    }
}

/// Simulated agents. They disconnect when this is dropped.
pub struct Simulated {
    board: Arc<Board>,
    count: usize,
    _stop: DropGuard,
}

impl Simulated {
    /// Connects the agents of these nodes, all at once, as often as it takes.
    pub fn connect(world: &World, nodes: &[String]) -> Result<Self> {
        let board = Arc::new(Board {
            epoch: Instant::now(),
            synced: AtomicUsize::new(0),
            resources: AtomicUsize::new(0),
            updates: AtomicUsize::new(0),
            clusters: AtomicUsize::new(0),
            last: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        for node in nodes {
            let tls = Tls::new(&world.url(), world.ca())?;
            let tls = tls.with_token(world.token(node)).with_server_name(SERVER);
            // Few agents wait for an operator that is about to start; many take their time.
            let max = Duration::from_millis(20 * nodes.len() as u64);
            let backoff = Backoff { initial: Duration::from_millis(20), max };
            let config = Config { backoff, ..Config::new(node.as_str()) };
            let (client, handle) = Client::new(config, tls, Counting(board.clone()));
            for ty in ResourceType::ALL {
                let wanted = match ty {
                    ResourceType::Settings => [node.as_str()].into_iter().collect(),
                    _ => Subscription::Wildcard,
                };
                handle.set(ty, wanted);
            }
            tokio::spawn(client.run(stop.clone()));
        }
        Ok(Self { board, count: nodes.len(), _stop: stop.drop_guard() })
    }

    /// Waits until all are in sync: when the last was.
    pub async fn synced(&self) -> Result<Instant> {
        self.reached(&self.board.synced, self.count).await
    }

    /// How many resources came.
    pub fn resources(&self) -> usize {
        self.board.resources.load(Ordering::Acquire)
    }

    /// How many updates of endpoints came.
    pub fn updates(&self) -> usize {
        self.board.updates.load(Ordering::Acquire)
    }

    /// Waits until each agent got one update of endpoints more than there were: when the last did.
    pub async fn updated(&self, before: usize) -> Result<Instant> {
        self.reached(&self.board.updates, before + self.count).await
    }

    /// How many updates of clusters came.
    pub fn cluster_updates(&self) -> usize {
        self.board.clusters.load(Ordering::Acquire)
    }

    /// Waits until each agent got one update of clusters more than there were: when the last did.
    pub async fn clusters_updated(&self, before: usize) -> Result<Instant> {
        self.reached(&self.board.clusters, before + self.count).await
    }

    async fn reached(&self, count: &AtomicUsize, wanted: usize) -> Result<Instant> {
        // Ten of them are let in a second; and what 10,000 Services make takes each its time.
        const PATIENCE: Duration = Duration::from_secs(1_200);
        let started = Instant::now();
        while count.load(Ordering::Acquire) < wanted {
            let now = count.load(Ordering::Acquire);
            ensure!(started.elapsed() < PATIENCE, "{now} of {wanted} after {PATIENCE:?}");
            sleep(Duration::from_millis(1)).await;
        }
        Ok(self.board.epoch + Duration::from_nanos(self.board.last.load(Ordering::Relaxed)))
    }
}
