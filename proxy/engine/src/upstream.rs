//! Clusters, validated. Immutable, shared by all workers.
//!
//! Each message is destructured whole: a field is read, refused where it is set, or named with `_` because it says
//! nothing about where a request goes or what is on the wire.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use prost::Message as _;
use slotmesh_routing::InvalidField;
use slotmesh_xds::ConnectionRate;
use slotmesh_xds::envoy::{
    envoy::{
        config::{
            cluster::v3::{
                self as proto, CircuitBreakers,
                circuit_breakers::{Thresholds, thresholds::RetryBudget},
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{self as core, RoutingPriority, address::Address, socket_address::PortSpecifier},
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    google::protobuf::{self, Any, UInt32Value},
};

use crate::{
    assignment::EndpointSet,
    choice::{choice, extension},
    hashing::HashTableKind,
};

/// Name of the extension that says how HTTP is spoken to a cluster.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Envoy's default where `connect_timeout` is unset.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an idle connection is kept, where nothing says otherwise: shorter than servers usually keep theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Retries at a time on all workers, where no circuit breaker says otherwise: Envoy's.
const RETRIES: u32 = 3;

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum EndpointChoice {
    RoundRobin,
    Random,
    /// The least busy of so many, chosen by chance.
    LeastRequests {
        choices: u32,
    },
    /// By the request's hash; by chance where it has none.
    Hash(HashTableKind),
}

/// The HTTP version that endpoints are spoken to with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamProtocol {
    Http1,
    Http2,
    /// The version in which the request came.
    AsDownstream,
}

/// How many retries there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RetryLimit {
    /// So many.
    Count(u32),
    /// A share of the requests in flight, and at least so many.
    Share { percent: f64, at_least: u32 },
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum EndpointSource {
    Inline(Arc<EndpointSet>),
    /// The load assignment of this name.
    Named(Arc<str>),
}

/// A cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterConfig {
    pub name: Arc<str>,
    pub source: EndpointSource,
    pub choice: EndpointChoice,
    /// The hash is that of the client's address, whatever the route says.
    pub hashes_source: bool,
    pub protocol: UpstreamProtocol,
    pub connect_timeout: Duration,
    pub idle_timeout: Duration,
    /// Requests on a connection before it is left; 0 for any number.
    pub requests_per_connection: u32,
    /// Requests in flight at a time, on all workers.
    pub requests: Option<u32>,
    /// Connections at a time, on all workers.
    pub connections: Option<u32>,
    pub retries: RetryLimit,
    pub counters: Arc<ClusterCounters>,
}

/// Numbers of a cluster on all workers, for its limits. They outlive a version of the cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterCounters {
    pub requests: AtomicU32,
    pub connections: AtomicU32,
    pub retries: AtomicU32,
}

pub(crate) fn wrong(field: impl Into<String>, reason: impl Into<String>) -> InvalidField {
    InvalidField { field: field.into(), reason: reason.into() }
}

/// Refuses the fields of the message at `$at` that are set.
macro_rules! refuse_set {
    ($at:expr, $($what:literal: $($field:ident),+;)+) => {
        $($(if $crate::upstream::is_set($field) {
            let field = format!("{}{}", $at, stringify!($field));
            return Err($crate::upstream::wrong(field, $what));
        })+)+
    };
}
pub(crate) use refuse_set;

pub(crate) fn is_set<T: Default + PartialEq>(field: &T) -> bool {
    *field != T::default()
}

