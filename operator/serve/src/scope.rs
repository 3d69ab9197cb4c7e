//! The part of what is served that a node may see.
//!
//! A [`Scope`] is given from outside and decides by node and name. Through a [`View`] a stream sees a
//! resource that isn't for its node as one that doesn't exist: it is never sent, and removed where the
//! agent has it.

use std::fmt;

use slotmesh_xds::{Resource, ResourceName, ResourceType};

use crate::{
    NodeName,
    store::Resources,
    table::{Place, Table},
};

/// Decides what is for which node.
pub trait Scope: fmt::Debug + Send + Sync + 'static {
    /// Tells whether the resource is for this node. The answer may change only in step with
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

    /// Tells whether the node may see the resource of this name, if there is one.
    pub(crate) fn sees(&self, ty: ResourceType, name: &ResourceName) -> bool {
        match (self.resources.scope(), self.node) {
            (None, _) => true,
            (Some(scope), Some(node)) => scope.sees(node, ty, name),
            (Some(_), None) => false,
        }
    }

    /// A resource and its place, whether or not the node may see it.
    pub(crate) fn find(&self, ty: ResourceType, name: &ResourceName) -> Option<(Place, &'a Resource)> {
        self.resources.find(ty, name)
    }

    /// All resources of a type, whether or not the node may see them.
    pub(crate) fn table(&self, ty: ResourceType) -> &'a Table {
        self.resources.table(ty)
    }

    /// The places of all resources of a type that the node may see.
    pub(crate) fn places(&self, ty: ResourceType) -> impl Iterator<Item = Place> {
        self.table(ty).iter().filter(move |(name, _)| self.sees(ty, name)).map(|(_, place)| place)
    }

    /// How many batches have been applied.
    pub(crate) fn generation(&self) -> u64 {
        self.resources.generation()
    }
}
