//! What is refused, by which field, and what isn't.

use proptest::prelude::*;
use prost::Message as _;
use slotmesh_xds::{
    CallerClass, ConnectionRate, OneOfClasses, Resource, ResourceType, RoutedByRequest, Transport,
    envoy::{
        envoy::{
            config::{
                cluster::v3::{self as cluster, Cluster as ClusterProto},
                core::v3::{self as core, address, socket_address::PortSpecifier},
                endpoint::v3::{self as endpoint, ClusterLoadAssignment, lb_endpoint::HostIdentifier},
                listener::v3::{self as listener, Listener as ListenerProto},
                route::v3::{
                    self as route, RouteConfiguration, RouteMatch, route::Action as RouteAction,
                    route_action::ClusterSpecifier, route_match::PathSpecifier,
                },
            },
            extensions::{
                filters::network::{
                    http_connection_manager::v3::{
                        HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
                    },
                    tcp_proxy::v3::{TcpProxy, tcp_proxy},
                },
                filters::udp::udp_proxy::v3::{Route as UdpRoute, UdpProxyConfig, udp_proxy_config},
                load_balancing_policies::{common::v3::ConsistentHashingLbConfig, maglev::v3::Maglev},
            },
            r#type::{
                matcher::v3::{FilterStateMatcher, MetadataMatcher},
                v3::Percent,
            },
        },
        google::protobuf::{Any, BoolValue, Duration, UInt32Value},
        xds::{
            core::v3::TypedExtensionConfig as MatcherExtension,
            r#type::matcher::v3::{
                Matcher,
                matcher::{
                    MatcherList, MatcherType, OnMatch,
                    matcher_list::{
                        FieldMatcher, Predicate,
                        predicate::{MatchType, SinglePredicate, single_predicate},
                    },
                    on_match,
                },
            },
        },
    },
};

use super::{
    Action, At, Balance, Invalid, Message, Model, Route, Source,
    listener::{HTTP_CONNECTION_MANAGER, TCP_PROXY, UDP_PROXY},
};

/// Each change of a valid message is refused for this field.
macro_rules! refused {
    ($ty:ident, $valid:expr, $message:ident; $($change:expr => $field:expr;)+) => {
        assert!(decode(ResourceType::$ty, &$valid).is_ok());
        $({
            let $message = &mut $valid;
            $change;
            assert_eq!(field(decode(ResourceType::$ty, $message)), $field);
        })+
    };
}

mod assignments;
mod clusters;
mod listeners;
mod route_configs;
mod udp_listeners;

const NAME: &str = "web";

fn decode(ty: ResourceType, message: &impl prost::Message) -> Result<Model<'static>, Invalid> {
    // A test's messages may stay until it ends.
    let message = Box::leak(Box::new(Message::decode(&Resource::encode(ty, NAME, message))?));
    Model::new(NAME, message)
}

/// The field for which it is refused.
fn field(result: Result<Model<'_>, Invalid>) -> String {
    match result {
        Err(Invalid::Field { field, .. } | Invalid::Unsupported { field, .. }) => field,
        other => panic!("not refused by a field: {other:?}"),
    }
}

fn typed(type_url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

fn address(ip: &str) -> core::Address {
    let socket = core::SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(80)),
        ..Default::default()
    };
    core::Address { address: Some(address::Address::SocketAddress(socket)) }
}

/// The mark of listeners of NodePorts, and of nodes' addresses.
fn of_nodes() -> Option<core::Metadata> {
    let marks = [(slotmesh_xds::OF_NODES.to_owned(), Any::default())].into();
    Some(core::Metadata { typed_filter_metadata: marks, ..Default::default() })
}

fn port_zero(ip: &str) -> core::Address {
    let mut address = Some(address(ip));
    socket(&mut address).port_specifier = Some(PortSpecifier::PortValue(0));
    address.expect("it has one")
}

fn socket(address: &mut Option<core::Address>) -> &mut core::SocketAddress {
    match address.as_mut().and_then(|address| address.address.as_mut()) {
        Some(address::Address::SocketAddress(socket)) => socket,
        _ => unreachable!("it has one"),
    }
}

