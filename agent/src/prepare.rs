//! What takes long is done before the thread that owns the maps is asked: tables of sources of large load assignments,
//! when one changes and when a cluster begins to choose from it by the source.
//!
//! Invariant: the owner makes no table of [`MANY`] endpoints or more itself, but for one that was made of other endpoints
//! than it then writes, which it counts.
//!
//! The control plane gathers what changes meanwhile: the agent answers a response when it is in force, and the next
//! one brings what each resource has become.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use slotmesh_ads::Update;
use slotmesh_xds::{Resource, ResourceName};

use crate::{
    RecordType,
    config::{Endpoints, Message, Model, Source},
    held::Held,
    maglev::Tables,
    view::View,
};

/// A message of fewer bytes has so few endpoints that decoding it twice costs as much as its tables do.
const LARGE: usize = 16 << 10;
/// So many endpoints have tables that are worth being made ahead. A message that isn't large has fewer.
pub(crate) const MANY: usize = 1_000;

/// State that the owner told last, for whoever prepares what it is given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hashed(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    /// The load assignments that clusters in force choose from by the source.
    hashed: HashSet<String>,
    /// Where the node is.
    view: View,
}

impl Hashed {
    pub fn insert(&self, assignment: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).hashed.insert(assignment.to_owned());
    }

    pub fn remove(&self, assignment: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).hashed.remove(assignment);
    }

    pub fn see_from(&self, view: &View) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).view = view.clone();
    }

    fn contains(&self, assignment: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).hashed.contains(assignment)
    }

    pub fn view(&self) -> View {
        self.0.read().unwrap_or_else(PoisonError::into_inner).view.clone()
    }
}

/// Tables of a load assignment, and what they were made of.
#[derive(Debug)]
struct Made {
    /// The content hash of the resource.
    version: u64,
    tables: Tables,
}

/// Tables by the name of the load assignment, or of the cluster that has its endpoints itself.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    made: HashMap<ResourceName, Made>,
    /// Where the node was taken to be.
    view: View,
}

impl Prepared {
    /// Makes the tables that an update needs, on a thread where that may take long. `held` asks the owner for what is
    /// in force of load assignments.
    pub async fn of<F: Future<Output = HashMap<String, Held>> + Send>(
        ty: RecordType,
        update: &Update,
        hashed: &Hashed,
        held: impl FnOnce(HashSet<String>) -> F + Send,
    ) -> Self {
        match ty {
            RecordType::Endpoints => Self::of_endpoints(update, hashed).await,
            RecordType::Cluster => Self::of_clusters(update, hashed, held).await,
            RecordType::Route | RecordType::Listener => Self::default(),
        }
    }

    async fn of_endpoints(update: &Update, hashed: &Hashed) -> Self {
        let large = update.upserts.iter().filter(|one| one.content.len() >= LARGE);
        let large: Vec<Resource> = large.filter(|one| hashed.contains(one.name.as_str())).cloned().collect();
        let view = hashed.view();
        Self::make(large, view, |resource, view| {
            let message = Message::decode(resource).ok()?;
            let Model::Endpoints(mut endpoints) = Model::new(resource.name.as_str(), &message).ok()? else {
                return None;
            };
            endpoints.see_from(resource.name.as_str(), view);
            Some(made(resource.name.clone(), resource.version.get(), &endpoints))
        })
        .await
    }