pub(crate) fn duration(
    field: &str,
    duration: Option<&protobuf::Duration>,
) -> Result<Option<Duration>, InvalidField> {
    let Some(duration) = duration else { return Ok(None) };
    match (u64::try_from(duration.seconds), u32::try_from(duration.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 && seconds < 1 << 40 => {
            Ok(Some(Duration::new(seconds, nanos)))
        }
        _ => Err(wrong(field, "not a duration")),
    }
}

impl ClusterConfig {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(crate) fn new(cluster: &proto::Cluster) -> Result<Self, InvalidField> {
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
            // Decided in the kernel and by whoever sends the endpoints.
            outlier_detection: _,
            lb_subset_config,
            load_balancing_policy,
            lb_config,
            upstream_bind_config,
            upstream_config,
            filters,
            max_requests_per_connection,
            upstream_http_protocol_options,
            common_http_protocol_options,
            http_protocol_options,
            http2_protocol_options,
            typed_extension_protocol_options,
            protocol_selection,
            connection_pool_per_downstream_connection,
            dns_resolvers,
            // Counting and telling.
            alt_stat_name: _,
            stats_matcher: _,
            metadata: _,
            lrs_server: _,
            lrs_report_endpoint_metrics: _,
            track_timeout_budgets: _,
            track_cluster_stats: _,
            // About names, of which there are none here.
            dns_refresh_rate: _,
            dns_jitter: _,
            dns_failure_refresh_rate: _,
            respect_dns_ttl: _,
            dns_lookup_family: _,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config: _,
            typed_dns_resolver_config: _,
            // Buffers and times of an Envoy process.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            wait_for_warm_on_init: _,
            cleanup_interval: _,
            upstream_connection_options: _,
            close_connections_on_host_health_failure: _,
            ignore_health_on_host_removal: _,
            preconnect_policy: _,
            queuing_policies: _,
        } = cluster;
        if name.is_empty() {
            return Err(wrong("name", "the name is empty"));
        }
        refuse_set!("",
            "TLS is not supported": transport_socket_matches, transport_socket_matcher;
            "endpoints' health comes with the endpoints": health_checks;
            "not supported": lb_subset_config, upstream_bind_config, upstream_config,
                upstream_http_protocol_options, dns_resolvers, connection_pool_per_downstream_connection;
        );
        // How fast a pod's connections come is bounded where it makes them.
        let is_rate = |filter: &proto::Filter| {
            filter.typed_config.as_ref().is_some_and(|any| any.type_url == ConnectionRate::TYPE_URL)
        };
        if let Some(i) = filters.iter().position(|filter| !is_rate(filter)) {
            return Err(wrong(format!("filters[{i}]"), "not supported"));
        }
        if let Some(socket) = transport_socket
            && !is_raw(socket)
        {
            return Err(wrong("transport_socket", format!("{:?}; only raw_buffer", socket.name)));
        }
        if let Some(CommonLbConfig { override_host_status: Some(_), .. }) = common_lb_config {
            return Err(wrong("common_lb_config.override_host_status", "not supported"));
        }
        let (choice, hashes_source) = match load_balancing_policy {
            Some(policy) => extension(policy)?,
            None => (choice(*lb_policy, lb_config.as_ref())?, false),
        };
        let source = match cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(ty)) if *ty == DiscoveryType::Eds as i32 => {
                let EdsClusterConfig { eds_config: _, service_name } =
                    eds_cluster_config.clone().unwrap_or_default();
                EndpointSource::Named(
                    if service_name.is_empty() { name } else { &service_name }.as_str().into(),
                )
            }
            None | Some(ClusterDiscoveryType::Type(0)) => {
                let assignment = load_assignment.clone().unwrap_or_default();
                EndpointSource::Inline(Arc::new(
                    EndpointSet::at("load_assignment.", &assignment)?.with_tables(choice),
                ))
            }
            Some(_) => return Err(wrong("type", "only STATIC and EDS are supported")),
        };
        let options = http_options(typed_extension_protocol_options.iter())?;
        let common = match &options {
            Some(options) => options.common_http_protocol_options.as_ref(),
            None => common_http_protocol_options.as_ref(),
        };
        // `USE_DOWNSTREAM_PROTOCOL`.
        let protocol = match (&options, *protocol_selection) {
            (Some(options), _) => options.upstream_protocol_options.as_ref().map(version).transpose()?,
            (None, 1) => Some(UpstreamProtocol::AsDownstream),
            (None, _) if http2_protocol_options.is_some() => Some(UpstreamProtocol::Http2),
            (None, _) => None,
        };
        // Its settings are Envoy's own.
        let _ = http_protocol_options;
        let per_connection = common
            .and_then(|common| common.max_requests_per_connection)
            .or(*max_requests_per_connection)
            .map_or(0, |most| most.value);
        let idle = duration(
            "common_http_protocol_options.idle_timeout",
            common.and_then(|common| common.idle_timeout.as_ref()),
        )?;
        let mut config = Self {
            name: name.as_str().into(),
            source,
            choice,
            hashes_source,
            protocol: protocol.unwrap_or(UpstreamProtocol::Http1),
            connect_timeout: duration("connect_timeout", connect_timeout.as_ref())?
                .filter(|timeout| !timeout.is_zero())
                .unwrap_or(CONNECT_TIMEOUT),
            idle_timeout: idle.filter(|timeout| !timeout.is_zero()).unwrap_or(IDLE_TIMEOUT),
            requests_per_connection: per_connection,
            requests: None,
            connections: None,
            retries: RetryLimit::Count(RETRIES),
            counters: Arc::default(),
        };
        config.circuit_breakers(circuit_breakers.as_ref());
        Ok(config)
    }

    fn circuit_breakers(&mut self, breakers: Option<&CircuitBreakers>) {
        let default = RoutingPriority::Default as i32;
        let thresholds = breakers.and_then(|breakers| {
            breakers.thresholds.iter().find(|thresholds| thresholds.priority == default)
        });
        let Some(Thresholds { max_connections, max_requests, max_retries, retry_budget, .. }) = thresholds
        else {
            return;
        };
        let value = |value: &Option<UInt32Value>| value.map(|value| value.value);
        self.requests = value(max_requests);
        self.connections = value(max_connections);
        if let Some(RetryBudget { budget_percent, min_retry_concurrency, .. }) = retry_budget {
            self.retries = RetryLimit::Share {
                percent: budget_percent.map_or(20.0, |percent| percent.value),
                at_least: value(min_retry_concurrency).unwrap_or(3),
            };
        } else if let Some(most) = value(max_retries) {
            self.retries = RetryLimit::Count(most);
        }
    }
}

