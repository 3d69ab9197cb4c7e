//! `envoy.config.cluster.v3.Cluster`

use std::num::NonZeroU32;

use slotmesh_xds::{
    ConnectionRate, SessionAffinity,
    envoy::{
        envoy::config::{
            cluster::v3::{
                self as proto,
                circuit_breakers::Thresholds,
                cluster::{
                    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig,
                    LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig,
                },
                load_balancing_policy::Policy,
            },
            core::v3::{Metadata, RoutingPriority, TypedExtensionConfig},
        },
        envoy::extensions::load_balancing_policies::{
            common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev,
        },
        google::protobuf::{Duration, UInt32Value},
    },
};

use super::{
    At, Endpoints, Invalid, Outliers, REFUSING_CLUSTER, decode_any, invalid, named, outliers, plain_socket,
    reference, refuse_set, same_stream, unsupported, weighted::hashes_source,
};

/// The only load balancing policy of an extension: with it a cluster itself says what is hashed.
pub(super) const MAGLEV: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.maglev.v3.Maglev";

/// Envoy's default where `connect_timeout` is unset.
const DEFAULT_CONNECT_TIMEOUT_MS: u32 = 5_000;

/// A cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster<'m> {
    /// Where its endpoints come from.
    pub source: Source<'m>,
    /// Connect timeout in milliseconds.
    pub connect_timeout_ms: u32,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How much there may be at a time.
    pub limits: Limits,
    /// For how many seconds after its last connection a workload keeps to its endpoint, if it does.
    pub affinity: Option<NonZeroU32>,
    /// When endpoints are left out because connects to them fail, if they ever are.
    pub outliers: Option<Outliers>,
    /// How fast new connections may come, if there is a bound.
    pub rate: Option<Rate>,
}

/// How fast new connections to a cluster may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many a second.
    pub per_second: NonZeroU32,
    /// So many at once.
    pub burst: NonZeroU32,
    /// Of each caller, instead of all together.
    pub per_caller: bool,
}

impl Cluster<'_> {
    /// The load assignment that needs a table of sources for it.
    pub fn hashes_over(&self) -> Option<&str> {
        match self.source {
            Source::Assignment(name) if self.balance.hashes() => Some(name),
            _ => None,
        }
    }
}

/// Where a cluster's endpoints come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source<'m> {
    /// EDS: the load assignment with this name.
    Assignment(&'m str),
    /// STATIC: the load assignment within the cluster.
    Inline(Endpoints<'m>),
    /// ORIGINAL_DST: none, connections go where they were meant to go.
    Original,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// By a random number.
    Random,
    /// One after the other.
    RoundRobin,
    /// The less busy of two chosen by random numbers.
    LeastConnections,
    /// By a hash of the source.
    Hash,
    /// By a hash of the source where the route says so, else by a random number.
    HashByRoute,
}

impl Balance {
    /// Whether sources may have endpoints of their own.
    pub(crate) const fn hashes(self) -> bool {
        matches!(self, Self::Hash | Self::HashByRoute)
    }
}

/// The circuit breaker thresholds of the default priority; `None` is no limit. Envoy's default of 1024
/// spares a proxy's resources; here there is no proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most connections at a time.
    pub connections: Option<u32>,
    /// The most requests that wait for a connection; there are none at connect time.
    pub pending_requests: Option<u32>,
    /// The most requests at a time; there are none at connect time.
    pub requests: Option<u32>,
    /// The most retries at a time; there are none at connect time.
    pub retries: Option<u32>,
}