fn tls() -> core::TransportSocket {
    transport("tls.v3.UpstreamTlsContext")
}

fn transport(ty: &str) -> core::TransportSocket {
    let url = format!("type.googleapis.com/envoy.extensions.transport_sockets.{ty}");
    let config = core::transport_socket::ConfigType::TypedConfig(typed(&url, &()));
    core::TransportSocket { name: ty.to_owned(), config_type: Some(config) }
}

#[expect(deprecated, reason = "old fields are refused too")]
fn from_a_file() -> core::ConfigSource {
    let path = core::config_source::ConfigSourceSpecifier::Path("/etc/x".to_owned());
    core::ConfigSource { config_source_specifier: Some(path), ..Default::default() }
}

fn cluster() -> ClusterProto {
    ClusterProto {
        name: NAME.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(3)),
        eds_cluster_config: Some(cluster::cluster::EdsClusterConfig::default()),
        common_lb_config: Some(cluster::cluster::CommonLbConfig::default()),
        lb_policy: 3,
        ..Default::default()
    }
}

fn assignment() -> ClusterLoadAssignment {
    let host = endpoint::Endpoint { address: Some(address("10.0.0.1")), ..Default::default() };
    let endpoint =
        endpoint::LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..Default::default() };
    let locality = endpoint::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() };
    let policy = endpoint::cluster_load_assignment::Policy::default();
    ClusterLoadAssignment {
        cluster_name: NAME.to_owned(),
        endpoints: vec![locality],
        policy: Some(policy),
        ..Default::default()
    }
}

fn route_config() -> RouteConfiguration {
    let weighted = route::WeightedCluster {
        clusters: ["v1", "v2"]
            .map(|name| route::weighted_cluster::ClusterWeight {
                name: name.to_owned(),
                weight: Some(UInt32Value { value: 5 }),
                ..Default::default()
            })
            .into(),
        ..Default::default()
    };
    let action = route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
        ..Default::default()
    };
    let default =
        RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() };
    let route = route::Route {
        r#match: Some(default),
        action: Some(RouteAction::Route(action)),
        ..Default::default()
    };
    let host =
        route::VirtualHost { domains: vec!["*".to_owned()], routes: vec![route], ..Default::default() };
    RouteConfiguration { name: NAME.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}

fn tcp() -> TcpProxy {
    let cluster = tcp_proxy::ClusterSpecifier::Cluster("web".to_owned());
    TcpProxy { stat_prefix: "x".to_owned(), cluster_specifier: Some(cluster), ..Default::default() }
}

fn http() -> HttpConnectionManager {
    let rds = Rds { route_config_name: "web".to_owned(), ..Default::default() };
    HttpConnectionManager { route_specifier: Some(RouteSpecifier::Rds(rds)), ..Default::default() }
}

