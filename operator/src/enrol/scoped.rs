//! The store of a cluster: each node is served what is meant for it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use slotmesh_serve::{NodeName, Reached, Scope, Store};
use slotmesh_xds::{Change, ResourceName, ResourceType, Workload};

use crate::{Due, Publish};

/// Lets a node see its own workloads and settings, and the rest only while it has workloads.
#[derive(Debug, Default)]
pub(super) struct ByWorkloads(RwLock<HashMap<NodeName, usize>>);

impl ByWorkloads {
    /// Whether the node has workloads.
    fn has(&self, node: &NodeName) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(node)
    }
}

impl Scope for ByWorkloads {
    fn sees(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> bool {
        match ty {
            ResourceType::Workload => return Workload::node_of(name) == Some(node.as_str()),
            ResourceType::Settings => return name.as_str() == node.as_str(),
            _ => {}
        }
        self.has(node)
    }
}

/// A store for a cluster: of what is published, each node sees what is meant for it.
#[derive(Debug)]
pub struct Scoped {
    store: Store,
    workloads: HashSet<ResourceName>,
    pub(super) scope: Arc<ByWorkloads>,
    due: Due,
}

impl Default for Scoped {
    fn default() -> Self {
        let scope = Arc::<ByWorkloads>::default();
        Self {
            store: Store::with_scope(scope.clone()),
            workloads: HashSet::new(),
            scope,
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

    /// Counts the workloads of each node; returns the nodes that got their first or lost their last.
    pub(super) fn count(&mut self, changes: &[Change]) -> HashSet<NodeName> {
        let mut nodes = self.scope.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = HashMap::new();
        for change in changes {
            let (name, joins) = match change {
                Change::Upsert(resource) if resource.ty == ResourceType::Workload => (&resource.name, true),
                Change::Remove(ResourceType::Workload, name) => (name, false),
                Change::Upsert(_) | Change::Remove(..) => continue,
            };
            let Some(node) = Workload::node_of(name).map(NodeName::from) else { continue };
            let changed =
                if joins { self.workloads.insert(name.clone()) } else { self.workloads.remove(name) };
            if !changed {
                continue;
            }
            before.entry(node.clone()).or_insert_with(|| nodes.contains_key(&node));
            let count = nodes.entry(node.clone()).or_default();
            *count = if joins { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                nodes.remove(&node);
            }
        }
        before
            .into_iter()
            .filter(|(node, had)| nodes.contains_key(node) != *had)
            .map(|(node, _)| node)
            .collect()
    }
}

impl Publish for Scoped {
    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &Reached) {
        let rescoped = self.count(&changes);
        self.due.apply(&changes, |ty, name| self.store.get(ty, name).map(|resource| resource.version));
        for node in &rescoped {
            self.due.takes_part(node, self.scope.has(node));
        }
        self.store.apply_for(changes, &rescoped, Some(seen), reached);
    }

    fn reach(&mut self, reached: &Reached) {
        self.store.reach(reached);
    }
}
