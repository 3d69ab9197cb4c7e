//! Resources that are published, and what that takes: which route configurations name which clusters, and these which load
//! assignments. It knows no clock and no socket.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use slotmesh_xds::{Change, Resource, ResourceName, ResourceType};

use super::{
    listener,
    references::{assignment_of, clusters_of},
};
use crate::config::INVALID_BACKEND;

/// A cluster or load assignment.
type Place = (ResourceType, ResourceName);

/// A route configuration at its address, with the clusters that it names.
struct RouteVersion {
    resource: Resource,
    address: Ipv4Addr,
    clusters: BTreeSet<ResourceName>,
}

/// The part of a route configuration that stays known while it is published.
struct Published {
    address: Ipv4Addr,
    clusters: BTreeSet<ResourceName>,
}

#[derive(Default)]
struct ServedRoute {
    published: Option<Published>,
    /// One that names what isn't known yet.
    waiting: Option<RouteVersion>,
}

/// Knowledge of something that is named.
enum Knowledge {
    /// It is in force, or isn't, and hasn't come.
    Lacking,
    /// There is none.
    Absent,
    /// It is published; of a cluster with the name of its load assignment.
    Published { resource: Resource, assignment: Option<ResourceName> },
}

struct Named {
    users: usize,
    knowledge: Knowledge,
}

/// Resources that are published, or wait for it.
pub(super) struct Served {
    routes: HashMap<ResourceName, ServedRoute>,
    /// Route configurations with a waiting version.
    waiting: BTreeSet<ResourceName>,
    named: HashMap<Place, Named>,
    /// Names that are lacking and haven't been asked for.
    lacking: BTreeSet<Place>,
    remembered: Remembered,
}

impl Served {
    pub(super) fn new(remembered: usize) -> Self {
        Self {
            routes: HashMap::new(),
            waiting: BTreeSet::new(),
            named: HashMap::new(),
            lacking: BTreeSet::new(),
            remembered: Remembered::new(remembered),
        }
    }

    /// True for a route configuration of which the last version is here.
    pub(super) fn has_route(&self, name: &ResourceName) -> bool {
        self.routes.contains_key(name)
    }

    /// True for what is named and hasn't come.
    pub(super) fn lacks(&self, ty: ResourceType, name: &ResourceName) -> bool {
        let named = self.named.get(&(ty, name.clone()));
        named.is_some_and(|named| matches!(named.knowledge, Knowledge::Lacking))
    }

    /// True where no version waits for anything.
    pub(super) fn is_complete(&self) -> bool {
        self.waiting.is_empty()
    }

    /// All that is lacking is to be asked for again: nobody answers any more for what was asked before.
    pub(super) fn lack_anew(&mut self) {
        let lacking = self.named.iter().filter(|(_, named)| matches!(named.knowledge, Knowledge::Lacking));
        self.lacking = lacking.map(|(place, _)| place.clone()).collect();
    }

