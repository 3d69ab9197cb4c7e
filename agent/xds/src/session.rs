//! The state machine of one stream: responses in, updates and requests out.
//!
//! No sockets, clock or tasks. Invariant: each response of a known type is answered exactly once,
//! after it was applied; an ACK says that all of it is in force, a NACK names each resource that
//! isn't.

use std::collections::{BTreeSet, HashMap, HashSet, hash_map::Entry};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource},
};
use slotmesh_xds::{
    AgentReport, PerType, Rejection, Resource, ResourceName, ResourceType, Version, more_follows,
    status_from_rejections,
};

use crate::{
    sink::Update,
    subscriptions::{Subscription, Subscriptions},
    versions::Foreign,
};

/// What the control plane has said of a type that the agent subscribes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// Not requested on this stream.
    #[default]
    Idle,
    /// Requested, not answered yet.
    Requested,
    /// Answered in full.
    Answered,
}

/// What is remembered of a response until it is applied, to answer it.
#[derive(Debug)]
pub(crate) struct Unanswered {
    ty: ResourceType,
    nonce: String,
    /// What was refused before the sink saw it.
    malformed: Vec<Rejection>,
    /// The control plane's own names for the versions.
    raw_versions: Vec<(ResourceName, Version, String)>,
    removed: Vec<ResourceName>,
    last_part: bool,
}

impl Unanswered {
    /// The names in the response, with the version of those that have a content.
    pub(crate) fn versions(&self) -> Vec<(ResourceName, Option<Version>)> {
        let present = self.raw_versions.iter().map(|(name, version, _)| (name.clone(), Some(*version)));
        present.chain(self.removed.iter().map(|name| (name.clone(), None))).collect()
    }
}

/// The state of one stream.
#[derive(Debug)]
pub(crate) struct Session {
    /// Sent with the first request only.
    node: Option<Node>,
    subscriptions: Subscriptions,
    progress: PerType<Progress>,
    /// Names that were asked for beside the wildcard.
    asked: PerType<BTreeSet<ResourceName>>,
    strangers: HashSet<String>,
}

/// Unknown type URLs that are logged once each.
const MAX_STRANGERS: usize = 16;

impl Session {
    /// A stream on which nothing is subscribed yet.
    pub(crate) fn new(node: Node) -> Self {
        Self {
            node: Some(node),
            subscriptions: Subscriptions::default(),
            progress: PerType::default(),
            asked: PerType::default(),
            strangers: HashSet::new(),
        }
    }

    /// The requests that bring the stream's subscriptions to `wanted`.
    ///
    /// `held` is asked for the versions in force in the first request of a type. The requests are in
    /// make-before-break order, so that a server hears of clusters before what refers to them.
    pub(crate) fn subscribe(
        &mut self,
        wanted: &Subscriptions,
        held: &HeldVersions,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (ty, wanted) in wanted.iter() {
            let (subscribe, mut unsubscribe) = wanted.difference(&self.subscriptions[ty]);
            if *wanted != Subscription::Wildcard {
                let asked = std::mem::take(&mut self.asked[ty]);
                unsubscribe.extend(asked.iter().filter(|name| !wanted.covers(name)).map(ToString::to_string));
            }
            if subscribe.is_empty() && unsubscribe.is_empty() {
                continue;
            }
            let first = self.progress[ty] == Progress::Idle;
            if first {
                self.progress[ty] = Progress::Requested;
            }
            requests.push(DeltaDiscoveryRequest {
                node: self.node.take(),
                type_url: ty.type_url().to_owned(),
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: if first { held.of(ty, wanted) } else { HashMap::new() },
                ..DeltaDiscoveryRequest::default()
            });
            self.subscriptions[ty] = wanted.clone();
        }
        requests
    }

