//! Resources in force whose requests the proxies of this node look at, published to them, and no others.
//!
//! ```text
//!  ADS client --> ProxyFeed --> inner sink --> kernel
//!                    |  route configurations for requests, the clusters and load assignments that they name,
//!                    |  a listener for each at its address, the pods that have a proxy
//!                    \--publish(changes)--> delta ADS server of the proxies
//! ```
//!
//! Invariants:
//! - What is published is in force here. A route configuration is published when all that it names is known, in the same
//!   batch or later; until then the version before stays.
//! - Nothing is published before everything is known that is in force, so that a proxy keeps what it has while this agent
//!   starts and the control plane is away.
//! - Bytes are kept of what is published, and for a while of what came last and nobody names, up to [`REMEMBERED`]. What
//!   is in force and isn't kept is asked for once more when a route configuration names it.

mod references;
mod served;

use std::{
    collections::HashMap,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prost::Message as _;
use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_xds::{
    Change, Rejection, Resource, ResourceName, ResourceType, Version, Workload,
    envoy::{
        envoy::config::{
            core::v3::{self as core, HealthStatus, address, socket_address::PortSpecifier},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
        google::protobuf::UInt32Value,
    },
};

use self::served::Served;
use crate::{Handle, config, pending_retries::PendingRetries, view::View};

/// Bytes of clusters and load assignments that are kept though nobody names them: those that came last, as a route
/// configuration that names them may follow.
const REMEMBERED: usize = 4 << 20;

/// Types of resources that proxies may need.
const TYPES: [ResourceType; 3] = [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Route];

/// Where changes go that are published.
pub type PublishToProxies = Box<dyn Fn(Vec<Change>) + Send + Sync>;

/// A sink that hands everything on, and publishes what proxies need. Clones are handles of the same.
#[derive(Clone)]
pub struct ProxyFeed<S> {
    inner: S,
    agent: Handle,
    shared: Arc<Shared>,
}

/// Says which pods have a proxy. Clones are handles of the same.
#[derive(Clone)]
pub struct ProxiedPods(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// `None` where there are no proxies.
    publish: Option<PublishToProxies>,
    /// Where names are put to ask for once more.
    lacking: Arc<PendingRetries>,
}

struct State {
    served: Served,
    is_synced: bool,
    is_open: bool,
    /// Changes that wait until everything is known.
    held_back: Vec<Change>,
}

impl<S: Sink> ProxyFeed<S> {
    /// Publishes what proxies need of what `inner` takes, if there are proxies; `agent` is behind it. The first batch comes
    /// when all is known.
    pub fn new(inner: S, agent: Handle, publish: Option<PublishToProxies>) -> Self {
        let state = State {
            served: Served::new(REMEMBERED),
            is_synced: false,
            is_open: false,
            held_back: Vec::new(),
        };
        let shared = Shared { state: Mutex::new(state), publish, lacking: agent.retries().clone() };
        Self { inner, agent, shared: Arc::new(shared) }
    }

    /// Where pods are named that have a proxy.
    pub fn pods(&self) -> ProxiedPods {
        ProxiedPods(Arc::clone(&self.shared))
    }
}

impl ProxiedPods {
    /// The proxies are to accept connections of a pod, at its listener's port.
    pub fn serve(&self, workload: &Workload) {
        let resource = Resource::encode(ResourceType::Workload, workload.resource_name(), workload);
        self.0.change(vec![Change::Upsert(resource)]);
    }

    /// A pod has no proxy any more.
    pub fn leave(&self, name: &ResourceName) {
        self.0.change(vec![Change::Remove(ResourceType::Workload, name.clone())]);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, changes: Vec<Change>) {
        self.go_on(&mut self.lock(), changes);
    }

    /// Publishes changes, in the order in which they were made, or keeps them until everything is known.
    fn go_on(&self, state: &mut State, changes: Vec<Change>) {
        let Some(publish) = &self.publish else { return };
        state.held_back.extend(changes);
        self.lacking.put(state.served.take_lacking(), true);
        if !state.is_open && state.is_synced && state.served.is_complete() {
            state.is_open = true;
            tracing::info!("proxies are served what is in force");
            publish(std::mem::take(&mut state.held_back));
        } else if state.is_open && !state.held_back.is_empty() {
            publish(std::mem::take(&mut state.held_back));
        }
    }
}

/// The resources of an update that proxies may need.
fn of_proxies(update: &Update) -> (Vec<Resource>, Vec<ResourceName>) {
    if TYPES.contains(&update.ty) {
        (update.upserts.clone(), update.removed.clone())
    } else {
        Default::default()
    }
}

impl<S: Sink> Sink for ProxyFeed<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let mut held = self.inner.held().await;
        if self.shared.publish.is_none() {
            return held;
        }
        let by_request = self.agent.proxy_addresses(None).await;
        let mut state = self.shared.lock();
        // It is asked for a stream that begins.
        state.served.lack_anew();
        self.shared.lacking.put(state.served.take_lacking(), true);
        for (ty, name, version) in &mut held {
            let is_missing = match ty {
                ResourceType::Route => by_request.contains_key(name) && !state.served.has_route(name),
                ty => state.served.lacks(*ty, name),
            };
            if is_missing {
                // No control plane has it: so the resource comes, or is removed.
                *version = Version::from_u64(!version.get()).unwrap_or(*version);
            }
        }
        held
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let ty = update.ty;
        let (mut upserts, removed) = match self.shared.publish {
            Some(_) => of_proxies(&update),
            None => Default::default(),
        };
        let rejected = self.inner.apply(update).await;
        if upserts.is_empty() && removed.is_empty() {
            return rejected;
        }
        let is_refused = |name: &ResourceName| rejected.iter().any(|rejection| rejection.name == *name);
        let mut addresses = HashMap::new();
        match ty {
            ResourceType::Route => {
                upserts.retain(|one| !is_refused(&one.name));
                let names = upserts.iter().map(|one| one.name.clone()).collect();
                addresses = self.agent.proxy_addresses(Some(names)).await;
            }
            // One that is asked for once more is in force already, though there may be no room to write it again.
            _ => {
                let state = self.shared.lock();
                upserts.retain(|one| !is_refused(&one.name) || state.served.lacks(ty, &one.name));
            }
        }
        if ty == ResourceType::Endpoints {
            let view = self.agent.view();
            upserts = upserts.into_iter().map(|resource| seen_from(resource, &view)).collect();
        }
        let mut state = self.shared.lock();
        let mut changes = Vec::new();
        for resource in upserts {
            match ty {
                ResourceType::Route => match addresses.get(&resource.name) {
                    Some(address) => state.served.set_route(resource, *address, &mut changes),
                    None => state.served.remove_route(&resource.name, &mut changes),
                },
                _ => state.served.came(resource, &mut changes),
            }
        }
        for name in &removed {
            match ty {
                ResourceType::Route => state.served.remove_route(name, &mut changes),
                _ => state.served.gone(ty, name, &mut changes),
            }
        }
        state.served.publish_ready(&mut changes);
        self.shared.go_on(&mut state, changes);
        drop(state);
        rejected
    }

    fn synced(&self) {
        self.inner.synced();
        let mut state = self.shared.lock();
        state.is_synced = true;
        self.shared.go_on(&mut state, Vec::new());
    }

    async fn retries(&self) -> AskAgain {
        self.inner.retries().await
    }
}

