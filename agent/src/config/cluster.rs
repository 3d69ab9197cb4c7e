//! `envoy.config.cluster.v3.Cluster`

use slotmesh_xds::{
    ResourceName,
    envoy::{
        envoy::config::cluster::v3::{
            self as proto,
            cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
        },
        google::protobuf::Duration,
    },
};

use super::{Invalid, invalid, named, plain_socket, refuse_set, same_stream, unsupported};

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
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(super) fn from_proto(resource: &ResourceName, cluster: proto::Cluster) -> Result<Self, Invalid> {
        let proto::Cluster {
            name,
            cluster_discovery_type,
            eds_cluster_config,
            connect_timeout,
            lb_policy,
            circuit_breakers,
            common_lb_config,
            transport_socket,
            transport_socket_matches,
            transport_socket_matcher,
            load_assignment,
            health_checks,
            outlier_detection,
            lb_subset_config,
            load_balancing_policy,
            upstream_bind_config,
            upstream_config,
            filters,
            close_connections_on_host_health_failure,
            // With lb_policy RANDOM these have no effect in Envoy either.
            lb_config: _,
            // Counting.
            alt_stat_name: _,
            stats_matcher: _,
            metadata: _,
            lrs_server: _,
            lrs_report_endpoint_metrics: _,
            track_timeout_budgets: _,
            track_cluster_stats: _,
            // A proxy's buffers and connection pools, and what it does with connections that exist.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            preconnect_policy: _,
            connection_pool_per_downstream_connection: _,
            queuing_policies: _,
            upstream_connection_options: _,
            wait_for_warm_on_init: _,
            cleanup_interval: _,
            ignore_health_on_host_removal: _,
            // Requests.
            max_requests_per_connection: _,
            upstream_http_protocol_options: _,
            common_http_protocol_options: _,
            http_protocol_options: _,
            http2_protocol_options: _,
            typed_extension_protocol_options: _,
            protocol_selection: _,
            // An EDS cluster asks no DNS server.
            dns_refresh_rate: _,
            dns_jitter: _,
            dns_failure_refresh_rate: _,
            respect_dns_ttl: _,
            dns_lookup_family: _,
            dns_resolvers: _,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config: _,
            typed_dns_resolver_config: _,
        } = &cluster;
        named("name", resource, name)?;
        match cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(ty)) if *ty == DiscoveryType::Eds as i32 => {}
            _ => return Err(unsupported("type", "only EDS clusters are supported")),
        }
        if *lb_policy != LbPolicy::Random as i32 {
            let policy = LbPolicy::try_from(*lb_policy).map_or("unknown", |policy| policy.as_str_name());
            return Err(unsupported("lb_policy", format!("{policy}; RANDOM is supported")));
        }
        plain_socket("transport_socket", transport_socket.as_ref())?;
        refuse_set!("",
            "connections are made as the application makes them":
                transport_socket_matches, transport_socket_matcher, upstream_config, filters;
            "the source address is the application's": upstream_bind_config;
            "endpoints come from the load assignment of their own": load_assignment;
            "all endpoints that the load assignment calls healthy are chosen from":
                health_checks, outlier_detection, lb_subset_config;
            "only lb_policy RANDOM": load_balancing_policy;
            "connections that exist stay": close_connections_on_host_health_failure;
        );
        breakers(circuit_breakers.as_ref())?;
        if let Some(common) = common_lb_config {
            common_lb(common)?;
        }
        let service = match eds_cluster_config {
            Some(EdsClusterConfig { eds_config, service_name }) => {
                same_stream("eds_cluster_config.eds_config", eds_config.as_ref())?;
                Some(service_name.as_str()).filter(|name| !name.is_empty())
            }
            None => None,
        };
        let connect_timeout_ms =
            connect_timeout.as_ref().map_or(Ok(DEFAULT_CONNECT_TIMEOUT_MS), milliseconds)?;
        Ok(Self { endpoints: service.unwrap_or(name).into(), connect_timeout_ms })
    }
}

/// Limits without a bound, which Istio sets everywhere, are none. All but the limit of connections are
/// about requests.
fn breakers(breakers: Option<&proto::CircuitBreakers>) -> Result<(), Invalid> {
    let Some(proto::CircuitBreakers { thresholds, per_host_thresholds }) = breakers else { return Ok(()) };
    for (list, thresholds) in [("thresholds", thresholds), ("per_host_thresholds", per_host_thresholds)] {
        for (i, threshold) in thresholds.iter().enumerate() {
            if threshold.max_connections.is_some_and(|max| max.value != u32::MAX) {
                return Err(unsupported(
                    format!("circuit_breakers.{list}[{i}].max_connections"),
                    "connections aren't limited",
                ));
            }
        }
    }
    Ok(())
}

fn common_lb(config: &CommonLbConfig) -> Result<(), Invalid> {
    let CommonLbConfig {
        close_connections_on_host_set_change,
        locality_config_specifier,
        // Where few endpoints are healthy, Envoy may choose from all; here only healthy ones are.
        healthy_panic_threshold: _,
        update_merge_window: _,
        // There are no health checks to wait for.
        ignore_new_hosts_until_first_hc: _,
        // No effect with lb_policy RANDOM.
        consistent_hashing_lb_config: _,
        override_host_status: _,
    } = config;
    refuse_set!("common_lb_config",
        "connections that exist stay": close_connections_on_host_set_change;
        "all localities are chosen from alike": locality_config_specifier;
    );
    Ok(())
}

/// Rounded up, so that the shortest timeout isn't none.
fn milliseconds(timeout: &Duration) -> Result<u32, Invalid> {
    let nanos = i128::from(timeout.seconds) * 1_000_000_000 + i128::from(timeout.nanos);
    if nanos <= 0 {
        return Err(invalid("connect_timeout", "is not above 0"));
    }
    Ok(u32::try_from((nanos + 999_999) / 1_000_000).unwrap_or(u32::MAX))
}
