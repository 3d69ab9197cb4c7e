//! `envoy.config.listener.v3.Listener`

mod caller_classes;
mod udp_proxies;

use std::{borrow::Cow, collections::HashSet, net::SocketAddr, num::NonZeroU16};

use slotmesh_records::WideListener;
use slotmesh_xds::{
    OF_NODES, Transport,
    envoy::{
        envoy::{
            config::{
                core::v3::Address,
                listener::v3::{self as proto, filter::ConfigType},
            },
            extensions::filters::network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, http_connection_manager::RouteSpecifier,
                },
                tcp_proxy::v3::TcpProxy,
            },
        },
        google::protobuf::UInt32Value,
    },
};

use self::{
    caller_classes::by_caller,
    udp_proxies::{udp_config, udp_filter, udp_proxy},
};
use super::{
    At, Invalid, Route, WeightedCluster, any_socket_address, decode_any, invalid, is_on, named, plain_socket,
    reference, refuse_set, same_stream, unsupported,
    weighted::{lone_cluster, tcp_clusters},
};

pub(super) const TCP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
pub(super) const UDP_PROXY: &str =
    "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig";
pub(super) const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

/// They look at a connection for filter chain matches that are refused.
const INSPECTORS: [&str; 2] = [
    "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
];

/// Virtual addresses and where connections to them go.
///
/// Two sorts of addresses stand for NodePorts: one that is unspecified (`0.0.0.0`, `[::]`) is the port at all addresses
/// of nodes; those of a node are a listener's of their own, with port 0 and without filter chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener<'m> {
    /// The protocol of all its addresses.
    pub protocol: Transport,
    /// Its addresses, ascending; at least one.
    pub vips: Vec<SocketAddr>,
    /// The filter chains: at least one, but for a node's addresses; those that match a port in ascending order of it, then the one
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
    /// The classes of callers that it matches; none where it is for whoever connects.
    pub callers: Vec<Cow<'m, str>>,
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
            metadata,
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
            "filter chains stand in filter_chains": fcds_config;
            "only listeners on addresses": api_listener, listener_specifier;
        );
        let marks = metadata.as_ref().map(|metadata| &metadata.typed_filter_metadata);
        let of_nodes = marks.is_some_and(|marks| marks.contains_key(OF_NODES));
        let count = additional_addresses.len() + 1;
        if count > WideListener::VIPS {
            let what = format!("{count} addresses; at most {}", WideListener::VIPS);
            return Err(unsupported("additional_addresses", what));
        }
        let mut vips = Vec::with_capacity(count);
        let (protocol, first) = vip(&At::ROOT.field("address"), address.as_ref(), of_nodes)?;
        vips.push(first);
        for (i, additional) in additional_addresses.iter().enumerate() {
            let at = At::ROOT.element("additional_addresses", i);
            let at = at.field("address");
            let (of, vip) = vip(&at, additional.address.as_ref(), of_nodes)?;
            if of != protocol {
                let fault =
                    format!("the first address is of {protocol}, and all of a listener are of one protocol");
                return Err(invalid(at, fault));
            }
            vips.push(vip);
        }
        vips.sort_unstable();
        vips.dedup();
        if vips.iter().any(|vip| vip.port() == 0) {
            refuse_set!(At::ROOT,
                "an address with port 0 is one of a node, and connections to it go nowhere":
                    filter_chains, default_filter_chain, listener_filters, filter_chain_matcher, udp_listener_config;
            );
            if vips.iter().any(|vip| vip.port() != 0) {
                let fault = "some have port 0, which those of a node have, and others don't";
                return Err(invalid("additional_addresses", fault));
            }
            return Ok(Self { protocol, vips, chains: Vec::new() });
        }
        let mut of_filter = Vec::new();
        match protocol {
            Transport::Tcp => {
                refuse_set!(At::ROOT, "only with addresses of UDP": udp_listener_config;);
                for (i, filter) in listener_filters.iter().enumerate() {
                    inspector(&At::ROOT.element("listener_filters", i), filter)?;
                }
            }
            Transport::Udp => {
                udp_config(udp_listener_config.as_ref())?;
                of_filter = udp_filter(listener_filters)?;
            }
        }
        let default = default_filter_chain.as_ref();
        let chains = match (protocol, filter_chain_matcher) {
            (_, None) => chains(protocol, filter_chains, default, of_filter)?,
            (Transport::Tcp, Some(matcher)) => by_caller(matcher, filter_chains, default)?,
            (Transport::Udp, Some(_)) => {
                let what = "only with addresses of TCP; of UDP, the matcher of the UDP proxy";
                return Err(unsupported("filter_chain_matcher", what));
            }
        };
        Ok(Self { protocol, vips, chains })
    }
}

