//! Listeners, validated: how connections that come in are served. Immutable, shared by all workers.
//!
//! A listener has *ways* to serve a connection, its filter chains: HTTP by a connection manager, or TCP passed through.
//! Which one is told by the protocol that the first bytes show, where the listener inspects them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use prost::Message;
use slotmesh_routing::{EscapedSlashes, InvalidField, PathNormalization, RouteTable};
use slotmesh_xds::envoy::{
    envoy::{
        config::listener::v3::{
            self as proto, Filter, FilterChain, FilterChainMatch, ListenerFilter, filter, listener_filter,
        },
        extensions::filters::network::{
            http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter,
                http_connection_manager::{CodecType, PathWithEscapedSlashesAction, RouteSpecifier},
                http_filter,
            },
            tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
        },
    },
    google::protobuf::Any,
};

use crate::{
    series,
    upstream::{duration, is_raw, refuse_set, socket_address, wrong},
};

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const INSPECTOR: &str = "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector";
/// HTTP filters that routing acts on by what routes say.
const HTTP_FILTERS: [&str; 3] = [
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.cors.v3.Cors",
    "envoy.extensions.filters.http.fault.v3.HTTPFault",
];

/// Envoy's defaults.
const STREAM_IDLE: Duration = Duration::from_secs(5 * 60);
const CONNECTION_IDLE: Duration = Duration::from_secs(3_600);
const INSPECTION: Duration = Duration::from_secs(15);
const TCP_IDLE: Duration = Duration::from_secs(3_600);

/// A listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerConfig {
    pub name: Arc<str>,
    /// Where it listens, if it makes its socket itself.
    pub address: Option<SocketAddr>,
    /// Where connections come to it that others accept: it doesn't bind, and has an address.
    pub virtual_at: Option<IpAddr>,
    /// Its ways of serving, by the protocol that the client speaks.
    pub ways: Vec<(Protocols, Way)>,
    /// The way of connections that fit none.
    pub default: Option<Way>,
    pub inspection: Option<Inspection>,
}

/// The protocols that a way is for; none for all.
pub(crate) type Protocols = Vec<ClientProtocol>;

/// A protocol that first bytes show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientProtocol {
    Http10,
    Http11,
    Http2,
}

/// A look at the first bytes of a connection before its way is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// How long is waited for the first bytes; `None` for ever.
    pub timeout: Option<Duration>,
    /// Where none came: go on without knowing the protocol, instead of closing.
    pub go_on: bool,
}

/// A way of serving a connection.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Http(Arc<HttpConfig>),
    Tcp(TcpConfig),
}

/// TCP passed through to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpConfig {
    pub cluster: Arc<str>,
    pub idle_timeout: Option<Duration>,
}

/// How HTTP is served.
#[derive(Clone, Debug)]
pub(crate) struct HttpConfig {
    /// The service whose routes these are.
    pub service: Arc<str>,
    pub routes: RouteSource,
    pub codec: Codec,
    /// Without any activity on a stream; `None` for ever.
    pub stream_idle: Option<Duration>,
    /// Of a connection without requests; `None` for ever.
    pub connection_idle: Option<Duration>,
    /// For a request to be received whole.
    pub request_timeout: Option<Duration>,
    pub streams: Option<u32>,
    pub headers: Option<usize>,
    pub head_bytes: Option<usize>,
    pub accept_http_10: bool,
    /// The client's address is appended to `x-forwarded-for`.
    pub use_remote_address: bool,
    pub skip_forwarded_for: bool,
    pub generate_request_id: bool,
    pub request_id_in_response: bool,
    pub paths: PathNormalization,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Told by the first bytes.
    Auto,
    Http1,
    Http2,
}

/// Where the routes of a connection manager come from.
#[derive(Clone, Debug)]
pub(crate) enum RouteSource {
    Inline(Arc<RouteTable>),
    Named(Arc<str>),
}

fn unpack<M: Message + Default>(at: &str, any: &Any) -> Result<M, InvalidField> {
    M::decode(any.value.as_slice()).map_err(|error| wrong(at, error.to_string()))
}

/// A timeout of which 0 means none.
fn timeout(
    field: &str,
    value: Option<&slotmesh_xds::envoy::google::protobuf::Duration>,
    default: Option<Duration>,
) -> Result<Option<Duration>, InvalidField> {
    Ok(duration(field, value)?.or(default).filter(|timeout| !timeout.is_zero()))
}

