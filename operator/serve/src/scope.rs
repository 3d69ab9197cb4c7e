//! What a node may see of what is served.
//!
//! A [`Scope`] is given from outside and decides by node and name. Through a [`View`] a stream sees a
//! resource that isn't for its node as one that doesn't exist: it is never sent, and removed where the
//! agent has it.

use std::fmt;

use slotmesh_xds::{Resource, ResourceName, ResourceType};

use crate::{NodeName, store::Resources};

/// Decides what is for which node.
pub trait Scope: fmt::Debug + Send + Sync + 'static {
    /// Whether the resource is for this node. The answer may change only in step with
    /// [`Store::apply_for`](crate::Store::apply_for), which names the nodes for which it did.
    fn sees(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> bool;
}

/// The resources as one node sees them.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    resources: &'a Resources,
    node: Option<&'a NodeName>,
}

impl<'a> View<'a> {
    pub(crate) fn new(resources: &'a Resources, node: Option<&'a NodeName>) -> Self {
        Self { resources, node }
    }

    fn sees(&self, ty: ResourceType, name: &ResourceName) -> bool {
        match (self.resources.scope(), self.node) {
            (None, _) => true,
            (Some(scope), Some(node)) => scope.sees(node, ty, name),
            (Some(_), None) => false,
        }
    }

    /// The current content of a resource.
    pub(crate) fn get(&self, ty: ResourceType, name: &ResourceName) -> Option<&'a Resource> {
        self.resources.get(ty, name).filter(|_| self.sees(ty, name))
    }

    /// The names of all resources of a type.
    pub(crate) fn names(&self, ty: ResourceType) -> impl Iterator<Item = &'a ResourceName> {
        self.resources.names(ty).filter(move |name| self.sees(ty, name))
    }

    /// How many batches have been applied.
    pub(crate) fn generation(&self) -> u64 {
        self.resources.generation()
    }
}
