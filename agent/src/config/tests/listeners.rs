//! Listeners of TCP.

use super::*;

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
