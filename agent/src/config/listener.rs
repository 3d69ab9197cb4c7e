//! `envoy.config.listener.v3.Listener`

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use slotmesh_xds::{
    ResourceName,
    envoy::envoy::{
        config::listener::v3::{self as proto, filter::ConfigType},
        extensions::filters::network::{
            http_connection_manager::v3::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
            tcp_proxy::v3::TcpProxy,
        },
    },
};

use super::{
    Invalid, Route, WeightedCluster, decode_any, invalid, is_on, named, plain_socket, refuse_set,
    route::tcp_clusters, same_stream, socket_address, unsupported,
};

pub(super) const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
pub(super) const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// They look at a connection for filter chain matches, of which there are none.
const INSPECTORS: [&str; 2] = [
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
];

/// Virtual addresses and where connections to them go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// TCP addresses; at least one.
    pub vips: Vec<SocketAddr>,
    /// Where to.
    pub action: Action,
}

/// Where a listener's connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To these clusters by weight; at least one.
    Clusters(Vec<WeightedCluster>),
    /// Where the route configuration of this name says.
    Route(ResourceName),
}

impl Listener {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(super) fn from_proto(resource: &ResourceName, listener: &proto::Listener) -> Result<Self, Invalid> {
        let proto::Listener {
            name,
            address,
            additional_addresses,
            filter_chains,
            default_filter_chain,
            listener_filters,
            use_original_dst,
            transparent,
            fcds_config,
            filter_chain_matcher,
            udp_listener_config,
            api_listener,
            listener_specifier,
            // Counting and logging.
            stat_prefix: _,
            stats_matcher: _,
            metadata: _,
            access_log: _,
            traffic_direction: _,
            // Of the socket that a proxy listens at; there is none.
            bind_to_port: _,
            deprecated_v1: _,
            freebind: _,
            socket_options: _,
            tcp_fast_open_queue_length: _,
            tcp_backlog_size: _,
            tcp_keepalive: _,
            enable_mptcp: _,
            reuse_port: _,
            enable_reuse_port: _,
            connection_balance_config: _,
            max_connections_to_accept_per_socket_event: _,
            // A proxy's buffers, its overload, its end.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            ignore_global_conn_limit: _,
            bypass_overload_manager: _,
            drain_type: _,
            listener_filters_timeout: _,
            continue_on_listener_filters_timeout: _,
        } = listener;
        if !name.is_empty() {
            named("name", resource, name)?;
        }
        let (use_original_dst, transparent) =
            (&is_on(use_original_dst.as_ref()), &is_on(transparent.as_ref()));
        refuse_set!("",
            "connections to its addresses are all that a listener gets": use_original_dst, transparent;
            "only a chain that matches all": fcds_config, filter_chain_matcher;
            "only TCP listeners": udp_listener_config, api_listener, listener_specifier;
        );
        for (i, filter) in listener_filters.iter().enumerate() {
            inspector(&format!("listener_filters[{i}]"), filter)?;
        }
        let mut vips = BTreeSet::new();
        let additional = additional_addresses.iter().enumerate().map(|(i, additional)| {
            (format!("additional_addresses[{i}].address"), additional.address.as_ref())
        });
        for (field, address) in std::iter::once(("address".to_owned(), address.as_ref())).chain(additional) {
            let (ip, port) = socket_address(&field, address)?;
            if ip.is_unspecified() {
                return Err(unsupported(field, "a listener on all addresses; name the virtual addresses"));
            }
            let canonical: IpAddr = ip.to_canonical();
            vips.insert(SocketAddr::new(canonical, port.get()));
        }
        let (field, chain) = match (filter_chains.as_slice(), default_filter_chain) {
            ([chain], None) => ("filter_chains[0]", chain),
            ([], Some(chain)) => ("default_filter_chain", chain),
            ([], None) => return Err(invalid("filter_chains", "there is none")),
            (chains, _) => {
                return Err(unsupported(
                    "filter_chains",
                    format!(
                        "{} filter chains beside each other; one without a match is supported",
                        chains.len()
                    ),
                ));
            }
        };
        let proto::FilterChain {
            filter_chain_match,
            filters,
            use_proxy_proto,
            transport_socket,
            transport_socket_connect_timeout: _,
            metadata: _,
            name: _,
        } = chain;
        if filter_chain_match.as_ref().is_some_and(|m| *m != proto::FilterChainMatch::default()) {
            return Err(unsupported(format!("{field}.filter_chain_match"), "only a chain that matches all"));
        }
        let use_proxy_proto = &is_on(use_proxy_proto.as_ref());
        refuse_set!(field, "only connections without PROXY protocol": use_proxy_proto;);
        plain_socket(&format!("{field}.transport_socket"), transport_socket.as_ref())?;
        Ok(Self { vips: vips.into_iter().collect(), action: action(field, filters)? })
    }
}

/// Other listener filters (original destination, PROXY protocol, …) change where a connection goes.
fn inspector(field: &str, filter: &proto::ListenerFilter) -> Result<(), Invalid> {
    match &filter.config_type {
        Some(proto::listener_filter::ConfigType::TypedConfig(any))
            if INSPECTORS.contains(&any.type_url.as_str()) =>
        {
            Ok(())
        }
        _ => Err(unsupported(field, format!("filter {:?}; only TLS and HTTP inspectors", filter.name))),
    }
}

fn action(chain: &str, filters: &[proto::Filter]) -> Result<Action, Invalid> {
    let [filter] = filters else {
        return Err(unsupported(
            format!("{chain}.filters"),
            format!("{} filters; one, TCP proxy or HTTP connection manager, is supported", filters.len()),
        ));
    };
    let field = format!("{chain}.filters[0]");
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(unsupported(field, "only typed_config"));
    };
    match any.type_url.as_str() {
        TCP_PROXY => {
            let proxy: TcpProxy = decode_any(&field, "TcpProxy", any)?;
            Ok(Action::Clusters(tcp_clusters(&field, &proxy)?))
        }
        HTTP_CONNECTION_MANAGER => {
            // All its other fields, HTTP filters too, act on requests.
            let manager: HttpConnectionManager = decode_any(&field, "HttpConnectionManager", any)?;
            match manager.route_specifier {
                Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
                    same_stream(&format!("{field}.rds.config_source"), rds.config_source.as_ref())?;
                    Ok(Action::Route(rds.route_config_name.into()))
                }
                Some(RouteSpecifier::RouteConfig(config)) => Ok(Action::Clusters(
                    Route::from_proto(&format!("{field}.route_config"), &config)?.clusters,
                )),
                _ => Err(unsupported(field, "only rds with a name, and route_config")),
            }
        }
        other => Err(unsupported(field, format!("filter {other}"))),
    }
}
