//! The store of a cluster: each node is served what is meant for it.

mod index;

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use slotmesh_compile::Audience;
use slotmesh_serve::{NodeName, Rescoped, Scope, SourceVersions, Store, Visibility};
use slotmesh_xds::{Change, ResourceName, ResourceType, Workload};

use self::index::VisibilityIndex;
use crate::{Due, Publish};

/// Lets a node see its own workloads and settings, and of the rest what those on it can make use of.
#[derive(Debug, Default)]
struct ByWorkloads(RwLock<VisibilityIndex>);

impl ByWorkloads {
    /// Tells whether the node has workloads.
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
                let index = self.0.read().unwrap_or_else(PoisonError::into_inner);
                return index.visibility(node, ty, name);
            }
        };
        if own { Visibility::Seen } else { Visibility::Foreign }
    }
}

/// A store for a cluster: of what is published, each node sees what is meant for it.
#[derive(Debug)]
pub struct Scoped {
    store: Store,
    scope: Arc<ByWorkloads>,
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

    /// The resources that each node has to have in force.
    pub fn due(&self) -> Due {
        self.due.clone()
    }

    /// Takes notice of changes that are about to be published; returns what nodes may see otherwise.
    fn rescope(&mut self, changes: &[Change]) -> Rescoped {
        let mut index = self.scope.0.write().unwrap_or_else(PoisonError::into_inner);
        index.apply(changes, std::mem::take(&mut self.audiences))
    }
}

impl Publish for Scoped {
    fn audiences(&mut self, audiences: BTreeMap<ResourceName, Option<Audience>>) {
        self.audiences.extend(audiences);
    }

    fn publish(&mut self, changes: Vec<Change>, seen: Instant, reached: &SourceVersions) {
        let rescoped = self.rescope(&changes);
        self.due.apply(&changes, |ty, name| self.store.get(ty, name).map(|resource| resource.version));
        for node in &rescoped.nodes {
            self.due.takes_part(node, self.scope.has(node));
        }
        self.store.apply_for(changes, &rescoped, Some(seen), reached);
    }

    fn reach(&mut self, reached: &SourceVersions) {
        self.store.reach(reached);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use slotmesh_xds::Resource;

    use super::*;

    fn workload(node: &str, uid: &str) -> Workload {
        Workload { node: node.to_owned(), uid: uid.to_owned(), ..Workload::default() }
    }

    fn comes(node: &str, uid: &str) -> Change {
        let workload = workload(node, uid);
        Change::Upsert(Resource::encode(ResourceType::Workload, workload.resource_name(), &workload))
    }

    fn goes(node: &str, uid: &str) -> Change {
        Change::Remove(ResourceType::Workload, workload(node, uid).resource_name())
    }

    #[test]
    fn a_node_sees_the_rest_only_while_it_has_workloads() {
        let mut scoped = Scoped::default();
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        let mut go = |change: Change| {
            let flipped = scoped.rescope(&[change]).nodes;
            let sees = |node: &NodeName| {
                scoped.scope.visibility(node, ResourceType::Listener, &"l".into()) == Visibility::Seen
            };
            (flipped, sees(&n1), sees(&n2))
        };
        let one = HashSet::from([n1.clone()]);
        assert_eq!(go(comes("n1", "a")), (one.clone(), true, false));
        assert_eq!(go(comes("n1", "b")), (HashSet::new(), true, false));
        assert_eq!(go(goes("n1", "a")), (HashSet::new(), true, false));
        assert_eq!(go(goes("n1", "b")), (one, false, false));
        let own = |name: &str, node| scoped.scope.visibility(node, ResourceType::Workload, &name.into());
        assert_eq!((own("n1/u", &n1), own("n1/u", &n2)), (Visibility::Seen, Visibility::Foreign));
    }
}
