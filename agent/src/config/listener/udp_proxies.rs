//! `envoy.extensions.filters.udp.udp_proxy.v3.UdpProxyConfig`: where datagrams to a listener go.

use std::{borrow::Cow, num::NonZeroU32};

use slotmesh_xds::envoy::{
    envoy::{
        config::listener::v3 as proto,
        extensions::filters::udp::udp_proxy::v3::{Route as UdpRoute, UdpProxyConfig},
    },
    google::protobuf::Any,
    xds::r#type::matcher::v3::matcher::{OnMatch, on_match},
};

use super::{
    Action, Chain, UDP_PROXY,
    caller_classes::{Matched, matches_of},
};
use crate::config::{At, Invalid, WeightedCluster, decode_any, reference, refuse_set, unsupported};

const UDP_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.udp.udp_proxy.v3.Route";

/// What is said of the sockets of a proxy matters to nobody; QUIC isn't spoken.
pub(super) fn udp_config(config: Option<&proto::UdpListenerConfig>) -> Result<(), Invalid> {
    let Some(proto::UdpListenerConfig {
        downstream_socket_config: _,
        quic_options,
        udp_packet_packet_writer_config: _,
    }) = config
    else {
        return Ok(());
    };
    refuse_set!(At::ROOT.field("udp_listener_config"), "datagrams are sent on as they are": quic_options;);
    Ok(())
}

/// Where the UDP proxy among the listener filters leads, as filter chains would, which a listener of UDP doesn't need:
/// first the callers that it tells apart, then all others. None where there is no such filter.
pub(super) fn udp_filter(filters: &[proto::ListenerFilter]) -> Result<Vec<Chain<'static>>, Invalid> {
    use proto::listener_filter::ConfigType;
    let filter = match filters {
        [] => return Ok(Vec::new()),
        [filter] => filter,
        _ => {
            let what = format!("{} filters; one, UDP proxy, is supported", filters.len());
            return Err(unsupported("listener_filters", what));
        }
    };
    let at = At::ROOT.element("listener_filters", 0);
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) if any.type_url == UDP_PROXY => udp_proxy(&at, any),
        _ => Err(unsupported(at, format!("filter {:?}; only UDP proxy", filter.name))),
    }
}

/// The callers that a UDP proxy tells apart, then all others.
#[expect(deprecated, reason = "every field is decided on, whatever its age")]
pub(super) fn udp_proxy(at: &At<'_>, any: &Any) -> Result<Vec<Chain<'static>>, Invalid> {
    use slotmesh_xds::envoy::envoy::extensions::filters::udp::udp_proxy::v3::udp_proxy_config::{
        HashPolicy, RouteSpecifier, hash_policy::PolicySpecifier,
    };
    let UdpProxyConfig {
        route_specifier,
        hash_policies,
        use_per_packet_load_balancing,
        session_filters,
        tunneling_config,
        // Datagrams leave the workload with its own address anyway.
        use_original_src_ip: _,
        // Counting and logging.
        stat_prefix: _,
        access_log: _,
        proxy_access_log: _,
        access_log_options: _,
        // Of the sockets of a proxy, and how long it keeps them.
        idle_timeout: _,
        upstream_socket_config: _,
    } = decode_any(at, "UdpProxyConfig", any)?;
    let (use_per_packet_load_balancing, session_filters) = (&use_per_packet_load_balancing, &session_filters);
    let tunneling_config = &tunneling_config;
    refuse_set!(at,
        "a socket keeps its endpoint": use_per_packet_load_balancing;
        "datagrams are sent on as they are": session_filters, tunneling_config;
    );
    let by_source = match hash_policies.as_slice() {
        [] => false,
        [HashPolicy { policy_specifier: Some(PolicySpecifier::SourceIp(of_source)) }] => *of_source,
        _ => return Err(unsupported(at.field("hash_policies"), "only one, source_ip")),
    };
    let chain = |callers: Vec<String>, cluster: String| {
        let cluster = Cow::Owned(cluster);
        let action = match by_source {
            false => Action::Cluster(cluster),
            // That the source is hashed stands with the clusters of a set.
            true => Action::Clusters(vec![WeightedCluster { cluster, weight: NonZeroU32::MIN, by_source }]),
        };
        Chain { name: "", port: None, callers: callers.into_iter().map(Cow::Owned).collect(), action }
    };
    match route_specifier {
        Some(RouteSpecifier::Cluster(cluster)) => {
            reference(&at.field("cluster"), &cluster)?;
            Ok(vec![chain(Vec::new(), cluster)])
        }
        Some(RouteSpecifier::Matcher(matcher)) => {
            let at = at.field("matcher");
            let (matches, others) = matches_of(&at, &matcher)?;
            let mut chains = Vec::with_capacity(matches.len() + 1);
            for Matched { at, callers, on_match } in matches {
                chains.push(chain(callers, datagrams_to(&at.field("on_match"), on_match)?));
            }
            chains.push(chain(Vec::new(), datagrams_to(&at.field("on_no_match"), others)?));
            Ok(chains)
        }
        None => Err(unsupported(at.field("matcher"), "neither it nor cluster is set")),
    }
}

/// The cluster to which a match of a UDP proxy leads.
fn datagrams_to(at: &At<'_>, on_match: Option<&OnMatch>) -> Result<String, Invalid> {
    let any = match on_match {
        Some(OnMatch { keep_matching: false, on_match: Some(on_match::OnMatch::Action(action)) }) => {
            action.typed_config.as_ref()
        }
        _ => None,
    };
    let any = any.filter(|any| any.type_url == UDP_ROUTE);
    let any = any.ok_or_else(|| unsupported(at, "only an action that is a route of the UDP proxy"))?;
    let UdpRoute { cluster } = decode_any(at, "Route", any)?;
    reference(&at.field("cluster"), &cluster)?;
    Ok(cluster)
}
