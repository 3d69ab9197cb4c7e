//! Which nodes lack which resources of what they are due.
//!
//! ```text
//!  replicas: what each node has acknowledged ---+
//!  what is served: what each node is due -------+--difference--> by resource: the nodes that lack it
//! ```
//!
//! Only nodes count whose agents have caught up once. A node that joins (its agent has just begun, or it got
//! its first pod) serves nobody yet: it counts from when it has all that it is due, or after [`JOINS`].
//!
//! Invariants:
//! - A node that counts lacks a resource until it has acknowledged it, by content hash.
//! - Two sketches tell which resources two sets differ in only as long as these are few. Where they can't, a
//!   node lacks what it lacked before, and what has come since; it still has the rest.
//! - What changes of a node costs the resources that it lacked or lacks, and no others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use slotmesh_crds::own::MeshNodeStatus;
use slotmesh_serve::NodeName;
use slotmesh_xds::{Fingerprint, Sketch};
use tokio::time::Instant;

use super::{due::Snapshot, groups::Acknowledged};

/// A node that hasn't caught up after this long counts all the same.
pub(super) const JOINS: Duration = Duration::from_secs(60);

/// The reason of a MeshNode whose agent has not caught up yet.
const SYNCING: &str = "Syncing";

/// The state of a node as its MeshNode tells it, and the replica that has the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ObservedNode {
    /// The agent's acknowledgements; `None` where they aren't told.
    pub(super) acknowledged: Option<Sketch>,
    /// The agent has just begun.
    pub(super) syncing: bool,
    /// Why the node isn't ready, and since when; `None` where it is.
    pub(super) not_ready: Option<(String, Timestamp)>,
    /// The resources that the agent refuses, as `type/name`, and why.
    pub(super) refused: BTreeMap<String, String>,
    /// How many it refuses; not all of them are named.
    pub(super) refused_resources: usize,
}

impl ObservedNode {
    pub(super) fn of(status: &MeshNodeStatus, observed: Option<&Acknowledged>) -> Self {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let not_ready = ready.filter(|ready| ready.status != "True");
        let refused: BTreeMap<_, _> =
            status.refused.iter().map(|one| (one.resource.clone(), one.reason.clone())).collect();
        let refused_resources = status.refused_resources.and_then(|count| usize::try_from(count).ok());
        Self {
            acknowledged: observed.and_then(Acknowledged::sketch),
            syncing: observed.is_some_and(|observed| observed.syncing),
            not_ready: not_ready.map(|ready| (ready.reason.clone(), ready.last_transition_time.0)),
            refused_resources: refused_resources.unwrap_or(refused.len()),
            refused,
        }
    }

    /// The agent has just begun, by whichever of the two is heard of first.
    fn is_syncing(&self) -> bool {
        self.syncing || self.not_ready.as_ref().is_some_and(|(reason, _)| reason == SYNCING)
    }
}

/// The standing of a node: what it lacks counts, or doesn't yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Not yet.
    Joins { since: Instant },
    /// Yes.
    Counts,
}

/// The part that a node lacks of what it is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lacks {
    /// These, when it could be told last.
    these: HashSet<Fingerprint>,
    /// The snapshot by which that was told; 0 for none.
    as_of: u64,
    /// Nobody can tell now: it lacks what has come since, too.
    and_newer: bool,
}

impl Lacks {
    /// When it could be told last, where it can't now.
    fn unsure_since(&self) -> Option<u64> {
        self.and_newer.then_some(self.as_of)
    }
}

#[derive(Clone, Debug)]
struct Node {
    observed: ObservedNode,
    standing: Standing,
    lacks: Lacks,
}

impl Node {
    /// The agent has answered to all that the node is due.
    fn has_caught_up(&self) -> bool {
        !self.lacks.and_newer && self.lacks.these.len() <= self.observed.refused_resources
    }

    fn counts(&self) -> bool {
        self.standing == Standing::Counts
    }
}

/// A resource of an object's.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) print: Fingerprint,
    /// As a MeshNode names it among what is refused.
    pub(super) name: String,
    /// The one node that is due it; `None` where all are that take part.
    pub(super) only: Option<NodeName>,
}

