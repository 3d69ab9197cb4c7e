//! The state machine of one agent's stream: requests and dirty names in, responses out.
//!
//! No sockets, clock or tasks (the instants are of those who have one). Invariant: at most one round is under way, and
//! nothing of the next stage leaves before every response of this stage is acknowledged, positively or not. The first
//! round doesn't begin before the source is known as far as the agent has been given it elsewhere.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3::ControlPlane,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    },
    google::rpc::Status as RpcStatus,
};
use slotmesh_xds::{
    AgentReport, CONTROL_PLANE, PerType, ResourceName, ResourceType, Version, rejections_from_status,
    source_given_back,
};

use crate::{
    acked::Sent,
    resources::{Dirty, Resources, View},
    round::{InFlight, Round, Stage, Step, Unacknowledged},
    source_versions::Versions,
    status::{AgentStatus, NodeName, StreamId},
    subscription::TooManyNames,
    tracker::Tracker,
};

/// A reason is for people; more of it than this isn't kept.
const MAX_REASON: usize = 1_024;
/// Unknown type URLs that are logged once each; a peer that invents more isn't worth the memory.
const MAX_UNKNOWN_TYPES: usize = 16;

/// Why a stream can't go on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The first request names no node.
    NoNode,
    /// The first request names another node than the one that the agent was let in for.
    OtherNode { authenticated: NodeName, claimed: NodeName },
    /// Too many names of one type.
    TooManyNames { ty: ResourceType, limit: usize },
}

/// The thing that a stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Awaiting {
    pub(crate) stage: Stage,
    pub(crate) responses: usize,
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    id: StreamId,
    node: Option<NodeName>,
    /// The only node that the stream may be for.
    only: Option<NodeName>,
    /// How many requests came.
    requests: u64,
    /// The agent's last word on itself.
    report: Option<AgentReport>,
    trackers: PerType<Tracker>,
    round: Option<Round>,
    /// When the first event was seen that no round has taken up yet.
    seen: Option<Instant>,
    /// The same of the round that has just been answered.
    answered: Option<Instant>,
    /// Knowledge that the first round waits for.
    awaits: Option<Versions>,
    /// Knowledge of the replica where the agent was before.
    known: Versions,
    unacknowledged: Unacknowledged,
    last_nonce: u64,
    unknown_types: HashSet<String>,
    max_message: usize,
}

impl Stream {
    pub(crate) fn new(id: StreamId, max_message: usize) -> Self {
        Self {
            id,
            node: None,
            only: None,
            requests: 0,
            report: None,
            trackers: PerType::from_fn(Tracker::new),
            round: None,
            seen: None,
            answered: None,
            awaits: None,
            known: Versions::default(),
            unacknowledged: HashMap::new(),
            last_nonce: 0,
            unknown_types: HashSet::new(),
            max_message,
        }
    }

    /// Lets the stream be for this node only.
    pub(crate) fn restrict(&mut self, node: NodeName) {
        self.only = Some(node);
    }

