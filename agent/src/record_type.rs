//! Types of resources that become records.

use std::fmt;

use slotmesh_slots::ResourceKind;
use slotmesh_xds::ResourceType;

/// A type of resource that is kept in records, which the programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordType {
    /// Clusters.
    Cluster,
    /// Load assignments.
    Endpoints,
    /// Route configurations.
    Route,
    /// Listeners.
    Listener,
}

impl RecordType {
    /// All of them, in make-before-break order.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Route, Self::Listener];

    /// The resource types that they are.
    pub const RESOURCES: [ResourceType; 4] =
        [Self::ALL[0].resource(), Self::ALL[1].resource(), Self::ALL[2].resource(), Self::ALL[3].resource()];

    /// The resource type that it is.
    pub const fn resource(self) -> ResourceType {
        match self {
            Self::Cluster => ResourceType::Cluster,
            Self::Endpoints => ResourceType::Endpoints,
            Self::Route => ResourceType::Route,
            Self::Listener => ResourceType::Listener,
        }
    }

    /// The record type of a resource type; `None` of one that is in no record.
    pub fn of(ty: ResourceType) -> Option<Self> {
        Self::ALL.into_iter().find(|record| record.resource() == ty)
    }

    /// The number under which the engine keeps it; part of the records' layout.
    pub const fn kind(self) -> ResourceKind {
        ResourceKind(match self {
            Self::Cluster => 1,
            Self::Endpoints => 2,
            Self::Route => 3,
            Self::Listener => 4,
        })
    }

    /// The record type that the engine keeps under this number.
    pub fn of_kind(kind: ResourceKind) -> Option<Self> {
        Self::ALL.into_iter().find(|record| record.kind() == kind)
    }

    /// The short name used in logs, metrics and messages.
    pub const fn as_str(self) -> &'static str {
        self.resource().as_str()
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_resource_types_lead_back() {
        for ty in RecordType::ALL {
            assert_eq!(RecordType::of(ty.resource()), Some(ty));
            assert_eq!(RecordType::of_kind(ty.kind()), Some(ty));
        }
        assert_eq!(RecordType::of(ResourceType::Settings), None);
        assert_eq!(RecordType::of_kind(ResourceKind(5)), None);
    }
}
