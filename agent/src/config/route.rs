//! `envoy.config.route.v3.RouteConfiguration`: what of it can be decided at connect time.

use std::num::NonZeroU32;

use slotmesh_xds::{
    ResourceName,
    envoy::envoy::{
        config::route::v3::{
            self as proto, route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
            weighted_cluster::ClusterWeight,
        },
        extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy},
    },
};

use super::{Invalid, invalid, path, refuse_set, unsupported};

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
    pub(super) fn from_proto(within: &str, config: &proto::RouteConfiguration) -> Result<Self, Invalid> {
        let proto::RouteConfiguration {
            virtual_hosts,
            vhds,
            route_specifiers,
            request_mirror_policies,
            // Whoever asks for it by its name has checked the name.
            name: _,
            metadata: _,
            // Only definitions; a route that uses one is refused.
            cluster_specifier_plugins: _,
            // There is no choice of a host, and no wait for a cluster.
            vhost_header: _,
            ignore_port_in_host_matching: _,
            ignore_path_parameters_in_path_matching: _,
            validate_clusters: _,
            // Requests.
            internal_only_headers: _,
            response_headers_to_add: _,
            response_headers_to_remove: _,
            request_headers_to_add: _,
            request_headers_to_remove: _,
            most_specific_header_mutations_wins: _,
            max_direct_response_body_size_bytes: _,
            typed_per_filter_config: _,
        } = config;
        refuse_set!(within,
            "only virtual_hosts": vhds, route_specifiers;
            "a connection has one destination": request_mirror_policies;
        );
        let [host] = virtual_hosts.as_slice() else {
            return Err(unsupported(
                path(within, "virtual_hosts"),
                format!(
                    "{} virtual hosts; a connection has no host name: one with domain \"*\" is supported",
                    virtual_hosts.len()
                ),
            ));
        };
        let clusters = default_route(&path(within, "virtual_hosts[0]"), host)?;
        Ok(Self { clusters })
    }
}

#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn default_route(within: &str, host: &proto::VirtualHost) -> Result<Vec<WeightedCluster>, Invalid> {
    let proto::VirtualHost {
        domains,
        routes,
        matcher,
        require_tls,
        request_mirror_policies,
        route_specifiers,
        name: _,
        metadata: _,
        // Requests.
        virtual_clusters: _,
        rate_limits: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        cors: _,
        typed_per_filter_config: _,
        include_request_attempt_count: _,
        include_attempt_count_in_response: _,
        retry_policy: _,
        retry_policy_typed_config: _,
        hedge_policy: _,
        include_is_timeout_retry_header: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
    } = host;
    if *domains != ["*"] {
        return Err(unsupported(format!("{within}.domains"), format!("{domains:?}; only \"*\"")));
    }
    refuse_set!(within,
        "only routes": matcher, route_specifiers;
        "connections are made as the application makes them": require_tls;
        "a connection has one destination": request_mirror_policies;
    );
    let [route] = routes.as_slice() else {
        return Err(unsupported(
            format!("{within}.routes"),
            format!("{} routes; exactly one default route is supported", routes.len()),
        ));
    };
    let within = format!("{within}.routes[0]");
    let proto::Route {
        r#match,
        action,
        route_specifiers,
        name: _,
        metadata: _,
        stat_prefix: _,
        // Requests.
        decorator: _,
        typed_per_filter_config: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        tracing: _,
        per_request_buffer_limit_bytes: _,
        request_body_buffer_limit: _,
    } = route;
    refuse_set!(&within, "only match and route": route_specifiers;);
    matches_all(&format!("{within}.match"), r#match.as_ref())?;
    match action {
        Some(Action::Route(action)) => clusters(&format!("{within}.route"), action),
        _ => Err(unsupported(format!("{within}.action"), "only route")),
    }
}

