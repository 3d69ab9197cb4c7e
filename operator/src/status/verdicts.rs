//! What stands in the status of each object: what the compiler says, and whether every node has it.
//!
//! ```text
//!  compiler --conditions--> objects ---+
//!  what is served --due--> nodes       +--judge--> Verdict
//!  MeshNodes --acknowledged--> nodes --+
//! ```
//!
//! A node lacks what it is due and hasn't acknowledged, by content hash; that difference is read from two
//! sketches of fixed size. An object is programmed when none of its resources, in the version that it has
//! now, is lacked by a node that is due it.
//!
//! Invariants: `Programmed` is true only if every such node has acknowledged exactly these versions. Where
//! it can't be told what a node lacks (it has just begun), it counts as lacking everything. A node's
//! acknowledgement costs the objects of what it lacks no more; nothing is scanned but the nodes, when what
//! is served has changed, which is due to each of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use k8s_openapi::jiff::Timestamp;
use slotmesh_compile::{Ancestor, At, ConditionType, Conditions, Kind, ObjectKey};
use slotmesh_crds::own::MeshNodeStatus;
use slotmesh_serve::NodeName;
use slotmesh_xds::{Fingerprint, ResourceType, Sketch, Version};

use super::due::Snapshot;

/// How many nodes a message names.
const NAMED: usize = 5;

/// What a node's MeshNode tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Told {
    /// What the agent has acknowledged; `None` where that can't be read.
    pub(super) acknowledged: Option<Sketch>,
    /// Why the node isn't ready, and since when; `None` where it is.
    pub(super) not_ready: Option<(String, Timestamp)>,
    /// What the agent refuses, as `type/name`, and why.
    pub(super) refused: BTreeMap<String, String>,
}

impl Told {
    pub(super) fn of(status: &MeshNodeStatus) -> Self {
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let not_ready = ready.filter(|ready| ready.status != "True");
        Self {
            acknowledged: status.acknowledged.as_deref().and_then(|text| text.parse().ok()),
            not_ready: not_ready.map(|ready| (ready.reason.clone(), ready.last_transition_time.0)),
            refused: status.refused.iter().map(|one| (one.resource.clone(), one.reason.clone())).collect(),
        }
    }
}

/// What a node lacks of what it is due.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Lacks {
    /// Exactly these.
    These(HashSet<Fingerprint>),
    /// Nobody can tell: perhaps everything.
    Unknown,
}

impl Lacks {
    fn contains(&self, print: &Fingerprint) -> bool {
        match self {
            Self::These(prints) => prints.contains(print),
            Self::Unknown => true,
        }
    }
}

#[derive(Debug)]
struct Node {
    told: Told,
    lacks: Lacks,
}

/// A resource that an object takes part in.
#[derive(Clone, Debug)]
struct Part {
    print: Fingerprint,
    /// As a MeshNode names it among what is refused.
    name: String,
    /// The one node that is due it; `None` where all are that take part.
    only: Option<NodeName>,
}

#[derive(Debug)]
struct Object {
    conditions: Conditions,
    /// For each ancestor.
    parts: Vec<Vec<Part>>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    True,
    False,
    Unknown,
}

impl Truth {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A condition as it is to be written, but for its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) ty: &'static str,
    pub(super) truth: Truth,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What is to be said of an object at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: Option<At>,
    pub(super) conditions: Vec<Said>,
}

/// How many nodes are due what an object compiled to, and have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) due: usize,
    pub(super) have: usize,
}

/// What is to be said of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) generation: Option<i64>,
    pub(super) places: Vec<Place>,
    pub(super) nodes: Count,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    objects: BTreeMap<ObjectKey, Object>,
    /// The objects of a resource in the version that it has now.
    owners: HashMap<Fingerprint, BTreeSet<ObjectKey>>,
    nodes: BTreeMap<NodeName, Node>,
    /// In step with what the objects compiled to: never newer, or something would count as acknowledged
    /// that no longer is due.
    due: Snapshot,
    dirty: BTreeSet<ObjectKey>,
}

