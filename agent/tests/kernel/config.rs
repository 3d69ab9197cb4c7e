//! Builders for Envoy resources.

use std::net::SocketAddr;

use slotmesh_xds::{
    Resource, ResourceType, SlotSettings, Transport,
    envoy::{
        envoy::{
            config::{
                cluster::v3::{self as cluster, cluster::ClusterDiscoveryType},
                core::v3::{self as core, address, socket_address::PortSpecifier},
                endpoint::v3::{self as endpoint, lb_endpoint::HostIdentifier},
                listener::v3::{self as listener, filter::ConfigType},
                route::v3::{
                    self as route, route::Action, route_action::ClusterSpecifier,
                    weighted_cluster::ClusterWeight,
                },
            },
            extensions::filters::{
                network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
                    },
                    tcp_proxy::v3::{
                        TcpProxy,
                        tcp_proxy::{self, WeightedCluster, weighted_cluster},
                    },
                },
                udp::udp_proxy::v3::{UdpProxyConfig, udp_proxy_config},
            },
        },
        google::protobuf::{Any, UInt32Value},
    },
};

/// Settings of the node.
pub(crate) fn settings(settings: &SlotSettings) -> Resource {
    Resource::encode(ResourceType::Settings, "node-a", settings)
}

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.network";

pub(crate) fn address(to: SocketAddr) -> core::Address {
    address_in(Transport::Tcp, to)
}

fn address_in(protocol: Transport, to: SocketAddr) -> core::Address {
    core::Address {
        address: Some(address::Address::SocketAddress(core::SocketAddress {
            protocol: protocol.to_proto().into(),
            address: to.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(to.port().into())),
            ..Default::default()
        })),
    }
}

pub(crate) fn cluster(name: &str) -> Resource {
    let message = cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(3)),
        lb_policy: 3,
        ..Default::default()
    };
    Resource::encode(ResourceType::Cluster, name, &message)
}

pub(crate) fn lb_endpoint(to: SocketAddr, weight: u32) -> endpoint::LbEndpoint {
    endpoint::LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint::Endpoint {
            address: Some(address(to)),
            ..Default::default()
        })),
        load_balancing_weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    }
}

pub(crate) fn endpoints(name: &str, endpoints: &[(SocketAddr, u32)]) -> Resource {
    let lb_endpoints = endpoints.iter().map(|&(to, weight)| lb_endpoint(to, weight));
    let message = endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: lb_endpoints.collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::encode(ResourceType::Endpoints, name, &message)
}

/// A route that matches everything.
pub(crate) fn cluster_route(name: &str, clusters: &[(String, u32)]) -> route::Route {
    let weighted = route::WeightedCluster {
        clusters: clusters
            .iter()
            .map(|(name, weight)| ClusterWeight {
                name: name.clone(),
                weight: Some(UInt32Value { value: *weight }),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    };
    route::Route {
        name: name.to_owned(),
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(route::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
            ..Default::default()
        })),
        ..Default::default()
    }
}

pub(crate) fn route(name: &str, clusters: &[(String, u32)]) -> Resource {
    let message = route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: name.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![cluster_route("", clusters)],
            ..Default::default()
        }],
        ..Default::default()
    };
    Resource::encode(ResourceType::Route, name, &message)
}

pub(crate) fn tcp_listener(name: &str, vips: &[SocketAddr], clusters: &[(String, u32)]) -> Resource {
    listener_of(name, vips, vec![chain("", None, tcp_filter(clusters))], None)
}

pub(crate) fn tcp_filter(clusters: &[(String, u32)]) -> Any {
    let specifier = match clusters {
        [(only, _)] => tcp_proxy::ClusterSpecifier::Cluster(only.clone()),
        _ => tcp_proxy::ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: clusters
                .iter()
                .map(|(name, weight)| weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    let proxy = TcpProxy { cluster_specifier: Some(specifier), ..Default::default() };
    Any::from_message(&format!("{FILTERS}.tcp_proxy.v3.TcpProxy"), &proxy)
}

/// A listener of UDP on one address.
#[expect(deprecated, reason = "the form that is supported")]
pub(crate) fn udp_listener(name: &str, vip: SocketAddr, cluster: &str) -> Resource {
    let route = udp_proxy_config::RouteSpecifier::Cluster(cluster.to_owned());
    Resource::encode(ResourceType::Listener, name, &udp_proxy(name, vip, route))
}

/// A listener of UDP whose proxy says this.
pub(crate) fn udp_proxy(
    name: &str,
    vip: SocketAddr,
    route: udp_proxy_config::RouteSpecifier,
) -> listener::Listener {
    let proxy = UdpProxyConfig { route_specifier: Some(route), ..Default::default() };
    let config = Any::from_message(
        "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig",
        &proxy,
    );
    let filter = listener::ListenerFilter {
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    listener::Listener {
        name: name.to_owned(),
        address: Some(address_in(Transport::Udp, vip)),
        udp_listener_config: Some(listener::UdpListenerConfig::default()),
        listener_filters: vec![filter],
        ..Default::default()
    }
}

pub(crate) fn http_listener(name: &str, vips: &[SocketAddr], route: &str) -> Resource {
    let manager = HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            route_config_name: route.to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let url = format!("{FILTERS}.http_connection_manager.v3.HttpConnectionManager");
    listener_of(name, vips, vec![chain("", None, Any::from_message(&url, &manager))], None)
}

/// A filter chain, of one destination port or of all.
pub(crate) fn chain(name: &str, port: Option<u16>, filter: Any) -> listener::FilterChain {
    let filter =
        listener::Filter { config_type: Some(ConfigType::TypedConfig(filter)), ..Default::default() };
    let destination_port = port.map(|port| UInt32Value { value: port.into() });
    listener::FilterChain {
        name: name.to_owned(),
        filter_chain_match: port
            .map(|_| listener::FilterChainMatch { destination_port, ..Default::default() }),
        filters: vec![filter],
        ..Default::default()
    }
}

pub(crate) fn listener_of(
    name: &str,
    vips: &[SocketAddr],
    filter_chains: Vec<listener::FilterChain>,
    default_filter_chain: Option<listener::FilterChain>,
) -> Resource {
    let additional = |&vip| listener::AdditionalAddress { address: Some(address(vip)), ..Default::default() };
    let message = listener::Listener {
        name: name.to_owned(),
        address: vips.first().map(|&vip| address(vip)),
        additional_addresses: vips.iter().skip(1).map(additional).collect(),
        filter_chains,
        default_filter_chain,
        ..Default::default()
    };
    Resource::encode(ResourceType::Listener, name, &message)
}

trait FromMessage {
    fn from_message(url: &str, message: &impl prost::Message) -> Self;
}

impl FromMessage for Any {
    fn from_message(url: &str, message: &impl prost::Message) -> Self {
        Self { type_url: url.to_owned(), value: message.encode_to_vec() }
    }
}
