//! One walk of an agent from what it has to one generation of the store, in make-before-break order.
//!
//! ```text
//! settings -> clusters -> endpoints -> routes -> listeners -> workloads -> gone workloads
//!     -> gone listeners -> gone routes -> gone endpoints -> gone clusters -> gone settings
//! ```
//!
//! A stage begins when every response of the stage before it is acknowledged. What a round sends is
//! fixed when it begins: were a route taken from a newer generation in mid-round, the clusters that
//! it needs would already have been passed over; and were the round restarted on each change,
//! routes would never be sent while changes keep coming. Changes that arrive meanwhile make the
//! next round, each name once, at its latest content. Each round has at most ten stages, so
//! nothing waits for ever as long as the agent answers.

use std::{collections::HashMap, mem, sync::Arc, time::Instant};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
    google::protobuf::Any,
};
use slotmesh_xds::{PerType, Resource, ResourceName, ResourceType, system_version_info};

use crate::{
    acked::Sent,
    resources::View,
    table::Place,
    tracker::{Needs, Tracker},
};

/// The cost of a resource or name in a message beyond its own bytes, rounded up: tags, lengths, the
/// version and the type URL.
const OVERHEAD: usize = 160;

/// The part that is sent at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// New and changed resources of this type.
    Make(ResourceType),
    /// Removals of this type.
    Break(ResourceType),
}

impl Stage {
    const ORDER: [Self; 2 * ResourceType::ALL.len()] = [
        Self::Make(ResourceType::Settings),
        Self::Make(ResourceType::Cluster),
        Self::Make(ResourceType::Endpoints),
        Self::Make(ResourceType::Route),
        Self::Make(ResourceType::Listener),
        Self::Make(ResourceType::Workload),
        Self::Break(ResourceType::Workload),
        Self::Break(ResourceType::Listener),
        Self::Break(ResourceType::Route),
        Self::Break(ResourceType::Endpoints),
        Self::Break(ResourceType::Cluster),
        Self::Break(ResourceType::Settings),
    ];
}

/// A response that is not acknowledged yet.
#[derive(Debug)]
pub(crate) struct InFlight {
    pub(crate) ty: ResourceType,
    pub(crate) items: Vec<(ResourceName, Sent)>,
}

/// The round's next step.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send this; its acknowledgement settles these names.
    Send(Box<DeltaDiscoveryResponse>, InFlight),
    /// Wait for acknowledgements.
    Wait,
    /// The round is over.
    Done,
}

#[derive(Debug)]
pub(crate) struct Round {
    generation: u64,
    /// The knowledge of the source, for the agent to give back.
    source: Arc<str>,
    needs: PerType<Needs>,
    stages: std::slice::Iter<'static, Stage>,
    stage: Stage,
    /// When the first event that led to it was seen.
    seen: Option<Instant>,
    sent: bool,
}

impl Round {
    /// Takes from the trackers what the agent lacks of this generation; `source` is how far that is known, and `seen`
    /// when the first event was seen that led to it.
    pub(crate) fn begin(
        trackers: &mut PerType<Tracker>,
        resources: View<'_>,
        source: Arc<str>,
        seen: Option<Instant>,
    ) -> Self {
        let needs = PerType::from_fn(|ty| trackers[ty].take_needs(resources));
        let mut stages = Stage::ORDER.iter();
        let stage = *stages.next().unwrap_or(&Stage::Make(ResourceType::Settings));
        Self { generation: resources.generation(), source, needs, stages, stage, seen, sent: false }
    }

