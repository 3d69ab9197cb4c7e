//! Clusters.

use super::*;

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
        typed_config: Some(typed(crate::config::cluster::MAGLEV, &maglev)),
        ..Default::default()
    };
    let policy = cluster::load_balancing_policy::Policy { typed_extension_config: Some(config) };
    cluster.load_balancing_policy = Some(cluster::LoadBalancingPolicy { policies: vec![policy] });
}

fn extension(cluster: &mut ClusterProto) -> &mut Any {
    let policy = &mut cluster.load_balancing_policy.as_mut().unwrap().policies[0];
    policy.typed_extension_config.as_mut().unwrap().typed_config.as_mut().unwrap()
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
        Ok(Model::Cluster(crate::config::Cluster {
            source: Source::Assignment(name),
            connect_timeout_ms,
            ..
        })) => (name.to_owned(), connect_timeout_ms),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&message), (NAME.to_owned(), 1));
    message.eds_cluster_config.as_mut().unwrap().service_name = "other".to_owned();
    message.connect_timeout = Some(Duration { seconds: i64::MAX, nanos: 0 });
    assert_eq!(of(&message), ("other".to_owned(), u32::MAX));
}
