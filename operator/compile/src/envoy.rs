//! The Envoy v3 messages that are compiled, and nothing else: no choice is made here.
//!
//! Invariant: the bytes depend on the arguments only. No map field ever has more than one entry, because prost
//! encodes those in random order.

mod matcher;
mod proxied;

use std::net::{IpAddr, SocketAddr};

use prost::{Message, Name};
use slotmesh_xds::{
    ConnectionRate, EndpointHints, OF_NODES, Resource, ResourceType, SessionAffinity, Transport,
    envoy::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster, Filter as ClusterFilter, LoadBalancingPolicy, circuit_breakers,
                    cluster, load_balancing_policy,
                },
                core::v3::{
                    Address, AggregatedConfigSource, ApiVersion, ConfigSource, HealthStatus, Locality,
                    Metadata, RoutingPriority, SocketAddress, TrafficDirection, TypedExtensionConfig,
                    address, config_source, socket_address,
                },
                endpoint::v3::{
                    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint,
                },
                listener::v3::{
                    AdditionalAddress, Filter, FilterChain, Listener, ListenerFilter, UdpListenerConfig,
                    filter, listener_filter,
                },
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster, route,
                    route_action, route_match, weighted_cluster,
                },
            },
            extensions::{
                filters::network::{
                    http_connection_manager::v3::{HttpConnectionManager, Rds, http_connection_manager},
                    tcp_proxy::v3::{TcpProxy, tcp_proxy},
                },
                filters::udp::udp_proxy::v3::{UdpProxyConfig, udp_proxy_config},
                load_balancing_policies::{common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev},
            },
            r#type::v3::Percent,
        },
        google::protobuf::{Any, Duration, UInt32Value},
    },
    request_manager,
};

pub(crate) use self::proxied::{RequestRoute, configuration};
use self::{
    matcher::{callers_chain, datagrams_to, go_to, matcher},
    proxied::http_options,
};
use crate::{
    model::{LbPolicy, Outliers, PortKey, Rate, TrafficSettings},
    names::{BLACK_HOLE, PASSTHROUGH, listener_name, node_listener_name},
};

const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const UDP_PROXY: &str = "envoy.filters.udp_listener.udp_proxy";
const HTTP_CONNECTION_MANAGER: &str = "envoy.filters.network.http_connection_manager";
const MAGLEV: &str = "envoy.load_balancing_policies.maglev";
/// The name of the chain for all that no other is for.
const EVERYBODY: &str = "everybody";
const CONNECT_TIMEOUT_SECONDS: i64 = 10;

/// Clusters with their weights; one or more.
pub(crate) type WeightedClusters = [(String, u32)];

/// Where the connections of some callers go, instead of where everybody's do.
pub(crate) struct CallerChain {
    /// The names of their classes, sorted.
    pub(crate) classes: Vec<String>,
    pub(crate) choice: Vec<(String, u32)>,
    /// The name of the route configuration by which their requests go, instead.
    pub(crate) requests: Option<String>,
}

/// The ways in which a listener forwards its connections.
pub(crate) enum Forward<'a> {
    /// Send them to these clusters; in UDP there is one.
    Layer4(&'a WeightedClusters),
    /// Follow the route configuration with this name.
    Http(&'a str),
    /// Follow the route configuration with this name, request by request.
    Requests(&'a str),
}

fn ads() -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

fn address(ip: IpAddr, port: PortKey) -> Address {
    Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            protocol: port.protocol.to_proto().into(),
            address: ip.to_string(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port.number.into())),
            ..Default::default()
        })),
    }
}