impl<'m> Cluster<'m> {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(super) fn from_proto(resource: &str, cluster: &'m proto::Cluster) -> Result<Self, Invalid> {
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
            lb_config,
            upstream_bind_config,
            upstream_config,
            filters,
            close_connections_on_host_health_failure,
            // Counting.
            alt_stat_name: _,
            stats_matcher: _,
            metadata,
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
            // No DNS server is asked.
            dns_refresh_rate: _,
            dns_jitter: _,
            dns_failure_refresh_rate: _,
            respect_dns_ttl: _,
            dns_lookup_family: _,
            dns_resolvers: _,
            use_tcp_for_dns_lookups: _,
            dns_resolution_config: _,
            typed_dns_resolver_config: _,
        } = cluster;
        named("name", resource, name)?;
        let ty = match cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(ty)) => DiscoveryType::try_from(*ty).ok(),
            Some(ClusterDiscoveryType::ClusterType(_)) => None,
            // As protobuf has it.
            None => Some(DiscoveryType::Static),
        };
        let chooses_none = ty == Some(DiscoveryType::OriginalDst)
            && LbPolicy::try_from(*lb_policy) == Ok(LbPolicy::ClusterProvided);
        let balance = match load_balancing_policy {
            Some(policy) => extension(policy)?,
            None if chooses_none => Balance::Random,
            None => balance(*lb_policy, lb_config.as_ref())?,
        };
        plain_socket(&At::ROOT.field("transport_socket"), transport_socket.as_ref())?;
        refuse_set!(At::ROOT,
            "connections are made as the application makes them":
                transport_socket_matches, transport_socket_matcher, upstream_config;
            "the source address is the application's": upstream_bind_config;
            "all endpoints that the load assignment calls healthy are chosen from":
                health_checks, lb_subset_config;
            "connections that exist stay": close_connections_on_host_health_failure;
        );
        let limits = limits(circuit_breakers.as_ref())?;
        let panic = common_lb_config.as_ref().and_then(|common| common.healthy_panic_threshold.as_ref());
        let outliers =
            outlier_detection.as_ref().map(|outliers| outliers::read(outliers, panic)).transpose()?;
        let outliers = outliers.flatten();
        if let Some(common) = common_lb_config {
            common_lb(common, balance)?;
        }
        let source = match ty {
            Some(DiscoveryType::Eds) => {
                refuse_set!(At::ROOT, "endpoints of an EDS cluster come from elsewhere": load_assignment;);
                Source::Assignment(assignment(name, eds_cluster_config.as_ref())?)
            }
            Some(DiscoveryType::Static) => {
                refuse_set!(At::ROOT, "endpoints of a STATIC cluster stand in it": eds_cluster_config;);
                let at = At::ROOT.field("load_assignment");
                let assignment = load_assignment.as_ref().ok_or_else(|| invalid(at, "there is none"))?;
                let endpoints = Endpoints::from_proto(&at, assignment)?;
                if endpoints.viewed {
                    return Err(unsupported(at, "endpoints for some callers, in a STATIC cluster; use EDS"));
                }
                Source::Inline(endpoints)
            }
            Some(DiscoveryType::OriginalDst) if chooses_none => {
                refuse_set!(At::ROOT,
                    "an ORIGINAL_DST cluster chooses no endpoint":
                        load_assignment, eds_cluster_config, load_balancing_policy, lb_config;
                );
                Source::Original
            }
            _ => {
                let known = "only EDS and STATIC clusters are supported, and ORIGINAL_DST ones as they are by default";
                return Err(unsupported("type", known));
            }
        };
        if name == REFUSING_CLUSTER
            && !matches!(&source, Source::Inline(none) if none.v4.is_empty() && none.v6.is_empty())
        {
            return Err(unsupported(
                "name",
                "the cluster of this name has no endpoints: what leads there is refused",
            ));
        }
        let connect_timeout_ms =
            connect_timeout.as_ref().map_or(Ok(DEFAULT_CONNECT_TIMEOUT_MS), milliseconds)?;
        let affinity = affinity(metadata.as_ref())?;
        let rate = rate(filters)?;
        Ok(Self { source, connect_timeout_ms, balance, limits, affinity, outliers, rate })
    }
}

/// The load assignment that an EDS cluster means: its own name where it gives none.
fn assignment<'m>(name: &'m str, config: Option<&'m EdsClusterConfig>) -> Result<&'m str, Invalid> {
    let Some(EdsClusterConfig { eds_config, service_name }) = config else { return Ok(name) };
    let at = At::ROOT.field("eds_cluster_config");
    same_stream(&at.field("eds_config"), eds_config.as_ref())?;
    if service_name.is_empty() {
        return Ok(name);
    }
    reference(&at.field("service_name"), service_name)?;
    Ok(service_name)
}