/// Fails for a condition: a route with one isn't the default.
fn matches_all(within: &str, condition: Option<&proto::RouteMatch>) -> Result<(), Invalid> {
    let Some(condition) = condition else { return Err(invalid(within, "there is none")) };
    let proto::RouteMatch {
        path_specifier,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        // "/" has no case.
        case_sensitive: _,
    } = condition;
    if *path_specifier != Some(PathSpecifier::Prefix("/".to_owned())) {
        return Err(unsupported(within, "a connection has no path: only prefix \"/\""));
    }
    refuse_set!(within,
        "a connection has no path or headers: only prefix \"/\"": headers, query_parameters, cookies, grpc;
        "only prefix \"/\"": runtime_fraction, tls_context, dynamic_metadata, filter_state;
    );
    Ok(())
}

#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn clusters(within: &str, action: &proto::RouteAction) -> Result<Vec<WeightedCluster>, Invalid> {
    let proto::RouteAction {
        cluster_specifier,
        metadata_match,
        request_mirror_policies,
        // Has no effect in Envoy either on a cluster with lb_policy RANDOM.
        hash_policy: _,
        // Of the limits of connections, which a cluster is refused for.
        priority: _,
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
    refuse_set!(within,
        "all endpoints of a cluster are chosen from": metadata_match;
        "a connection has one destination": request_mirror_policies;
    );
    let weighted = match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => return single(&format!("{within}.cluster"), name),
        Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
        _ => return Err(unsupported(within, "only cluster and weighted_clusters")),
    };
    let within = format!("{within}.weighted_clusters");
    let proto::WeightedCluster {
        clusters,
        total_weight,
        random_value_specifier,
        // There is no runtime that could hold other weights.
        runtime_key_prefix: _,
    } = weighted;
    refuse_set!(&within, "the choice is random": random_value_specifier;);
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
        refuse_set!(&format!("{within}.clusters[{i}]"),
            "a connection has no headers: give the name": cluster_header;
            "all endpoints of a cluster are chosen from": metadata_match;
        );
    }
    let weight = |entry: &ClusterWeight| entry.weight.as_ref().map_or(0, |weight| weight.value);
    let sum: u64 = clusters.iter().map(|entry| u64::from(weight(entry))).sum();
    if let Some(total) = total_weight.filter(|total| u64::from(total.value) != sum) {
        let reason = format!("{}, but the weights sum to {sum}", total.value);
        return Err(invalid(format!("{within}.total_weight"), reason));
    }
    let entries = clusters.iter().map(|entry| (entry.name.as_str(), weight(entry)));
    weighted_clusters(&format!("{within}.clusters"), entries)
}

/// The clusters of a TCP proxy.
#[expect(deprecated, reason = "every field is decided on, whatever its age")]
pub(super) fn tcp_clusters(within: &str, proxy: &TcpProxy) -> Result<Vec<WeightedCluster>, Invalid> {
    let TcpProxy {
        cluster_specifier,
        metadata_match,
        on_demand,
        max_connect_attempts,
        tunneling_config,
        proxy_protocol_tlvs,
        upstream_connect_mode,
        // Has no effect in Envoy either on a cluster with lb_policy RANDOM.
        hash_policy: _,
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
    refuse_set!(within,
        "all endpoints of a cluster are chosen from": metadata_match;
        "clusters come without being asked for": on_demand;
        "a connect that fails is the application's to repeat": max_connect_attempts;
        "connections are made as the application makes them":
            tunneling_config, proxy_protocol_tlvs, upstream_connect_mode;
    );
    let weighted = match cluster_specifier {
        Some(tcp_proxy::ClusterSpecifier::Cluster(name)) => {
            return single(&format!("{within}.cluster"), name);
        }
        Some(tcp_proxy::ClusterSpecifier::WeightedClusters(weighted)) => weighted,
        None => return Err(invalid(within, "neither cluster nor weighted_clusters is set")),
    };
    let within = format!("{within}.weighted_clusters.clusters");
    for (i, entry) in weighted.clusters.iter().enumerate() {
        let tcp_proxy::weighted_cluster::ClusterWeight { name: _, weight: _, metadata_match } = entry;
        refuse_set!(&format!("{within}[{i}]"),
            "all endpoints of a cluster are chosen from": metadata_match;
        );
    }
    weighted_clusters(&within, weighted.clusters.iter().map(|entry| (entry.name.as_str(), entry.weight)))
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
