//! The part of what is served that a node may see.
//!
//! A [`Scope`] is given from outside and decides by node and name. Through a [`View`](crate::resources::View) a stream
//! sees a resource that isn't for its node as one that doesn't exist: it is never sent, and removed where the
//! agent has it. What a node is spared counts in the sketch of what it has acknowledged: so all nodes of a
//! cluster tell of the same, whatever runs on each.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use slotmesh_xds::{ResourceName, ResourceType};

use crate::NodeName;

/// The relation of a node to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// It is sent.
    Seen,
    /// It isn't, as nobody on the node can make use of it. It counts as acknowledged.
    Spared,
    /// It isn't, and is nothing that the node could owe.
    Foreign,
}

/// Decides what is for which node.
pub trait Scope: fmt::Debug + Send + Sync + 'static {
    /// The relation of this node to a resource. The answer may change only in step with
    /// [`Store::apply_for`](crate::Store::apply_for), which is told for whom and of what it did.
    fn visibility(&self, node: &NodeName, ty: ResourceType, name: &ResourceName) -> Visibility;
}

/// The nodes and resources whose relation may have changed.
#[derive(Clone, Debug, Default)]
pub struct Rescoped {
    /// Nodes whose relation to any resource may have.
    pub nodes: HashSet<NodeName>,
    /// Resources to which the relation of any node may have.
    pub resources: HashSet<(ResourceType, ResourceName)>,
    /// Resources to which that of one node may have.
    pub of_node: HashMap<NodeName, HashSet<(ResourceType, ResourceName)>>,
}
