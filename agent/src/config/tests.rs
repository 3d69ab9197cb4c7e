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

fn datagrams_to(cluster: &str) -> OnMatch {
    let url = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route";
    let route = UdpRoute { cluster: cluster.to_owned() };
    let action = matcher_extension(url, &route).map(on_match::OnMatch::Action);
    OnMatch { on_match: action, ..Default::default() }
}

/// As a matcher of filter chains leads to one.
fn go_to_chain() -> OnMatch {
    let action = MatcherExtension { name: "web".to_owned(), typed_config: None };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..Default::default() }
}

/// The matcher of a UDP proxy: to these clusters for these classes of callers.
fn by_caller(callers: Vec<(&[&str], &str)>, others: Option<OnMatch>) -> udp_proxy_config::RouteSpecifier {
    let matchers = callers.into_iter().map(|(classes, cluster)| {
        let classes = OneOfClasses { classes: classes.iter().map(|class| (*class).to_owned()).collect() };
        let single = SinglePredicate {
            input: matcher_extension(CallerClass::TYPE_URL, &CallerClass {}),
            matcher: matcher_extension(OneOfClasses::TYPE_URL, &classes)
                .map(single_predicate::Matcher::CustomMatch),
        };
        let predicate = Predicate { match_type: Some(MatchType::SinglePredicate(single)) };
        FieldMatcher { predicate: Some(predicate), on_match: Some(datagrams_to(cluster)) }
    });
    udp_proxy_config::RouteSpecifier::Matcher(Matcher {
        matcher_type: Some(MatcherType::MatcherList(MatcherList { matchers: matchers.collect() })),
        on_no_match: others.map(Box::new),
    })
}

fn two_callers() -> udp_proxy_config::RouteSpecifier {
    by_caller(vec![(&["shop"], "a"), (&["x", "y"], "b")], Some(datagrams_to("web")))
}

