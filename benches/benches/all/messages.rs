//! The messages that every writer is given: ClusterFlush, ListenerFlush, RouteFlush.

use slotmesh_agent::{RecordType, config::Message};
use slotmesh_xds::{
    Resource, ResourceType,
    envoy::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster,
                    circuit_breakers::Thresholds,
                    cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
                },
                core::v3::{Address, SocketAddress, address, socket_address::PortSpecifier},
                endpoint::v3::{
                    ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
                    lb_endpoint::HostIdentifier,
                },
                listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, filter::ConfigType},
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, WeightedCluster,
                    route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier,
                    weighted_cluster::ClusterWeight,
                },
            },
            extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy},
        },
        google::protobuf::{Any, Duration, UInt32Value},
    },
};

/// Which of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cluster,
    Listener,
    Route,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Listener, Self::Route];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "ClusterFlush",
            Self::Listener => "ListenerFlush",
            Self::Route => "RouteFlush",
        }
    }

    pub const fn ty(self) -> RecordType {
        match self {
            Self::Cluster => RecordType::Cluster,
            Self::Listener => RecordType::Listener,
            Self::Route => RecordType::Route,
        }
    }
}

/// A message under one name: decoded, and as bytes.
pub struct Sample {
    pub name: String,
    pub message: Message,
    pub resource: Resource,
}

impl Sample {
    /// The `n`th of this kind. Each is of its own: another name, another address.
    pub fn new(kind: Kind, n: u32) -> Self {
        let (name, resource, message) = match kind {
            Kind::Cluster => {
                let cluster = cluster(&format!("c{n:05}"));
                let resource = Resource::encode(ResourceType::Cluster, cluster.name.as_str(), &cluster);
                (cluster.name.clone(), resource, Message::Cluster(cluster))
            }
            Kind::Listener => {
                let listener = listener(n);
                let resource = Resource::encode(ResourceType::Listener, listener.name.as_str(), &listener);
                (listener.name.clone(), resource, Message::Listener(listener))
            }
            Kind::Route => {
                let config = route_configuration(n);
                let resource = Resource::encode(ResourceType::Route, config.name.as_str(), &config);
                (config.name.clone(), resource, Message::Route(config))
            }
        };
        Self { name, message, resource }
    }
}

fn number(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

fn address(ip: [u8; 4], port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: std::net::Ipv4Addr::from(ip).to_string(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}

/// A name of 6 characters, 10 localities with one endpoint each.
fn cluster(name: &str) -> Cluster {
    let thresholds = Thresholds {
        max_connections: number(1000),
        max_pending_requests: number(500),
        max_requests: number(2000),
        max_retries: number(3),
        ..Default::default()
    };
    let locality = |i: u8| LocalityLbEndpoints {
        lb_endpoints: vec![LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: address([192, 168, 127, 240 + i], 9090 + u32::from(i)),
                ..Default::default()
            })),
            ..Default::default()
        }],
        ..Default::default()
    };
    Cluster {
        name: name.to_owned(),
        connect_timeout: Some(Duration { seconds: 15, nanos: 0 }),
        lb_policy: LbPolicy::RoundRobin as i32,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32)),
        circuit_breakers: Some(CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: "inbound|9080|http|reviews.default.svc.cluster.local".to_owned(),
            endpoints: (0..10).map(locality).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// 5 filter chains, each with a TCP proxy to a cluster of its port.
fn listener(n: u32) -> Listener {
    let chain = |port: u32| {
        let cluster = format!("outbound|{port}||kube-dns.kube-system.svc.cluster.local");
        let proxy = TcpProxy {
            stat_prefix: cluster.clone(),
            cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(cluster)),
            ..Default::default()
        };
        let config = Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy".to_owned(),
            value: prost::Message::encode_to_vec(&proxy),
        };
        FilterChain {
            filter_chain_match: Some(FilterChainMatch {
                destination_port: number(port),
                ..Default::default()
            }),
            filters: vec![Filter {
                name: "envoy.filters.network.tcp_proxy".to_owned(),
                config_type: Some(ConfigType::TypedConfig(config)),
            }],
            ..Default::default()
        }
    };
    // Any address does; a pseudo-random one, no two alike.
    let random = n.wrapping_mul(0x9e37_79b1) & 0x00ff_ffff;
    let [_, b, c, d] = random.to_be_bytes();
    Listener {
        name: format!("listener-{n:05}"),
        address: address([10, b, c, d], 80),
        filter_chains: [53, 80, 443, 9090, 15001].map(chain).to_vec(),
        ..Default::default()
    }
}

/// 20 virtual hosts of 3 domains and 2 weighted routes each.
fn route_configuration(n: u32) -> RouteConfiguration {
    let weighted = |host: u32, route: u32| {
        let cluster = |version: u32, weight| ClusterWeight {
            name: format!("outbound|9080|v{version}|reviews-{host}.default.svc.cluster.local"),
            weight: number(weight),
            ..Default::default()
        };
        Route {
            name: format!("route-{route}"),
            r#match: Some(RouteMatch {
                path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            action: Some(Action::Route(RouteAction {
                cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                    clusters: vec![cluster(1 + 2 * route, 90), cluster(2 + 2 * route, 10)],
                    ..Default::default()
                })),
                ..Default::default()
            })),
            ..Default::default()
        }
    };
    let host = |i: u32| VirtualHost {
        name: format!("reviews-{i}.default.svc.cluster.local:9080"),
        domains: vec![
            format!("reviews-{i}.default.svc.cluster.local"),
            format!("reviews-{i}.default.svc.cluster.local:9080"),
            format!("10.96.{}.{}", n % 250, i + 1),
        ],
        routes: vec![weighted(i, 0), weighted(i, 1)],
        ..Default::default()
    };
    RouteConfiguration {
        name: format!("route-{n:05}"),
        virtual_hosts: (0..20).map(host).collect(),
        ..Default::default()
    }
}
