//! Units: the parts in which everything is compiled, each with its outcome.
//!
//! ```text
//!  Index: which units are dirty --> Compiler: compiles them --> Compiled
//! ```

use std::collections::{BTreeMap, BTreeSet};

use slotmesh_xds::{Resource, ResourceName, ResourceType};

use crate::{Audience, LeftAlone, ObjectKey, ObjectName, Report, ServiceId, model::PortKey};

/// A part of the compilation that is done as one piece.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// The reports of reading an object.
    Object(ObjectKey),
    /// The clusters of a Service, or of a host of a ServiceEntry.
    Clusters(ServiceId),
    /// The endpoint assignments of one.
    Endpoints(ServiceId),
    /// The listeners and route configurations of one.
    Routing(ServiceId),
    /// The settings of the slots of a node.
    Settings(ObjectName),
    /// The addresses of a node, at which NodePorts are.
    Node(ObjectName),
    /// The workload that a Pod is.
    Workload(ObjectName),
    /// The nodes on which a SlotProfile is in force.
    Profile(ObjectName),
    /// The report about an object that makes more than it may.
    Budget(ObjectKey),
    /// The cluster that refuses connections.
    BlackHole,
    /// The cluster that leaves connections as they are.
    Passthrough,
}

/// The outcome of one unit.
#[derive(Debug, Default)]
pub(crate) struct Compiled {
    pub(crate) resources: Vec<Resource>,
    pub(crate) reports: Vec<Report>,
    /// Who has made which of the resources, where objects compete for that: of a listener there may be others for other
    /// callers.
    pub(crate) made: BTreeMap<(ResourceType, ResourceName), BTreeSet<Maker>>,
    /// The callers who need a listener, of those that not all need.
    pub(crate) audiences: BTreeMap<ResourceName, Audience>,
    /// Tells whether some of the resources lead to the cluster that refuses connections.
    pub(crate) refuses: bool,
    /// Tells whether some of them lead to the one that leaves connections as they are.
    pub(crate) passes: bool,
    /// Tells whether connections to this Service are left to kube-proxy.
    pub(crate) left: bool,
    /// The reason for which a Pod doesn't take part though its namespace does.
    pub(crate) left_alone: Option<LeftAlone>,
}

impl Compiled {
    /// Tells whether it is as if the unit weren't compiled.
    pub(crate) fn is_empty(&self) -> bool {
        self.resources.is_empty() && self.reports.is_empty()
    }

    /// Notes who has made a resource.
    pub(crate) fn made(&mut self, resource: &Resource, by: BTreeSet<ObjectKey>, port: PortKey) {
        if by.is_empty() {
            return;
        }
        let makers = by.into_iter().map(|object| Maker { object, port });
        self.made.entry((resource.ty, resource.name.clone())).or_default().extend(makers);
    }
}

/// The object by which connections to a port go where they go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Maker {
    pub(crate) object: ObjectKey,
    pub(crate) port: PortKey,
}