impl ListenerConfig {
    /// The listener, and the faults of its routes, which don't keep it from serving the others.
    #[expect(deprecated, reason = "every field is decided on, whatever its age")]
    pub(crate) fn new(listener: &proto::Listener) -> Result<(Self, Vec<InvalidField>), InvalidField> {
        let proto::Listener {
            name,
            address,
            additional_addresses,
            filter_chains,
            fcds_config,
            filter_chain_matcher,
            use_original_dst,
            default_filter_chain,
            listener_filters,
            listener_filters_timeout,
            continue_on_listener_filters_timeout,
            transparent,
            freebind,
            socket_options,
            udp_listener_config,
            api_listener,
            bind_to_port,
            listener_specifier,
            // Counting and telling.
            stat_prefix: _,
            stats_matcher: _,
            metadata: _,
            access_log: _,
            traffic_direction: _,
            // Settings of sockets and of an Envoy process that change nothing of what is served.
            per_connection_buffer_limit_bytes: _,
            per_connection_buffer_high_watermark_timeout: _,
            deprecated_v1: _,
            drain_type: _,
            tcp_fast_open_queue_length: _,
            connection_balance_config: _,
            reuse_port: _,
            enable_reuse_port: _,
            tcp_backlog_size: _,
            max_connections_to_accept_per_socket_event: _,
            enable_mptcp: _,
            ignore_global_conn_limit: _,
            bypass_overload_manager: _,
            tcp_keepalive: _,
        } = listener;
        if name.is_empty() {
            return Err(wrong("name", "the name is empty"));
        }
        refuse_set!("",
            "not supported": additional_addresses, fcds_config, filter_chain_matcher, use_original_dst, transparent,
                freebind, socket_options, udp_listener_config, api_listener, listener_specifier;
        );
        let binds = bind_to_port.is_none_or(|bind| bind.value);
        let (address, virtual_at) = match address {
            Some(_) => {
                let address = socket_address("address", address.as_ref())?;
                if binds { (Some(address), None) } else { (None, Some(address.ip().to_canonical())) }
            }
            None if binds => return Err(wrong("address", "there is none")),
            None => (None, None),
        };
        let mut faults = Vec::new();
        let mut ways = Vec::new();
        for (index, chain) in filter_chains.iter().enumerate() {
            let at = format!("filter_chains[{index}].");
            ways.push((protocols(&at, chain)?, way(&at, chain, &mut faults)?));
        }
        let default = match default_filter_chain {
            Some(chain) => Some(way("default_filter_chain.", chain, &mut faults)?),
            None => None,
        };
        if ways.is_empty() && default.is_none() {
            return Err(wrong("filter_chains", "there is none"));
        }
        let mut inspects = false;
        for (index, filter) in listener_filters.iter().enumerate() {
            let ListenerFilter { name, filter_disabled, config_type } = filter;
            let at = format!("listener_filters[{index}].");
            refuse_set!(at, "not supported": filter_disabled;);
            match config_type {
                Some(listener_filter::ConfigType::TypedConfig(any)) if any.type_url.ends_with(INSPECTOR) => {
                    inspects = true;
                }
                _ => return Err(wrong(at, format!("{name:?}; only the HTTP inspector is supported"))),
            }
        }
        let inspection = inspects
            .then(|| {
                let field = "listener_filters_timeout";
                let timeout = timeout(field, listener_filters_timeout.as_ref(), Some(INSPECTION))?;
                Ok(Inspection { timeout, go_on: *continue_on_listener_filters_timeout })
            })
            .transpose()?;
        let name = name.as_str().into();
        Ok((Self { name, address, virtual_at, ways, default, inspection }, faults))
    }

    /// The way of a connection whose client speaks this protocol, or an unknown one.
    pub(crate) fn way(&self, protocol: Option<ClientProtocol>) -> Option<&Way> {
        let exact = |protocols: &Protocols| protocol.is_some_and(|protocol| protocols.contains(&protocol));
        let find =
            |fits: &dyn Fn(&Protocols) -> bool| self.ways.iter().find(|(protocols, _)| fits(protocols));
        let found = find(&exact).or_else(|| find(&|protocols| protocols.is_empty()));
        found.map(|(_, way)| way).or(self.default.as_ref())
    }
}

fn protocols(at: &str, chain: &FilterChain) -> Result<Protocols, InvalidField> {
    let Some(matching) = &chain.filter_chain_match else { return Ok(Vec::new()) };
    let FilterChainMatch {
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
    } = matching;
    let at = format!("{at}filter_chain_match.");
    refuse_set!(at,
        "only application_protocols are supported": destination_port, prefix_ranges, address_suffix, suffix_len,
            direct_source_prefix_ranges, source_type, source_prefix_ranges, source_ports, server_names;
    );
    if !matches!(transport_protocol.as_str(), "" | "raw_buffer") {
        return Err(wrong(format!("{at}transport_protocol"), "only raw_buffer"));
    }
    application_protocols
        .iter()
        .map(|name| match name.as_str() {
            "http/1.0" => Ok(ClientProtocol::Http10),
            "http/1.1" => Ok(ClientProtocol::Http11),
            "h2c" => Ok(ClientProtocol::Http2),
            _ => Err(wrong(
                format!("{at}application_protocols"),
                format!("{name:?}; only http/1.0, http/1.1 and h2c"),
            )),
        })
        .collect()
}

