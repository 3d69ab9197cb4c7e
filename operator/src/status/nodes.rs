//! Writes the MeshNode of each node whose stream this replica holds; all replicas do, each for its own.
//!
//! ```text
//!  store --news--> Desk --decide--> server-side apply --> MeshNode --watch--> records, and whoever
//!                   ^                                                         writes conditions
//!                   +------------------ records <------------------------------+
//! ```
//!
//! Invariants: what is written carries the resource version of the record that it was decided on, so a
//! replica that lags behind writes nothing; it is compared before it is written; and a MeshNode belongs
//! to its Node and goes with it.

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
use slotmesh_crds::own::{GROUP, MeshNode, MeshNodeStatus, VERSION};
use slotmesh_serve::{Feed, NodeName};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Counters, MANAGER, PATIENCE, Target, WriteError,
    desk::{Action, Desk, Urgency},
    mailbox::Mailbox,
    pace::{Limits, Pace},
    until,
    verdicts::Told,
};
use crate::retry::Retry;

const SOON: Duration = Duration::from_millis(100);
const LAZY: Duration = Duration::from_secs(3);
/// An agent whose stream ends comes back within this time, unless it is gone.
const GRACE: Duration = Duration::from_secs(5);

/// How fast MeshNodes are written.
const LIMITS: Limits = Limits {
    interval: Duration::from_millis(50),
    burst: 50,
    rest: Duration::from_millis(500),
    again: Duration::from_secs(1),
};

/// What is said of a node to whoever writes conditions; `None` where it is gone.
pub(super) type Nodes = Mailbox<NodeName, Option<Told>>;

struct Record {
    version: Option<String>,
    status: MeshNodeStatus,
}

/// The task's state.
pub(super) struct NodeWriter {
    api: Api<MeshNode>,
    nodes: Api<Node>,
    desk: Desk,
    pace: Pace<NodeName>,
    records: HashMap<NodeName, Record>,
    /// Those of the list under way.
    listed: Option<HashSet<NodeName>>,
    told: Nodes,
    /// Cancelled once all MeshNodes have been listed.
    synced: CancellationToken,
    counters: Counters,
}

impl NodeWriter {
    pub(super) fn new(
        client: &Client,
        replica: &str,
        told: Nodes,
        synced: CancellationToken,
        counters: Counters,
    ) -> Self {
        Self {
            api: Api::all(client.clone()),
            nodes: Api::all(client.clone()),
            desk: Desk::new(replica),
            pace: Pace::new(LIMITS),
            records: HashMap::new(),
            listed: None,
            told,
            synced,
            counters,
        }
    }

    /// Runs until `stop`.
    pub(super) async fn run(mut self, mut feed: Feed, stop: CancellationToken) {
        let events = watcher::watcher(self.api.clone(), watcher::Config::default()).backoff(Retry::default());
        let mut events = pin!(events);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                event = events.next() => match event {
                    Some(Ok(event)) => self.observe(event),
                    Some(Err(error)) => warn!(%error, "MeshNodes can't be watched; trying again"),
                    None => return,
                },
                news = feed.next() => {
                    let now = Timestamp::now();
                    for one in news {
                        let node = one.status.node.clone();
                        let delay = match self.desk.news(one, seconds(now)) {
                            Urgency::Soon => SOON,
                            Urgency::Lazy => LAZY,
                            Urgency::AfterGrace => GRACE,
                            Urgency::None => continue,
                        };
                        self.pace.want(&node, Instant::now(), delay);
                    }
                }
                // Before the list is complete nobody knows what is recorded.
                () = until(self.pace.next()), if self.synced.is_cancelled() => {
                    if let Some(node) = self.pace.pop(Instant::now()) {
                        self.look(&node).await;
                    }
                }
            }
        }
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
                if !self.synced.is_cancelled() {
                    debug!(nodes = self.records.len(), "all MeshNodes are listed");
                    self.synced.cancel();
                }
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
        self.told.put([(node.clone(), Some(Told::of(&record.status)))]);
        self.records.insert(node.clone(), record);
        if self.desk.knows(&node) {
            self.pace.want(&node, Instant::now(), SOON);
        }
    }

    fn gone(&mut self, node: &NodeName) {
        self.records.remove(node);
        self.desk.gone(node);
        self.told.put([(node.clone(), None)]);
        if self.desk.knows(node) {
            self.pace.want(node, Instant::now(), SOON);
        } else {
            self.pace.forget(node);
        }
    }

    async fn look(&mut self, node: &NodeName) {
        let record = self.records.get(node);
        let status =
            match self.desk.decide(node, record.map(|record| &record.status), seconds(Timestamp::now())) {
                Action::Rest => return self.pace.idle(node),
                Action::Forget => return self.pace.forget(node),
                Action::Write(status) => status,
            };
        let version = record.map(|record| record.version.clone());
        match self.write(node, &status, version).await {
            Ok(object) => {
                self.counters.wrote(Target::Node);
                self.desk.wrote(node, &status);
                self.pace.wrote(node, Instant::now());
                self.record(node.clone(), object);
            }
            Err(WriteError::Conflict) => {
                debug!(%node, "the MeshNode has changed meanwhile");
                self.reread(node).await;
                self.pace.failed(node, Instant::now());
            }
            Err(error) => {
                self.counters.failed(Target::Node);
                warn!(%node, %error, "the MeshNode can't be written; trying again");
                self.pace.failed(node, Instant::now());
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

/// Whether one resource version of an object came before another. They are numbers that only rise (KEP-5504).
fn older(version: Option<&str>, known: Option<&str>) -> bool {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    number(version).zip(number(known)).is_some_and(|(version, known)| version < known)
}

/// What a status shows of a moment.
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
