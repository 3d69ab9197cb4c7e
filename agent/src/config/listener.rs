//! `envoy.config.listener.v3.Listener`

use std::{borrow::Cow, collections::HashSet, net::SocketAddr, num::NonZeroU16};

use slotmesh_records::WideListener;
use slotmesh_xds::envoy::{
    envoy::{
        config::{
            core::v3::Address,
            listener::v3::{self as proto, filter::ConfigType},
        },
        extensions::filters::network::{
            http_connection_manager::v3::{HttpConnectionManager, http_connection_manager::RouteSpecifier},
            tcp_proxy::v3::TcpProxy,
        },
    },
    google::protobuf::UInt32Value,
};

use super::{
    At, Invalid, Route, WeightedCluster, decode_any, invalid, is_on, named, plain_socket, reference,
    refuse_set, same_stream, socket_address, unsupported,
    weighted::{lone_cluster, tcp_clusters},
};

pub(super) const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
pub(super) const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// They look at a connection for filter chain matches that are refused.
const INSPECTORS: [&str; 2] = [
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
];

/// Virtual addresses and where connections to them go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener<'m> {
    /// TCP addresses, ascending; at least one.
    pub vips: Vec<SocketAddr>,
    /// The filter chains: at least one; those that match a port in ascending order of it, then the one
    /// that matches all, or the default one.
    pub chains: Vec<Chain<'m>>,
}

/// A filter chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain<'m> {
    /// Its name.
    pub name: &'m str,
    /// The destination port that it matches; `None` for all, or for those that no other chain matches.
    pub port: Option<NonZeroU16>,
    /// Where to.
    pub action: Action<'m>,
}

/// Where a filter chain's connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<'m> {
    /// To this cluster.
    Cluster(Cow<'m, str>),
    /// To these clusters by weight; at least one.
    Clusters(Vec<WeightedCluster<'m>>),
    /// Where the route configuration of this name says.
    Route(String),
    /// Where this route configuration says.
    Inline(Box<Route<'static>>),
}

impl<'m> Listener<'m> {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(super) fn from_proto(resource: &str, listener: &'m proto::Listener) -> Result<Self, Invalid> {
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
        refuse_set!(At::ROOT,
            "connections to its addresses are all that a listener gets": use_original_dst, transparent;
            "filter chains stand in filter_chains": fcds_config, filter_chain_matcher;
            "only TCP listeners": udp_listener_config, api_listener, listener_specifier;
        );
        for (i, filter) in listener_filters.iter().enumerate() {
            inspector(&At::ROOT.element("listener_filters", i), filter)?;
        }
        let count = additional_addresses.len() + 1;
        if count > WideListener::VIPS {
            let what = format!("{count} addresses; at most {}", WideListener::VIPS);
            return Err(unsupported("additional_addresses", what));
        }
        let mut vips = Vec::with_capacity(count);
        vips.push(vip(&At::ROOT.field("address"), address.as_ref())?);
        for (i, additional) in additional_addresses.iter().enumerate() {
            let at = At::ROOT.element("additional_addresses", i);
            vips.push(vip(&at.field("address"), additional.address.as_ref())?);
        }
        vips.sort_unstable();
        vips.dedup();
        Ok(Self { vips, chains: chains(filter_chains, default_filter_chain.as_ref())? })
    }
}

fn vip(at: &At<'_>, address: Option<&Address>) -> Result<SocketAddr, Invalid> {
    let (ip, port) = socket_address(at, address)?;
    if ip.is_unspecified() {
        return Err(unsupported(at, "a listener on all addresses; name the virtual addresses"));
    }
    Ok(SocketAddr::new(ip.to_canonical(), port.get()))
}

/// In the order of [`Listener::chains`].
fn chains<'m>(
    chains: &'m [proto::FilterChain],
    default: Option<&'m proto::FilterChain>,
) -> Result<Vec<Chain<'m>>, Invalid> {
    if chains.is_empty() && default.is_none() {
        return Err(invalid("filter_chains", "there is none"));
    }
    let mut valid: Vec<Chain<'m>> = Vec::with_capacity(chains.len() + 1);
    let mut matched = HashSet::with_capacity(chains.len());
    for (i, chain) in chains.iter().enumerate() {
        let at = At::ROOT.element("filter_chains", i);
        let chain = Chain::from_proto(&at, chain)?;
        if !matched.insert(chain.port) {
            let what = match chain.port {
                Some(port) => format!("an earlier chain matches destination port {port}, too"),
                None => "an earlier chain matches all connections, too".to_owned(),
            };
            return Err(invalid(at.field("filter_chain_match"), what));
        }
        valid.push(chain);
    }
    if let Some(default) = default {
        let at = At::ROOT.field("default_filter_chain");
        let chain = Chain::from_proto(&at, default)?;
        if chain.port.is_some() {
            return Err(unsupported(
                at.field("filter_chain_match"),
                "the default chain matches what is left",
            ));
        }
        if matched.contains(&None) {
            return Err(unsupported(at, "never chosen, as another chain matches all connections"));
        }
        valid.push(chain);
    }
    valid.sort_unstable_by_key(|chain| chain.port.map_or(u32::MAX, |port| port.get().into()));
    Ok(valid)
}

