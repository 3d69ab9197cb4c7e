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
    Invalid, Route, WeightedCluster, decode_any, invalid, route::tcp_clusters, socket_address, unsupported,
};

const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const HTTP_CONNECTION_MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";

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
    pub(super) fn from_proto(listener: &proto::Listener) -> Result<Self, Invalid> {
        let mut vips = BTreeSet::new();
        let additional = listener.additional_addresses.iter().enumerate().map(|(i, additional)| {
            (format!("additional_addresses[{i}].address"), additional.address.as_ref())
        });
        for (field, address) in
            std::iter::once(("address".to_owned(), listener.address.as_ref())).chain(additional)
        {
            let (ip, port) = socket_address(&field, address)?;
            if ip.is_unspecified() {
                return Err(unsupported(field, "a listener on all addresses; name the virtual addresses"));
            }
            let canonical: IpAddr = ip.to_canonical();
            vips.insert(SocketAddr::new(canonical, port.get()));
        }
        let (field, chain) = match (listener.filter_chains.as_slice(), &listener.default_filter_chain) {
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
        if chain.filter_chain_match.as_ref().is_some_and(|m| *m != proto::FilterChainMatch::default()) {
            return Err(unsupported(format!("{field}.filter_chain_match"), "only a chain that matches all"));
        }
        Ok(Self { vips: vips.into_iter().collect(), action: action(field, &chain.filters)? })
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
            Ok(Action::Clusters(tcp_clusters(&field, proxy.cluster_specifier.as_ref())?))
        }
        HTTP_CONNECTION_MANAGER => {
            let manager: HttpConnectionManager = decode_any(&field, "HttpConnectionManager", any)?;
            match manager.route_specifier {
                Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
                    Ok(Action::Route(rds.route_config_name.into()))
                }
                Some(RouteSpecifier::RouteConfig(config)) => {
                    Ok(Action::Clusters(Route::from_proto(&config)?.clusters))
                }
                _ => Err(unsupported(field, "only rds with a name, and route_config")),
            }
        }
        other => Err(unsupported(field, format!("filter {other}"))),
    }
}
