//! Clusters with weights: where a route or a TCP proxy leads.

use std::{borrow::Cow, num::NonZeroU32};

use prost::encoding::{WireType, decode_key, decode_varint};
use slotmesh_records::ClusterSet;
use slotmesh_xds::envoy::envoy::{
    config::route::v3::{
        self as proto,
        route_action::{
            ClusterSpecifier,
            hash_policy::{ConnectionProperties, PolicySpecifier},
        },
        weighted_cluster::ClusterWeight,
    },
    extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy},
    r#type::v3::{HashPolicy, hash_policy},
};

use super::{At, Invalid, invalid, reference, refuse_set, unsupported};

/// A cluster and its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster<'m> {
    /// The cluster's name.
    pub cluster: Cow<'m, str>,
    /// Its share of the sum of all weights.
    pub weight: NonZeroU32,
    /// Whether the route says to hash the source, which has effect on [`Balance::HashByRoute`](super::Balance).
    pub by_source: bool,
}

impl WeightedCluster<'_> {
    pub(super) fn into_owned(self) -> WeightedCluster<'static> {
        let Self { cluster, weight, by_source } = self;
        WeightedCluster { cluster: cluster.into_owned().into(), weight, by_source }
    }
}

/// The clusters of a route go to `out`: at least one. `by_request`: a proxy follows the route, and does with requests
/// what can't be done with connections.
#[expect(deprecated, reason = "every field is decided on, whatever its age")]
pub(super) fn route_clusters<'m>(
    at: &At<'_>,
    action: &'m proto::RouteAction,
    by_request: bool,
    out: &mut Vec<WeightedCluster<'m>>,
) -> Result<(), Invalid> {
    let proto::RouteAction {
        cluster_specifier,
        metadata_match,
        request_mirror_policies,
        priority,
        hash_policy,
        // Requests.
        cluster_not_found_response_code: _,
        prefix_rewrite: _,
        regex_rewrite: _,
        path_rewrite_policy: _,
        path_rewrite: _,
        append_x_forwarded_host: _,
        host_rewrite_specifier: _,
        timeout: _,
        idle_timeout: _,
        flush_timeout: _,
        early_data_policy: _,
        retry_policy: _,
        retry_policy_typed_config: _,
        rate_limits: _,
        include_vh_rate_limits: _,
        cors: _,
        max_grpc_timeout: _,
        grpc_timeout_offset: _,
        upgrade_configs: _,
        internal_redirect_policy: _,
        internal_redirect_action: _,
        max_internal_redirects: _,
        hedge_policy: _,
        max_stream_duration: _,
    } = action;
    let none = Vec::new();
    let request_mirror_policies = if by_request { &none } else { request_mirror_policies };
    refuse_set!(at,
        "all endpoints of a cluster are chosen from": metadata_match;
        "a connection has one destination": request_mirror_policies;
        "a connection has the default priority": priority;
    );
    // What of a request is hashed is the proxy's.
    let by_source = !by_request && hashes_source(at, hash_policy)?;
    let weighted = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => return single(&at.field("cluster"), name, by_source, out),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
        _ => return Err(unsupported(at, "only cluster and weighted_clusters")),
    };
    let at = at.field("weighted_clusters");
    let proto::WeightedCluster {
        clusters,
        total_weight,
        random_value_specifier,
        // There is no runtime that could hold other weights.
        runtime_key_prefix: _,
    } = weighted;
    refuse_set!(at, "the choice is random": random_value_specifier;);
    for (i, entry) in clusters.iter().enumerate() {
        let ClusterWeight {
            name: _,
            weight: _,
            cluster_header,
            metadata_match,
            // Requests.
            request_headers_to_add: _,
            request_headers_to_remove: _,
            response_headers_to_add: _,
            response_headers_to_remove: _,
            typed_per_filter_config: _,
            host_rewrite_specifier: _,
        } = entry;
        refuse_set!(at.element("clusters", i),
            "a connection has no headers: give the name": cluster_header;
            "all endpoints of a cluster are chosen from": metadata_match;
        );
    }
    let weight = |entry: &ClusterWeight| entry.weight.as_ref().map_or(0, |weight| weight.value);
    let sum: u64 = clusters.iter().map(|entry| u64::from(weight(entry))).sum();
    if let Some(total) = total_weight.filter(|total| u64::from(total.value) != sum) {
        let reason = format!("{}, but the weights sum to {sum}", total.value);
        return Err(invalid(at.field("total_weight"), reason));
    }
    let entries = clusters.iter().map(|entry| (entry.name.as_str(), weight(entry)));
    weighted_clusters(&at, entries, by_source, out)
}

/// Whether these policies hash the source. They do so whatever the request is, so others are refused.
pub(super) fn hashes_source(
    at: &At<'_>,
    policies: &[proto::route_action::HashPolicy],
) -> Result<bool, Invalid> {
    let mut hashes = false;
    for (i, policy) in policies.iter().enumerate() {
        // The source alone is hashed anyway.
        let proto::route_action::HashPolicy { policy_specifier, terminal: _ } = policy;
        let Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip })) =
            policy_specifier
        else {
            let what = "a connection has no request that could be hashed; only connection_properties";
            return Err(unsupported(at.element("hash_policy", i), what));
        };
        hashes |= source_ip;
    }
    Ok(hashes)
}