/// A cluster with the endpoints of this assignment. `affinity`: for so many seconds a workload keeps to its endpoint; 0
/// where it doesn't.
///
/// `http2`: how requests are sent to it, where a proxy sends some; in HTTP/2 only.
pub(crate) fn cluster(
    name: &str,
    assignment: &str,
    traffic: TrafficSettings,
    affinity: u32,
    http2: Option<bool>,
) -> Resource {
    let (policy, extension) = match traffic.balance {
        None | Some(LbPolicy::Random) => (cluster::LbPolicy::Random, None),
        Some(LbPolicy::RoundRobin) => (cluster::LbPolicy::RoundRobin, None),
        Some(LbPolicy::LeastConnections) => (cluster::LbPolicy::LeastRequest, None),
        Some(LbPolicy::ConsistentHash) => {
            (cluster::LbPolicy::LoadBalancingPolicyConfig, Some(hash_of_the_source()))
        }
        // Its routes say what is hashed.
        Some(LbPolicy::RequestHash(_)) => (cluster::LbPolicy::Maglev, None),
    };
    let message = Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into())),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: assignment.to_owned(),
        }),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        lb_policy: policy.into(),
        load_balancing_policy: extension,
        circuit_breakers: traffic.max_connections.map(limit),
        typed_extension_protocol_options: http2.map(http_options).into_iter().collect(),
        outlier_detection: traffic.outliers.as_ref().map(Outliers::to_proto),
        common_lb_config: traffic.outliers.as_ref().map(|outliers| cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: outliers.panic_percent.into() }),
            ..Default::default()
        }),
        filters: traffic.rate.map(rate).into_iter().collect(),
        metadata: (affinity != 0).then(|| {
            let affinity = SessionAffinity { seconds: affinity };
            metadata(SessionAffinity::KEY, SessionAffinity::TYPE_URL, &affinity)
        }),
        ..Default::default()
    };
    Resource::encode(ResourceType::Cluster, name, &message)
}

/// A cluster without endpoints, now and for ever: connections to it are refused.
pub(crate) fn black_hole() -> Resource {
    let message = Cluster {
        name: BLACK_HOLE.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static.into(),
        )),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: BLACK_HOLE.to_owned(),
            ..Default::default()
        }),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        lb_policy: cluster::LbPolicy::Random.into(),
        ..Default::default()
    };
    Resource::encode(ResourceType::Cluster, BLACK_HOLE, &message)
}

/// A cluster that leaves each connection as it is.
pub(crate) fn passthrough() -> Resource {
    let message = Cluster {
        name: PASSTHROUGH.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::OriginalDst.into(),
        )),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_SECONDS, nanos: 0 }),
        lb_policy: cluster::LbPolicy::ClusterProvided.into(),
        ..Default::default()
    };
    Resource::encode(ResourceType::Cluster, PASSTHROUGH, &message)
}

/// The source is hashed whichever route a connection comes by: the cluster says so, not the routes to it.
fn hash_of_the_source() -> LoadBalancingPolicy {
    let source = route_action::hash_policy::ConnectionProperties { source_ip: true };
    let hash_policy = route_action::HashPolicy {
        policy_specifier: Some(route_action::hash_policy::PolicySpecifier::ConnectionProperties(source)),
        ..Default::default()
    };
    let maglev = Maglev {
        consistent_hashing_lb_config: Some(ConsistentHashingLbConfig {
            hash_policy: vec![hash_policy],
            ..Default::default()
        }),
        ..Default::default()
    };
    let config = TypedExtensionConfig { name: MAGLEV.to_owned(), typed_config: Some(any(&maglev)) };
    let policy = load_balancing_policy::Policy { typed_extension_config: Some(config) };
    LoadBalancingPolicy { policies: vec![policy] }
}

/// At most so many new connections a second: an extension of slotmesh's own.
fn rate(Rate { per_second, burst, per_caller }: Rate) -> ClusterFilter {
    let rate = ConnectionRate { per_second, burst, per_caller };
    let any = Any { type_url: ConnectionRate::TYPE_URL.to_owned(), value: rate.encode_to_vec() };
    ClusterFilter { name: ConnectionRate::NAME.to_owned(), typed_config: Some(any), ..Default::default() }
}

