//! Which MeshNode this replica writes, and what, and of which agents it tells what they have acknowledged: a
//! step function without a clock or an API server.
//!
//! ```text
//!  stream opens ----> Unclaimed --write--> Claimed(session) --stream ends, nobody else has it--> not ready
//!                         ^                    | another session in the record
//!                         +-- activity, or ----v
//!                             the other ended  Yielded
//! ```
//!
//! Invariants:
//! - A replica writes a node only for a stream that it holds, or saw end. Whoever takes over writes a
//!   higher session; whoever finds a higher session than its own writes no more, until its agent says
//!   something new: a stream on which nothing comes any more never wins against one that lives.
//! - A replica that saw a stream end doesn't say so once another has the node.
//! - A record that says what is to be said isn't written.

use std::{collections::HashMap, sync::Arc};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use slotmesh_crds::own::{MeshNodeStatus, Refusal, SlotUse, StreamHolder};
use slotmesh_serve::{AgentStatus, Ending, NodeName, StreamEvent, StreamId};
use slotmesh_xds::{AgentReport, Fingerprint, PerType, ResourceType, Sketch};

use super::{due::PROGRAMMED, groups::Acknowledged};

/// How many refused resources are told; the rest is counted.
const LISTED: usize = 8;

/// How soon something has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Somebody may be waiting for it.
    Soon,
    /// Numbers, which change all the time.
    Lazy,
    /// An end is written only if the agent doesn't come back.
    AfterGrace,
    /// Nothing changed that is written.
    None,
}

/// A session of a node's record; it rises with each takeover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Session(u64);

/// This replica's part in a node's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// The stream is new: it takes over whatever is recorded.
    Unclaimed,
    /// The record is ours.
    Claimed(Session),
    /// Somebody else took it; the agent had sent this many requests then.
    Yielded { requests: u64 },
}

/// This replica's knowledge of one node whose stream it holds, or saw end.
#[derive(Debug)]
struct NodeClaim {
    stream: StreamId,
    status: AgentStatus,
    /// The clusters, routes and listeners that the agent has acknowledged, and its node's settings.
    records: Arc<Sketch>,
    settings: Option<Fingerprint>,
    /// The agent has answered to all that was meant for it.
    synced: bool,
    ended: Option<(Ending, Timestamp)>,
    claim: Claim,
}

/// A decision about a node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum StatusAction {
    /// Nothing.
    None,
    /// Write this.
    Write(Box<MeshNodeStatus>),
    /// Nothing, ever again.
    Drop,
}

/// The nodes whose streams this replica holds, or saw end.
#[derive(Debug)]
pub(crate) struct NodeStatusReconciler {
    replica: String,
    claims: HashMap<NodeName, NodeClaim>,
    /// Acknowledgements that were told last of nodes whose agents have been sent to another replica.
    left: HashMap<NodeName, Acknowledged>,
    /// Something else is to be told of what agents have acknowledged.
    moved: bool,
}

impl NodeStatusReconciler {
    pub(crate) fn new(replica: &str) -> Self {
        Self { replica: replica.to_owned(), claims: HashMap::new(), left: HashMap::new(), moved: false }
    }

    /// True where something else is to be told of what agents have acknowledged than at the last call.
    pub(crate) fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Acknowledgements of the agents whose nodes this replica has.
    pub(crate) fn acknowledged(&self) -> impl Iterator<Item = (&NodeName, Acknowledged)> {
        let left = self.left.iter().map(|(node, told)| (node, told.clone()));
        self.claims.iter().filter_map(|(node, held)| Some((node, held.acknowledged()?))).chain(left)
    }

    /// Takes in what happened on a stream; how soon the node has to be looked at.
    pub(crate) fn observe(&mut self, event: StreamEvent, now: Timestamp) -> Urgency {
        let StreamEvent { status, ended } = event;
        let node = status.node.clone();
        let before = self.claims.get(&node);
        // Of two streams of one node the newer counts, while it lives.
        if before.is_some_and(|held| held.stream > status.stream && held.ended.is_none()) {
            return Urgency::None;
        }
        let same = before.filter(|held| held.stream == status.stream);
        if let Some(ending) = ended {
            if ending == Ending::Shutdown {
                // The agent goes to another replica, which takes over. Until then it is told of as it was.
                let told = before.and_then(NodeClaim::acknowledged);
                self.claims.remove(&node);
                self.left.extend(told.map(|told| (node, told)));
                return Urgency::None;
            }
            if before.is_some() && same.is_none() {
                return Urgency::None;
            }
            let claim = before.map_or(Claim::Unclaimed, |held| held.claim);
            let synced = same.is_some_and(|held| held.synced);
            self.replace(node, NodeClaim::new(status, before, synced, Some((ending, now)), claim));
            return Urgency::AfterGrace;
        }
        let synced = same.is_some_and(|held| held.synced) || status.up_to_date;
        let urgency = match same {
            Some(held) if held.synced == synced && !matters(&held.status, &status) => Urgency::Lazy,
            _ => Urgency::Soon,
        };
        let claim = match before.map(|held| held.claim) {
            Some(claim @ Claim::Claimed(_)) => claim,
            Some(claim) if same.is_some() => claim,
            _ => Claim::Unclaimed,
        };
        self.replace(node, NodeClaim::new(status, before, synced, None, claim));
        urgency
    }