    /// The names to be asked for, each once.
    pub(super) fn take_lacking(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.lacking)
    }

    /// A route configuration for requests is in force, at this address.
    pub(super) fn set_route(&mut self, resource: Resource, address: Ipv4Addr, changes: &mut Vec<Change>) {
        let (name, clusters) = (resource.name.clone(), clusters_of(&resource));
        for cluster in &clusters {
            self.acquire((ResourceType::Cluster, cluster.clone()), changes);
        }
        let route = self.routes.entry(name.clone()).or_default();
        let before = route.waiting.replace(RouteVersion { resource, address, clusters });
        self.waiting.insert(name);
        self.release_clusters(before.map(|before| before.clusters), changes);
    }

    /// A route configuration isn't in force any more, or not for requests.
    pub(super) fn remove_route(&mut self, name: &ResourceName, changes: &mut Vec<Change>) {
        let Some(ServedRoute { published, waiting }) = self.routes.remove(name) else { return };
        self.waiting.remove(name);
        if let Some(published) = &published {
            changes.push(Change::Remove(ResourceType::Listener, published.address.to_string().into()));
            changes.push(Change::Remove(ResourceType::Route, name.clone()));
        }
        self.release_clusters(published.map(|published| published.clusters), changes);
        self.release_clusters(waiting.map(|waiting| waiting.clusters), changes);
    }

    /// Publishes the route configurations that don't wait for anything any more.
    pub(super) fn publish_ready(&mut self, changes: &mut Vec<Change>) {
        let ready: Vec<_> = self.waiting.iter().filter(|name| self.is_ready(name)).cloned().collect();
        for name in ready {
            self.waiting.remove(&name);
            let Some(route) = self.routes.get_mut(&name) else { continue };
            let Some(RouteVersion { resource, address, clusters }) = route.waiting.take() else { continue };
            let before = route.published.replace(Published { address, clusters });
            if before.as_ref().is_none_or(|before| before.address != address) {
                changes.push(Change::Upsert(listener(address, &name)));
            }
            if let Some(before) = before.as_ref().filter(|before| before.address != address) {
                changes.push(Change::Remove(ResourceType::Listener, before.address.to_string().into()));
            }
            changes.push(Change::Upsert(resource));
            self.release_clusters(before.map(|before| before.clusters), changes);
        }
    }

    fn is_ready(&self, route: &ResourceName) -> bool {
        let Some(waiting) = self.routes.get(route).and_then(|route| route.waiting.as_ref()) else {
            return false;
        };
        waiting.clusters.iter().all(|cluster| match self.knowledge(ResourceType::Cluster, cluster) {
            None | Some(Knowledge::Lacking) => false,
            Some(Knowledge::Absent | Knowledge::Published { assignment: None, .. }) => true,
            Some(Knowledge::Published { assignment: Some(assignment), .. }) => {
                !self.lacks(ResourceType::Endpoints, assignment)
            }
        })
    }

    fn knowledge(&self, ty: ResourceType, name: &ResourceName) -> Option<&Knowledge> {
        self.named.get(&(ty, name.clone())).map(|named| &named.knowledge)
    }

    /// A cluster or load assignment is in force.
    pub(super) fn came(&mut self, resource: Resource, changes: &mut Vec<Change>) {
        let place = (resource.ty, resource.name.clone());
        match self.named.contains_key(&place) {
            true => self.publish(&place, resource, changes),
            false => self.remembered.put(resource),
        }
    }

    /// A cluster or load assignment isn't in force any more, or was asked for and isn't there.
    pub(super) fn gone(&mut self, ty: ResourceType, name: &ResourceName, changes: &mut Vec<Change>) {
        let place = (ty, name.clone());
        self.remembered.take(&place);
        let Some(named) = self.named.get_mut(&place) else { return };
        let before = std::mem::replace(&mut named.knowledge, Knowledge::Absent);
        self.lacking.remove(&place);
        self.unpublish(&place, before, changes);
    }

    fn publish(&mut self, place: &Place, resource: Resource, changes: &mut Vec<Change>) {
        let assignment = (place.0 == ResourceType::Cluster).then(|| assignment_of(&resource)).flatten();
        if let Some(assignment) = &assignment {
            self.acquire((ResourceType::Endpoints, assignment.clone()), changes);
        }
        self.lacking.remove(place);
        changes.push(Change::Upsert(resource.clone()));
        let Some(named) = self.named.get_mut(place) else { return };
        let before = std::mem::replace(&mut named.knowledge, Knowledge::Published { resource, assignment });
        if let Knowledge::Published { assignment: Some(assignment), .. } = before {
            self.release((ResourceType::Endpoints, assignment), changes);
        }
    }

    /// It isn't published any more; what was known of it is given, and returned where it was.
    fn unpublish(&mut self, place: &Place, before: Knowledge, changes: &mut Vec<Change>) -> Option<Resource> {
        let Knowledge::Published { resource, assignment } = before else { return None };
        changes.push(Change::Remove(place.0, place.1.clone()));
        if let Some(assignment) = assignment {
            self.release((ResourceType::Endpoints, assignment), changes);
        }
        Some(resource)
    }

    /// Something names it.
    fn acquire(&mut self, place: Place, changes: &mut Vec<Change>) {
        if let Some(named) = self.named.get_mut(&place) {
            named.users += 1;
            return;
        }
        if place.1.as_str() == INVALID_BACKEND {
            self.named.insert(place, Named { users: 1, knowledge: Knowledge::Absent });
            return;
        }
        self.named.insert(place.clone(), Named { users: 1, knowledge: Knowledge::Lacking });
        match self.remembered.take(&place) {
            Some(resource) => self.publish(&place, resource, changes),
            None => {
                self.lacking.insert(place);
            }
        }
    }

    /// One that named it doesn't any more.
    fn release(&mut self, place: Place, changes: &mut Vec<Change>) {
        let Some(named) = self.named.get_mut(&place) else { return };
        named.users -= 1;
        if named.users > 0 {
            return;
        }
        self.lacking.remove(&place);
        if let Some(Named { knowledge, .. }) = self.named.remove(&place)
            && let Some(resource) = self.unpublish(&place, knowledge, changes)
        {
            // It is still in force, and may be named again soon.
            self.remembered.put(resource);
        }
    }

    fn release_clusters(&mut self, clusters: Option<BTreeSet<ResourceName>>, changes: &mut Vec<Change>) {
        for cluster in clusters.into_iter().flatten() {
            self.release((ResourceType::Cluster, cluster), changes);
        }
    }
}

/// The resources that came last, up to so many bytes.
struct Remembered {
    most: usize,
    bytes: usize,
    /// With the number of its turn.
    by_place: HashMap<Place, (u64, Resource)>,
    turns: BTreeMap<u64, Place>,
    last_turn: u64,
}

impl Remembered {
    fn new(most: usize) -> Self {
        Self { most, bytes: 0, by_place: HashMap::new(), turns: BTreeMap::new(), last_turn: 0 }
    }

    fn put(&mut self, resource: Resource) {
        let place = (resource.ty, resource.name.clone());
        self.take(&place);
        self.last_turn += 1;
        self.bytes += size(&resource);
        self.turns.insert(self.last_turn, place.clone());
        self.by_place.insert(place, (self.last_turn, resource));
        while self.bytes > self.most
            && let Some((_, oldest)) = self.turns.pop_first()
        {
            if let Some((_, resource)) = self.by_place.remove(&oldest) {
                self.bytes -= size(&resource);
            }
        }
    }

    fn take(&mut self, place: &Place) -> Option<Resource> {
        let (turn, resource) = self.by_place.remove(place)?;
        self.turns.remove(&turn);
        self.bytes -= size(&resource);
        Some(resource)
    }
}

/// Bytes that a resource takes, with what it takes beside its own.
fn size(resource: &Resource) -> usize {
    const BESIDE: usize = 256;
    resource.content.len() + resource.name.as_str().len() + BESIDE
}

#[cfg(test)]
mod tests;
