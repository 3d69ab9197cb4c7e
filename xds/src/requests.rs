//! Listeners of ports whose requests are looked at: the filters that they have, and the listener by which a proxy on the
//! node serves a route configuration.

use std::net::Ipv4Addr;

use prost::Name;

use crate::{
    Resource, ResourceType,
    envoy::{
        envoy::{
            config::{
                core::v3::{
                    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address,
                    config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
                },
                listener::v3::{Filter, FilterChain, Listener, filter},
            },
            extensions::filters::{
                http::{cors::v3::Cors, fault::v3::HttpFault, router::v3::Router},
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{
                        PathWithEscapedSlashesAction, RouteSpecifier, ServerHeaderTransformation,
                        UpgradeConfig,
                    },
                    http_filter,
                },
            },
        },
        google::protobuf::{Any, BoolValue, Duration},
    },
};

/// The filter that answers and checks what browsers ask of other origins.
pub const CORS_FILTER: &str = "envoy.filters.http.cors";
/// The filter that delays and aborts requests.
pub const FAULT_FILTER: &str = "envoy.filters.http.fault";
const ROUTER: &str = "envoy.filters.http.router";
const MANAGER: &str = "envoy.filters.network.http_connection_manager";

fn any<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// The manager of connections whose requests are looked at, by the route configuration of this name.
pub fn request_manager(stat_prefix: &str, route: &str) -> HttpConnectionManager {
    let filter = |name: &str, config: Any| HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let upgrade = UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() };
    let from = ConfigSourceSpecifier::Ads(AggregatedConfigSource {});
    let source = ConfigSource {
        config_source_specifier: Some(from),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    };
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(source),
            route_config_name: route.to_owned(),
        })),
        http_filters: vec![
            filter(CORS_FILTER, any(&Cors {})),
            filter(FAULT_FILTER, any(&HttpFault::default())),
            filter(ROUTER, any(&Router::default())),
        ],
        upgrade_configs: vec![upgrade],
        // As Istio has it: dots are resolved, slashes stay as they are.
        normalize_path: Some(BoolValue { value: true }),
        merge_slashes: false,
        path_with_escaped_slashes_action: PathWithEscapedSlashesAction::KeepUnchanged.into(),
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        generate_request_id: Some(BoolValue { value: false }),
        // A stream may be silent for as long as it is open.
        stream_idle_timeout: Some(Duration::default()),
        ..Default::default()
    }
}

/// The listener by which a proxy serves a route configuration: connections come to it at this address of the loopback
/// interface, on sockets that are accepted from for all listeners. It is called after the address.
pub fn proxy_listener(address: Ipv4Addr, route: &str) -> Resource {
    let name = address.to_string();
    let manager = any(&request_manager(route, route));
    let filter =
        Filter { name: MANAGER.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(manager)) };
    let socket = SocketAddress {
        address: name.clone(),
        // Each pod's own.
        port_specifier: Some(PortSpecifier::PortValue(0)),
        ..Default::default()
    };
    let listener = Listener {
        name: name.clone(),
        address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
        bind_to_port: Some(BoolValue { value: false }),
        filter_chains: vec![FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    };
    Resource::encode(ResourceType::Listener, name, &listener)
}
