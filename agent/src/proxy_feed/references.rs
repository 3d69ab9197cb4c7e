//! Names that resources refer to.

use std::collections::BTreeSet;

use prost::Message as _;
use slotmesh_xds::{
    Resource, ResourceName,
    envoy::envoy::config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        route::v3::{
            RouteAction, RouteConfiguration, route::Action, route_action::ClusterSpecifier,
            route_action::RequestMirrorPolicy,
        },
    },
};

/// The clusters to which a route configuration may send requests or copies of them.
pub(super) fn clusters_of(route: &Resource) -> BTreeSet<ResourceName> {
    let mut names = BTreeSet::new();
    // It is in force, so it can be decoded.
    let Ok(config) = RouteConfiguration::decode(route.content.as_ref()) else { return names };
    let mirrors = |policies: &[RequestMirrorPolicy], names: &mut BTreeSet<ResourceName>| {
        names.extend(policies.iter().map(|policy| policy.cluster.as_str().into()));
    };
    mirrors(&config.request_mirror_policies, &mut names);
    for host in &config.virtual_hosts {
        mirrors(&host.request_mirror_policies, &mut names);
        for route in &host.routes {
            let Some(Action::Route(RouteAction { cluster_specifier, request_mirror_policies, .. })) =
                &route.action
            else {
                continue;
            };
            mirrors(request_mirror_policies, &mut names);
            match cluster_specifier {
                Some(ClusterSpecifier::Cluster(name)) => {
                    names.insert(name.as_str().into());
                }
                Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                    names.extend(weighted.clusters.iter().map(|cluster| cluster.name.as_str().into()));
                }
                _ => {}
            }
        }
    }
    names.remove("");
    names
}

/// The load assignment of a cluster that doesn't have its endpoints itself.
pub(super) fn assignment_of(cluster: &Resource) -> Option<ResourceName> {
    let Cluster { name, cluster_discovery_type, eds_cluster_config, .. } =
        Cluster::decode(cluster.content.as_ref()).ok()?;
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    let service = eds_cluster_config.map(|config| config.service_name).filter(|name| !name.is_empty());
    (cluster_discovery_type == Some(eds)).then(|| service.unwrap_or(name).into())
}