    fn replace(&mut self, node: NodeName, held: NodeClaim) {
        self.left.remove(&node);
        let told = held.acknowledged();
        let before = self.claims.insert(node, held);
        self.moved |= before.and_then(|before| before.acknowledged()) != told;
    }

    /// Tells whether this replica may have something to write of the node.
    pub(crate) fn knows(&self, node: &NodeName) -> bool {
        self.claims.contains_key(node)
    }

    /// The record is gone, and with it whatever there was to say of a stream that has ended.
    pub(crate) fn gone(&mut self, node: &NodeName) {
        if self.claims.get(node).is_some_and(|held| held.ended.is_some()) {
            self.leave(node);
        }
        self.moved |= self.left.remove(node).is_some();
    }

    fn leave(&mut self, node: &NodeName) {
        self.moved |= self.claims.remove(node).is_some_and(|held| matches!(held.claim, Claim::Claimed(_)));
    }

    /// Decides about a node, given what is recorded of it, and the highest session in which a replica tells of it.
    pub(crate) fn decide(
        &mut self,
        node: &NodeName,
        record: Option<&MeshNodeStatus>,
        known: u64,
        now: Timestamp,
    ) -> StatusAction {
        let Some(held) = self.claims.get_mut(node) else { return StatusAction::None };
        let holder = record.and_then(|record| record.holder.as_ref());
        let theirs = holder.filter(|holder| {
            let ours = matches!(held.claim, Claim::Claimed(session) if session.0 == holder.session);
            !(ours && holder.replica == self.replica)
        });
        let next = Session(holder.map_or(0, |holder| holder.session).max(known).saturating_add(1));
        let session = match (theirs, held.claim, &held.ended) {
            // Nobody else has it.
            (None, Claim::Claimed(session), _) => session,
            (None, Claim::Unclaimed | Claim::Yielded { .. }, _) => next,
            // Somebody else has it, and we have nothing any more.
            (Some(_), Claim::Claimed(_) | Claim::Yielded { .. }, Some(_)) => {
                self.leave(node);
                return StatusAction::Drop;
            }
            (Some(other), Claim::Unclaimed, Some(_)) if other.connected && other.replica != self.replica => {
                self.leave(node);
                return StatusAction::Drop;
            }
            (Some(_), Claim::Unclaimed, _) => next,
            // We have it, and the other has nothing any more.
            (Some(other), _, None) if !other.connected => next,
            (Some(_), Claim::Claimed(_), None) => {
                held.claim = Claim::Yielded { requests: held.status.requests };
                self.moved = true;
                return StatusAction::None;
            }
            (Some(_), Claim::Yielded { requests }, None) if held.status.requests > requests => next,
            (Some(_), Claim::Yielded { .. }, None) => return StatusAction::None,
        };
        let status = held.render(&self.replica, session, record, now);
        if record == Some(&status) { StatusAction::None } else { StatusAction::Write(Box::new(status)) }
    }

    /// The status that was to be written is recorded.
    pub(crate) fn wrote(&mut self, node: &NodeName, status: &MeshNodeStatus) {
        if let (Some(held), Some(holder)) = (self.claims.get_mut(node), &status.holder) {
            let claim = Claim::Claimed(Session(holder.session));
            self.moved |= held.claim != claim;
            held.claim = claim;
        }
    }
}

/// Tells whether somebody may be waiting for the difference.
fn matters(before: &AgentStatus, now: &AgentStatus) -> bool {
    let differ = |ty: ResourceType| {
        let (before, now) = (&before.types[ty], &now.types[ty]);
        before.rejected != now.rejected
    };
    let unattached = |status: &AgentStatus| status.report.as_ref().map(|report| report.unattached.clone());
    unattached(before) != unattached(now) || counted().any(differ)
}

/// The types of which a node's status speaks.
fn counted() -> impl Iterator<Item = ResourceType> {
    ResourceType::ALL.into_iter().filter(|ty| *ty != ResourceType::Workload)
}

impl NodeClaim {
    /// `before` is what was known of the node.
    fn new(
        status: AgentStatus,
        before: Option<&Self>,
        synced: bool,
        ended: Option<(Ending, Timestamp)>,
        claim: Claim,
    ) -> Self {
        let unchanged = before.filter(|before| {
            let mut told = PROGRAMMED.into_iter().chain([ResourceType::Settings]);
            told.all(|ty| before.status.types[ty].sketch == status.types[ty].sketch)
        });
        let (records, settings) = match unchanged {
            Some(before) => (Arc::clone(&before.records), before.settings),
            None => {
                let mut records = Sketch::default();
                PROGRAMMED.into_iter().for_each(|ty| records.add_all(&status.types[ty].sketch));
                let settings = status.types[ResourceType::Settings].sketch.difference(&Sketch::default());
                let settings = settings.ok().and_then(|settings| settings.first.first().copied());
                (Arc::new(records), settings)
            }
        };
        Self { stream: status.stream, status, records, settings, synced, ended, claim }
    }

