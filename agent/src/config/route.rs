//! `envoy.config.route.v3.RouteConfiguration`: what of it can be decided at connect time.

use std::num::NonZeroU32;

use slotmesh_xds::{
    ResourceName,
    envoy::envoy::{
        config::route::v3::{
            self as proto, route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
            weighted_cluster::ClusterWeight,
        },
        extensions::filters::network::tcp_proxy::v3::tcp_proxy,
    },
};

use super::{Invalid, invalid, unsupported};

/// A route configuration: the clusters of its one route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// At least one.
    pub clusters: Vec<WeightedCluster>,
}

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// The cluster's name.
    pub cluster: ResourceName,
    /// Its share of the sum of all weights.
    pub weight: NonZeroU32,
}

impl Route {
    pub(super) fn from_proto(config: &proto::RouteConfiguration) -> Result<Self, Invalid> {
        let [host] = config.virtual_hosts.as_slice() else {
            return Err(unsupported(
                "virtual_hosts",
                format!(
                    "{} virtual hosts; a connection has no host name: one with domain \"*\" is supported",
                    config.virtual_hosts.len()
                ),
            ));
        };
        if host.domains != ["*"] {
            return Err(unsupported("virtual_hosts[0].domains", format!("{:?}; only \"*\"", host.domains)));
        }
        let [route] = host.routes.as_slice() else {
            return Err(unsupported(
                "virtual_hosts[0].routes",
                format!("{} routes; exactly one default route is supported", host.routes.len()),
            ));
        };
        let field = "virtual_hosts[0].routes[0]";
        let matches_all = route.r#match.as_ref().is_some_and(|m| {
            m.path_specifier == Some(PathSpecifier::Prefix("/".to_owned()))
                && m.headers.is_empty()
                && m.query_parameters.is_empty()
                && m.runtime_fraction.is_none()
        });
        if !matches_all {
            return Err(unsupported(
                format!("{field}.match"),
                "a connection has no path or headers: only prefix \"/\"",
            ));
        }
        let Some(Action::Route(action)) = &route.action else {
            return Err(unsupported(format!("{field}.action"), "only route"));
        };
        let clusters = match &action.cluster_specifier {
            Some(ClusterSpecifier::Cluster(name)) => single(&format!("{field}.route.cluster"), name)?,
            Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                let field = format!("{field}.route.weighted_clusters.clusters");
                weighted_clusters(
                    &field,
                    weighted.clusters.iter().map(|entry: &ClusterWeight| {
                        (entry.name.as_str(), entry.weight.as_ref().map_or(0, |weight| weight.value))
                    }),
                )?
            }
            _ => return Err(unsupported(format!("{field}.route"), "only cluster and weighted_clusters")),
        };
        Ok(Self { clusters })
    }
}

/// The clusters of a TCP proxy.
pub(super) fn tcp_clusters(
    field: &str,
    specifier: Option<&tcp_proxy::ClusterSpecifier>,
) -> Result<Vec<WeightedCluster>, Invalid> {
    match specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => single(&format!("{field}.cluster"), name),
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => weighted_clusters(
            &format!("{field}.weighted_clusters.clusters"),
            weighted.clusters.iter().map(|entry| (entry.name.as_str(), entry.weight)),
        ),
        None => Err(invalid(field, "neither cluster nor weighted_clusters is set")),
    }
}

fn single(field: &str, name: &str) -> Result<Vec<WeightedCluster>, Invalid> {
    if name.is_empty() {
        return Err(invalid(field, "the name is empty"));
    }
    Ok(vec![WeightedCluster { cluster: name.into(), weight: NonZeroU32::MIN }])
}

/// Clusters of weight 0 are never chosen and left out.
fn weighted_clusters<'a>(
    field: &str,
    entries: impl Iterator<Item = (&'a str, u32)>,
) -> Result<Vec<WeightedCluster>, Invalid> {
    let mut clusters = Vec::new();
    for (i, (name, weight)) in entries.enumerate() {
        if name.is_empty() {
            return Err(invalid(format!("{field}[{i}].name"), "the name is empty"));
        }
        if let Some(weight) = NonZeroU32::new(weight) {
            clusters.push(WeightedCluster { cluster: name.into(), weight });
        }
    }
    let sum: u64 = clusters.iter().map(|entry| u64::from(entry.weight.get())).sum();
    if sum == 0 {
        return Err(invalid(field, "the weights sum to 0; give at least one cluster a weight"));
    }
    if sum > u64::from(u32::MAX) {
        return Err(invalid(field, format!("the weights sum to {sum}, above the largest sum, {}", u32::MAX)));
    }
    Ok(clusters)
}