/// How `lb_policy` has a connection choose. What would change the choice is refused, as slow start is; of a
/// table or ring the size is ours.
fn balance(policy: i32, config: Option<&LbConfig>) -> Result<Balance, Invalid> {
    let policy = LbPolicy::try_from(policy);
    let (balance, is_default, default) = match (policy, config) {
        (Ok(LbPolicy::Random), _) => return Ok(Balance::Random),
        (Ok(LbPolicy::Maglev | LbPolicy::RingHash), _) => return Ok(Balance::HashByRoute),
        (Ok(LbPolicy::RoundRobin), config) => {
            let is_default = match config {
                None => true,
                Some(LbConfig::RoundRobinLbConfig(config)) => *config == RoundRobinLbConfig::default(),
                Some(_) => false,
            };
            (Balance::RoundRobin, is_default, "ROUND_ROBIN without slow start")
        }
        (Ok(LbPolicy::LeastRequest), config) => {
            let is_default = match config {
                None => true,
                Some(LbConfig::LeastRequestLbConfig(config)) => {
                    let LeastRequestLbConfig { choice_count, active_request_bias, slow_start_config } =
                        config;
                    choice_count.is_none_or(|count| count.value == 2)
                        && active_request_bias.is_none()
                        && slow_start_config.is_none()
                }
                Some(_) => false,
            };
            (Balance::LeastConnections, is_default, "LEAST_REQUEST of two, without bias and slow start")
        }
        (other, _) => {
            let policy = other.map_or("unknown", |policy| policy.as_str_name());
            let known = "RANDOM, ROUND_ROBIN, LEAST_REQUEST, MAGLEV and RING_HASH are supported";
            return Err(unsupported("lb_policy", format!("{policy}; {known}")));
        }
    };
    if is_default { Ok(balance) } else { Err(unsupported("lb_config", default)) }
}

/// How the one load balancing policy that is an extension has a connection choose.
fn extension(policy: &proto::LoadBalancingPolicy) -> Result<Balance, Invalid> {
    let at = At::ROOT.field("load_balancing_policy");
    let [Policy { typed_extension_config: Some(TypedExtensionConfig { name: _, typed_config: Some(any) }) }] =
        &policy.policies[..]
    else {
        return Err(unsupported(at, "only one policy, with a typed_config"));
    };
    if any.type_url != MAGLEV {
        return Err(unsupported(at, format!("{}; only {MAGLEV}", any.type_url)));
    }
    let maglev: Maglev = decode_any(&at, "Maglev", any)?;
    let Maglev { table_size: _, consistent_hashing_lb_config, locality_weighted_lb_config } = &maglev;
    refuse_set!(at, "all localities are chosen from alike": locality_weighted_lb_config;);
    let Some(config) = consistent_hashing_lb_config else { return Ok(Balance::HashByRoute) };
    let at = at.field("consistent_hashing_lb_config");
    let ConsistentHashingLbConfig { use_hostname_for_hashing, hash_balance_factor, hash_policy } = config;
    refuse_set!(at,
        "the address alone is hashed": use_hostname_for_hashing;
        "no endpoint is passed over": hash_balance_factor;
    );
    if hash_policy.is_empty() {
        return Ok(Balance::HashByRoute);
    }
    Ok(if hashes_source(&at, hash_policy)? { Balance::Hash } else { Balance::Random })
}

/// The thresholds of the default priority. Envoy takes the first entry of a priority; connections have
/// the default one. A limit without a bound, which Istio sets everywhere, is none.
fn limits(breakers: Option<&proto::CircuitBreakers>) -> Result<Limits, Invalid> {
    let mut limits = None;
    let Some(proto::CircuitBreakers { thresholds, per_host_thresholds }) = breakers else {
        return Ok(Limits::default());
    };
    let at = At::ROOT.field("circuit_breakers");
    let value =
        |limit: Option<&UInt32Value>| limit.map(|limit| limit.value).filter(|&value| value != u32::MAX);
    for (i, threshold) in thresholds.iter().enumerate() {
        let Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            // Requests, a proxy's pools, counting.
            retry_budget: _,
            track_remaining: _,
            max_connection_pools: _,
        } = threshold;
        let connections = value(max_connections.as_ref());
        if *priority != RoutingPriority::Default as i32 {
            if connections.is_some() {
                let at = at.element("thresholds", i);
                let what = "a connection has the default priority: limit that";
                return Err(unsupported(at.field("max_connections"), what));
            }
            continue;
        }
        limits.get_or_insert(Limits {
            connections,
            pending_requests: value(max_pending_requests.as_ref()),
            requests: value(max_requests.as_ref()),
            retries: value(max_retries.as_ref()),
        });
    }
    for (i, threshold) in per_host_thresholds.iter().enumerate() {
        if value(threshold.max_connections.as_ref()).is_some() {
            let at = at.element("per_host_thresholds", i);
            let what = "connections are limited by cluster, not by endpoint";
            return Err(unsupported(at.field("max_connections"), what));
        }
    }
    Ok(limits.unwrap_or_default())
}

