//! Writes the MeshNode of each node whose stream this replica holds, and one MeshReplica, of what their agents have
//! acknowledged; all replicas do, each for its own.
//!
//! ```text
//!  store --events--> NodeStatusReconciler
//!                   | ^ acknowledged --> server-side apply --> MeshReplica --watch--> Replicas, and whoever
//!                   | ^ decide --------> server-side apply --> MeshNode ----watch--> records, writes conditions
//!                   +-+------------------ records, sessions <------------------------+
//! ```
//!
//! Invariants: what is written carries the resource version of the record that it was decided on, so a
//! replica that lags behind writes nothing; it is compared before it is written; and a MeshNode belongs
//! to its Node and goes with it. What nobody waits for (numbers) keeps nothing waiting. A change that all agents
//! acknowledge costs one write, however many they are.

use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    time::Duration,
};

use futures::StreamExt as _;
use k8s_openapi::{api::core::v1::Node, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use kube_runtime::{
    WatchStreamExt as _,
    watcher::{self, Event},
};
use serde_json::json;
use slotmesh_crds::own::{GROUP, MeshNode, MeshNodeStatus, MeshReplica, VERSION};
use slotmesh_serve::{NodeName, StreamEvents};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Counters, MANAGER, PATIENCE, WriteError, WriteTarget,
    coalescing_queue::CoalescingQueue,
    groups,
    programmed::ObservedNode,
    rate_limited_queue::{Limits, RateLimitedQueue},
    reconciler::{NodeStatusReconciler, StatusAction, Urgency},
    replicas::{ReplicaObject, Replicas},
    until,
};
use crate::retry::Retry;

const SOON: Duration = Duration::from_millis(100);
const LAZY: Duration = Duration::from_secs(3);
/// An agent whose stream ends comes back within this time, unless it is gone.
const GRACE: Duration = Duration::from_secs(5);
/// How long MeshReplicas that tell nothing any more are kept.
const TIDY: Duration = Duration::from_secs(10);

/// A thing that is written, or looked through.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    /// The MeshReplica of this process.
    Replica,
    /// A MeshNode.
    Node(NodeName),
    /// The MeshReplicas of processes that are gone.
    Others,
}

/// How fast both are written, together.
const LIMITS: Limits = Limits {
    interval: Duration::from_millis(50),
    burst: 50,
    rest: Duration::from_millis(500),
    again: Duration::from_secs(1),
};

/// Nodes as they are told to whoever writes conditions; `None` where one is gone.
pub(super) type ObservedNodes = CoalescingQueue<NodeName, Option<ObservedNode>>;

struct Record {
    version: Option<String>,
    status: MeshNodeStatus,
}

/// The task's state.
pub(super) struct NodeWriter {
    api: Api<MeshNode>,
    nodes: Api<Node>,
    object: ReplicaObject,
    reconciler: NodeStatusReconciler,
    queue: RateLimitedQueue<Key>,
    records: HashMap<NodeName, Record>,
    replicas: Replicas,
    /// Those of the lists under way.
    listed: Option<HashSet<NodeName>>,
    listed_replicas: Option<HashSet<String>>,
    /// Which lists are complete.
    has_nodes: bool,
    has_replicas: bool,
    observed: ObservedNodes,
    /// Cancelled once all MeshNodes and MeshReplicas have been listed.
    synced: CancellationToken,
    counters: Counters,
}