fn twice_the_same() -> udp_proxy_config::RouteSpecifier {
    by_caller(vec![(&["shop"], "a"), (&["x", "shop"], "b")], Some(datagrams_to("web")))
}

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

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn clusters() {
    refused!(Cluster, cluster(), m;
        m.name.clear() => "name";
        m.name = "other".to_owned() => "name";
        m.cluster_discovery_type = None => "eds_cluster_config";
        m.cluster_discovery_type = Some(cluster::cluster::ClusterDiscoveryType::Type(1)) => "type";
        m.lb_policy = 6 => "lb_policy";
        m.lb_policy = 7 => "lb_policy";
        m.lb_policy = 77 => "lb_policy";
        m.transport_socket = Some(tls()) => "transport_socket";
        m.transport_socket = Some(core::TransportSocket::default()) => "transport_socket";
        m.transport_socket_matches.push(<_>::default()) => "transport_socket_matches";
        m.transport_socket_matcher = Some(<_>::default()) => "transport_socket_matcher";
        m.upstream_config = Some(<_>::default()) => "upstream_config";
        m.filters.push(<_>::default()) => "filters";
        rate(m, ConnectionRate { per_second: 1, burst: 0, per_caller: false }) => "filters[0].burst";
        rate(m, ConnectionRate { per_second: 0, burst: 1, per_caller: true }) => "filters[0].per_second";
        { rate(m, ConnectionRate::default()); m.filters.push(<_>::default()) } => "filters";
        {
            rate(m, ConnectionRate::default());
            m.filters[0].typed_config.as_mut().unwrap().type_url = "x".to_owned();
        } => "filters[0]";
        m.upstream_bind_config = Some(<_>::default()) => "upstream_bind_config";
        m.load_assignment = Some(assignment()) => "load_assignment";
        m.health_checks.push(<_>::default()) => "health_checks";
        outliers(m).enforcing_consecutive_5xx = Some(UInt32Value { value: 50 })
            => "outlier_detection.enforcing_consecutive_5xx";
        outliers(m).max_ejection_percent = Some(UInt32Value { value: 101 })
            => "outlier_detection.max_ejection_percent";
        outliers(m).base_ejection_time = Some(Duration::default()) => "outlier_detection.base_ejection_time";
        outliers(m).max_ejection_time_jitter = Some(Duration { seconds: 1, nanos: 0 })
            => "outlier_detection.max_ejection_time_jitter";
        outliers(m).monitors.push(<_>::default()) => "outlier_detection.monitors";
        { outliers(m); common(m).healthy_panic_threshold = Some(Percent { value: -1.0 }) }
            => "common_lb_config.healthy_panic_threshold";
        m.lb_subset_config = Some(<_>::default()) => "lb_subset_config";
        m.load_balancing_policy = Some(<_>::default()) => "load_balancing_policy";
        m.close_connections_on_host_health_failure = true => "close_connections_on_host_health_failure";
        m.connect_timeout = Some(Duration::default()) => "connect_timeout";
        m.connect_timeout = Some(Duration { seconds: i64::MIN, nanos: -1 }) => "connect_timeout";
        m.eds_cluster_config.as_mut().unwrap().eds_config = Some(from_a_file())
            => "eds_cluster_config.eds_config";
        m.circuit_breakers = Some(limit(10, 1)) => "circuit_breakers.thresholds[0].max_connections";
        m.circuit_breakers = Some(cluster::CircuitBreakers {
            per_host_thresholds: limit(10, 0).thresholds, ..Default::default()
        }) => "circuit_breakers.per_host_thresholds[0].max_connections";
        slow_start(m) => "lb_config";
        least(m).choice_count = Some(UInt32Value { value: 3 }) => "lb_config";
        least(m).active_request_bias = Some(<_>::default()) => "lb_config";
        least(m).slow_start_config = Some(<_>::default()) => "lb_config";
        { m.lb_policy = 5; common(m).consistent_hashing_lb_config = Some(<_>::default()) }
            => "common_lb_config.consistent_hashing_lb_config";
        maglev(m, |_, m| m.locality_weighted_lb_config = Some(<_>::default()))
            => "load_balancing_policy.locality_weighted_lb_config";
        maglev(m, |hash, _| hash.use_hostname_for_hashing = true)
            => "load_balancing_policy.consistent_hashing_lb_config.use_hostname_for_hashing";
        maglev(m, |hash, _| hash.hash_balance_factor = Some(<_>::default()))
            => "load_balancing_policy.consistent_hashing_lb_config.hash_balance_factor";
        maglev(m, |hash, _| hash.hash_policy.push(<_>::default()))
            => "load_balancing_policy.consistent_hashing_lb_config.hash_policy[1]";
        { maglev(m, |_, _| {}); extension(m).type_url.push('x') } => "load_balancing_policy";
        { maglev(m, |_, _| {}); extension(m).value = vec![0xff] } => "load_balancing_policy";
        common(m).close_connections_on_host_set_change = true
            => "common_lb_config.close_connections_on_host_set_change";
        common(m).locality_config_specifier = Some(
            cluster::cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
                <_>::default()))
            => "common_lb_config.locality_config_specifier";
    );
    let mut harmless = cluster();
    harmless.alt_stat_name = "x".to_owned();
    harmless.metadata = Some(<_>::default());
    harmless.transport_socket = Some(transport("raw_buffer.v3.RawBuffer"));
    harmless.circuit_breakers = Some(limit(u32::MAX, 0));
    harmless.http2_protocol_options = Some(<_>::default());
    assert_eq!(decode(ResourceType::Cluster, &harmless), decode(ResourceType::Cluster, &cluster()));
}

fn least(cluster: &mut ClusterProto) -> &mut cluster::cluster::LeastRequestLbConfig {
    cluster.lb_policy = 1;
    cluster.lb_config = Some(cluster::cluster::LbConfig::LeastRequestLbConfig(<_>::default()));
    match cluster.lb_config.as_mut() {
        Some(cluster::cluster::LbConfig::LeastRequestLbConfig(config)) => config,
        _ => unreachable!("it was set"),
    }
}

/// Gives the cluster a policy that hashes the source, changed.
fn maglev(cluster: &mut ClusterProto, change: impl FnOnce(&mut ConsistentHashingLbConfig, &mut Maglev)) {
    let (mut hash, mut maglev) = (
        ConsistentHashingLbConfig { hash_policy: vec![hash_policy(true)], ..Default::default() },
        Maglev::default(),
    );
    change(&mut hash, &mut maglev);
    maglev.consistent_hashing_lb_config = Some(hash);
    let config = core::TypedExtensionConfig {
        typed_config: Some(typed(super::cluster::MAGLEV, &maglev)),
        ..Default::default()
    };
    let policy = cluster::load_balancing_policy::Policy { typed_extension_config: Some(config) };
    cluster.load_balancing_policy = Some(cluster::LoadBalancingPolicy { policies: vec![policy] });
}

fn extension(cluster: &mut ClusterProto) -> &mut Any {
    let policy = &mut cluster.load_balancing_policy.as_mut().unwrap().policies[0];
    policy.typed_extension_config.as_mut().unwrap().typed_config.as_mut().unwrap()
}