impl Verdicts {
    /// Takes in what the compiler says of an object; `None` when it is gone.
    pub(super) fn object(&mut self, key: &ObjectKey, conditions: Option<Conditions>) {
        if let Some(old) = self.objects.remove(key) {
            for part in old.parts.iter().flatten() {
                if let Some(owners) = self.owners.get_mut(&part.print) {
                    owners.remove(key);
                    if owners.is_empty() {
                        self.owners.remove(&part.print);
                    }
                }
            }
        }
        self.dirty.insert(key.clone());
        let Some(conditions) = conditions else { return };
        let parts: Vec<Vec<Part>> = conditions.ancestors.iter().map(parts).collect();
        for part in parts.iter().flatten() {
            self.owners.entry(part.print).or_default().insert(key.clone());
        }
        self.objects.insert(key.clone(), Object { conditions, parts });
    }

    /// Takes in what a MeshNode tells; `None` when it is gone.
    pub(super) fn node(&mut self, name: &NodeName, told: Option<Told>) {
        let before = self.nodes.remove(name);
        let Some(told) = told else {
            if before.is_some() {
                self.all_of(name);
            }
            return;
        };
        let lacks = lacks(&told, &self.due.of(name));
        self.differ(before.as_ref().map(|node| &node.lacks), &lacks);
        // Why it lacks something is part of the message.
        let same = before.is_some_and(|before| {
            before.told.not_ready == told.not_ready && before.told.refused == told.refused
        });
        if !same {
            self.touch(&lacks);
        }
        self.nodes.insert(name.clone(), Node { told, lacks });
    }

