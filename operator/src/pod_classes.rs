//! What the Pods of manifests are as callers, where flags and not the operator name the workloads of a node.
//!
//! Invariant: after `flush`, a resource is published for exactly those Pods whose class isn't their namespace's; a
//! workload of which there is none is of its namespace's class.

use std::collections::BTreeSet;

use slotmesh_compile::ObjectName;
use slotmesh_xds::{Change, Resource, ResourceType, Workload};

use crate::watch::LocalNode;

/// Publishes the classes of Pods.
#[derive(Debug)]
pub(crate) struct Callers {
    node: String,
    published: BTreeSet<ObjectName>,
}

impl Callers {
    /// For the workloads of this node.
    pub(crate) fn on(node: &LocalNode) -> Self {
        Self { node: node.name.clone(), published: BTreeSet::new() }
    }

    /// What follows where the classes of these Pods have changed.
    pub(crate) fn flush(
        &mut self,
        changed: BTreeSet<ObjectName>,
        class: impl Fn(&ObjectName) -> String,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for pod in changed {
            let class = class(&pod);
            let workload = Workload {
                uid: pod.to_string(),
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                node: self.node.clone(),
                class,
                ..Workload::default()
            };
            let name = workload.resource_name();
            if workload.class != workload.namespace {
                self.published.insert(pod);
                changes.push(Change::Upsert(Resource::encode(ResourceType::Workload, name, &workload)));
            } else if self.published.remove(&pod) {
                changes.push(Change::Remove(ResourceType::Workload, name));
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_classes_that_differ_from_the_namespaces_are_published() {
        let node = LocalNode { name: "here".to_owned(), labels: [].into() };
        let mut callers = Callers::on(&node);
        let web = ObjectName::new("shop", "web");
        let mut flush = |class: &str| {
            let changes = callers.flush(BTreeSet::from([web.clone()]), |_| class.to_owned());
            let shown = changes.iter().map(|change| match change {
                Change::Upsert(resource) => format!("+{}", resource.name),
                Change::Remove(_, name) => format!("-{name}"),
            });
            shown.collect::<Vec<_>>()
        };
        assert!(flush("shop").is_empty());
        assert_eq!(flush("shop#1"), ["+here/shop/web"]);
        assert_eq!(flush("shop#2"), ["+here/shop/web"]);
        assert_eq!(flush("shop"), ["-here/shop/web"]);
        assert!(flush("shop").is_empty());
    }
}