    /// Of clusters that begin to hash the source of connections: the tables of what they choose from.
    async fn of_clusters<F: Future<Output = HashMap<String, Held>> + Send>(
        update: &Update,
        hashed: &Hashed,
        held: impl FnOnce(HashSet<String>) -> F + Send,
    ) -> Self {
        let (mut begun, mut large) = (HashSet::new(), Vec::new());
        for resource in &update.upserts {
            if resource.content.len() >= LARGE {
                large.push(resource.clone());
            } else if let Some(assignment) = hashes_over(resource)
                && !hashed.contains(&assignment)
            {
                begun.insert(assignment);
            }
        }
        let mut prepared = Self::make(large, View::default(), |resource, _| {
            let message = Message::decode(resource).ok()?;
            let Model::Cluster(cluster) = Model::new(resource.name.as_str(), &message).ok()? else {
                return None;
            };
            let hashes = cluster.balance.hashes();
            let Source::Inline(endpoints) = cluster.source else { return None };
            hashes.then(|| made(resource.name.clone(), resource.version.get(), &endpoints))
        })
        .await;
        if !begun.is_empty() {
            let held = held(begun).await.into_iter().filter(|(_, held)| held.len() >= MANY).collect();
            let of_held = Self::make(held, View::default(), |(name, held): &(String, Held), _| {
                Some(made(name.as_str().into(), held.version(), &held.endpoints()?))
            });
            prepared.made.extend(of_held.await.made);
        }
        prepared
    }

    /// `None` where something can't be acted on: the owner says so.
    async fn make<T: Send + 'static>(
        of: Vec<T>,
        view: View,
        make: impl Fn(&T, &View) -> Option<(ResourceName, Made)> + Send + 'static,
    ) -> Self {
        if of.is_empty() {
            return Self { made: HashMap::new(), view };
        }
        let seen_from = view.clone();
        let all = move || of.iter().filter_map(|one| make(one, &view)).collect();
        // One that panics prepares nothing.
        Self { made: tokio::task::spawn_blocking(all).await.unwrap_or_default(), view: seen_from }
    }

    /// The tables of this version of a load assignment, as it is seen from there, if they were made.
    pub fn take(&mut self, name: &str, version: u64, view: Option<&View>) -> Option<Tables> {
        if self.made.is_empty() || view.is_some_and(|view| !view.is_same_of(name, &self.view)) {
            return None;
        }
        let made = self.made.remove(&ResourceName::from(name))?;
        (made.version == version).then_some(made.tables)
    }
}

fn made(name: ResourceName, version: u64, endpoints: &Endpoints<'_>) -> (ResourceName, Made) {
    (name, Made { version, tables: Tables::of(&endpoints.v4, &endpoints.v6) })
}

/// The load assignment that a cluster chooses from by the source.
fn hashes_over(cluster: &Resource) -> Option<String> {
    let message = Message::decode(cluster).ok()?;
    let Model::Cluster(cluster) = Model::new(cluster.name.as_str(), &message).ok()? else { return None };
    cluster.hashes_over().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use slotmesh_xds::{
        ResourceType,
        envoy::envoy::config::{
            core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
    };

    use super::*;
    use crate::config::NodePlace;

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

    async fn nothing_held(names: HashSet<String>) -> HashMap<String, Held> {
        panic!("the owner is asked for {names:?}")
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
        let prepare =
            || runtime.block_on(Prepared::of(RecordType::Endpoints, &update, &hashed, nothing_held));
        let version = update.upserts[0].version.get();
        let view = |zone: &str| View {
            node: "n".to_owned(),
            place: NodePlace { zone: zone.to_owned(), ..NodePlace::default() },
            ..View::default()
        };
        hashed.see_from(&view("a"));
        assert!(prepare().take("large", version + 1, Some(&view("a"))).is_none(), "another version");
        assert!(prepare().take("large", version, Some(&view("b"))).is_none(), "the node is elsewhere");
        let left_out = |name: &str| {
            let out = HashMap::from([(name.to_owned(), ["10.0.0.1:80".parse().unwrap()].into())]);
            View { left_out: Arc::new(out), ..view("a") }
        };
        assert!(prepare().take("large", version, Some(&left_out("large"))).is_none(), "one is left out");
        assert!(prepare().take("large", version, Some(&left_out("other"))).is_some());
        let mut prepared = prepare();
        let tables = prepared.take("large", version, Some(&view("a")));
        assert!(tables.is_some_and(|tables| tables.v4.len() >= 16_000));
        assert!(prepared.made.is_empty());
        hashed.remove("large");
        assert!(prepare().made.is_empty());
    }
}