impl<'m> Chain<'m> {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    fn from_proto(at: &At<'_>, chain: &'m proto::FilterChain) -> Result<Self, Invalid> {
        let proto::FilterChain {
            filter_chain_match,
            filters,
            use_proxy_proto,
            transport_socket,
            name,
            transport_socket_connect_timeout: _,
            metadata: _,
        } = chain;
        let use_proxy_proto = &is_on(use_proxy_proto.as_ref());
        refuse_set!(at, "only connections without PROXY protocol": use_proxy_proto;);
        plain_socket(&at.field("transport_socket"), transport_socket.as_ref())?;
        let port = match filter_chain_match {
            Some(condition) => port(&at.field("filter_chain_match"), condition)?,
            None => None,
        };
        Ok(Self { name, port, action: action(at, filters)? })
    }
}

/// The port that a filter chain asks for; `None` where it matches all connections.
fn port(at: &At<'_>, condition: &proto::FilterChainMatch) -> Result<Option<NonZeroU16>, Invalid> {
    let proto::FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = condition;
    refuse_set!(at,
        "only destination_port":
            prefix_ranges, address_suffix, suffix_len, direct_source_prefix_ranges, source_type,
            source_prefix_ranges, source_ports, server_names, transport_protocol, application_protocols;
    );
    let Some(UInt32Value { value }) = *destination_port else { return Ok(None) };
    let port = u16::try_from(value).ok().and_then(NonZeroU16::new);
    let refusal = || invalid(at.field("destination_port"), format!("{value} is not a port from 1 to 65535"));
    port.map(Some).ok_or_else(refusal)
}

/// Other listener filters (original destination, PROXY protocol, …) change where a connection goes.
fn inspector(field: &At<'_>, filter: &proto::ListenerFilter) -> Result<(), Invalid> {
    match &filter.config_type {
        Some(proto::listener_filter::ConfigType::TypedConfig(any))
            if INSPECTORS.contains(&any.type_url.as_str()) =>
        {
            Ok(())
        }
        _ => Err(unsupported(field, format!("filter {:?}; only TLS and HTTP inspectors", filter.name))),
    }
}

fn action<'m>(chain: &At<'_>, filters: &'m [proto::Filter]) -> Result<Action<'m>, Invalid> {
    let [filter] = filters else {
        return Err(unsupported(
            chain.field("filters"),
            format!("{} filters; one, TCP proxy or HTTP connection manager, is supported", filters.len()),
        ));
    };
    let at = chain.element("filters", 0);
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(unsupported(at, "only typed_config"));
    };
    match any.type_url.as_str() {
        TCP_PROXY => {
            if let Some(name) = lone_cluster(&any.value) {
                reference(&at.field("cluster"), name)?;
                return Ok(Action::Cluster(name.into()));
            }
            let proxy: TcpProxy = decode_any(&at, "TcpProxy", any)?;
            let clusters = tcp_clusters(&at, &proxy)?;
            let mut owned: Vec<_> = clusters.into_iter().map(WeightedCluster::into_owned).collect();
            // That the source is hashed stands with the clusters of a set.
            if let [WeightedCluster { by_source: false, .. }] = owned[..] {
                return Ok(Action::Cluster(owned.remove(0).cluster));
            }
            Ok(Action::Clusters(owned))
        }
        HTTP_CONNECTION_MANAGER => {
            // All its other fields, HTTP filters too, act on requests.
            let manager: HttpConnectionManager = decode_any(&at, "HttpConnectionManager", any)?;
            match manager.route_specifier {
                Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
                    let at = at.field("rds");
                    same_stream(&at.field("config_source"), rds.config_source.as_ref())?;
                    reference(&at.field("route_config_name"), &rds.route_config_name)?;
                    Ok(Action::Route(rds.route_config_name))
                }
                Some(RouteSpecifier::RouteConfig(config)) => {
                    let route = Route::from_proto(&at.field("route_config"), &config)?;
                    Ok(Action::Inline(Box::new(route.into_owned())))
                }
                _ => Err(unsupported(at, "only rds with a name, and route_config")),
            }
        }
        other => Err(unsupported(at, format!("filter {other}"))),
    }
}