#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn way(at: &str, chain: &FilterChain, faults: &mut Vec<InvalidField>) -> Result<Way, InvalidField> {
    let FilterChain {
        filter_chain_match: _,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout: _,
        name: _,
    } = chain;
    refuse_set!(at, "not supported": use_proxy_proto;);
    if transport_socket.as_ref().is_some_and(|socket| !is_raw(socket)) {
        return Err(wrong(format!("{at}transport_socket"), "TLS is not supported"));
    }
    let [Filter { name, config_type }] = filters.as_slice() else {
        return Err(wrong(
            format!("{at}filters"),
            format!("there are {}; exactly one is supported", filters.len()),
        ));
    };
    let at = format!("{at}filters[0].typed_config.");
    match config_type {
        Some(filter::ConfigType::TypedConfig(any)) if any.type_url.ends_with(MANAGER) => {
            Ok(Way::Http(Arc::new(http(&at, &unpack(&at, any)?, faults)?)))
        }
        Some(filter::ConfigType::TypedConfig(any)) if any.type_url.ends_with(TCP_PROXY) => {
            Ok(Way::Tcp(tcp(&at, &unpack(&at, any)?)?))
        }
        _ => {
            let reason =
                format!("{name:?}; only the HTTP connection manager and the TCP proxy are supported");
            Err(wrong(at.trim_end_matches('.'), reason))
        }
    }
}

#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn tcp(at: &str, proxy: &TcpProxy) -> Result<TcpConfig, InvalidField> {
    let TcpProxy {
        cluster_specifier,
        idle_timeout,
        on_demand,
        metadata_match,
        downstream_idle_timeout,
        upstream_idle_timeout,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        proxy_protocol_tlvs,
        // Counting, and how connects are tried.
        stat_prefix: _,
        access_log: _,
        max_connect_attempts: _,
        backoff_options: _,
        max_downstream_connection_duration_jitter_percentage: _,
        access_log_flush_interval: _,
        flush_access_log_on_connected: _,
        access_log_options: _,
        proxy_protocol_tlv_merge_policy: _,
        upstream_connect_mode: _,
        max_early_data_bytes: _,
        check_drain_close: _,
    } = proxy;
    refuse_set!(at,
        "not supported": on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout, hash_policy,
            tunneling_config, max_downstream_connection_duration, proxy_protocol_tlvs;
    );
    let Some(ClusterSpecifier::Cluster(cluster)) = cluster_specifier else {
        return Err(wrong(format!("{at}cluster"), "only a cluster is supported"));
    };
    let idle_timeout = timeout(&format!("{at}idle_timeout"), idle_timeout.as_ref(), Some(TCP_IDLE))?;
    Ok(TcpConfig { cluster: cluster.as_str().into(), idle_timeout })
}