fn hash_policy(source_ip: bool) -> route::route_action::HashPolicy {
    use route::route_action::hash_policy::{ConnectionProperties, PolicySpecifier};
    let specifier = PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip });
    route::route_action::HashPolicy { policy_specifier: Some(specifier), terminal: true }
}

#[test]
fn a_cluster_says_how_endpoints_are_chosen() {
    let balance = |change: &dyn Fn(&mut ClusterProto)| {
        let mut message = cluster();
        change(&mut message);
        match decode(ResourceType::Cluster, &message) {
            Ok(Model::Cluster(cluster)) => (cluster.balance, cluster.hashes_over().is_some()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(balance(&|m| m.lb_policy = 3), (Balance::Random, false));
    assert_eq!(balance(&|m| m.lb_policy = 0), (Balance::RoundRobin, false));
    assert_eq!(balance(&|m| m.lb_policy = 1), (Balance::LeastConnections, false));
    assert_eq!(
        balance(&|m| least(m).choice_count = Some(UInt32Value { value: 2 })),
        (Balance::LeastConnections, false)
    );
    assert_eq!(balance(&|m| m.lb_policy = 2), (Balance::HashByRoute, true));
    assert_eq!(balance(&|m| m.lb_policy = 5), (Balance::HashByRoute, true));
    assert_eq!(balance(&|m| maglev(m, |_, _| {})), (Balance::Hash, true));
    assert_eq!(balance(&|m| maglev(m, |hash, _| hash.hash_policy.clear())), (Balance::HashByRoute, true));
    assert_eq!(
        balance(&|m| maglev(m, |hash, _| hash.hash_policy = vec![hash_policy(false)])),
        (Balance::Random, false)
    );
}

fn slow_start(cluster: &mut ClusterProto) {
    let config = cluster::cluster::RoundRobinLbConfig { slow_start_config: Some(<_>::default()) };
    cluster.lb_policy = 0;
    cluster.lb_config = Some(cluster::cluster::LbConfig::RoundRobinLbConfig(config));
}

fn limit(max_connections: u32, priority: i32) -> cluster::CircuitBreakers {
    let max_connections = Some(UInt32Value { value: max_connections });
    let threshold = cluster::circuit_breakers::Thresholds { max_connections, priority, ..Default::default() };
    cluster::CircuitBreakers { thresholds: vec![threshold], ..Default::default() }
}

fn rate(cluster: &mut ClusterProto, rate: ConnectionRate) {
    let any = Any { type_url: ConnectionRate::TYPE_URL.to_owned(), value: rate.encode_to_vec() };
    cluster.filters = vec![cluster::Filter { typed_config: Some(any), ..Default::default() }];
}

fn outliers(cluster: &mut ClusterProto) -> &mut cluster::OutlierDetection {
    cluster.outlier_detection.get_or_insert_default()
}

fn common(cluster: &mut ClusterProto) -> &mut cluster::cluster::CommonLbConfig {
    cluster.common_lb_config.as_mut().unwrap()
}

#[test]
fn a_cluster_names_its_load_assignment_and_rounds_its_timeout_up() {
    let mut message = cluster();
    message.connect_timeout = Some(Duration { seconds: 0, nanos: 1 });
    let of = |message: &ClusterProto| match decode(ResourceType::Cluster, message) {
        Ok(Model::Cluster(super::Cluster {
            source: Source::Assignment(name), connect_timeout_ms, ..
        })) => (name.to_owned(), connect_timeout_ms),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&message), (NAME.to_owned(), 1));
    message.eds_cluster_config.as_mut().unwrap().service_name = "other".to_owned();
    message.connect_timeout = Some(Duration { seconds: i64::MAX, nanos: 0 });
    assert_eq!(of(&message), ("other".to_owned(), u32::MAX));
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn load_assignments() {
    fn lb(m: &mut ClusterLoadAssignment) -> &mut endpoint::LbEndpoint {
        &mut m.endpoints[0].lb_endpoints[0]
    }
    fn host(m: &mut ClusterLoadAssignment) -> &mut endpoint::Endpoint {
        match &mut lb(m).host_identifier {
            Some(HostIdentifier::Endpoint(host)) => host,
            _ => unreachable!("it has one"),
        }
    }
    const LB: &str = "endpoints[0].lb_endpoints[0]";
    refused!(Endpoints, assignment(), m;
        m.cluster_name.clear() => "cluster_name";
        m.cluster_name = "other".to_owned() => "cluster_name";
        drop(m.named_endpoints.insert("a".to_owned(), <_>::default())) => "named_endpoints";
        m.policy.as_mut().unwrap().drop_overloads.push(<_>::default()) => "policy.drop_overloads";
        m.policy.as_mut().unwrap().endpoint_stale_after = Some(Duration::default())
            => "policy.endpoint_stale_after";
        m.endpoints[0].priority = 1 => "endpoints[0].priority";
        m.endpoints[0].lb_config = Some(endpoint::locality_lb_endpoints::LbConfig::LoadBalancerEndpoints(
            <_>::default())) => "endpoints[0].lb_config";
        lb(m).health_status = 77 => format!("{LB}.health_status");
        lb(m).load_balancing_weight = Some(UInt32Value { value: 0 })
            => format!("{LB}.load_balancing_weight");
        lb(m).host_identifier = Some(HostIdentifier::EndpointName("a".to_owned())) => LB;
        host(m).additional_addresses.push(<_>::default())
            => format!("{LB}.endpoint.additional_addresses");
        host(m).address = None => format!("{LB}.endpoint.address");
        socket(&mut host(m).address).protocol = 7 => format!("{LB}.endpoint.address.protocol");
        socket(&mut host(m).address).address = "web".to_owned()
            => format!("{LB}.endpoint.address.address");
        socket(&mut host(m).address).resolver_name = "dns".to_owned()
            => format!("{LB}.endpoint.address.resolver_name");
        socket(&mut host(m).address).network_namespace_filepath = "/run/netns/a".to_owned()
            => format!("{LB}.endpoint.address.network_namespace_filepath");
        socket(&mut host(m).address).port_specifier = Some(PortSpecifier::PortValue(65_536))
            => format!("{LB}.endpoint.address.port_value");
    );
    let mut draining = assignment();
    lb(&mut draining).health_status = 3;
    let empty = Model::Endpoints(super::Endpoints { localities: vec![<_>::default()], ..Default::default() });
    assert_eq!(decode(ResourceType::Endpoints, &draining), Ok(empty));
}

#[test]
fn routes_of_requests() {
    let any = |host: &Route<'_>| {
        let entry = &host.routes[host.hosts[0].routes.start as usize];
        let clusters = &host.clusters[entry.clusters.start as usize..entry.clusters.end as usize];
        clusters.iter().map(|cluster| format!("{}={}", cluster.cluster, cluster.weight)).collect::<Vec<_>>()
    };
    let read = |message: &RouteConfiguration| {
        let route = Route::from_proto(&At::ROOT, message).unwrap();
        assert!(route.by_request);
        assert_eq!((route.hosts.len(), route.any), (1, Some(0)));
        any(&route)
    };
    let mut message = route_config();
    let mut by_path = message.virtual_hosts[0].routes[0].clone();
    by_path.r#match.as_mut().unwrap().path_specifier = Some(PathSpecifier::Path("/a".to_owned()));
    by_path.action = Some(RouteAction::DirectResponse(route::DirectResponseAction::default()));
    message.virtual_hosts[0].routes.insert(0, by_path.clone());
    assert!(Route::from_proto(&At::ROOT, &message).is_err(), "it isn't said to be for requests");
    let mark = Any { type_url: RoutedByRequest::TYPE_URL.to_owned(), ..Default::default() };
    message
        .metadata
        .get_or_insert_default()
        .typed_filter_metadata
        .insert(RoutedByRequest::KEY.to_owned(), mark);
    assert_eq!(read(&message), ["v1=5", "v2=5"]);
    // Mirrored requests are no second destination of a connection, and of a connection no header is hashed.
    let Some(RouteAction::Route(action)) = &mut message.virtual_hosts[0].routes[1].action else {
        unreachable!("it has one")
    };
    action.request_mirror_policies.push(route::route_action::RequestMirrorPolicy::default());
    action.hash_policy.push(route::route_action::HashPolicy::default());
    assert_eq!(read(&message), ["v1=5", "v2=5"]);
    // Without a route for every request, and with one that answers by itself, there is nowhere to go.
    let mut answered = message.clone();
    answered.virtual_hosts[0].routes[1].action = by_path.action.clone();
    assert_eq!(read(&answered), ["BlackHoleCluster=1"]);
    message.virtual_hosts[0].routes.truncate(1);
    assert_eq!(read(&message), ["BlackHoleCluster=1"]);
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn routes() {
    fn route(m: &mut RouteConfiguration) -> &mut route::Route {
        &mut m.virtual_hosts[0].routes[0]
    }
    fn matching(m: &mut RouteConfiguration) -> &mut RouteMatch {
        route(m).r#match.as_mut().unwrap()
    }
    fn action(m: &mut RouteConfiguration) -> &mut route::RouteAction {
        match &mut route(m).action {
            Some(RouteAction::Route(action)) => action,
            _ => unreachable!("it has one"),
        }
    }
    fn weighted(m: &mut RouteConfiguration) -> &mut route::WeightedCluster {
        match &mut action(m).cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => weighted,
            _ => unreachable!("it has one"),
        }
    }
    use route::weighted_cluster::RandomValueSpecifier;
    const HOST: &str = "virtual_hosts[0]";
    const ROUTE: &str = "virtual_hosts[0].routes[0]";
    const CLUSTERS: &str = "virtual_hosts[0].routes[0].route.weighted_clusters";
    refused!(Route, route_config(), m;
        m.name.clear() => "name";
        m.name = "other".to_owned() => "name";
        m.vhds = Some(<_>::default()) => "vhds";
        m.route_specifiers.push(<_>::default()) => "route_specifiers";
        m.request_mirror_policies.push(<_>::default()) => "request_mirror_policies";
        m.virtual_hosts.clear() => "virtual_hosts";
        m.virtual_hosts[0].domains.clear() => format!("{HOST}.domains");
        m.virtual_hosts[0].domains.push("*".to_owned()) => format!("{HOST}.domains[1]");
        m.virtual_hosts[0].domains.extend(["10.0.0.1", "[::ffff:10.0.0.1]"].map(str::to_owned))
            => format!("{HOST}.domains[2]");
        m.virtual_hosts.push(route::VirtualHost { domains: vec!["a.b".to_owned(), "A.b".to_owned()],
            ..m.virtual_hosts[0].clone() }) => "virtual_hosts[1].domains[1]";
        m.virtual_hosts[0].matcher = Some(<_>::default()) => format!("{HOST}.matcher");
        m.virtual_hosts[0].require_tls = 2 => format!("{HOST}.require_tls");
        m.virtual_hosts[0].request_mirror_policies.push(<_>::default())
            => format!("{HOST}.request_mirror_policies");
        m.virtual_hosts[0].route_specifiers.push(<_>::default()) => format!("{HOST}.route_specifiers");
        m.virtual_hosts[0].routes.clear() => format!("{HOST}.routes");
        route(m).route_specifiers.push(<_>::default()) => format!("{ROUTE}.route_specifiers");
        route(m).r#match = None => format!("{ROUTE}.match");
        route(m).action = None => format!("{ROUTE}.action");
        matching(m).path_specifier = Some(PathSpecifier::Path("/".to_owned()))
            => format!("{ROUTE}.match");
        matching(m).headers.push(<_>::default()) => format!("{ROUTE}.match.headers");
        matching(m).query_parameters.push(<_>::default()) => format!("{ROUTE}.match.query_parameters");
        matching(m).cookies.push(<_>::default()) => format!("{ROUTE}.match.cookies");
        matching(m).grpc = Some(<_>::default()) => format!("{ROUTE}.match.grpc");
        matching(m).runtime_fraction = Some(<_>::default()) => format!("{ROUTE}.match.runtime_fraction");
        matching(m).tls_context = Some(<_>::default()) => format!("{ROUTE}.match.tls_context");
        matching(m).dynamic_metadata.push(MetadataMatcher::default())
            => format!("{ROUTE}.match.dynamic_metadata");
        matching(m).filter_state.push(FilterStateMatcher::default())
            => format!("{ROUTE}.match.filter_state");
        action(m).priority = 1 => format!("{ROUTE}.route.priority");
        action(m).hash_policy.extend([hash_policy(true), <_>::default()])
            => format!("{ROUTE}.route.hash_policy[1]");
        action(m).metadata_match = Some(<_>::default()) => format!("{ROUTE}.route.metadata_match");
        action(m).request_mirror_policies.push(<_>::default())
            => format!("{ROUTE}.route.request_mirror_policies");
        action(m).cluster_specifier = Some(ClusterSpecifier::ClusterHeader("x".to_owned()))
            => format!("{ROUTE}.route");
        weighted(m).total_weight = Some(UInt32Value { value: 100 }) => format!("{CLUSTERS}.total_weight");
        weighted(m).random_value_specifier = Some(RandomValueSpecifier::HeaderName("x".to_owned()))
            => format!("{CLUSTERS}.random_value_specifier");
        weighted(m).clusters[1].metadata_match = Some(<_>::default())
            => format!("{CLUSTERS}.clusters[1].metadata_match");
        weighted(m).clusters[1].cluster_header = "x".to_owned()
            => format!("{CLUSTERS}.clusters[1].cluster_header");
        weighted(m).clusters[0].name.clear() => format!("{CLUSTERS}.clusters[0].name");
        weighted(m).clusters[0].weight = Some(UInt32Value { value: u32::MAX })
            => format!("{CLUSTERS}.clusters");
        weighted(m).clusters.clear() => format!("{CLUSTERS}.clusters");
    );
    let mut harmless = route_config();
    action(&mut harmless).prefix_rewrite = "/a".to_owned();
    action(&mut harmless).timeout = Some(Duration::default());
    action(&mut harmless).retry_policy = Some(<_>::default());
    weighted(&mut harmless).total_weight = Some(UInt32Value { value: 10 });
    matching(&mut harmless).case_sensitive = Some(BoolValue { value: false });
    assert_eq!(decode(ResourceType::Route, &harmless), decode(ResourceType::Route, &route_config()));
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn listeners() {
    fn filter(url: &str) -> listener::ListenerFilter {
        let url = format!("type.googleapis.com/envoy.extensions.filters.listener.{url}");
        let config = listener::listener_filter::ConfigType::TypedConfig(typed(&url, &()));
        listener::ListenerFilter { config_type: Some(config), ..Default::default() }
    }
    fn tcp_of(change: impl FnOnce(&mut TcpProxy)) -> ListenerProto {
        let mut proxy = tcp();
        change(&mut proxy);
        listener_of(typed(TCP_PROXY, &proxy))
    }
    fn on_port(value: u32) -> Option<listener::FilterChainMatch> {
        let destination_port = Some(UInt32Value { value });
        Some(listener::FilterChainMatch { destination_port, ..Default::default() })
    }
    const ON: Option<BoolValue> = Some(BoolValue { value: true });
    const OFF: Option<BoolValue> = Some(BoolValue { value: false });
    const CHAIN: &str = "filter_chains[0]";
    refused!(Listener, tcp_listener(), m;
        m.name = "other".to_owned() => "name";
        m.use_original_dst = ON => "use_original_dst";
        m.transparent = ON => "transparent";
        m.fcds_config = Some(<_>::default()) => "fcds_config";
        m.filter_chain_matcher = Some(<_>::default()) => "filter_chain_matcher";
        m.udp_listener_config = Some(<_>::default()) => "udp_listener_config";
        m.listener_filters = vec![udp_filter(|_| ())] => "listener_filters[0]";
        m.additional_addresses = vec![additional(udp_address("10.96.0.10"))]
            => "additional_addresses[0].address";
        m.api_listener = Some(<_>::default()) => "api_listener";
        m.listener_specifier = Some(listener::listener::ListenerSpecifier::InternalListener(<_>::default()))
            => "listener_specifier";
        m.listener_filters = vec![filter("tls_inspector.v3.TlsInspector"), filter("original_dst.v3.OriginalDst")]
            => "listener_filters[1]";
        m.listener_filters.push(<_>::default()) => "listener_filters[0]";
        m.address = Some(address("0.0.0.0")) => "address";
        // A node's addresses, and NodePorts, are marked.
        m.address = Some(port_zero("10.0.0.1")) => "address.port_value";
        (m.address, m.metadata) = (Some(port_zero("0.0.0.0")), of_nodes()) => "address.port_value";
        (m.address, m.metadata) = (Some(port_zero("10.0.0.1")), of_nodes()) => "filter_chains";
        m.additional_addresses.push(<_>::default()) => "additional_addresses[0].address";
        m.filter_chains.clear() => "filter_chains";
        m.default_filter_chain = m.filter_chains.first().cloned() => "default_filter_chain";
        m.filter_chains.push(m.filter_chains[0].clone()) => "filter_chains[1].filter_chain_match";
        m.filter_chains[0].filter_chain_match = on_port(0)
            => format!("{CHAIN}.filter_chain_match.destination_port");
        m.filter_chains[0].filter_chain_match = on_port(65_536)
            => format!("{CHAIN}.filter_chain_match.destination_port");
        m.additional_addresses = vec![<_>::default(); slotmesh_records::WideListener::VIPS] => "additional_addresses";
        m.filter_chains[0].use_proxy_proto = ON => format!("{CHAIN}.use_proxy_proto");
        m.filter_chains[0].transport_socket = Some(tls()) => format!("{CHAIN}.transport_socket");
        m.filter_chains[0].filter_chain_match = Some(listener::FilterChainMatch {
            transport_protocol: "tls".to_owned(), ..Default::default()
        }) => format!("{CHAIN}.filter_chain_match.transport_protocol");
        m.filter_chains[0].filters.clear() => format!("{CHAIN}.filters");
        m.filter_chains[0].filters[0].config_type = None => format!("{CHAIN}.filters[0]");
        *m = listener_of(typed("type.googleapis.com/x.Y", &())) => format!("{CHAIN}.filters[0]");
        *m = tcp_of(|p| p.cluster_specifier = None) => format!("{CHAIN}.filters[0]");
        *m = tcp_of(|p| p.hash_policy.push(<_>::default())) => format!("{CHAIN}.filters[0].hash_policy[0]");
        *m = tcp_of(|p| p.metadata_match = Some(<_>::default())) => format!("{CHAIN}.filters[0].metadata_match");
        *m = tcp_of(|p| p.on_demand = Some(<_>::default())) => format!("{CHAIN}.filters[0].on_demand");
        *m = tcp_of(|p| p.max_connect_attempts = Some(UInt32Value { value: 2 }))
            => format!("{CHAIN}.filters[0].max_connect_attempts");
        *m = tcp_of(|p| p.tunneling_config = Some(<_>::default()))
            => format!("{CHAIN}.filters[0].tunneling_config");
        *m = tcp_of(|p| p.proxy_protocol_tlvs.push(<_>::default()))
            => format!("{CHAIN}.filters[0].proxy_protocol_tlvs");
        *m = tcp_of(|p| p.upstream_connect_mode = 1) => format!("{CHAIN}.filters[0].upstream_connect_mode");
        *m = tcp_of(|p| p.cluster_specifier = Some(tcp_proxy::ClusterSpecifier::WeightedClusters(
            tcp_proxy::WeightedCluster { clusters: vec![tcp_proxy::weighted_cluster::ClusterWeight {
                name: "a".to_owned(), weight: 1, metadata_match: Some(<_>::default()) }] })))
            => format!("{CHAIN}.filters[0].weighted_clusters.clusters[0].metadata_match");
    );
    let mut harmless = tcp_listener();
    harmless.name.clear();
    harmless.stat_prefix = "x".to_owned();
    harmless.traffic_direction = 2;
    harmless.bind_to_port = OFF;
    harmless.use_original_dst = OFF;
    harmless.deprecated_v1 = Some(listener::listener::DeprecatedV1 { bind_to_port: OFF });
    harmless.listener_filters.push(filter("http_inspector.v3.HttpInspector"));
    harmless.filter_chains[0].transport_socket = Some(transport("raw_buffer.v3.RawBuffer"));
    assert_eq!(decode(ResourceType::Listener, &harmless), decode(ResourceType::Listener, &tcp_listener()));
}

#[test]
fn http_listeners() {
    fn of(change: impl FnOnce(&mut HttpConnectionManager)) -> ListenerProto {
        let mut manager = http();
        change(&mut manager);
        listener_of(typed(HTTP_CONNECTION_MANAGER, &manager))
    }
    const FILTER: &str = "filter_chains[0].filters[0]";
    let mut inline = route_config();
    inline.virtual_hosts[0].routes[0].r#match.as_mut().unwrap().grpc = Some(<_>::default());
    refused!(Listener, of(|_| ()), m;
        *m = of(|h| h.route_specifier = None) => FILTER;
        *m = of(|h| h.route_specifier = Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_a_file()), route_config_name: "web".to_owned()
        }))) => format!("{FILTER}.rds.config_source");
        *m = of(|h| h.route_specifier = Some(RouteSpecifier::RouteConfig(inline)))
            => format!("{FILTER}.route_config.virtual_hosts[0].routes[0].match.grpc");
    );
    let harmless = of(|h| {
        h.codec_type = 2;
        h.http_filters
            .push(HttpFilter { name: "envoy.filters.http.router".to_owned(), ..Default::default() });
    });
    assert_eq!(decode(ResourceType::Listener, &harmless), decode(ResourceType::Listener, &of(|_| ())));
}