    /// What the nodes are due has changed, to what objects are compiled to from now on.
    pub(super) fn served(&mut self, due: Snapshot) {
        if self.due.nodes() != due.nodes() {
            // Every object is for other nodes now.
            self.dirty.extend(self.objects.keys().cloned());
        }
        self.due = due;
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            let Some(node) = self.nodes.remove(&name) else { continue };
            let lacks = lacks(&node.told, &self.due.of(&name));
            self.differ(Some(&node.lacks), &lacks);
            self.nodes.insert(name, Node { lacks, ..node });
        }
    }

    /// The objects of which something else may be to be said since the last call.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.dirty)
    }

    /// All objects.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys()
    }

    /// What is to be said of an object; `None` where there is none.
    pub(super) fn judge(&self, key: &ObjectKey) -> Option<Verdict> {
        let Object { conditions, parts } = self.objects.get(key)?;
        let mut nodes = Count::default();
        let places = conditions.ancestors.iter().zip(parts).map(|(ancestor, parts)| {
            let mut said: Vec<Said> = ancestor
                .conditions
                .iter()
                .map(|condition| Said {
                    ty: condition.ty.as_str(),
                    truth: if condition.holds { Truth::True } else { Truth::False },
                    reason: condition.reason,
                    message: condition.message.clone(),
                })
                .collect();
            let (programmed, count) = self.programmed(key.kind, ancestor, parts);
            nodes = count;
            said.push(programmed);
            Place { at: ancestor.at.clone(), conditions: said }
        });
        let places = places.collect();
        Some(Verdict { generation: conditions.generation, places, nodes })
    }

    fn programmed(&self, kind: Kind, ancestor: &Ancestor, parts: &[Part]) -> (Said, Count) {
        let say = |truth, reason, message: String| Said { ty: "Programmed", truth, reason, message };
        let accepted = |c: &&slotmesh_compile::Condition| c.ty == ConditionType::Accepted;
        if ancestor.conditions.iter().find(accepted).is_some_and(|accepted| !accepted.holds) {
            let message = "it isn't in force: see Accepted".to_owned();
            return (say(Truth::False, "NotAccepted", message), Count::default());
        }
        let due: BTreeSet<&NodeName> = match parts.iter().any(|part| part.only.is_none()) {
            true => self.due.nodes().iter().collect(),
            false => parts.iter().filter_map(|part| part.only.as_ref()).collect(),
        };
        if parts.is_empty() || due.is_empty() {
            let message = match kind {
                Kind::WorkloadEntry => "what became of it is said of the ServiceEntries that select it",
                _ if parts.is_empty() && kind != Kind::SlotProfile => {
                    "it leads to nothing that a node has to know"
                }
                Kind::SlotProfile => "no node is selected",
                _ => "no node runs pods that take part in the mesh",
            };
            let reason =
                if parts.is_empty() && kind != Kind::SlotProfile { "NothingToProgram" } else { "NoNodes" };
            return (say(Truth::Unknown, reason, message.to_owned()), Count::default());
        }
        let lacking: Vec<(&NodeName, Vec<&Part>)> = due
            .iter()
            .map(|node| (*node, self.lacking(node, parts)))
            .filter(|(_, lacking)| !lacking.is_empty())
            .collect();
        let count = Count { due: due.len(), have: due.len() - lacking.len() };
        if lacking.is_empty() {
            let message = match count.due {
                1 => "the one node that it is for has acknowledged it".to_owned(),
                due => format!("all {due} nodes have acknowledged it"),
            };
            return (say(Truth::True, "Programmed", message), count);
        }
        let mut refused = false;
        let mut named = Vec::new();
        for (node, parts) in &lacking {
            let (why, refuses) = self.why(node, parts);
            refused |= refuses;
            if named.len() < NAMED {
                named.push(format!("{node} ({why})"));
            }
        }
        let more = if lacking.len() > NAMED {
            format!(", and {} more", lacking.len() - NAMED)
        } else {
            String::new()
        };
        let (n, of) = (lacking.len(), count.due);
        let message = format!(
            "{n} of {of} nodes {} not acknowledged it: {}{more}",
            if n == 1 { "has" } else { "have" },
            named.join(", ")
        );
        (say(Truth::False, if refused { "Refused" } else { "Pending" }, message), count)
    }

    fn lacking<'p>(&self, node: &NodeName, parts: &'p [Part]) -> Vec<&'p Part> {
        let due = |part: &&Part| part.only.as_ref().is_none_or(|only| only == node);
        let known = self.nodes.get(node);
        let lacks = |part: &&Part| known.is_none_or(|known| known.lacks.contains(&part.print));
        parts.iter().filter(due).filter(lacks).collect()
    }

    /// Why a node lacks something, and whether that is because its agent refuses it.
    fn why(&self, node: &NodeName, parts: &[&Part]) -> (String, bool) {
        let Some(Node { told, .. }) = self.nodes.get(node) else {
            return ("no agent has connected".to_owned(), false);
        };
        if let Some((name, reason)) = parts.iter().find_map(|part| told.refused.get_key_value(&part.name)) {
            return (format!("refuses {name}: {reason}"), true);
        }
        match &told.not_ready {
            Some((reason, since)) => (format!("not ready since {since}: {reason}"), false),
            None => ("pending".to_owned(), false),
        }
    }

    /// The objects of what one set lacks and the other doesn't are dirty.
    fn differ(&mut self, before: Option<&Lacks>, now: &Lacks) {
        match (before, now) {
            (Some(Lacks::These(before)), Lacks::These(now)) => {
                for print in before.symmetric_difference(now) {
                    self.dirty.extend(self.owners.get(print).into_iter().flatten().cloned());
                }
            }
            (Some(Lacks::Unknown), Lacks::Unknown) => {}
            _ => self.dirty.extend(self.objects.keys().cloned()),
        }
    }

    /// The objects of what is lacked are dirty.
    fn touch(&mut self, lacks: &Lacks) {
        match lacks {
            Lacks::These(prints) => {
                for print in prints {
                    self.dirty.extend(self.owners.get(print).into_iter().flatten().cloned());
                }
            }
            Lacks::Unknown => self.dirty.extend(self.objects.keys().cloned()),
        }
    }

    /// All objects that the node may be due are dirty.
    fn all_of(&mut self, node: &NodeName) {
        let due = |object: &Object| {
            let mut parts = object.parts.iter().flatten();
            parts.any(|part| part.only.as_ref().is_none_or(|only| only == node))
        };
        let keys = self.objects.iter().filter(|(_, object)| due(object)).map(|(key, _)| key.clone());
        self.dirty.extend(keys);
    }
}

fn lacks(told: &Told, due: &Sketch) -> Lacks {
    let difference = told.acknowledged.as_ref().map(|acknowledged| due.difference(acknowledged));
    match difference {
        Some(Ok(difference)) => Lacks::These(difference.first.into_iter().collect()),
        Some(Err(_)) | None => Lacks::Unknown,
    }
}

fn parts(ancestor: &Ancestor) -> Vec<Part> {
    let part = |resource: &slotmesh_compile::ResourceVersion| {
        let version = Version::from_u64(resource.version)?;
        let only = resource.ty == ResourceType::Settings;
        Some(Part {
            print: Fingerprint::of(resource.ty, &resource.name, version),
            name: format!("{}/{}", resource.ty, resource.name),
            only: only.then(|| NodeName::from(resource.name.as_str())),
        })
    };
    ancestor.resources.iter().filter_map(part).collect()
}

#[cfg(test)]
mod tests;