    /// Takes in a request.
    pub(crate) fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
        resources: &Resources,
    ) -> Result<(), StreamError> {
        self.requests += 1;
        // An agent of ours tells of itself in any request.
        let metadata = request.node.as_ref().and_then(|node| node.metadata.as_ref());
        if let Some(report) = metadata.and_then(AgentReport::from_metadata) {
            self.report = Some(report);
        }
        if self.node.is_none() {
            let given_back = metadata.and_then(source_given_back).map(Versions::parse);
            let id =
                request.node.map(|node| node.id).filter(|id| !id.is_empty()).ok_or(StreamError::NoNode)?;
            let claimed = NodeName::from(id);
            if let Some(authenticated) = self.only.as_ref().filter(|only| **only != claimed) {
                return Err(StreamError::OtherNode { authenticated: authenticated.clone(), claimed });
            }
            tracing::info!(stream = %self.id, node = %claimed, "agent connected");
            self.awaits = given_back;
            self.node = Some(claimed);
        }
        let Ok(ty) = request.type_url.parse::<ResourceType>() else {
            self.unknown_type(request.type_url);
            return Ok(());
        };
        if !request.response_nonce.is_empty() {
            self.acknowledge(ty, &request.response_nonce, request.error_detail, resources);
        }
        self.trackers[ty]
            .subscribe(
                request.resource_names_subscribe,
                request.resource_names_unsubscribe,
                request.initial_resource_versions,
                View::new(resources, self.node.as_ref()),
            )
            .map_err(|TooManyNames { limit }| StreamError::TooManyNames { ty, limit })
    }

    /// Takes in names that changed in the store, and when the first event that led to this was seen.
    pub(crate) fn absorb(&mut self, mut dirty: Dirty, seen: Option<Instant>, resources: &Resources) {
        self.seen = self.seen.or(seen);
        let view = View::new(resources, self.node.as_ref());
        for (ty, tracker) in self.trackers.iter_mut() {
            tracker.absorb(std::mem::take(&mut dirty[ty]), view);
        }
    }

    /// Compares all that is served: what the agent may see has changed.
    pub(crate) fn compare_all(&mut self, resources: &Resources) {
        let view = View::new(resources, self.node.as_ref());
        self.trackers.iter_mut().for_each(|(_, tracker)| tracker.compare_all(view));
    }

    /// Begins a round if none is under way and something may have to be sent; says whether it did.
    pub(crate) fn begin_round(&mut self, resources: &Resources) -> bool {
        if self.round.is_some() || resources.generation() == 0 || self.is_stale(resources) {
            return false;
        }
        let seen = self.seen.take();
        if !self.trackers.iter().any(|(_, tracker)| tracker.wants_round()) {
            return false;
        }
        if let Some(versions) = self.awaits.take() {
            self.known = versions;
        }
        let needs = resources.reached().needs();
        let source = if self.known.is_within(needs) {
            Arc::clone(resources.source())
        } else {
            self.known.clone().merged(needs).to_string().into()
        };
        let view = View::new(resources, self.node.as_ref());
        self.round = Some(Round::begin(&mut self.trackers, view, source, seen));
        true
    }

    /// Tells whether the first round has something to wait for.
    pub(crate) fn awaits(&self) -> bool {
        self.awaits.is_some()
    }

    /// Tells whether the first round waits until the source is known as far as elsewhere.
    pub(crate) fn is_stale(&self, resources: &Resources) -> bool {
        let behind = |versions: &Versions| !resources.reached().covers(versions);
        resources.generation() > 0 && self.awaits.as_ref().is_some_and(behind)
    }

    /// Waits no longer, and lets the agent forget what it waited for.
    pub(crate) fn stop_waiting(&mut self) {
        self.awaits = None;
    }

    /// The next response of the round under way; `None` when it waits or is over.
    pub(crate) fn next_response(&mut self) -> Option<DeltaDiscoveryResponse> {
        let settled = self.unacknowledged.is_empty();
        match self.round.as_mut()?.step(&mut self.trackers, settled, self.max_message) {
            Step::Send(mut response, in_flight) => {
                self.last_nonce += 1;
                if self.last_nonce == 1 {
                    response.control_plane = Some(ControlPlane { identifier: CONTROL_PLANE.to_owned() });
                }
                // A nonce of another stream never matches by accident.
                let nonce = format!("{}-{}", self.id, self.last_nonce);
                response.nonce.clone_from(&nonce);
                tracing::debug!(
                    stream = %self.id,
                    ty = %in_flight.ty,
                    nonce,
                    resources = response.resources.len(),
                    removed = response.removed_resources.len(),
                    "response"
                );
                self.unacknowledged.insert(nonce, in_flight);
                Some(*response)
            }
            Step::Wait => None,
            Step::Done => {
                self.answered = self.round.take().and_then(|round| round.seen());
                self.trackers.iter_mut().for_each(|(_, tracker)| tracker.shrink());
                if self.unacknowledged.is_empty() {
                    self.unacknowledged.shrink_to(0);
                }
                None
            }
        }
    }

    /// When the first event was seen that led to the round that has just been answered, where there was
    /// one and something was sent.
    pub(crate) fn take_answered(&mut self) -> Option<Instant> {
        self.answered.take()
    }

    /// The thing that the stream waits for, if any.
    pub(crate) fn awaiting(&self) -> Option<Awaiting> {
        let stage = self.round.as_ref()?.stage();
        let responses = self.unacknowledged.len();
        (responses > 0).then_some(Awaiting { stage, responses })
    }

    pub(crate) fn node(&self) -> Option<&NodeName> {
        self.node.as_ref()
    }

    pub(crate) fn status(&self, stream: StreamId) -> Option<AgentStatus> {
        let mut types = PerType::from_fn(|ty| self.trackers[ty].status());
        for in_flight in self.unacknowledged.values() {
            types[in_flight.ty].unacknowledged += 1;
        }
        let up_to_date =
            self.round.is_none() && !self.trackers.iter().any(|(_, tracker)| tracker.wants_round());
        let (requests, report) = (self.requests, self.report.clone());
        Some(AgentStatus { stream, node: self.node.clone()?, up_to_date, requests, report, types })
    }

    /// The versions that the agent has in force.
    pub(crate) fn held(&self, ty: ResourceType, resources: &Resources) -> Vec<(ResourceName, Version)> {
        self.trackers[ty].held(resources)
    }

    /// The versions that the agent is spared.
    #[cfg(test)]
    pub(crate) fn spared(&self, ty: ResourceType, resources: &Resources) -> Vec<(ResourceName, Version)> {
        self.trackers[ty].spared(resources)
    }

    /// How many names are remembered.
    #[cfg(test)]
    pub(crate) fn remembered(&self) -> usize {
        self.trackers.iter().map(|(_, tracker)| tracker.remembered()).sum()
    }

    fn acknowledge(
        &mut self,
        ty: ResourceType,
        nonce: &str,
        error: Option<RpcStatus>,
        resources: &Resources,
    ) {
        if self.unacknowledged.get(nonce).is_none_or(|in_flight| in_flight.ty != ty) {
            tracing::debug!(stream = %self.id, %ty, nonce, "stale or unknown nonce ignored");
            return;
        }
        let Some(InFlight { items, .. }) = self.unacknowledged.remove(nonce) else { return };
        let tracker = &mut self.trackers[ty];
        let view = View::new(resources, self.node.as_ref());
        let Some(error) = error else {
            for (name, sent) in items {
                tracker.accepted(&name, sent, view);
            }
            return;
        };
        let mut reasons: HashMap<ResourceName, String> = rejections_from_status(&error)
            .into_iter()
            .map(|rejection| (rejection.name, shortened(rejection.reason)))
            .collect();
        // A foreign client says only that something is wrong: then nothing of it counts as held.
        let unnamed = !items.iter().any(|(name, _)| reasons.contains_key(name));
        for (name, sent) in items {
            let reason = match reasons.remove(&name) {
                Some(reason) => Some(reason),
                None if unnamed && matches!(sent, Sent::Upsert(_)) => Some(shortened(error.message.clone())),
                None => None,
            };
            match reason {
                Some(reason) => {
                    let node = self.node.as_ref().map_or("", NodeName::as_str);
                    tracing::warn!(stream = %self.id, node, %ty, resource = %name, reason, "refused by the agent");
                    tracker.refused(&name, sent, reason);
                }
                None => tracker.accepted(&name, sent, view),
            }
        }
    }

    fn unknown_type(&mut self, type_url: String) {
        let type_url = shortened(type_url);
        if self.unknown_types.len() < MAX_UNKNOWN_TYPES && self.unknown_types.insert(type_url.clone()) {
            tracing::warn!(stream = %self.id, type_url, "unknown resource type ignored");
        }
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MAX_REASON {
        let end = (0..=MAX_REASON).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.shrink_to_fit();
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