    /// The requests that ask for these resources again, in whatever version they are.
    pub(crate) fn ask_again(
        &mut self,
        names: impl IntoIterator<Item = (ResourceType, ResourceName)>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut by_type = PerType::<Vec<ResourceName>>::default();
        for (ty, name) in names {
            if self.progress[ty] != Progress::Idle && self.subscriptions[ty].covers(&name) {
                by_type[ty].push(name);
            }
        }
        let mut requests = Vec::new();
        for (ty, names) in by_type.iter().filter(|(_, names)| !names.is_empty()) {
            let texts = |names: Vec<&ResourceName>| names.into_iter().map(ToString::to_string).collect();
            // A control plane may take a second subscription for none. The wildcard covers what is left for a moment.
            let before = match self.subscriptions[ty] {
                Subscription::Wildcard => {
                    names.iter().filter(|name| self.asked[ty].contains(*name)).collect()
                }
                Subscription::Names(_) => names.iter().collect(),
            };
            requests.push(DeltaDiscoveryRequest {
                type_url: ty.type_url().to_owned(),
                resource_names_subscribe: texts(names.iter().collect()),
                resource_names_unsubscribe: texts(before),
                ..DeltaDiscoveryRequest::default()
            });
            if self.subscriptions[ty] == Subscription::Wildcard {
                self.asked[ty].extend(names.iter().cloned());
            }
        }
        requests
    }

    /// A request that has to be answered whatever there is; `None` where no type is subscribed to by names.
    pub(crate) fn probe(&mut self) -> Option<DeltaDiscoveryRequest> {
        let named = self.subscriptions.iter().find_map(|(ty, subscription)| match subscription {
            Subscription::Names(names) => Some((ty, names.first()?.clone())),
            Subscription::Wildcard => None,
        });
        self.ask_again(named).pop()
    }

    /// Takes in a response; `None` when its type is unknown and it has to be ignored, without ACK.
    pub(crate) fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Option<(Update, Unanswered)> {
        let Ok(ty) = response.type_url.parse::<ResourceType>() else {
            self.stranger(response.type_url);
            return None;
        };
        let mut upserts = HashMap::new();
        let mut raw_versions = Vec::new();
        let mut malformed = Vec::new();
        for (index, wire) in response.resources.into_iter().enumerate() {
            match parse(ty, index, wire) {
                Ok(Some((resource, raw))) => {
                    if !self.subscriptions[ty].covers(&resource.name) {
                        // Allowed by the protocol, and nothing that this agent has a use for.
                        continue;
                    }
                    match upserts.entry(resource.name.clone()) {
                        Entry::Vacant(vacant) => {
                            raw_versions.push((resource.name.clone(), resource.version, raw));
                            vacant.insert(Some(resource));
                        }
                        Entry::Occupied(mut twice) => {
                            if twice.insert(None).is_some() {
                                malformed.push(Rejection {
                                    name: resource.name,
                                    reason: "occurs more than once in one response".to_owned(),
                                });
                            }
                        }
                    }
                }
                Ok(None) => {}
                Err(rejection) => malformed.push(rejection),
            }
        }
        let mut removed = Vec::new();
        for name in response.removed_resources {
            let name = ResourceName::from(name);
            match upserts.get_mut(&name) {
                None => removed.push(name),
                Some(both) => {
                    if both.take().is_some() {
                        let reason = "is both present and removed in one response".to_owned();
                        malformed.push(Rejection { name, reason });
                    }
                }
            }
        }
        let unanswered = Unanswered {
            ty,
            nonce: response.nonce,
            malformed,
            raw_versions,
            removed: removed.clone(),
            last_part: !more_follows(&response.system_version_info),
        };
        let upserts = upserts.into_values().flatten().collect();
        Some((Update { ty, upserts, removed }, unanswered))
    }

    /// The answer to a response that was applied, with what was refused of it.
    pub(crate) fn answer(
        &mut self,
        unanswered: Unanswered,
        refused: Vec<Rejection>,
        versions: &mut Foreign,
    ) -> (DeltaDiscoveryRequest, Vec<Rejection>) {
        let Unanswered { ty, nonce, malformed: mut rejections, raw_versions, removed, last_part } =
            unanswered;
        rejections.extend(refused);
        let names: HashSet<&ResourceName> = rejections.iter().map(|rejection| &rejection.name).collect();
        for (name, version, raw) in raw_versions.iter().filter(|(name, ..)| !names.contains(name)) {
            versions.learn(ty, name, *version, raw);
        }
        for name in removed.iter().filter(|name| !names.contains(name)) {
            versions.forget(ty, name);
        }
        if last_part && self.progress[ty] == Progress::Requested {
            self.progress[ty] = Progress::Answered;
        }
        let request = DeltaDiscoveryRequest {
            type_url: ty.type_url().to_owned(),
            response_nonce: nonce,
            error_detail: (!rejections.is_empty()).then(|| status_from_rejections(&rejections)),
            ..DeltaDiscoveryRequest::default()
        };
        (request, rejections)
    }

