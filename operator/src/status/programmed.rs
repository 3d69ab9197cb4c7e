//! The index of which objects are programmed, and the status that each is to have.
//!
//! ```text
//!  compiler --conditions--> objects ---------------+
//!  what is served, MeshNodes --> Lacking: nodes ---+--evaluate--> DesiredStatus
//! ```
//!
//! An object is programmed when none of its resources, in the version that it has now, is lacked by a node that
//! counts and is due it. Endpoints are no part of that: they change with every pod.
//!
//! Invariants: `Programmed` is true only if every such node has acknowledged exactly these versions. A node's
//! acknowledgement costs the objects of what it lacks no more. What is said of an object that all nodes have,
//! or are about to have, doesn't change with the nodes: neither names nor counts stand there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use slotmesh_compile::{
    Ancestor, At, Condition, ConditionStatus, ConditionType, Conditions, Kind, ObjectKey,
};
use slotmesh_serve::NodeName;
use slotmesh_xds::{Fingerprint, ResourceType, Version};
use tokio::time::Instant;

pub(super) use super::lacking::ObservedNode;
use super::{
    due::Snapshot,
    lacking::{Lacking, Part},
    shorten,
};

/// How many nodes a message names.
const NAMED: usize = 5;
/// How long a reason of an agent's may be.
const LONGEST_REASON: usize = 256;

#[derive(Debug)]
struct Object {
    conditions: Conditions,
    /// For each ancestor.
    parts: Vec<Vec<Part>>,
}

/// The status of an object at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AncestorStatus {
    pub(super) at: Option<At>,
    pub(super) conditions: Vec<Condition>,
}

/// How many nodes are due what an object compiled to, and have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) due: usize,
    pub(super) have: usize,
}

/// The status that an object is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DesiredStatus {
    pub(super) generation: Option<i64>,
    pub(super) ancestors: Vec<AncestorStatus>,
    pub(super) nodes: Count,
    /// Nodes are about to acknowledge it, and none of these is named yet.
    pub(super) waits: bool,
}

/// See the module's comment.
#[derive(Debug, Default)]
pub(super) struct ProgrammedIndex {
    objects: BTreeMap<ObjectKey, Object>,
    /// The objects of a resource in the version that it has now.
    owners: HashMap<Fingerprint, BTreeSet<ObjectKey>>,
    lacking: Lacking,
    dirty: BTreeSet<ObjectKey>,
}

impl ProgrammedIndex {
    /// Takes in what the compiler says of an object; `None` when it is gone.
    pub(super) fn object(&mut self, key: &ObjectKey, conditions: Option<Conditions>) {
        let parts: Vec<Vec<Part>> =
            conditions.iter().flat_map(|conditions| &conditions.ancestors).map(parts).collect();
        for part in parts.iter().flatten() {
            let owners = self.owners.entry(part.print).or_default();
            if owners.is_empty() {
                self.lacking.came(part.print);
            }
            owners.insert(key.clone());
        }
        let old = self.objects.remove(key).map(|old| old.parts).unwrap_or_default();
        let kept: BTreeSet<Fingerprint> = parts.iter().flatten().map(|part| part.print).collect();
        for print in old.iter().flatten().map(|part| part.print).filter(|print| !kept.contains(print)) {
            if let Some(owners) = self.owners.get_mut(&print) {
                owners.remove(key);
                if owners.is_empty() {
                    self.owners.remove(&print);
                    self.lacking.went(print);
                }
            }
        }
        self.dirty.insert(key.clone());
        if let Some(conditions) = conditions {
            self.objects.insert(key.clone(), Object { conditions, parts });
        }
    }

    /// Takes in what a MeshNode tells; `None` when it is gone.
    pub(super) fn node(&mut self, name: &NodeName, observed: Option<ObservedNode>, now: Instant) {
        self.lacking.node(name, observed, now);
    }

    /// The nodes are due something else: that to which objects are compiled from now on.
    pub(super) fn served(&mut self, due: Snapshot, now: Instant) {
        self.lacking.served(due, now);
    }

