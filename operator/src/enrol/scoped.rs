//! The store of a cluster: each node is served what is meant for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use slotmesh_compile::Audience;
use slotmesh_serve::{NodeName, Reached, Rescoped, Scope, Store, Visibility};
use slotmesh_xds::{Change, ResourceName, ResourceType, Workload};

use super::sight::Sights;
use crate::{Due, Publish};

/// Lets a node see its own workloads and settings, and of the rest what those on it can make use of.
#[derive(Debug, Default)]
pub(super) struct ByWorkloads(RwLock<Sights>);

impl ByWorkloads {
    /// Whether the node has workloads.
    fn has(&self, node: &NodeName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).has_workloads(node)
    }
}

impl Scope for ByWorkloads {
    fn visibility(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> Visibility {
        let own = match ty {
            ResourceType::Workload => Workload::node_of(name) == Some(node.as_str()),
            ResourceType::Settings => name.as_str() == node.as_str(),
            _ => {
                let sights = self.0.read().unwrap_or_else(PoisonError::into_inner);
                return sights.visibility(node, ty, name);
            }
        };
        if own { Visibility::Seen } else { Visibility::Foreign }
    }
}

/// A store for a cluster: of what is published, each node sees what is meant for it.
#[derive(Debug)]
pub struct Scoped {
    store: Store,
    pub(super) scope: Arc<ByWorkloads>,
    /// The listeners that other callers need from the next time on that something is published.
    audiences: BTreeMap<ResourceName, Option<Audience>>,
    due: Due,
}

impl Default for Scoped {
    fn default() -> Self {
        let scope = Arc::<ByWorkloads>::default();
        Self {
            store: Store::with_scope(scope.clone()),
            scope,
            audiences: BTreeMap::new(),
            due: Due::default(),
        }
    }
}

impl Scoped {
    /// The store, to be served.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// What each node has to have in force.
    pub fn due(&self) -> Due {
        self.due.clone()
    }

    /// Takes notice of changes that are about to be published; returns what nodes may see otherwise.
    pub(super) fn rescope(&mut self, changes: &[Change]) -> Rescoped {
        let mut sights = self.scope.0.write().unwrap_or_else(PoisonError::into_inner);
        sights.apply(changes, std::mem::take(&mut self.audiences))
    }
}

impl Publish for Scoped {
    fn audiences(&mut self, audiences: BTreeMap<ResourceName, Option<Audience>>) {
        self.audiences.extend(audiences);
    }

    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &Reached) {
        let rescoped = self.rescope(&changes);
        self.due.apply(&changes, |ty, name| self.store.get(ty, name).map(|resource| resource.version));
        for node in &rescoped.nodes {
            self.due.takes_part(node, self.scope.has(node));
        }
        self.store.apply_for(changes, &rescoped, Some(seen), reached);
    }

    fn reach(&mut self, reached: &Reached) {
        self.store.reach(reached);
    }
}
