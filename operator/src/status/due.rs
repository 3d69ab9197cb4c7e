//! The resources that each node has to have in force, as a sketch: what is served, as the node sees it. Endpoints are left out:
//! they change with every pod, and what an object says is in force whichever there are.
//!
//! Invariant: [`Due`] is in step with what was published last. A change costs the names that it touches.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock},
};

use slotmesh_serve::NodeName;
use slotmesh_xds::{Change, Fingerprint, ResourceName, ResourceType, Sketch, Version};

/// The types of the records of which conditions tell.
pub(crate) const PROGRAMMED: [ResourceType; 3] =
    [ResourceType::Cluster, ResourceType::Route, ResourceType::Listener];

/// Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Due(Arc<RwLock<Snapshot>>);

/// The resources that each node has to have in force at one moment. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// Resources that every node sees that takes part.
    records: Sketch,
    /// The settings of each node, which only it sees.
    settings: Arc<HashMap<NodeName, Fingerprint>>,
    /// The nodes that take part.
    nodes: Arc<BTreeSet<NodeName>>,
}

impl Snapshot {
    /// The nodes that take part.
    pub(crate) fn nodes(&self) -> &BTreeSet<NodeName> {
        &self.nodes
    }

    /// Tells whether nothing has changed since the other, as far as that can be told at once.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.records == other.records
            && Arc::ptr_eq(&self.settings, &other.settings)
            && Arc::ptr_eq(&self.nodes, &other.nodes)
    }

    /// The resources that a node has to have in force.
    pub(crate) fn of(&self, node: &NodeName) -> Sketch {
        let mut due = if self.nodes.contains(node) { self.records.clone() } else { Sketch::default() };
        if let Some(settings) = self.settings.get(node) {
            due.add(*settings);
        }
        due
    }
}

impl Due {
    /// Takes notice of changes; `before` tells the version that was published before.
    pub(crate) fn apply(
        &self,
        changes: &[Change],
        before: impl Fn(ResourceType, &ResourceName) -> Option<Version>,
    ) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            let (ty, name, now) = match change {
                Change::Upsert(resource) => (resource.ty, &resource.name, Some(resource.version)),
                Change::Remove(ty, name) => (*ty, name, None),
            };
            let print = |version| Fingerprint::of(ty, name, version);
            if ty == ResourceType::Settings {
                let node = NodeName::from(name.as_str());
                let settings = Arc::make_mut(&mut state.settings);
                match now {
                    Some(version) => settings.insert(node, print(version)),
                    None => settings.remove(&node),
                };
            } else if PROGRAMMED.contains(&ty) {
                if let Some(version) = before(ty, name) {
                    state.records.remove(print(version));
                }
                if let Some(version) = now {
                    state.records.add(print(version));
                }
            }
        }
    }

    /// A node takes part from now on, or no longer.
    pub(crate) fn takes_part(&self, node: &NodeName, does: bool) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let nodes = Arc::make_mut(&mut state.nodes);
        if does {
            nodes.insert(node.clone());
        } else {
            nodes.remove(node);
        }
    }

    /// As it is now.
    pub(crate) fn now(&self) -> Snapshot {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::Resource;

    use super::*;

    fn resource(ty: ResourceType, name: &str, content: &'static [u8]) -> Resource {
        Resource { ty, name: name.into(), version: Version::of(content), content: content.into() }
    }

    fn sketch(resources: &[Resource]) -> Sketch {
        let mut sketch = Sketch::default();
        resources.iter().for_each(|r| sketch.add(Fingerprint::of(r.ty, &r.name, r.version)));
        sketch
    }

    #[test]
    fn a_node_is_due_what_it_sees() {
        let due = Due::default();
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        let cluster = resource(ResourceType::Cluster, "web", b"1");
        let settings = resource(ResourceType::Settings, "n2", b"s");
        let workload = resource(ResourceType::Workload, "n1/u", b"w");
        let upserts = [&cluster, &settings, &workload].map(|r| Change::Upsert(r.clone()));
        due.apply(&upserts, |_, _| None);
        due.takes_part(&n1, true);
        assert_eq!(due.now().of(&n1), sketch(std::slice::from_ref(&cluster)));
        assert_eq!(due.now().of(&n2), sketch(std::slice::from_ref(&settings)));
        due.takes_part(&n2, true);
        assert_eq!(due.now().of(&n2), sketch(&[cluster.clone(), settings]));

        let new = resource(ResourceType::Cluster, "web", b"2");
        due.apply(&[Change::Upsert(new.clone())], |_, _| Some(cluster.version));
        assert_eq!(due.now().of(&n1), sketch(std::slice::from_ref(&new)));
        due.apply(&[Change::Remove(ResourceType::Settings, "n2".into())], |_, _| None);
        due.apply(&[Change::Remove(new.ty, new.name.clone())], |_, _| Some(new.version));
        assert_eq!((due.now().of(&n1), due.now().of(&n2)), (Sketch::default(), Sketch::default()));
        due.takes_part(&n1, false);
        assert_eq!(*due.now().nodes(), BTreeSet::from([n2.clone()]));
        let endpoints = resource(ResourceType::Endpoints, "web", b"1");
        due.apply(&[Change::Upsert(endpoints)], |_, _| None);
        assert_eq!(due.now().of(&n2), Sketch::default(), "pods that come and go are nobody's due");
    }
}
