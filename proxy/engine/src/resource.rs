//! Resources that an engine serves, one by one: those of xDS, by their names.

use slotmesh_xds::envoy::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};

/// A resource as a control plane or a file gives it.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "lives on the stack, one at a time")]
pub enum ProxyResource {
    /// Where connections come from and how they are served.
    Listener(Listener),
    /// Which request goes where.
    Route(RouteConfiguration),
    /// How endpoints are chosen and spoken to.
    Cluster(Cluster),
    /// The endpoints of a cluster.
    Endpoints(ClusterLoadAssignment),
}

/// Sort of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyResourceKind {
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
}

impl ProxyResource {
    /// The name by which others refer to it.
    pub fn name(&self) -> &str {
        match self {
            Self::Listener(listener) => &listener.name,
            Self::Route(route) => &route.name,
            Self::Cluster(cluster) => &cluster.name,
            Self::Endpoints(endpoints) => &endpoints.cluster_name,
        }
    }

    /// Its sort.
    pub const fn kind(&self) -> ProxyResourceKind {
        match self {
            Self::Listener(_) => ProxyResourceKind::Listener,
            Self::Route(_) => ProxyResourceKind::Route,
            Self::Cluster(_) => ProxyResourceKind::Cluster,
            Self::Endpoints(_) => ProxyResourceKind::Endpoints,
        }
    }
}