pub(crate) fn is_raw(socket: &core::TransportSocket) -> bool {
    const RAW: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
    match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => any.type_url.ends_with(RAW),
        None => socket.name == "envoy.transport_sockets.raw_buffer",
    }
}

fn http_options<'a>(
    options: impl Iterator<Item = (&'a String, &'a Any)>,
) -> Result<Option<HttpProtocolOptions>, InvalidField> {
    let mut found = None;
    for (name, any) in options {
        let at = format!("typed_extension_protocol_options[{name}]");
        if !any.type_url.ends_with(HTTP_OPTIONS) {
            return Err(wrong(at, format!("only {HTTP_OPTIONS} is supported")));
        }
        let options = HttpProtocolOptions::decode(any.value.as_slice())
            .map_err(|error| wrong(at.as_str(), error.to_string()))?;
        let HttpProtocolOptions {
            common_http_protocol_options: _,
            upstream_http_protocol_options,
            http_filters,
            header_validation_config,
            outlier_detection,
            request_mirror_policies,
            hash_policy,
            retry_policy,
            upstream_protocol_options: _,
        } = &options;
        refuse_set!(format!("{at}."),
            "not supported": upstream_http_protocol_options, http_filters, header_validation_config,
                outlier_detection, request_mirror_policies, hash_policy, retry_policy;
        );
        found = Some(options);
    }
    Ok(found)
}