    /// Acknowledgements of the agent, where the node is this replica's.
    fn acknowledged(&self) -> Option<Acknowledged> {
        let Claim::Claimed(Session(session)) = self.claim else { return None };
        let (records, settings) = (Some(Arc::clone(&self.records)), self.settings);
        // One whose stream has ended counts as it was.
        let syncing = !self.synced && self.ended.is_none();
        Some(Acknowledged { session, records, settings, syncing })
    }

    /// The status as it has to be recorded; times of what hasn't changed are those of the record.
    fn render(
        &self,
        replica: &str,
        session: Session,
        record: Option<&MeshNodeStatus>,
        now: Timestamp,
    ) -> MeshNodeStatus {
        let types: &PerType<_> = &self.status.types;
        let resources = counted().map(|ty| types[ty].held).sum::<usize>();
        let mut rejected: Vec<(String, &str)> = ResourceType::ALL
            .into_iter()
            .flat_map(|ty| types[ty].rejected.iter().map(move |rejected| (ty, rejected)))
            .map(|(ty, one)| (format!("{ty}/{}", one.name), one.reason.as_str()))
            .collect();
        rejected.sort_unstable();
        let known = |resource: &str, reason: &str| {
            let before = record.into_iter().flat_map(|record| &record.refused);
            before
                .filter(|one| one.resource == resource && one.reason == reason)
                .find_map(|one| one.at.clone())
        };
        let refused: Vec<Refusal> = rejected
            .iter()
            .take(LISTED)
            .map(|(resource, reason)| Refusal {
                resource: resource.clone(),
                reason: (*reason).to_owned(),
                at: Some(known(resource, reason).unwrap_or(Time(now))),
            })
            .collect();
        let last_refusal = refused.iter().max_by_key(|refusal| refusal.at.clone()).cloned();
        let (report, connected) = (self.status.report.as_ref(), self.ended.is_none());
        let conditions = vec![self.ready(replica, record, now)];
        MeshNodeStatus {
            agent_version: report.map(|report| report.version.clone()),
            resources: Some(u32::try_from(resources).unwrap_or(u32::MAX)),
            slots: report.map(slot_use),
            slot_profile: report.and_then(|report| report.profile.clone()),
            flush_p99: report
                .and_then(|report| report.flush_p99)
                .map(|p99| format!("{p99:?}").replace('µ', "u")),
            last_refusal,
            refused_resources: Some(u32::try_from(rejected.len()).unwrap_or(u32::MAX)),
            refused,
            holder: Some(StreamHolder { replica: replica.to_owned(), session: session.0, connected }),
            conditions,
        }
    }

    fn ready(&self, replica: &str, record: Option<&MeshNodeStatus>, now: Timestamp) -> Condition {
        let (holds, reason, message, at) = match &self.ended {
            Some((ending, at)) => ("False", reason(*ending), message(*ending, replica), *at),
            None if !self.synced => {
                ("False", "Syncing", "the agent has not answered to all that it was sent yet".to_owned(), now)
            }
            None => match self.status.report.as_ref().and_then(|report| report.unattached.as_ref()) {
                Some(pods) => ("False", "PodsNotAttached", format!("connections go unrouted of {pods}"), now),
                None => ("True", "Synced", "the agent is connected and up to date".to_owned(), now),
            },
        };
        let before = record.into_iter().flat_map(|record| &record.conditions);
        let since = before
            .filter(|condition| condition.type_ == "Ready" && condition.status == holds)
            .map(|condition| condition.last_transition_time.clone())
            .next();
        Condition {
            type_: "Ready".to_owned(),
            status: holds.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.unwrap_or(Time(at)),
            observed_generation: None,
        }
    }
}

const fn reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Closed => "AgentStopped",
        Ending::Lost => "ConnectionLost",
        Ending::Refused => "StreamRefused",
        Ending::Expired => "TokenExpired",
        Ending::Shutdown => "OperatorStopped",
    }
}

fn message(ending: Ending, replica: &str) -> String {
    let what = match ending {
        Ending::Closed => "the agent has closed its stream",
        Ending::Lost => "the connection to the agent was lost",
        Ending::Refused => "the agent's stream was refused; the operator's log says why",
        Ending::Expired => "the agent's token has expired, and it has not come back with a new one",
        Ending::Shutdown => "the replica has stopped",
    };
    format!("{what} ({replica}); what it has in force stays in force")
}

fn slot_use(report: &AgentReport) -> SlotUse {
    let slots = report.slots;
    SlotUse {
        used: slots.used,
        idle: slots.idle,
        retired: slots.retired,
        outer_records: slots.outer_records,
        remaining: slots.remaining,
        cap: slots.cap,
    }
}

#[cfg(test)]
mod tests;