fn common_lb(config: &CommonLbConfig, balance: Balance) -> Result<(), Invalid> {
    let CommonLbConfig {
        close_connections_on_host_set_change,
        locality_config_specifier,
        // Read with outlier detection: without it all endpoints are as healthy as their assignment says.
        healthy_panic_threshold: _,
        update_merge_window: _,
        // There are no health checks to wait for.
        ignore_new_hosts_until_first_hc: _,
        consistent_hashing_lb_config,
        override_host_status: _,
    } = config;
    // Without effect where nothing is hashed.
    let consistent_hashing_lb_config = &consistent_hashing_lb_config.filter(|_| balance.hashes());
    refuse_set!(At::ROOT.field("common_lb_config"),
        "connections that exist stay": close_connections_on_host_set_change;
        "all localities are chosen from alike": locality_config_specifier;
        "the address alone is hashed, and no endpoint is passed over": consistent_hashing_lb_config;
    );
    Ok(())
}

/// The rate of new connections is slotmesh's own, too; of other filters a connection that is made directly has none.
fn rate(filters: &[proto::Filter]) -> Result<Option<Rate>, Invalid> {
    if filters.is_empty() {
        return Ok(None);
    }
    let [proto::Filter { name: _, typed_config: Some(any), config_discovery: None }] = filters else {
        return Err(unsupported("filters", "connections are made as the application makes them"));
    };
    let at = At::ROOT.element("filters", 0);
    if any.type_url != ConnectionRate::TYPE_URL {
        let known = ConnectionRate::TYPE_URL;
        let what =
            format!("{}; only {known}: connections are made as the application makes them", any.type_url);
        return Err(unsupported(at, what));
    }
    let ConnectionRate { per_second, burst, per_caller } = decode_any(&at, "ConnectionRate", any)?;
    let above_0 = |name: &'static str, value| {
        NonZeroU32::new(value).ok_or_else(|| invalid(at.field(name), "0 would refuse every connection"))
    };
    let (per_second, burst) = (above_0("per_second", per_second)?, above_0("burst", burst)?);
    Ok(Some(Rate { per_second, burst, per_caller }))
}

/// Session affinity is slotmesh's own: Envoy has none for connections. Other metadata is for counting.
fn affinity(metadata: Option<&Metadata>) -> Result<Option<NonZeroU32>, Invalid> {
    let any = metadata.and_then(|metadata| metadata.typed_filter_metadata.get(SessionAffinity::KEY));
    let Some(any) = any else { return Ok(None) };
    let at = At::ROOT.field("metadata");
    if any.type_url != SessionAffinity::TYPE_URL {
        return Err(unsupported(at, format!("{}; only {}", any.type_url, SessionAffinity::TYPE_URL)));
    }
    let SessionAffinity { seconds } = decode_any(&at, "SessionAffinity", any)?;
    NonZeroU32::new(seconds).map(Some).ok_or_else(|| invalid(at, "an affinity of 0 seconds is none"))
}

fn milliseconds(timeout: &Duration) -> Result<u32, Invalid> {
    whole_milliseconds(timeout).ok_or_else(|| invalid("connect_timeout", "is not above 0"))
}

/// Rounded up, so that the shortest time isn't none; `None` where it isn't above 0.
pub(super) fn whole_milliseconds(time: &Duration) -> Option<u32> {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    (nanos > 0).then(|| u32::try_from((nanos + 999_999) / 1_000_000).unwrap_or(u32::MAX))
}