    /// A request that tells of the agent and asks for nothing; `None` before anything was asked for,
    /// because the first request of a type asks for something.
    ///
    /// It names no resources and no nonce: by the protocol it changes no subscription and wants no
    /// answer.
    pub(crate) fn report(&self, node: &Node, report: &AgentReport) -> Option<DeltaDiscoveryRequest> {
        let (ty, _) = self.progress.iter().find(|(_, progress)| **progress != Progress::Idle)?;
        let mut metadata = node.metadata.clone().unwrap_or_default();
        metadata.fields.extend(report.metadata().fields);
        Some(DeltaDiscoveryRequest {
            node: Some(Node { metadata: Some(metadata), ..node.clone() }),
            type_url: ty.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// All types that are subscribed to and have to be answered were answered in full, and there is at
    /// least one.
    pub(crate) fn in_sync(&self) -> bool {
        let types = || self.progress.iter().filter(|(ty, _)| ty.is_awaited());
        let answered = types().any(|(_, progress)| *progress == Progress::Answered);
        answered
            && types().all(|(ty, progress)| match progress {
                Progress::Answered => true,
                Progress::Idle | Progress::Requested => self.subscriptions[ty].is_empty(),
            })
    }

    /// Whether a type is subscribed to and has not been answered in full.
    pub(crate) fn awaits_some(&self) -> bool {
        self.progress.iter().any(|(_, progress)| *progress == Progress::Requested)
    }

    /// Whether types are subscribed to, and none of them has been answered in full.
    pub(crate) fn awaits_all(&self) -> bool {
        self.awaits_some() && self.progress.iter().all(|(_, progress)| *progress != Progress::Answered)
    }

    fn stranger(&mut self, type_url: String) {
        let type_url: String = type_url.chars().take(256).collect();
        if self.strangers.len() < MAX_STRANGERS && self.strangers.insert(type_url.clone()) {
            tracing::warn!(type_url, "response of an unknown resource type ignored");
        }
    }
}

/// What is in force, by type, under the control plane's names for the versions.
#[derive(Debug, Default)]
pub(crate) struct HeldVersions(PerType<Vec<(ResourceName, String)>>);

impl HeldVersions {
    pub(crate) fn new(held: Vec<(ResourceType, ResourceName, Version)>, versions: &Foreign) -> Self {
        let mut by_type = PerType::<Vec<_>>::default();
        for (ty, name, version) in held {
            let version = versions.name(ty, &name, version);
            by_type[ty].push((name, version));
        }
        Self(by_type)
    }

    fn of(&self, ty: ResourceType, wanted: &Subscription) -> HashMap<String, String> {
        let wanted = self.0[ty].iter().filter(|(name, _)| wanted.covers(name));
        wanted.map(|(name, version)| (name.to_string(), version.clone())).collect()
    }
}

/// The resource with the control plane's own version; `None` for a heartbeat, which changes nothing.
fn parse(
    ty: ResourceType,
    index: usize,
    wire: WireResource,
) -> Result<Option<(Resource, String)>, Rejection> {
    let name = ResourceName::from(wire.name);
    let refuse = |reason: String| Err(Rejection { name: name.clone(), reason });
    if name.as_str().is_empty() {
        return refuse(format!("resource {index} of the response has no name"));
    }
    let Some(any) = wire.resource else {
        return if wire.ttl.is_some() { Ok(None) } else { refuse("has no content".to_owned()) };
    };
    if any.type_url != ty.type_url() {
        return refuse(format!("is a {:?} in a response of type {:?}", any.type_url, ty.type_url()));
    }
    let version = Version::of(&any.value);
    Ok(Some((Resource { ty, name, version, content: any.value.into() }, wire.version)))
}

#[cfg(test)]
mod tests;
