//! The state machine against scripted agents, without sockets.

use std::time::{Duration, Instant};

use ResourceType::{Cluster, Endpoints, Listener, Route};
use envoy_types::pb::envoy::config::core::v3::Node;
use slotmesh_xds::{Change, Rejection, Resource, Version, more_follows, status_from_rejections};

use super::*;

mod acknowledgements;
mod random;
mod rounds;
mod source;
mod subscriptions;

const LIMIT: usize = 1 << 20;

/// A store and one stream; the test plays the agent.
struct Scene {
    resources: Resources,
    stream: Stream,
}

fn resource(ty: ResourceType, name: &str, content: &str) -> Resource {
    let content = content.as_bytes();
    Resource { ty, name: name.into(), version: Version::of(content), content: content.to_vec().into() }
}

fn upsert(ty: ResourceType, name: &str, content: &str) -> Change {
    Change::Upsert(resource(ty, name, content))
}

fn remove(ty: ResourceType, name: &str) -> Change {
    Change::Remove(ty, name.into())
}

fn request(ty: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: "node-a".into(), ..Node::default() }),
        type_url: ty.type_url().into(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn subscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    let names = names.iter().map(|name| (*name).into()).collect();
    DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(ty) }
}

fn unsubscribe(ty: ResourceType, names: &[&str]) -> DeltaDiscoveryRequest {
    let names = names.iter().map(|name| (*name).into()).collect();
    DeltaDiscoveryRequest { resource_names_unsubscribe: names, ..request(ty) }
}

fn type_of(response: &DeltaDiscoveryResponse) -> ResourceType {
    response.type_url.parse().unwrap()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
    names.sort_unstable();
    names
}

/// The effect of a response, in one line: `cluster +a +b -c`.
fn summary(response: &DeltaDiscoveryResponse) -> String {
    let mut text = type_of(response).to_string();
    for name in names(response) {
        text += &format!(" +{name}");
    }
    for name in &response.removed_resources {
        text += &format!(" -{name}");
    }
    text
}

impl Scene {
    fn new(changes: Vec<Change>) -> Self {
        let mut resources = Resources::default();
        resources.apply(changes);
        Self { resources, stream: Stream::new(StreamId(1), LIMIT) }
    }

    /// A scene whose agent is subscribed to everything of all types and has acknowledged it.
    fn settled(changes: Vec<Change>) -> Self {
        let mut scene = Self::new(changes);
        for ty in ResourceType::ALL {
            scene.send(subscribe(ty, &["*"]));
        }
        scene.settle();
        scene
    }

    fn apply(&mut self, changes: Vec<Change>) {
        self.apply_seen(changes, None);
    }

    fn apply_seen(&mut self, changes: Vec<Change>, seen: Option<Instant>) {
        let dirty = self.resources.apply(changes);
        self.stream.absorb(dirty, seen, &self.resources);
    }

    /// The node may see other ones of these.
    fn look_at(&mut self, names: &HashSet<(ResourceType, ResourceName)>) {
        let mut dirty = Dirty::default();
        self.resources.look_at(names, &mut dirty);
        self.stream.absorb(dirty, None, &self.resources);
    }

    fn send(&mut self, request: DeltaDiscoveryRequest) {
        self.stream.on_request(request, &self.resources).unwrap();
    }

    fn next(&mut self) -> Option<DeltaDiscoveryResponse> {
        loop {
            if let Some(response) = self.stream.next_response() {
                return Some(response);
            }
            if !self.stream.begin_round(&self.resources) {
                return None;
            }
        }
    }

    fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        let nonce = response.nonce.clone();
        self.send(DeltaDiscoveryRequest { response_nonce: nonce, ..request(type_of(response)) });
    }

    fn nack(&mut self, response: &DeltaDiscoveryResponse, refused: &[(&str, &str)]) {
        let rejections: Vec<_> = refused
            .iter()
            .map(|(name, reason)| Rejection { name: (*name).into(), reason: (*reason).into() })
            .collect();
        self.send(DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: Some(status_from_rejections(&rejections)),
            ..request(type_of(response))
        });
    }

    /// Acknowledges all until nothing more comes; returns what came.
    fn settle(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(response) = self.next() {
            seen.push(summary(&response));
            self.ack(&response);
        }
        seen
    }

    /// The version of a cluster that the agent has in force.
    fn version(&self, name: &str) -> Option<Version> {
        let held = self.stream.held(Cluster, &self.resources);
        held.into_iter().find_map(|(held, version)| (held.as_str() == name).then_some(version))
    }

    /// The clusters that the agent refuses, by name.
    fn refused(&self) -> Vec<String> {
        let status = self.stream.status(StreamId(1)).unwrap();
        status.types[Cluster].rejected.iter().map(|rejected| rejected.name.to_string()).collect()
    }

    fn held(&self, ty: ResourceType) -> Vec<String> {
        let mut names: Vec<_> =
            self.stream.held(ty, &self.resources).into_iter().map(|(name, _)| name.to_string()).collect();
        names.sort_unstable();
        names
    }
}