/// Things that may be evaluated otherwise than before.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Objects that have these resources.
    pub(super) prints: HashSet<Fingerprint>,
    /// Everything: the first node counts, or the last one does no longer.
    pub(super) all: bool,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Lacking {
    nodes: BTreeMap<NodeName, Node>,
    /// In step with what objects compiled to: never newer, or something would count as acknowledged that no
    /// longer is due.
    due: Snapshot,
    /// How many snapshots there were.
    epoch: u64,
    /// The resources of objects, and the snapshot with which each came.
    prints: HashMap<Fingerprint, u64>,
    by_epoch: BTreeMap<u64, HashSet<Fingerprint>>,
    /// Of the nodes that count: who lacks what, and of whom it can't be told now, as of when it could.
    by_print: HashMap<Fingerprint, BTreeSet<NodeName>>,
    unsure: BTreeMap<NodeName, u64>,
    /// How many nodes that take part count.
    counting: usize,
    touched: Touched,
}

impl Lacking {
    /// A resource has got its first object.
    pub(super) fn came(&mut self, print: Fingerprint) {
        self.prints.insert(print, self.epoch);
        self.by_epoch.entry(self.epoch).or_default().insert(print);
    }

    /// A resource has lost its last object.
    pub(super) fn went(&mut self, print: Fingerprint) {
        if let Some(epoch) = self.prints.remove(&print)
            && let Some(prints) = self.by_epoch.get_mut(&epoch)
        {
            prints.remove(&print);
            if prints.is_empty() {
                self.by_epoch.remove(&epoch);
            }
        }
    }

    /// Takes in what a MeshNode tells; `None` when it is gone.
    pub(super) fn node(&mut self, name: &NodeName, observed: Option<ObservedNode>, now: Instant) {
        let before = self.nodes.get(name);
        let node = observed.map(|observed| {
            let lacks = self.lacks(name, &observed, before.map(|before| &before.lacks));
            let since = match before.map(|before| before.standing) {
                Some(Standing::Joins { since }) => Some(since),
                Some(Standing::Counts) | None if observed.is_syncing() => Some(now),
                Some(Standing::Counts) => None,
                // Its MeshNode has just been made.
                None => observed.acknowledged.is_none().then_some(now),
            };
            let standing = since.map_or(Standing::Counts, |since| Standing::Joins { since });
            settled(Node { observed, standing, lacks }, now)
        });
        self.replace(name, node);
    }