fn version(options: &UpstreamProtocolOptions) -> Result<UpstreamProtocol, InvalidField> {
    match options {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config }) => {
            match protocol_config {
                None | Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(UpstreamProtocol::Http1),
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(UpstreamProtocol::Http2),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    Err(wrong("explicit_http_config.http3_protocol_options", "not supported"))
                }
            }
        }
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(_) => Ok(UpstreamProtocol::AsDownstream),
        UpstreamProtocolOptions::AutoConfig(_) => Err(wrong("auto_config", "it needs TLS; not supported")),
    }
}

/// The IP address and port of a TCP socket.
pub(crate) fn socket_address(
    field: &str,
    address: Option<&core::Address>,
) -> Result<SocketAddr, InvalidField> {
    let socket = match address.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket,
        _ => return Err(wrong(field, "only a socket_address is supported")),
    };
    if socket.protocol != 0 {
        return Err(wrong(format!("{field}.socket_address.protocol"), "only TCP"));
    }
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        wrong(format!("{field}.socket_address.address"), format!("{:?} is not an IP address", socket.address))
    })?;
    match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) if port <= 65_535 => {
            Ok(SocketAddr::new(ip, u16::try_from(port).unwrap_or_default()))
        }
        _ => Err(wrong(format!("{field}.socket_address.port_value"), "not a port")),
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::envoy::envoy::config::{cluster::v3::cluster::LbPolicy, core::v3::HealthStatus};

    use super::*;
    use crate::assignment::tests::assignment;

    const UP: HealthStatus = HealthStatus::Healthy;

    #[test]
    fn a_cluster_is_read() {
        let config = ClusterConfig::new(&proto::Cluster {
            name: "c".into(),
            load_assignment: Some(assignment(&[(1, 0, 1, UP), (2, 0, 3, UP)])),
            lb_policy: LbPolicy::LeastRequest.into(),
            ..Default::default()
        })
        .unwrap();
        assert_eq!(config.choice, EndpointChoice::LeastRequests { choices: 2 });
        assert_eq!(config.connect_timeout, CONNECT_TIMEOUT);
        let EndpointSource::Inline(set) = config.source else { panic!("{config:?}") };
        assert_eq!(set.levels[0].sums, [1, 4]);
    }

    #[test]
    fn how_fast_connections_come_is_somebody_elses_and_other_filters_are_refused() {
        let with = |type_url: &str| {
            let any = Any { type_url: type_url.to_owned(), ..Default::default() };
            let filter = proto::Filter { typed_config: Some(any), ..Default::default() };
            ClusterConfig::new(&proto::Cluster {
                name: "c".into(),
                filters: vec![filter],
                ..Default::default()
            })
        };
        assert!(with(ConnectionRate::TYPE_URL).is_ok());
        assert_eq!(with("type.googleapis.com/other").unwrap_err().field, "filters[0]");
    }

    #[test]
    fn faults_are_named() {
        let fault = |cluster: proto::Cluster| ClusterConfig::new(&cluster).unwrap_err().field;
        let base = || proto::Cluster { name: "c".into(), ..Default::default() };
        assert_eq!(fault(proto::Cluster::default()), "name");
        assert_eq!(fault(proto::Cluster { lb_policy: 77, ..base() }), "lb_policy");
        let dns = Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()));
        assert_eq!(fault(proto::Cluster { cluster_discovery_type: dns, ..base() }), "type");
        let mut zero = assignment(&[(1, 0, 0, UP)]);
        assert_eq!(
            fault(proto::Cluster { load_assignment: Some(zero.clone()), ..base() }),
            "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight"
        );
        zero.endpoints[0].lb_endpoints[0].host_identifier = None;
        assert_eq!(
            fault(proto::Cluster { load_assignment: Some(zero), ..base() }),
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint"
        );
        let tls =
            Some(core::TransportSocket { name: "envoy.transport_sockets.tls".into(), config_type: None });
        assert_eq!(fault(proto::Cluster { transport_socket: tls, ..base() }), "transport_socket");
    }
}