/// `of_nodes`: it may be a port at all nodes' addresses, or a node's address.
fn vip(at: &At<'_>, address: Option<&Address>, of_nodes: bool) -> Result<(Transport, SocketAddr), Invalid> {
    let (protocol, ip, port) = any_socket_address(at, address)?;
    if ip.is_unspecified() && !of_nodes {
        return Err(unsupported(at, "a listener on all addresses; name the virtual addresses"));
    }
    if port == 0 && (ip.is_unspecified() || !of_nodes) {
        return Err(invalid(at.field("port_value"), "0 is not a port from 1 to 65535"));
    }
    Ok((protocol, SocketAddr::new(ip.to_canonical(), port)))
}

/// In the order of [`Listener::chains`].
///
/// `of_filter` is where a listener filter leads what no chain matches.
fn chains<'m>(
    protocol: Transport,
    chains: &'m [proto::FilterChain],
    default: Option<&'m proto::FilterChain>,
    of_filter: Vec<Chain<'m>>,
) -> Result<Vec<Chain<'m>>, Invalid> {
    if chains.is_empty() && default.is_none() && of_filter.is_empty() {
        let fault = match protocol {
            Transport::Tcp => "there is none",
            Transport::Udp => "there is none, and no UDP proxy in listener_filters",
        };
        return Err(invalid("filter_chains", fault));
    }
    if of_filter.len() > 1 {
        if !chains.is_empty() || default.is_some() {
            let what = "the matcher of the UDP proxy tells callers apart already";
            return Err(unsupported("filter_chains", what));
        }
        return Ok(of_filter);
    }
    let mut valid: Vec<Chain<'m>> = Vec::with_capacity(chains.len() + 1);
    let mut matched = HashSet::with_capacity(chains.len());
    for (i, chain) in chains.iter().enumerate() {
        let at = At::ROOT.element("filter_chains", i);
        let chain = Chain::from_proto(&at, protocol, chain)?;
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
        let chain = Chain::from_proto(&at, protocol, default)?;
        if chain.port.is_some() {
            return Err(unsupported(
                at.field("filter_chain_match"),
                "the default chain matches what is left",
            ));
        }
        if matched.contains(&None) {
            return Err(unsupported(at, "never chosen, as another chain matches all connections"));
        }
        matched.insert(None);
        valid.push(chain);
    }
    for chain in of_filter {
        if matched.contains(&None) {
            return Err(unsupported(
                "listener_filters[0]",
                "never chosen, as a filter chain matches all datagrams",
            ));
        }
        valid.push(chain);
    }
    valid.sort_unstable_by_key(|chain| chain.port.map_or(u32::MAX, |port| port.get().into()));
    Ok(valid)
}

impl<'m> Chain<'m> {
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    fn from_proto(at: &At<'_>, protocol: Transport, chain: &'m proto::FilterChain) -> Result<Self, Invalid> {
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
        Ok(Self { name, port, callers: Vec::new(), action: action(at, protocol, filters)? })
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

fn action<'m>(
    chain: &At<'_>,
    protocol: Transport,
    filters: &'m [proto::Filter],
) -> Result<Action<'m>, Invalid> {
    let [filter] = filters else {
        return Err(unsupported(
            chain.field("filters"),
            format!(
                "{} filters; one is supported: TCP proxy, HTTP connection manager, or, of UDP, UDP proxy",
                filters.len()
            ),
        ));
    };
    let at = chain.element("filters", 0);
    let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
        return Err(unsupported(at, "only typed_config"));
    };
    match any.type_url.as_str() {
        UDP_PROXY if protocol == Transport::Udp => match <[_; 1]>::try_from(udp_proxy(&at, any)?) {
            Ok([Chain { action, .. }]) => Ok(action),
            Err(_) => Err(unsupported(at.field("matcher"), "only of a listener filter")),
        },
        other if protocol == Transport::Udp => {
            Err(unsupported(at, format!("filter {other}; only UDP proxy")))
        }
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