    /// When the first event that led to it was seen, unless it had nothing to send.
    pub(crate) fn seen(&self) -> Option<Instant> {
        self.seen.filter(|_| self.sent)
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// The next response, or whether to wait. `settled` says that nothing sent is unacknowledged.
    pub(crate) fn step(&mut self, trackers: &mut PerType<Tracker>, settled: bool, limit: usize) -> Step {
        loop {
            let response = match self.stage {
                Stage::Make(ty) => self.make(ty, &mut trackers[ty], limit),
                Stage::Break(ty) => self.unmake(ty, &trackers[ty], limit),
            };
            if let Some((response, in_flight)) = response {
                self.sent = true;
                return Step::Send(Box::new(response), in_flight);
            }
            if !settled {
                return Step::Wait;
            }
            let Some(next) = self.stages.next() else { return Step::Done };
            let turning = matches!((self.stage, next), (Stage::Make(_), Stage::Break(_)));
            self.stage = *next;
            // An agent that has just connected asks for one type after the other, and this round
            // knows only those that it had asked for when the round began. What those others refer
            // to isn't removed before they have been brought up to date.
            if turning && trackers.iter().any(|(_, tracker)| tracker.never_answered()) {
                for (ty, tracker) in trackers.iter_mut() {
                    for name in mem::take(&mut self.needs[ty].removals) {
                        tracker.postpone_removal(name);
                    }
                }
            }
        }
    }

    fn make(
        &mut self,
        ty: ResourceType,
        tracker: &mut Tracker,
        limit: usize,
    ) -> Option<(DeltaDiscoveryResponse, InFlight)> {
        let needs = &mut self.needs[ty];
        let mut items = Vec::new();
        let mut resources = Vec::new();
        let mut removed_resources = Vec::new();
        let mut size = 0;
        // The client may have unsubscribed since the round began.
        let covered = |name: &ResourceName| tracker.covers(name);
        let places = &needs.places;
        let cost_of = |place: &Place| places.get(*place).filter(|one| covered(&one.name)).map(cost);
        while let Some(place) = pop_within(&mut needs.upserts, &mut size, limit, cost_of) {
            if let Some(resource) = places.get(place) {
                items.push((resource.name.clone(), Sent::Upsert(resource.version)));
                resources.push(wire(resource));
            }
        }
        let cost_of = |name: &ResourceName| covered(name).then(|| name_cost(name));
        while let Some(name) = pop_within(&mut needs.absent, &mut size, limit, cost_of) {
            removed_resources.push(name.to_string());
            items.push((name, Sent::Absent));
        }
        if items.is_empty() && !needs.answer {
            return None;
        }
        needs.answer = false;
        // Only now: what waits for its turn costs a number.
        for (name, sent) in items.iter().filter(|(_, sent)| matches!(sent, Sent::Upsert(_))) {
            tracker.sends(name, *sent);
        }
        let more = !needs.upserts.is_empty() || !needs.absent.is_empty();
        Some((self.response(ty, resources, removed_resources, more), InFlight { ty, items }))
    }

    fn unmake(
        &mut self,
        ty: ResourceType,
        tracker: &Tracker,
        limit: usize,
    ) -> Option<(DeltaDiscoveryResponse, InFlight)> {
        let removals = &mut self.needs[ty].removals;
        let mut items = Vec::new();
        let mut size = 0;
        let covered = |name: &ResourceName| tracker.covers(name);
        let cost_of = |name: &ResourceName| covered(name).then(|| name_cost(name));
        while let Some(name) = pop_within(removals, &mut size, limit, cost_of) {
            items.push((name, Sent::Removal));
        }
        if items.is_empty() {
            return None;
        }
        let more = !removals.is_empty();
        let names = items.iter().map(|(name, _)| name.to_string()).collect();
        Some((self.response(ty, Vec::new(), names, more), InFlight { ty, items }))
    }

    fn response(
        &self,
        ty: ResourceType,
        resources: Vec<WireResource>,
        removed_resources: Vec<String>,
        more: bool,
    ) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: system_version_info(self.generation, &self.source, more),
            type_url: ty.type_url().to_owned(),
            resources,
            removed_resources,
            ..DeltaDiscoveryResponse::default()
        }
    }
}

/// Responses that are sent and not acknowledged, by nonce.
pub(crate) type Unacknowledged = HashMap<String, InFlight>;

/// Takes the last item that has a cost, if the message stays within `limit` with it; those that have none are
/// dropped. The first item of a message always fits: one resource can't be split.
fn pop_within<T>(
    items: &mut Vec<T>,
    size: &mut usize,
    limit: usize,
    cost: impl Fn(&T) -> Option<usize>,
) -> Option<T> {
    while let Some(last) = items.last() {
        let Some(cost) = cost(last) else {
            items.pop();
            continue;
        };
        let with_it = *size + cost;
        if *size > 0 && with_it > limit {
            return None;
        }
        *size = with_it;
        return items.pop();
    }
    None
}

fn cost(resource: &Resource) -> usize {
    resource.name.as_str().len() + resource.content.len() + OVERHEAD
}

fn name_cost(name: &ResourceName) -> usize {
    name.as_str().len() + OVERHEAD
}

fn wire(resource: &Resource) -> WireResource {
    WireResource {
        name: resource.name.to_string(),
        version: resource.version.to_string(),
        resource: Some(Any { type_url: resource.ty.type_url().to_owned(), value: resource.content.to_vec() }),
        ..WireResource::default()
    }
}