impl NodeWriter {
    pub(super) fn new(
        client: &Client,
        replica: &str,
        observed: ObservedNodes,
        synced: CancellationToken,
        counters: Counters,
    ) -> Self {
        Self {
            api: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            object: ReplicaObject::new(client, replica),
            reconciler: NodeStatusReconciler::new(replica),
            queue: RateLimitedQueue::new(LIMITS),
            records: HashMap::new(),
            replicas: Replicas::default(),
            listed: None,
            listed_replicas: None,
            has_nodes: false,
            has_replicas: false,
            observed,
            synced,
            counters,
        }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, mut feed: StreamEvents, stop: CancellationToken) {
        let events = watcher::watcher(self.api.clone(), watcher::Config::default()).backoff(Retry::default());
        let mut events = pin!(events);
        let replicas = watcher::watcher(self.object.api.clone(), watcher::Config::default());
        let mut replicas = pin!(replicas.backoff(Retry::default()));
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(event)) => self.observe(event),
                    Some(Err(error)) => warn!(%error, "MeshNodes can't be watched; trying again"),
                    None => return,
                },
                event = replicas.next() => match event {
                    Some(Ok(event)) => self.observe_replicas(event),
                    Some(Err(error)) => warn!(%error, "MeshReplicas can't be watched; trying again"),
                    None => return,
                },
                news = feed.next() => {
                    let now = Timestamp::now();
                    for one in news {
                        let key = Key::Node(one.status.node.clone());
                        match self.reconciler.observe(one, seconds(now)) {
                            Urgency::Soon => self.queue.add(&key, Instant::now(), SOON),
                            Urgency::Lazy => self.queue.add_idle(&key, Instant::now(), LAZY),
                            Urgency::AfterGrace => self.queue.add(&key, Instant::now(), GRACE),
                            Urgency::None => {}
                        }
                    }
                }
                // Before the lists are complete nobody knows what is recorded.
                () = until(self.queue.next()), if self.synced.is_cancelled() => {
                    match self.queue.pop(Instant::now()) {
                        Some(Key::Node(node)) => self.look(&node).await,
                        Some(Key::Replica) => self.tell().await,
                        Some(Key::Others) => self.tidy().await,
                        None => {}
                    }
                }
            }
            if self.reconciler.take_moved() {
                self.queue.add(&Key::Replica, Instant::now(), SOON);
            }
        }
    }

    fn is_listed(&mut self) {
        if self.has_nodes && self.has_replicas && !self.synced.is_cancelled() {
            debug!(nodes = self.records.len(), "all MeshNodes and MeshReplicas are listed");
            self.synced.cancel();
        }
    }

    /// Tells whoever writes conditions of a node.
    fn tell_of(&self, node: &NodeName) {
        let observed =
            self.records.get(node).map(|record| ObservedNode::of(&record.status, self.replicas.of(node)));
        self.observed.put([(node.clone(), observed)]);
    }

    fn observe_replicas(&mut self, event: Event<MeshReplica>) {
        match event {
            Event::Init => self.listed_replicas = Some(HashSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                if let Some(listed) = &mut self.listed_replicas {
                    listed.insert(object.name_any());
                }
                self.replica(&object.name_any(), Some(&object));
            }
            Event::InitDone => {
                let listed = self.listed_replicas.take().unwrap_or_default();
                let gone: Vec<_> =
                    self.replicas.names().filter(|name| !listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.replica(name, None));
                self.has_replicas = true;
                self.is_listed();
                self.queue.add_idle(&Key::Others, Instant::now(), TIDY);
            }
            Event::Delete(object) => self.replica(&object.name_any(), None),
        }
    }

    fn replica(&mut self, name: &str, object: Option<&MeshReplica>) {
        let version = object.and_then(|object| object.metadata.resource_version.as_deref());
        // The watch comes after what we wrote ourselves.
        let ours = self.replicas.version(name).flatten();
        if object.is_some() && older(version, ours) {
            return;
        }
        let changed = self.replicas.observe(name, object);
        changed.iter().filter(|node| self.records.contains_key(*node)).for_each(|node| self.tell_of(node));
    }

    /// Tells what the agents have acknowledged.
    async fn tell(&mut self) {
        let status = groups::render(self.reconciler.acknowledged());
        let name = self.object.name().to_owned();
        let version = self.replicas.version(&name);
        if self.replicas.tells(&name, &groups::read(&status)) {
            return self.queue.skip(&Key::Replica);
        }
        match self.object.write(&status, version).await {
            Ok(object) => {
                self.counters.wrote(WriteTarget::Replica);
                self.queue.done(&Key::Replica, Instant::now());
                self.replica(&name, Some(&object));
            }
            Err(error) => {
                if !matches!(error, WriteError::Conflict) {
                    self.counters.failed(WriteTarget::Replica);
                    warn!(%error, "the MeshReplica can't be written; trying again");
                }
                // Perhaps it was deleted, or a write that nobody answered was done after all.
                if let Ok(object) = self.object.read().await {
                    self.replicas.forget(&name);
                    self.replica(&name, object.as_ref());
                }
                self.queue.retry(&Key::Replica, Instant::now());
            }
        }
    }

    /// Deletes what processes have told that are gone, once all their nodes are another's. The leader does.
    async fn tidy(&mut self) {
        let counts = |node: &NodeName, session: u64| {
            let holder = self.records.get(node).and_then(|record| record.status.holder.as_ref());
            holder.is_some_and(|holder| holder.session <= session)
        };
        let over = self.replicas.superseded(self.object.name(), counts);
        self.queue.skip(&Key::Others);
        if over.is_empty() {
            return;
        }
        if self.counters.is_leader() {
            for (name, version) in over {
                match self.object.delete(&name, version).await {
                    Ok(()) => debug!(name, "deleted a MeshReplica that told nothing any more"),
                    Err(error) => debug!(name, %error, "the MeshReplica isn't deleted yet"),
                }
            }
        }
        self.queue.add_idle(&Key::Others, Instant::now(), TIDY);
    }

    fn observe(&mut self, event: Event<MeshNode>) {
        match event {
            Event::Init => self.listed = Some(HashSet::new()),
            Event::InitApply(object) | Event::Apply(object) => {
                let node = NodeName::from(object.name_any());
                if let Some(listed) = &mut self.listed {
                    listed.insert(node.clone());
                }
                self.record(node, object);
            }
            Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<_> =
                    self.records.keys().filter(|node| !listed.contains(*node)).cloned().collect();
                gone.iter().for_each(|node| self.gone(node));
                self.has_nodes = true;
                self.is_listed();
            }
            Event::Delete(object) => self.gone(&NodeName::from(object.name_any())),
        }
    }

    fn record(&mut self, node: NodeName, object: MeshNode) {
        let version = object.metadata.resource_version;
        // The watch comes after what we wrote ourselves.
        if self.records.get(&node).is_some_and(|known| older(version.as_deref(), known.version.as_deref())) {
            return;
        }
        let record = Record { version, status: object.status.unwrap_or_default() };
        let holder = |record: &Record| record.status.holder.clone();
        let moved = self.records.get(&node).map(holder) != Some(holder(&record));
        self.records.insert(node.clone(), record);
        self.tell_of(&node);
        if self.reconciler.knows(&node) {
            self.queue.add(&Key::Node(node), Instant::now(), SOON);
        }
        if moved {
            self.queue.add_idle(&Key::Others, Instant::now(), TIDY);
        }
    }

    fn gone(&mut self, node: &NodeName) {
        self.records.remove(node);
        self.reconciler.gone(node);
        self.tell_of(node);
        self.queue.add_idle(&Key::Others, Instant::now(), TIDY);
        let key = Key::Node(node.clone());
        if self.reconciler.knows(node) {
            self.queue.add(&key, Instant::now(), SOON);
        } else {
            self.queue.forget(&key);
        }
    }

    async fn look(&mut self, node: &NodeName) {
        let (record, key) = (self.records.get(node), Key::Node(node.clone()));
        let (known, now) = (self.replicas.session(node), seconds(Timestamp::now()));
        let status = match self.reconciler.decide(node, record.map(|record| &record.status), known, now) {
            StatusAction::None => return self.queue.skip(&key),
            StatusAction::Drop => return self.queue.forget(&key),
            StatusAction::Write(status) => status,
        };
        let version = record.map(|record| record.version.clone());
        match self.write(node, &status, version).await {
            Ok(object) => {
                self.counters.wrote(WriteTarget::Node);
                self.reconciler.wrote(node, &status);
                self.queue.done(&key, Instant::now());
                self.record(node.clone(), object);
            }
            Err(WriteError::Conflict) => {
                debug!(%node, "the MeshNode has changed meanwhile");
                self.reread(node).await;
                self.queue.retry(&key, Instant::now());
            }
            Err(error) => {
                self.counters.failed(WriteTarget::Node);
                warn!(%node, %error, "the MeshNode can't be written; trying again");
                self.queue.retry(&key, Instant::now());
            }
        }
    }

    /// `version` is that of the record; `None` where there is no MeshNode yet.
    async fn write(
        &self,
        node: &NodeName,
        status: &MeshNodeStatus,
        version: Option<Option<String>>,
    ) -> Result<MeshNode, WriteError> {
        let params = PatchParams::apply(MANAGER).force();
        let version = match version {
            Some(version) => version,
            None => self.create(node, &params).await?,
        };
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "MeshNode",
            "metadata": {"name": node.as_str(), "resourceVersion": version},
            "status": status,
        });
        let patch = Patch::Apply(&object);
        let write = self.api.patch_status(node.as_str(), &params, &patch);
        Ok(tokio::time::timeout(PATIENCE, write).await??)
    }

    /// Creates the MeshNode of a Node, whose it is.
    async fn create(&self, node: &NodeName, params: &PatchParams) -> Result<Option<String>, WriteError> {
        let read = tokio::time::timeout(PATIENCE, self.nodes.get_opt(node.as_str())).await??;
        let uid = read.and_then(|node| node.metadata.uid).ok_or_else(|| WriteError::NoNode(node.clone()))?;
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "MeshNode",
            "metadata": {
                "name": node.as_str(),
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": uid}],
            },
        });
        let patch = Patch::Apply(&object);
        let create = self.api.patch(node.as_str(), params, &patch);
        let created = tokio::time::timeout(PATIENCE, create).await??;
        info!(%node, "made its MeshNode");
        Ok(created.metadata.resource_version)
    }

    /// Another replica was faster: see what it wrote.
    async fn reread(&mut self, node: &NodeName) {
        match tokio::time::timeout(PATIENCE, self.api.get_opt(node.as_str())).await {
            Ok(Ok(Some(object))) => self.record(node.clone(), object),
            Ok(Ok(None)) => self.gone(node),
            // It comes again.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Tells whether one resource version of an object came before another. They are numbers that only rise (KEP-5504).
fn older(version: Option<&str>, known: Option<&str>) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    number(version).zip(number(known)).is_some_and(|(version, known)| version < known)
}

/// The part of a moment that a status shows.
fn seconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(moment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_versions_are_numbers() {
        assert!(older(Some("9"), Some("10")));
        assert!(!older(Some("10"), Some("10")) && !older(Some("10"), Some("9")));
        assert!(!older(None, Some("9")) && !older(Some("odd"), Some("9")));
    }
}
