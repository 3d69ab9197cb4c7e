//! `envoy.config.cluster.v3.Cluster`

use slotmesh_xds::{
    ResourceName,
    envoy::envoy::config::cluster::v3::{
        self as proto,
        cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
    },
};

use super::{Invalid, unsupported};

/// Envoy's default where `connect_timeout` is unset.
const DEFAULT_CONNECT_TIMEOUT_MS: u32 = 5_000;

/// A cluster whose endpoints are a load assignment of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The load assignment's name.
    pub endpoints: ResourceName,
    /// Connect timeout in milliseconds.
    pub connect_timeout_ms: u32,
}

impl Cluster {
    pub(super) fn from_proto(cluster: proto::Cluster) -> Result<Self, Invalid> {
        match cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(ty)) if ty == DiscoveryType::Eds as i32 => {}
            _ => return Err(unsupported("type", "only EDS clusters are supported")),
        }
        if cluster.lb_policy != LbPolicy::Random as i32 {
            let policy =
                LbPolicy::try_from(cluster.lb_policy).map_or("unknown", |policy| policy.as_str_name());
            return Err(unsupported("lb_policy", format!("{policy}; RANDOM is supported")));
        }
        let service = cluster.eds_cluster_config.map(|eds| eds.service_name).filter(|name| !name.is_empty());
        let connect_timeout_ms = cluster.connect_timeout.map_or(DEFAULT_CONNECT_TIMEOUT_MS, |timeout| {
            let ms =
                timeout.seconds.saturating_mul(1_000).saturating_add(i64::from(timeout.nanos) / 1_000_000);
            u32::try_from(ms.max(0)).unwrap_or(u32::MAX)
        });
        Ok(Self { endpoints: service.unwrap_or(cluster.name).into(), connect_timeout_ms })
    }
}
