//! What takes long is done before the thread that owns the maps is asked: tables of sources of large load assignments.
//!
//! The control plane gathers what changes meanwhile: the agent answers a response when it is in force, and the next
//! one brings what each resource has become.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use slotmesh_ads::Update;
use slotmesh_xds::{Resource, ResourceName, ResourceType};

use crate::{
    config::{Message, Model},
    maglev::Tables,
};

/// A message of fewer bytes has so few endpoints that decoding it twice costs as much as its tables do.
const LARGE: usize = 16 << 10;

/// The load assignments that clusters in force choose from by the source, as the owner said last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashed(Arc<RwLock<HashSet<String>>>);

impl Hashed {
    pub fn insert(&self, assignment: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(assignment.to_owned());
    }

    pub fn remove(&self, assignment: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(assignment);
    }

    fn contains(&self, assignment: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(assignment)
    }
}

/// Tables by the name of the load assignment. What isn't among them the owner makes itself.
#[derive(Debug, Default)]
pub(crate) struct Prepared(HashMap<ResourceName, Tables>);

impl Prepared {
    /// Makes the tables that an update needs, on a thread where that may take long.
    pub async fn of(update: &Update, hashed: &Hashed) -> Self {
        if update.ty != ResourceType::Endpoints {
            return Self::default();
        }
        let large = update.upserts.iter().filter(|one| one.content.len() >= LARGE);
        let large: Vec<Resource> = large.filter(|one| hashed.contains(one.name.as_str())).cloned().collect();
        if large.is_empty() {
            return Self::default();
        }
        // One that panics prepares nothing.
        let made = tokio::task::spawn_blocking(move || large.iter().filter_map(tables).collect()).await;
        Self(made.unwrap_or_default())
    }

    /// The tables of a load assignment, if they were made.
    pub fn take(&mut self, name: &ResourceName) -> Option<Tables> {
        if self.0.is_empty() { None } else { self.0.remove(name) }
    }
}

/// `None` where the assignment can't be acted on: the owner says so.
fn tables(resource: &Resource) -> Option<(ResourceName, Tables)> {
    let message = Message::decode(resource).ok()?;
    match Model::new(resource.name.as_str(), &message).ok()? {
        // Which are for this node only its owner knows.
        Model::Endpoints(endpoints) if !endpoints.viewed => {
            Some((resource.name.clone(), Tables::of(&endpoints.v4, &endpoints.v6)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use slotmesh_xds::envoy::envoy::config::{
        core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
    };

    use super::*;

    fn assignment(name: &str, endpoints: u32) -> Resource {
        let endpoint = |i: u32| LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(Address {
                    address: Some(address::Address::SocketAddress(SocketAddress {
                        address: Ipv4Addr::from_bits(0x0a00_0000 + i).to_string(),
                        port_specifier: Some(PortSpecifier::PortValue(80)),
                        ..Default::default()
                    })),
                }),
                ..Default::default()
            })),
            ..Default::default()
        };
        let message = ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: (0..endpoints).map(endpoint).collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        Resource::encode(ResourceType::Endpoints, name, &message)
    }

    #[test]
    fn tables_are_made_of_what_is_large_and_hashed() {
        let hashed = Hashed::default();
        hashed.insert("large");
        hashed.insert("small");
        let upserts = [("large", 2_000), ("small", 10), ("other", 2_000)];
        let upserts = upserts.map(|(name, endpoints)| assignment(name, endpoints)).to_vec();
        let update = Update { ty: ResourceType::Endpoints, upserts, removed: Vec::new() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut prepared = runtime.block_on(Prepared::of(&update, &hashed));
        assert!(prepared.take(&"large".into()).is_some_and(|tables| tables.v4.len() >= 16_000));
        assert!(prepared.0.is_empty());
        hashed.remove("large");
        assert!(runtime.block_on(Prepared::of(&update, &hashed)).0.is_empty());
    }
}