fn listener_of(filter: Any) -> ListenerProto {
    let filter = listener::Filter {
        config_type: Some(listener::filter::ConfigType::TypedConfig(filter)),
        ..Default::default()
    };
    ListenerProto {
        name: NAME.to_owned(),
        address: Some(address("10.96.0.1")),
        filter_chains: vec![listener::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

fn tcp_listener() -> ListenerProto {
    listener_of(typed(TCP_PROXY, &tcp()))
}

fn udp_address(ip: &str) -> core::Address {
    let mut address = Some(address(ip));
    socket(&mut address).protocol = core::socket_address::Protocol::Udp as i32;
    address.expect("it has one")
}

fn additional(address: core::Address) -> listener::AdditionalAddress {
    listener::AdditionalAddress { address: Some(address), ..Default::default() }
}

#[expect(deprecated, reason = "the form that is supported")]
fn udp_proxy(change: impl FnOnce(&mut UdpProxyConfig)) -> Any {
    let cluster = udp_proxy_config::RouteSpecifier::Cluster("web".to_owned());
    let mut proxy =
        UdpProxyConfig { stat_prefix: "x".to_owned(), route_specifier: Some(cluster), ..Default::default() };
    change(&mut proxy);
    typed(UDP_PROXY, &proxy)
}

fn udp_filter(change: impl FnOnce(&mut UdpProxyConfig)) -> listener::ListenerFilter {
    let config = listener::listener_filter::ConfigType::TypedConfig(udp_proxy(change));
    listener::ListenerFilter { config_type: Some(config), ..Default::default() }
}

fn udp_listener(filter: listener::ListenerFilter) -> ListenerProto {
    ListenerProto {
        name: NAME.to_owned(),
        address: Some(udp_address("10.96.0.1")),
        udp_listener_config: Some(listener::UdpListenerConfig::default()),
        listener_filters: vec![filter],
        ..Default::default()
    }
}

/// An extension of a matcher.
fn matcher_extension(url: &str, message: &impl prost::Message) -> Option<MatcherExtension> {
    let typed_config = Some(Any { type_url: url.to_owned(), value: message.encode_to_vec() });
    Some(MatcherExtension { name: "x".to_owned(), typed_config })
}

fn hash_policy(source_ip: bool) -> route::route_action::HashPolicy {
    use route::route_action::hash_policy::{ConnectionProperties, PolicySpecifier};
    let specifier = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip });
    route::route_action::HashPolicy { policy_specifier: Some(specifier), terminal: true }
}

/// Cases of each property.
const CASES: u32 = 20_000;

fn any_type() -> impl Strategy<Value = ResourceType> {
    prop::sample::select(&crate::RecordType::RESOURCES[..])
}

fn resource(ty: ResourceType, content: Vec<u8>) -> Resource {
    let mut resource = Resource::encode(ty, NAME, &());
    resource.content = content.into();
    resource
}

/// What is accepted can be flattened.
fn check(resource: &Resource) {
    if let Err(error) = super::Settings::decode(resource, slotmesh_slots::Config::default()) {
        assert!(!error.to_string().is_empty());
    }
    let message = Message::decode(resource);
    match message.as_ref().map_err(Clone::clone).and_then(|message| Model::new(NAME, message)) {
        Ok(Model::Listener(listener)) => assert!(!listener.vips.is_empty()),
        Ok(Model::Route(route)) => assert!(!route.clusters.is_empty()),
        Ok(Model::Cluster(cluster)) => assert_ne!(cluster.source, Source::Assignment("")),
        Ok(Model::Endpoints(endpoints)) => {
            assert!(endpoints.v4.iter().all(|endpoint| endpoint.ip.is_ipv4()));
            assert!(endpoints.v6.iter().all(|endpoint| endpoint.ip.is_ipv6()));
        }
        // A refusal can be shown.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn arbitrary_bytes_never_panic(ty in any_type(), content in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&resource(ty, content));
    }

    #[test]
    fn valid_messages_with_changed_bytes_never_panic(
        which in 0..6_usize,
        as_type in prop::option::weighted(0.1, any_type()),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let (ty, mut content) = match which {
            0 => (ResourceType::Cluster, cluster().encode_to_vec()),
            1 => (ResourceType::Endpoints, assignment().encode_to_vec()),
            2 => (ResourceType::Route, route_config().encode_to_vec()),
            3 => (ResourceType::Listener, tcp_listener().encode_to_vec()),
            4 => (ResourceType::Listener, udp_listener(udp_filter(|_| ())).encode_to_vec()),
            _ => (
                ResourceType::Listener,
                listener_of(any_http()).encode_to_vec(),
            ),
        };
        for (at, byte, how) in edits {
            let at = at.index(content.len() + 1);
            match how {
                0 => content.insert(at, byte),
                1 => content.truncate(at),
                _ => content.get_mut(at).into_iter().for_each(|old| *old = byte),
            }
        }
        check(&resource(as_type.unwrap_or(ty), content));
    }
}

fn any_http() -> Any {
    typed(HTTP_CONNECTION_MANAGER, &http())
}