    /// The nodes are due something else: that to which objects are compiled from now on.
    pub(super) fn served(&mut self, due: Snapshot, now: Instant) {
        let first = self.epoch == 0;
        // As when pods came and went.
        if !first && self.due.is(&due) {
            return;
        }
        let before = std::mem::replace(&mut self.due, due);
        self.epoch += 1;
        self.recount();
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some(mut node) = self.nodes.get(&name).cloned() else { continue };
            node.lacks = self.lacks(&name, &node.observed, Some(&node.lacks));
            let joins = !first && self.due.nodes().contains(&name) && !before.nodes().contains(&name);
            if joins && node.counts() {
                node.standing = Standing::Joins { since: now };
            }
            self.replace(&name, Some(settled(node, now)));
        }
    }

    /// Nodes that have been joining for too long count from now on; when to ask again.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Instant> {
        let joining: Vec<(NodeName, Instant)> = self
            .nodes
            .iter()
            .filter_map(|(name, node)| match node.standing {
                Standing::Joins { since } => Some((name.clone(), since + JOINS)),
                Standing::Counts => None,
            })
            .collect();
        for (name, _) in joining.iter().filter(|(_, until)| *until <= now) {
            if let Some(node) = self.nodes.get(name).cloned() {
                self.replace(name, Some(settled(node, now)));
            }
        }
        joining.into_iter().map(|(_, until)| until).filter(|until| *until > now).min()
    }

    /// Things that may be evaluated otherwise since the last call.
    pub(super) fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Tells whether a node counts, of all that are due these.
    pub(super) fn is_due_to_any(&self, parts: &[Part]) -> bool {
        parts.iter().any(|part| match &part.only {
            None => self.counting > 0,
            Some(only) => self.nodes.get(only).is_some_and(Node::counts),
        })
    }

    /// The nodes that lack some of these, and what.
    pub(super) fn of<'p>(&self, parts: &'p [Part]) -> BTreeMap<&NodeName, Vec<&'p Part>> {
        let mut lacking: BTreeMap<&NodeName, Vec<&Part>> = BTreeMap::new();
        for part in parts {
            let epoch = self.prints.get(&part.print).copied().unwrap_or(u64::MAX);
            let known = self.by_print.get(&part.print).into_iter().flatten();
            let unsure = self.unsure.iter().filter(|(_, as_of)| epoch > **as_of).map(|(node, _)| node);
            let due = |node: &&NodeName| match &part.only {
                None => self.due.nodes().contains(node),
                Some(only) => only == *node,
            };
            let nodes: BTreeSet<&NodeName> = known.chain(unsure).filter(due).collect();
            nodes.into_iter().for_each(|node| lacking.entry(node).or_default().push(part));
        }
        lacking
    }

    /// How many of the nodes for which these are alone have no agent that counts.
    pub(super) fn without_agent(&self, parts: &[Part]) -> usize {
        let only: BTreeSet<&NodeName> = parts.iter().filter_map(|part| part.only.as_ref()).collect();
        only.into_iter().filter(|only| !self.nodes.get(*only).is_some_and(Node::counts)).count()
    }

    /// The state of a node as its MeshNode told it last.
    pub(super) fn observed(&self, node: &NodeName) -> Option<&ObservedNode> {
        self.nodes.get(node).map(|node| &node.observed)
    }

    fn lacks(&self, name: &NodeName, observed: &ObservedNode, before: Option<&Lacks>) -> Lacks {
        let due = self.due.of(name);
        let difference = observed.acknowledged.as_ref().map(|acknowledged| due.difference(acknowledged));
        match difference {
            Some(Ok(difference)) => {
                let these = difference.first.into_iter().collect();
                Lacks { these, as_of: self.epoch, and_newer: false }
            }
            Some(Err(_)) | None => Lacks { and_newer: true, ..before.cloned().unwrap_or_default() },
        }
    }

    /// Puts a node in the place of what it was, and notes what that touches.
    fn replace(&mut self, name: &NodeName, node: Option<Node>) {
        let before = match &node {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => self.nodes.remove(name),
        };
        let (before, now) = (before.filter(Node::counts), node.filter(Node::counts));
        if before.is_some() != now.is_some() && self.due.nodes().contains(name) {
            self.count(if now.is_some() { self.counting + 1 } else { self.counting.saturating_sub(1) });
        }
        // Why it lacks something is part of the message.
        let why = |node: &Option<Node>| {
            node.as_ref().map(|node| (node.observed.not_ready.clone(), node.observed.refused.clone()))
        };
        let explained = before.is_some() && now.is_some() && why(&before) != why(&now);
        let unsure = |node: &Option<Node>| node.as_ref().and_then(|node| node.lacks.unsure_since());
        let (unsure_before, unsure_now) = (unsure(&before), unsure(&now));
        let (before, now) = [before, now].map(|n| n.map(|n| n.lacks.these).unwrap_or_default()).into();
        for print in before.symmetric_difference(&now) {
            let nodes = self.by_print.entry(*print).or_default();
            if now.contains(print) {
                nodes.insert(name.clone());
            } else {
                nodes.remove(name);
            }
            if nodes.is_empty() {
                self.by_print.remove(print);
            }
            self.touched.prints.insert(*print);
        }
        match unsure_now {
            Some(since) => self.unsure.insert(name.clone(), since),
            None => self.unsure.remove(name),
        };
        if explained {
            self.touched.prints.extend(now);
        }
        if let Some(since) = [unsure_before, unsure_now].into_iter().flatten().min()
            && (unsure_before != unsure_now || explained)
        {
            let newer = self.by_epoch.range(since + 1..).flat_map(|(_, prints)| prints);
            self.touched.prints.extend(newer.copied());
        }
    }

    /// Other nodes take part than before.
    fn recount(&mut self) {
        let due = self.due.nodes();
        let counting = self.nodes.iter().filter(|(name, node)| node.counts() && due.contains(name)).count();
        self.count(counting);
    }

    fn count(&mut self, counting: usize) {
        self.touched.all |= (counting == 0) != (self.counting == 0);
        self.counting = counting;
    }
}

/// A node that has caught up counts, and one that had time enough to.
fn settled(node: Node, now: Instant) -> Node {
    let overdue = |since: Instant| now.saturating_duration_since(since) >= JOINS;
    match node.standing {
        Standing::Joins { since } if node.has_caught_up() || overdue(since) => {
            Node { standing: Standing::Counts, ..node }
        }
        Standing::Joins { .. } | Standing::Counts => node,
    }
}