#[expect(deprecated, reason = "every field is decided on, whatever its age")]
fn http(
    at: &str,
    manager: &HttpConnectionManager,
    faults: &mut Vec<InvalidField>,
) -> Result<HttpConfig, InvalidField> {
    let HttpConnectionManager {
        codec_type,
        http_filters,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        max_request_headers_kb,
        stream_idle_timeout,
        request_timeout,
        use_remote_address,
        xff_num_trusted_hops,
        skip_xff_append,
        generate_request_id,
        always_set_request_id_in_response,
        route_specifier,
        add_user_agent,
        tracing,
        scheme_header_transformation,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        via,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        strip_trailing_host_dot,
        strip_port_mode,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        path_normalization_options,
        // Upgrades are passed through whether they are listed or not.
        upgrade_configs: _,
        // Counting and telling.
        stat_prefix: _,
        access_log: _,
        access_log_flush_interval: _,
        flush_access_log_on_new_request: _,
        access_log_options: _,
        // Responses keep the `server` header of whoever made them.
        server_name: _,
        server_header_transformation: _,
        // Times of an Envoy process, and settings of its parsers.
        http1_safe_max_connection_duration: _,
        http3_protocol_options: _,
        stream_flush_timeout: _,
        request_headers_timeout: _,
        drain_timeout: _,
        drain_timeout_jitter: _,
        delayed_close_timeout: _,
        internal_address_config: _,
        preserve_external_request_id: _,
        proxy_100_continue: _,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6: _,
        stream_error_on_invalid_http_message: _,
        append_local_overload: _,
    } = manager;
    refuse_set!(at,
        "not supported": add_user_agent, tracing, scheme_header_transformation, original_ip_detection_extensions,
            early_header_mutation_extensions, forward_client_cert_details, set_current_client_cert_details,
            forward_client_cert_matcher, via, request_id_extension, local_reply_config, strip_matching_host_port,
            strip_trailing_host_dot, strip_port_mode, proxy_status_config, typed_header_validation_config,
            append_x_forwarded_port, add_proxy_protocol_connection_state, forward_proto_config,
            xff_num_trusted_hops, path_normalization_options;
    );
    for (index, filter) in http_filters.iter().enumerate() {
        let HttpFilter { name, is_optional, disabled, config_type } = filter;
        let known = match config_type {
            Some(http_filter::ConfigType::TypedConfig(any)) => {
                HTTP_FILTERS.iter().any(|known| any.type_url.ends_with(known))
            }
            _ => false,
        };
        if !known && !is_optional && !disabled {
            let reason = format!("{name:?}; only router, cors and fault are supported");
            return Err(wrong(format!("{at}http_filters[{index}]"), reason));
        }
    }
    let (routes, service) = match route_specifier {
        Some(RouteSpecifier::RouteConfig(config)) => {
            let (table, found) = RouteTable::new(config);
            faults.extend(found.into_iter().map(|fault| InvalidField {
                field: format!("{at}route_config.{}", fault.field),
                reason: fault.reason,
            }));
            (RouteSource::Inline(Arc::new(table)), &config.name)
        }
        Some(RouteSpecifier::Rds(rds)) => {
            (RouteSource::Named(rds.route_config_name.as_str().into()), &rds.route_config_name)
        }
        _ => return Err(wrong(format!("{at}route_config"), "only route_config and rds are supported")),
    };
    let common = common_http_protocol_options.as_ref();
    let codec = match CodecType::try_from(*codec_type) {
        Ok(CodecType::Auto) => Codec::Auto,
        Ok(CodecType::Http1) => Codec::Http1,
        Ok(CodecType::Http2) => Codec::Http2,
        _ => return Err(wrong(format!("{at}codec_type"), "only AUTO, HTTP1 and HTTP2")),
    };
    let at_field = |name: &str| format!("{at}{name}");
    Ok(HttpConfig {
        service: series::service_of_routes(service),
        routes,
        codec,
        stream_idle: timeout(
            &at_field("stream_idle_timeout"),
            stream_idle_timeout.as_ref(),
            Some(STREAM_IDLE),
        )?,
        connection_idle: timeout(
            &at_field("common_http_protocol_options.idle_timeout"),
            common.and_then(|common| common.idle_timeout.as_ref()),
            Some(CONNECTION_IDLE),
        )?,
        request_timeout: timeout(&at_field("request_timeout"), request_timeout.as_ref(), None)?,
        streams: http2_protocol_options
            .as_ref()
            .and_then(|options| options.max_concurrent_streams)
            .map(|streams| streams.value),
        headers: common
            .and_then(|common| common.max_headers_count)
            .map(|count| usize::try_from(count.value).unwrap_or(usize::MAX)),
        head_bytes: max_request_headers_kb.map(|kb| usize::try_from(kb.value).unwrap_or(usize::MAX) << 10),
        accept_http_10: http_protocol_options.as_ref().is_some_and(|options| options.accept_http_10),
        use_remote_address: use_remote_address.is_some_and(|on| on.value),
        skip_forwarded_for: *skip_xff_append,
        generate_request_id: generate_request_id.is_none_or(|on| on.value),
        request_id_in_response: *always_set_request_id_in_response,
        paths: PathNormalization {
            resolve: normalize_path.is_some_and(|on| on.value),
            merge_slashes: *merge_slashes,
            escaped_slashes: match PathWithEscapedSlashesAction::try_from(*path_with_escaped_slashes_action) {
                // Envoy's own default keeps them, too.
                Ok(
                    PathWithEscapedSlashesAction::ImplementationSpecificDefault
                    | PathWithEscapedSlashesAction::KeepUnchanged,
                ) => EscapedSlashes::Keep,
                Ok(PathWithEscapedSlashesAction::RejectRequest) => EscapedSlashes::Reject,
                Ok(PathWithEscapedSlashesAction::UnescapeAndRedirect) => EscapedSlashes::Redirect,
                Ok(PathWithEscapedSlashesAction::UnescapeAndForward) => EscapedSlashes::Unescape,
                Err(_) => {
                    let field = at_field("path_with_escaped_slashes_action");
                    return Err(wrong(field, "there is no such action"));
                }
            },
        },
    })
}