#[test]
#[expect(deprecated, reason = "old fields are refused too")]
fn listeners_of_udp() {
    use udp_proxy_config::{HashPolicy, hash_policy::PolicySpecifier};
    fn of(change: impl FnOnce(&mut UdpProxyConfig)) -> ListenerProto {
        udp_listener(udp_filter(change))
    }
    fn hash(by: PolicySpecifier) -> Vec<HashPolicy> {
        vec![HashPolicy { policy_specifier: Some(by) }]
    }
    let chain = |filter: Any| listener_of(filter).filter_chains;
    const FILTER: &str = "listener_filters[0]";
    refused!(Listener, of(|_| ()), m;
        m.additional_addresses = vec![additional(address("10.96.0.2"))] => "additional_addresses[0].address";
        m.listener_filters.clear() => "filter_chains";
        m.listener_filters.push(udp_filter(|_| ())) => "listener_filters";
        m.listener_filters[0] = <_>::default() => FILTER;
        m.udp_listener_config.as_mut().unwrap().quic_options = Some(<_>::default())
            => "udp_listener_config.quic_options";
        m.filter_chains = chain(udp_proxy(|_| ())) => FILTER;
        m.filter_chains = chain(typed(TCP_PROXY, &tcp())) => "filter_chains[0].filters[0]";
        m.filter_chains = chain(any_http()) => "filter_chains[0].filters[0]";
        *m = of(|p| p.route_specifier = None) => format!("{FILTER}.matcher");
        *m = of(|p| p.route_specifier = Some(udp_proxy_config::RouteSpecifier::Matcher(<_>::default())))
            => format!("{FILTER}.matcher");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], None))) => format!("{FILTER}.matcher.on_no_match");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], Some(go_to_chain()))))
            => format!("{FILTER}.matcher.on_no_match");
        *m = of(|p| p.route_specifier = Some(by_caller(vec![], Some(datagrams_to("")))))
            => format!("{FILTER}.matcher.on_no_match.cluster");
        *m = of(|p| p.route_specifier = Some(twice_the_same()))
            => format!("{FILTER}.matcher.matcher_list.matchers[1].predicate");
        {
            *m = of(|p| p.route_specifier = Some(two_callers()));
            m.filter_chains = chain(udp_proxy(|_| ()));
        } => "filter_chains";
        {
            m.filter_chains = chain(udp_proxy(|p| p.route_specifier = Some(two_callers())));
            m.listener_filters.clear();
        } => "filter_chains[0].filters[0].matcher";
        m.filter_chain_matcher = Some(<_>::default()) => "filter_chain_matcher";
        *m = of(|p| p.route_specifier = Some(udp_proxy_config::RouteSpecifier::Cluster(String::new())))
            => format!("{FILTER}.cluster");
        *m = of(|p| p.use_per_packet_load_balancing = true) => format!("{FILTER}.use_per_packet_load_balancing");
        *m = of(|p| p.session_filters.push(<_>::default())) => format!("{FILTER}.session_filters");
        *m = of(|p| p.tunneling_config = Some(<_>::default())) => format!("{FILTER}.tunneling_config");
        *m = of(|p| p.hash_policies = hash(PolicySpecifier::Key("x".to_owned()))) => format!("{FILTER}.hash_policies");
    );
    let model = |listener: &ListenerProto| match decode(ResourceType::Listener, listener) {
        Ok(Model::Listener(listener)) => listener,
        other => panic!("{other:?}"),
    };
    let plain = model(&of(|_| ()));
    assert_eq!(plain.protocol, Transport::Udp);
    let [only] = &plain.chains[..] else { panic!("{plain:?}") };
    assert_eq!((only.port, &only.action), (None, &Action::Cluster("web".into())));
    let hashed = model(&of(|p| p.hash_policies = hash(PolicySpecifier::SourceIp(true))));
    let Action::Clusters(clusters) = &hashed.chains[0].action else { panic!("{hashed:?}") };
    assert!(clusters[0].by_source && clusters.len() == 1);
    let harmless = of(|p| {
        p.use_original_src_ip = true;
        p.idle_timeout = Some(Duration { seconds: 1, nanos: 0 });
        p.hash_policies = hash(PolicySpecifier::SourceIp(false));
    });
    assert_eq!(model(&harmless), plain);
    // The same in a filter chain.
    let mut chained = of(|_| ());
    chained.filter_chains = chain(udp_proxy(|_| ()));
    chained.listener_filters.clear();
    assert_eq!(model(&chained), plain);
    // Callers are told apart by its own matcher.
    let apart = model(&of(|p| p.route_specifier = Some(two_callers())));
    let said = apart.chains.iter().map(|chain| (chain.callers.join(","), chain.action.clone()));
    let cluster = |name: &'static str| Action::Cluster(name.into());
    assert_eq!(
        said.collect::<Vec<_>>(),
        [
            ("shop".to_owned(), cluster("a")),
            ("x,y".to_owned(), cluster("b")),
            (String::new(), cluster("web"))
        ]
    );
    let mut bare = of(|_| ());
    bare.udp_listener_config = None;
    assert_eq!(model(&bare), plain);
    assert_eq!(model(&tcp_listener()).protocol, Transport::Tcp);
}

/// Cases of each property.
const CASES: u32 = 20_000;

fn any_type() -> impl Strategy<Value = ResourceType> {
    prop::sample::select(&ResourceType::RECORDS[..])
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