/// At most this many connections at a time.
fn limit(max_connections: u32) -> CircuitBreakers {
    let thresholds = circuit_breakers::Thresholds {
        priority: RoutingPriority::Default.into(),
        max_connections: Some(UInt32Value { value: max_connections }),
        ..Default::default()
    };
    CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

/// An endpoint of an assignment.
pub(crate) struct Chosen {
    pub(crate) at: SocketAddr,
    pub(crate) weight: u32,
    /// Only where no other is there.
    pub(crate) is_degraded: bool,
}

/// Endpoints that are for the same callers, and in the same place where that counts.
pub(crate) struct Group {
    pub(crate) hints: EndpointHints,
    pub(crate) place: Option<Locality>,
    pub(crate) endpoints: Vec<Chosen>,
}

/// The groups and their endpoints, in the order in which they are to appear.
pub(crate) fn assignment(name: &str, protocol: Transport, groups: Vec<Group>) -> Resource {
    let endpoint = |Chosen { at, weight, is_degraded }| LbEndpoint {
        // Unset is 1.
        load_balancing_weight: (weight != 1).then_some(UInt32Value { value: weight }),
        health_status: if is_degraded { HealthStatus::Degraded } else { HealthStatus::Unknown }.into(),
        host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(Endpoint {
            address: Some(address(at.ip(), PortKey { number: at.port(), protocol })),
            ..Default::default()
        })),
        ..Default::default()
    };
    let group = |Group { hints, place, endpoints }| LocalityLbEndpoints {
        locality: place,
        lb_endpoints: endpoints.into_iter().map(endpoint).collect(),
        metadata: (hints != EndpointHints::default())
            .then(|| metadata(EndpointHints::KEY, EndpointHints::TYPE_URL, &hints)),
        ..Default::default()
    };
    let message = ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: groups.into_iter().map(group).collect(),
        ..Default::default()
    };
    Resource::encode(ResourceType::Endpoints, name, &message)
}

/// Metadata with one entry.
fn metadata(key: &str, type_url: &str, message: &impl Message) -> Metadata {
    let any = Any { type_url: type_url.to_owned(), value: message.encode_to_vec() };
    Metadata { typed_filter_metadata: [(key.to_owned(), any)].into(), ..Default::default() }
}

/// A listener with one chain for everybody, and one for each of `callers`, which a matcher tells apart by the class of
/// the caller. Of datagrams the matcher is the UDP proxy's own.
pub(crate) fn listener(
    ip: IpAddr,
    port: PortKey,
    stat_prefix: &str,
    forward: &Forward<'_>,
    callers: &[CallerChain],
) -> Resource {
    let name = listener_name(ip, port);
    let mut message = Listener {
        name: name.clone(),
        address: Some(address(ip, port)),
        traffic_direction: TrafficDirection::Outbound.into(),
        metadata: ip.is_unspecified().then(of_nodes),
        ..Default::default()
    };
    let (filter_name, config) = match forward {
        // Datagrams belong to no connection, so there are no filter chains.
        Forward::Layer4([(cluster, _), ..]) if port.protocol == Transport::Udp => {
            message.udp_listener_config = Some(UdpListenerConfig::default());
            message.listener_filters = vec![ListenerFilter {
                name: UDP_PROXY.to_owned(),
                config_type: Some(listener_filter::ConfigType::TypedConfig(any(&udp_proxy(
                    stat_prefix,
                    cluster,
                    callers,
                )))),
                ..Default::default()
            }];
            return Resource::encode(ResourceType::Listener, name, &message);
        }
        Forward::Layer4(choice) => (TCP_PROXY, any(&tcp_proxy(stat_prefix, choice))),
        Forward::Http(route) => (HTTP_CONNECTION_MANAGER, any(&http_connection_manager(stat_prefix, route))),
        Forward::Requests(route) => (HTTP_CONNECTION_MANAGER, any(&request_manager(stat_prefix, route))),
    };
    let everybody = if callers.is_empty() { "" } else { EVERYBODY };
    message.filter_chains = vec![chain(everybody, filter_name, config)];
    for (i, caller) in callers.iter().enumerate() {
        let (filter_name, config) = match &caller.requests {
            None => (TCP_PROXY, any(&tcp_proxy(stat_prefix, &caller.choice))),
            Some(route) => (HTTP_CONNECTION_MANAGER, any(&request_manager(stat_prefix, route))),
        };
        message.filter_chains.push(chain(&callers_chain(i), filter_name, config));
    }
    message.filter_chain_matcher =
        (!callers.is_empty()).then(|| matcher(callers, |i| go_to(&callers_chain(i)), go_to(EVERYBODY)));
    Resource::encode(ResourceType::Listener, name, &message)
}