/// A load assignment as callers on this node have it: with the endpoints that are for them.
fn seen_from(resource: Resource, view: &View) -> Resource {
    let Ok(message) = config::Message::decode(&resource) else { return resource };
    let Ok(config::Model::Endpoints(mut endpoints)) = config::Model::new(resource.name.as_str(), &message)
    else {
        return resource;
    };
    if !endpoints.viewed {
        return resource;
    }
    endpoints.see_from(resource.name.as_str(), view);
    let of = |endpoint: &config::Endpoint| LbEndpoint {
        load_balancing_weight: Some(UInt32Value { value: endpoint.weight.get() }),
        health_status: if endpoint.degraded { HealthStatus::Degraded } else { HealthStatus::Unknown }.into(),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(core::Address {
                address: Some(address::Address::SocketAddress(core::SocketAddress {
                    address: endpoint.ip.to_string(),
                    port_specifier: Some(PortSpecifier::PortValue(endpoint.port.get().into())),
                    ..Default::default()
                })),
            }),
            ..Default::default()
        })),
        ..Default::default()
    };
    let all = endpoints.v4.iter().chain(&endpoints.v6);
    let message = ClusterLoadAssignment {
        cluster_name: resource.name.to_string(),
        endpoints: vec![LocalityLbEndpoints { lb_endpoints: all.map(of).collect(), ..Default::default() }],
        ..Default::default()
    };
    Resource::encoded(ResourceType::Endpoints, resource.name.clone(), message.encode_to_vec())
}

/// The listener by which proxies serve a route configuration.
fn listener(address: Ipv4Addr, route: &ResourceName) -> Resource {
    slotmesh_xds::proxy_listener(address, route.as_str())
}
