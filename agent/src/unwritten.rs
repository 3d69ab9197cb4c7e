//! Resources as the records would hold them, of who has no kernel: the same JSON as [`show`](crate::show) makes of records.
//!
//! ```text
//!  bytes of a resource -> config (as the agent reads it) -> JSON        for a node: the endpoints that callers on it have
//! ```

use std::net::SocketAddr;

use serde_json::{Value, json};
use slotmesh_admin::NodeInForce;
use slotmesh_records::proxy_address;
use slotmesh_xds::Resource;

use crate::{
    config::{
        Action, Cluster, Endpoints, Invalid, Listener, Message, Model, NodePlace, Route, Source,
        WeightedCluster,
    },
    flatten::balance_of,
    show::{balance_in_words, rate_in_words},
    view::View,
};

/// A resource as a node would have it in force: with the endpoints that callers on this node have; of all nodes' callers
/// where none is named.
///
/// # Errors
/// Names the field for which an agent would refuse it.
pub fn in_force_as_compiled(resource: &Resource, node: Option<&NodeInForce>) -> Result<Value, Invalid> {
    let message = Message::decode(resource)?;
    let mut shown = match Model::new(resource.name.as_str(), &message)? {
        Model::Cluster(cluster) => of_cluster(&cluster, node),
        Model::Endpoints(endpoints) => of_endpoints(endpoints, node),
        Model::Route(route) => of_route(&route),
        Model::Listener(listener) => of_listener(&listener),
    };
    shown["name"] = resource.name.as_str().into();
    shown["version"] = resource.version.to_string().into();
    Ok(shown)
}

fn of_cluster(cluster: &Cluster<'_>, node: Option<&NodeInForce>) -> Value {
    let rate =
        cluster.rate.map(|rate| rate_in_words(rate.per_second.get(), rate.burst.get(), rate.per_caller));
    let (assignment, endpoints) = match &cluster.source {
        Source::Assignment(name) => (Some(*name), None),
        Source::Inline(endpoints) => (None, Some(of_endpoints(endpoints.clone(), node))),
        Source::Original => (None, None),
    };
    json!({
        "balance": balance_in_words(balance_of(cluster)),
        "connectTimeoutMs": cluster.connect_timeout_ms,
        "maxConnections": cluster.limits.connections,
        "maxPendingRequests": cluster.limits.pending_requests,
        "maxRequests": cluster.limits.requests,
        "maxRetries": cluster.limits.retries,
        "newConnections": rate,
        "affinitySeconds": cluster.affinity,
        "assignment": assignment,
        "endpoints": endpoints,
    })
}

fn of_endpoints(mut endpoints: Endpoints<'_>, node: Option<&NodeInForce>) -> Value {
    if let Some(NodeInForce { name, region, zone, sub_zone }) = node {
        let place = NodePlace { region: region.clone(), zone: zone.clone(), sub_zone: sub_zone.clone() };
        // Nobody is left out where no connection is made.
        endpoints.see_from("", &View { node: name.clone(), place, ..View::default() });
    }
    let all = endpoints.v4.iter().chain(&endpoints.v6).map(|endpoint| {
        json!({
            "address": SocketAddr::new(endpoint.ip, endpoint.port.get()).to_string(),
            "weight": endpoint.weight,
            "locality": endpoint.locality,
        })
    });
    let localities = endpoints.localities.iter().map(
        |locality| json!({ "region": locality.region, "zone": locality.zone, "subZone": locality.sub_zone }),
    );
    json!({
        "endpoints": all.collect::<Vec<_>>(),
        "localities": localities.collect::<Vec<_>>(),
        "chosenForThisNode": endpoints.viewed,
    })
}

fn of_listener(listener: &Listener<'_>) -> Value {
    let addresses = listener.vips.iter().map(|vip| match listener.protocol {
        slotmesh_xds::Transport::Tcp => vip.to_string(),
        slotmesh_xds::Transport::Udp => format!("{vip}/UDP"),
    });
    let chains = listener.chains.iter().map(|chain| {
        let name = Some(chain.name).filter(|name| !name.is_empty());
        json!({ "name": name, "port": chain.port, "callers": chain.callers, "to": of_action(&chain.action) })
    });
    json!({ "addresses": addresses.collect::<Vec<_>>(), "chains": chains.collect::<Vec<_>>() })
}

fn of_action(action: &Action<'_>) -> Value {
    match action {
        Action::Cluster(cluster) => json!({ "cluster": cluster }),
        Action::Clusters(clusters) => json!({ "clusters": weighted(clusters) }),
        Action::Route(route) => json!({ "route": route }),
        Action::Inline(route) => of_route(route),
    }
}

fn weighted(clusters: &[WeightedCluster<'_>]) -> Vec<Value> {
    clusters.iter().map(|one| json!({ "cluster": one.cluster, "weight": one.weight })).collect()
}

fn of_route(route: &Route<'_>) -> Value {
    let hosts = route.hosts.iter().map(|host| {
        let of_host = host.routes.start as usize..host.routes.end as usize;
        let routes = route.routes.get(of_host).unwrap_or_default().iter().map(|entry| {
            let of_entry = entry.clusters.start as usize..entry.clusters.end as usize;
            let clusters = route.clusters.get(of_entry).unwrap_or_default();
            json!({ "name": entry.name, "clusters": weighted(clusters) })
        });
        json!({ "name": host.name, "domains": host.domains, "routes": routes.collect::<Vec<_>>() })
    });
    let mut shown = json!({ "virtualHosts": hosts.collect::<Vec<_>>() });
    if route.by_request {
        // The agent that has it in force gives it an address.
        let at = std::net::Ipv4Addr::from_bits(u32::from_be(proxy_address(route.proxy)[3]));
        shown["proxy"] = at.to_string().into();
    }
    shown
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::{
        ResourceType,
        envoy::envoy::config::{
            core::v3::{Address, Locality, SocketAddress, address, socket_address::PortSpecifier},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
            },
        },
    };

    use super::*;

    #[test]
    fn an_assignment_is_shown_as_its_records_are() {
        let address = Address {
            address: Some(address::Address::SocketAddress(SocketAddress {
                address: "10.1.1.1".to_owned(),
                port_specifier: Some(PortSpecifier::PortValue(8080)),
                ..SocketAddress::default()
            })),
        };
        let endpoint = LbEndpoint {
            host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
                address: Some(address),
                ..Endpoint::default()
            })),
            ..LbEndpoint::default()
        };
        let locality = Locality { zone: "a".to_owned(), ..Locality::default() };
        let message = ClusterLoadAssignment {
            cluster_name: "web".to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                locality: Some(locality),
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        };
        let resource = Resource::encode(ResourceType::Endpoints, "web", &message);
        let shown = in_force_as_compiled(&resource, None).unwrap();
        let expected: slotmesh_admin::AssignmentInForce = serde_json::from_value(shown).unwrap();
        assert_eq!(expected.members.endpoints[0].address, "10.1.1.1:8080");
        assert_eq!((expected.members.localities[0].zone.as_str(), expected.name.as_str()), ("a", "web"));
        let other = Resource::encode(ResourceType::Endpoints, "other", &message);
        assert!(in_force_as_compiled(&other, None).is_err(), "an agent would refuse it, too");
    }
}