/// The addresses of a node, at which NodePorts are; at least one.
pub(crate) fn node(name: &str, addresses: &[IpAddr]) -> Resource {
    let any_port = PortKey { number: 0, protocol: Transport::Tcp };
    let mut addresses = addresses.iter().map(|ip| address(*ip, any_port));
    let name = node_listener_name(name);
    let message = Listener {
        name: name.clone(),
        address: addresses.next(),
        additional_addresses: addresses
            .map(|address| AdditionalAddress { address: Some(address), ..Default::default() })
            .collect(),
        metadata: Some(of_nodes()),
        ..Default::default()
    };
    Resource::encode(ResourceType::Listener, name, &message)
}

/// The mark of listeners of NodePorts, and of the nodes' addresses.
fn of_nodes() -> Metadata {
    Metadata { typed_filter_metadata: [(OF_NODES.to_owned(), Any::default())].into(), ..Metadata::default() }
}

fn chain(name: &str, filter_name: &str, config: Any) -> FilterChain {
    FilterChain {
        name: name.to_owned(),
        filters: vec![Filter {
            name: filter_name.to_owned(),
            config_type: Some(filter::ConfigType::TypedConfig(config)),
        }],
        ..Default::default()
    }
}

#[expect(deprecated, reason = "where nobody is told apart, a matcher says the same in five messages more")]
fn udp_proxy(stat_prefix: &str, cluster: &str, callers: &[CallerChain]) -> UdpProxyConfig {
    let route_specifier = if callers.is_empty() {
        udp_proxy_config::RouteSpecifier::Cluster(cluster.to_owned())
    } else {
        // No route is for UDP, so each choice is one cluster.
        let of = |i: usize| {
            let chosen = callers.get(i).and_then(|caller| caller.choice.first());
            datagrams_to(chosen.map_or(BLACK_HOLE, |(cluster, _)| cluster))
        };
        udp_proxy_config::RouteSpecifier::Matcher(matcher(callers, of, datagrams_to(cluster)))
    };
    UdpProxyConfig {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(route_specifier),
        ..Default::default()
    }
}

pub(crate) fn route(name: &str, choice: &WeightedClusters) -> Resource {
    let specifier = match choice {
        [(cluster, _)] => route_action::ClusterSpecifier::Cluster(cluster.clone()),
        several => route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: Some(UInt32Value { value: *weight }),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }),
    };
    let message = RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![Route {
                r#match: Some(RouteMatch {
                    path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
                    ..Default::default()
                }),
                action: Some(route::Action::Route(RouteAction {
                    cluster_specifier: Some(specifier),
                    ..Default::default()
                })),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::encode(ResourceType::Route, name, &message)
}

fn tcp_proxy(stat_prefix: &str, choice: &WeightedClusters) -> TcpProxy {
    let specifier = match choice {
        [(cluster, _)] => tcp_proxy::ClusterSpecifier::Cluster(cluster.clone()),
        several => tcp_proxy::ClusterSpecifier::WeightedClusters(tcp_proxy::WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| tcp_proxy::weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    TcpProxy { stat_prefix: stat_prefix.to_owned(), cluster_specifier: Some(specifier), ..Default::default() }
}

fn http_connection_manager(stat_prefix: &str, route: &str) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(http_connection_manager::RouteSpecifier::Rds(Rds {
            config_source: Some(ads()),
            route_config_name: route.to_owned(),
        })),
        ..Default::default()
    }
}

fn any<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}