    /// Time passes; when to ask again.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<Instant> {
        self.lacking.overdue(now)
    }

    /// The objects of which something else may be to be said since the last call.
    pub(super) fn take_dirty(&mut self) -> BTreeSet<ObjectKey> {
        let touched = self.lacking.take_touched();
        let mut dirty = std::mem::take(&mut self.dirty);
        if touched.all {
            dirty.extend(self.objects.keys().cloned());
        }
        for print in touched.prints {
            dirty.extend(self.owners.get(&print).into_iter().flatten().cloned());
        }
        dirty
    }

    /// All objects.
    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.objects.keys()
    }

    /// The status that an object is to have; `None` where there is none. `late` is whether nodes had time enough to
    /// acknowledge it, so that those are named that haven't.
    pub(super) fn evaluate(&self, key: &ObjectKey, late: bool) -> Option<DesiredStatus> {
        let Object { conditions, parts } = self.objects.get(key)?;
        let (mut nodes, mut waits) = (Count::default(), false);
        let ancestors = conditions.ancestors.iter().zip(parts).map(|(ancestor, parts)| {
            let selected = parts.iter().filter(|part| part.only.is_some()).count();
            let programmed = self.programmed(key.kind, ancestor, parts, late);
            nodes = Count { due: selected, have: selected - programmed.lacking.min(selected) };
            waits |= programmed.waits;
            let conditions = ancestor.conditions.iter().cloned().chain([programmed.condition]);
            AncestorStatus { at: ancestor.at.clone(), conditions: conditions.collect() }
        });
        let ancestors = ancestors.collect();
        Some(DesiredStatus { generation: conditions.generation, ancestors, nodes, waits })
    }

    fn programmed(&self, kind: Kind, ancestor: &Ancestor, parts: &[Part], late: bool) -> Programmed {
        let say = |status, reason, message: &str| {
            let (ty, message) = (ConditionType::Programmed, message.to_owned());
            Programmed { condition: Condition { ty, status, reason, message }, lacking: 0, waits: false }
        };
        let accepted = |c: &&Condition| c.ty == ConditionType::Accepted;
        if ancestor.conditions.iter().find(accepted).is_some_and(|accepted| !accepted.holds()) {
            return say(ConditionStatus::False, "NotAccepted", "it isn't in force: see Accepted");
        }
        if kind == Kind::WorkloadEntry {
            let message = "what became of it is said of the ServiceEntries that select it";
            return say(ConditionStatus::Unknown, "NothingToProgram", message);
        }
        if parts.is_empty() {
            return match kind {
                Kind::SlotProfile => say(ConditionStatus::Unknown, "NoNodes", "no node is selected"),
                _ => say(
                    ConditionStatus::Unknown,
                    "NothingToProgram",
                    "it leads to nothing that a node has to know",
                ),
            };
        }
        if !self.lacking.is_due_to_any(parts) {
            let message = match kind {
                Kind::SlotProfile => "no node that is selected has an agent",
                _ => "no node that has an agent runs pods that take part in the mesh",
            };
            let without = parts.iter().filter(|part| part.only.is_some()).count();
            return Programmed { lacking: without, ..say(ConditionStatus::Unknown, "NoNodes", message) };
        }
        let lacking = self.lacking.of(parts);
        if lacking.is_empty() {
            let without = self.lacking.without_agent(parts);
            let said =
                say(ConditionStatus::True, "Programmed", "every node that it is for has acknowledged it");
            return Programmed { lacking: without, ..said };
        }
        let (mut refused, mut named, mut more, mut waits) = (false, Vec::new(), 0, false);
        for (node, parts) in &lacking {
            let (why, refuses) = match self.why(node, parts) {
                Some(why) => why,
                None if late => ("pending".to_owned(), false),
                None => {
                    waits = true;
                    continue;
                }
            };
            refused |= refuses;
            if named.len() < NAMED {
                named.push(format!("{node} ({why})"));
            } else {
                more += 1;
            }
        }
        let message = match (named.is_empty(), more) {
            (true, _) => "nodes are about to acknowledge it".to_owned(),
            (false, 0) => format!("not acknowledged by {}", named.join(", ")),
            (false, more) => format!("not acknowledged by {}, and {more} more nodes", named.join(", ")),
        };
        let reason = if refused { "Refused" } else { "Pending" };
        let without = self.lacking.without_agent(parts);
        Programmed {
            lacking: lacking.len() + without,
            waits,
            ..say(ConditionStatus::False, reason, &message)
        }
    }

    /// Why a node lacks something, and whether that is because its agent refuses it; `None` where it is about
    /// to have it.
    fn why(&self, node: &NodeName, parts: &[&Part]) -> Option<(String, bool)> {
        let observed = self.lacking.observed(node)?;
        if let Some((name, reason)) = parts.iter().find_map(|part| observed.refused.get_key_value(&part.name))
        {
            let reason = shorten(reason, LONGEST_REASON);
            return Some((format!("refuses {name}: {reason}"), true));
        }
        let (reason, since) = observed.not_ready.as_ref()?;
        Some((format!("not ready since {since}: {reason}"), false))
    }
}

/// The condition Programmed, and what follows from how it came out.
struct Programmed {
    condition: Condition,
    /// How many nodes lack it, or have no agent to have it.
    lacking: usize,
    /// Nodes are about to acknowledge it, and aren't named.
    waits: bool,
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
    let counted = |resource: &&slotmesh_compile::ResourceVersion| resource.ty != ResourceType::Endpoints;
    ancestor.resources.iter().filter(counted).filter_map(part).collect()
}

#[cfg(test)]
mod tests;