/// The clusters of a TCP proxy.
#[expect(deprecated, reason = "every field is decided on, whatever its age")]
pub(super) fn tcp_clusters<'m>(
    at: &At<'_>,
    proxy: &'m TcpProxy,
) -> Result<Vec<WeightedCluster<'m>>, Invalid> {
    let TcpProxy {
        cluster_specifier,
        metadata_match,
        on_demand,
        max_connect_attempts,
        tunneling_config,
        proxy_protocol_tlvs,
        upstream_connect_mode,
        hash_policy,
        // Of more than one attempt, of TLVs, of other connect modes.
        backoff_options: _,
        proxy_protocol_tlv_merge_policy: _,
        max_early_data_bytes: _,
        // Counting and logging.
        stat_prefix: _,
        access_log: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected: _,
        access_log_options: _,
        // When a proxy ends a connection.
        idle_timeout: _,
        downstream_idle_timeout: _,
        upstream_idle_timeout: _,
        max_downstream_connection_duration: _,
        max_downstream_connection_duration_jitter_percentage: _,
        check_drain_close: _,
    } = proxy;
    let max_connect_attempts = &max_connect_attempts.is_some_and(|attempts| attempts.value > 1);
    refuse_set!(at,
        "all endpoints of a cluster are chosen from": metadata_match;
        "clusters come without being asked for": on_demand;
        "a connect that fails is the application's to repeat": max_connect_attempts;
        "connections are made as the application makes them":
            tunneling_config, proxy_protocol_tlvs, upstream_connect_mode;
    );
    for (i, HashPolicy { policy_specifier }) in hash_policy.iter().enumerate() {
        if !matches!(policy_specifier, Some(hash_policy::PolicySpecifier::SourceIp(_))) {
            return Err(unsupported(at.element("hash_policy", i), "only source_ip"));
        }
    }
    let by_source = !hash_policy.is_empty();
    let mut out = Vec::new();
    let weighted = match cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            single(&at.field("cluster"), name, by_source, &mut out)?;
            return Ok(out);
        }
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => weighted,
        None => return Err(invalid(at, "neither cluster nor weighted_clusters is set")),
    };
    let at = at.field("weighted_clusters");
    for (i, entry) in weighted.clusters.iter().enumerate() {
        let tcp_proxy::weighted_cluster::ClusterWeight { name: _, weight: _, metadata_match } = entry;
        refuse_set!(at.element("clusters", i),
            "all endpoints of a cluster are chosen from": metadata_match;
        );
    }
    let entries = weighted.clusters.iter().map(|entry| (entry.name.as_str(), entry.weight));
    weighted_clusters(&at, entries, by_source, &mut out)?;
    Ok(out)
}

/// The one cluster of an encoded TCP proxy that says nothing else but its `stat_prefix`, as most do:
/// found without decoding the rest. `None` where the whole message must be looked at.
pub(super) fn lone_cluster(mut proxy: &[u8]) -> Option<&str> {
    const STAT_PREFIX: u32 = 1;
    const CLUSTER: u32 = 2;
    let mut cluster = None;
    while !proxy.is_empty() {
        let (field, WireType::LengthDelimited) = decode_key(&mut proxy).ok()? else { return None };
        let len = usize::try_from(decode_varint(&mut proxy).ok()?).ok()?;
        let (value, rest) = proxy.split_at_checked(len)?;
        let value = std::str::from_utf8(value).ok()?;
        proxy = rest;
        match field {
            STAT_PREFIX => {}
            CLUSTER if cluster.is_none() => cluster = Some(value),
            _ => return None,
        }
    }
    cluster.filter(|name| !name.is_empty())
}

fn single<'m>(
    at: &At<'_>,
    name: &'m str,
    by_source: bool,
    out: &mut Vec<WeightedCluster<'m>>,
) -> Result<(), Invalid> {
    reference(at, name)?;
    out.push(WeightedCluster { cluster: name.into(), weight: NonZeroU32::MIN, by_source });
    Ok(())
}

/// Clusters of weight 0 are never chosen and left out.
fn weighted_clusters<'m>(
    at: &At<'_>,
    entries: impl Iterator<Item = (&'m str, u32)>,
    by_source: bool,
    out: &mut Vec<WeightedCluster<'m>>,
) -> Result<(), Invalid> {
    let (before, mut sum) = (out.len(), 0_u64);
    for (i, (name, weight)) in entries.enumerate() {
        reference(&at.element("clusters", i).field("name"), name)?;
        if let Some(weight) = NonZeroU32::new(weight) {
            sum += u64::from(weight.get());
            out.push(WeightedCluster { cluster: name.into(), weight, by_source });
        }
    }
    let at = at.field("clusters");
    if sum == 0 {
        return Err(invalid(at, "the weights sum to 0; give at least one cluster a weight"));
    }
    if sum > u64::from(u32::MAX) {
        return Err(invalid(at, format!("the weights sum to {sum}, above the largest sum, {}", u32::MAX)));
    }
    let count = out.len() - before;
    if count > ClusterSet::CAPACITY {
        return Err(unsupported(at, format!("{count} clusters; at most {}", ClusterSet::CAPACITY)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn only_what_says_nothing_else_is_read_in_short() {
        let cluster = tcp_proxy::ClusterSpecifier::Cluster("web".to_owned());
        let simple =
            TcpProxy { stat_prefix: "x".to_owned(), cluster_specifier: Some(cluster), ..Default::default() };
        let bytes = simple.encode_to_vec();
        assert_eq!(lone_cluster(&bytes), Some("web"));
        for end in 1..bytes.len() {
            let short = &bytes[..end];
            assert!(lone_cluster(short).is_none_or(|_| TcpProxy::decode(short).is_ok()), "{short:?}");
        }
        let more = TcpProxy { max_connect_attempts: Some(<_>::default()), ..simple.clone() };
        assert_eq!(lone_cluster(&more.encode_to_vec()), None);
        let twice = [bytes.clone(), bytes].concat();
        assert_eq!(lone_cluster(&twice), None);
        assert_eq!(lone_cluster(&[]), None);
    }
}
