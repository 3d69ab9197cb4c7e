//! The shares that follow from the records in force.

use std::net::SocketAddr;

use serde::Serialize;
use slotmesh_admin::{
    ActionInForce, AssignmentInForce, ChainInForce, ClusterInForce, ConnectionsInForce, HostInForce,
    ListenerInForce, MembersInForce, RateInForce, RouteInForce, WeightedInForce,
};

use super::source::{InForceSource, record};
use crate::in_force::place;

/// The way of a connection through the records.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    pub listener: String,
    pub listener_version: String,
    pub chain: Option<String>,
    pub route: Option<String>,
    pub virtual_host: Option<String>,
    /// Address at which the proxy of the caller takes the connections, where it has one.
    pub proxy: Option<String>,
    pub clusters: Vec<ExpectedCluster>,
    /// Content hashes of listener and route.
    #[serde(skip)]
    pub versions: Vec<HeldVersion>,
}

/// A cluster that connections go to.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedCluster {
    pub name: String,
    /// Weight among the clusters.
    pub weight: u32,
    /// Share of the connections, at most 1.
    pub share: f64,
    /// How it chooses an endpoint, in words.
    pub balance: String,
    pub in_force: bool,
    /// The most connections from this node at a time.
    pub max_connections: Option<u32>,
    pub new_connections: Option<RateInForce>,
    /// What runs of it.
    pub connections: Option<ConnectionsInForce>,
    /// True where its endpoints were chosen by where the node is.
    pub chosen_for_this_node: bool,
    /// Its load assignment, if that is a resource of its own.
    pub assignment: Option<String>,
    pub endpoints: Vec<ExpectedEndpoint>,
    /// Content hashes of what was read, by type and name.
    #[serde(skip)]
    pub versions: Vec<HeldVersion>,
}

/// Type and name of a resource, and the content hash that was found.
pub type HeldVersion = (&'static str, String, String);

/// An endpoint, of the family of the address.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpectedEndpoint {
    pub address: String,
    pub weight: u32,
    /// Share of all connections, at most 1.
    pub share: f64,
    pub locality: Option<String>,
    /// Set where it is left out, because connects to it failed.
    pub left_out_seconds: Option<u64>,
}

/// Follows the records from a listener on; `None` where it has gone meanwhile.
///
/// # Errors
/// Where the agent doesn't answer.
pub fn expected(
    agent: &dyn InForceSource,
    listener: &str,
    class: Option<&str>,
    namespace: &str,
    to: SocketAddr,
) -> anyhow::Result<Option<Expected>> {
    let Some(listener) = record::<ListenerInForce>(agent, "listener", listener)? else { return Ok(None) };
    let Some(chain) = chain(&listener.chains, class, namespace, to.port()) else {
        return Ok(None);
    };
    let ActionInForce { cluster, route, clusters, virtual_hosts, proxy } = &chain.to;
    let (mut hosts, mut proxy) = (virtual_hosts.clone(), proxy.clone());
    let mut versions = vec![("listener", listener.name.clone(), listener.version.clone())];
    if let Some(route) = route
        && let Some(route) = record::<RouteInForce>(agent, "route", route)?
    {
        (hosts, proxy) = (route.virtual_hosts, route.proxy);
        versions.push(("route", route.name, route.version));
    }
    let host = host(&hosts, to);
    let weighted: Vec<WeightedInForce> = match (cluster, host) {
        (Some(cluster), _) => vec![WeightedInForce { cluster: cluster.clone(), weight: 1 }],
        (None, Some(host)) => host.routes.first().map(|rule| rule.clusters.clone()).unwrap_or_default(),
        (None, None) => clusters.clone(),
    };
    let sum: f64 = weighted.iter().map(|one| f64::from(one.weight)).sum();
    let mut found = Vec::with_capacity(weighted.len());
    for WeightedInForce { cluster, weight } in weighted {
        let share = if sum > 0.0 { f64::from(weight) / sum } else { 0.0 };
        found.push(self::cluster(agent, cluster, weight, share, to)?);
    }
    Ok(Some(Expected {
        listener: listener.name,
        listener_version: listener.version,
        chain: chain.name.clone(),
        route: route.clone(),
        virtual_host: host.map(|host| host.name.clone()),
        proxy,
        clusters: found,
        versions,
    }))
}

/// The chain that is for a caller: by its class, else by its namespace, else by the port, else that for all.
fn chain<'c>(
    chains: &'c [ChainInForce],
    class: Option<&str>,
    namespace: &str,
    port: u16,
) -> Option<&'c ChainInForce> {
    let of = |caller: &str| chains.iter().find(|chain| chain.callers.iter().any(|one| one == caller));
    let of_port = || chains.iter().find(|chain| chain.port == Some(port));
    let of_all = || chains.iter().find(|chain| chain.port.is_none() && chain.callers.is_empty());
    class.and_then(of).or_else(|| of(namespace)).or_else(of_port).or_else(of_all)
}

/// The virtual host of an address: that of address and port before that of the address, and that for all.
fn host(hosts: &[HostInForce], to: SocketAddr) -> Option<&HostInForce> {
    let ip = to.ip().to_canonical();
    let with_port = SocketAddr::new(ip, to.port()).to_string();
    let without = with_port.rsplit_once(':').map_or("", |(ip, _)| ip).to_owned();
    let domains = [with_port, without, ip.to_string(), "*".to_owned()];
    domains.iter().find_map(|domain| hosts.iter().find(|host| host.domains.contains(domain)))
}

fn cluster(
    agent: &dyn InForceSource,
    name: String,
    weight: u32,
    share: f64,
    to: SocketAddr,
) -> anyhow::Result<ExpectedCluster> {
    let found = record::<ClusterInForce>(agent, "cluster", &name)?;
    let Some(found) = found else {
        return Ok(ExpectedCluster {
            name,
            weight,
            share,
            balance: "-".to_owned(),
            ..ExpectedCluster::default()
        });
    };
    let mut versions = vec![("cluster", name.clone(), found.version.clone())];
    let members = match (&found.assignment, found.endpoints) {
        (Some(assignment), _) => record::<AssignmentInForce>(agent, "endpoints", assignment)?.map(|found| {
            versions.push(("endpoints", found.name, found.version));
            found.members
        }),
        (None, inline) => inline,
    };
    let is_out = |address: &str| {
        let out = found.ejected.iter().find(|out| out.address == address);
        out.map(|out| out.seconds)
    };
    let of = |members: &MembersInForce| endpoints(members, share, to, is_out);
    Ok(ExpectedCluster {
        name,
        weight,
        share,
        balance: found.balance,
        in_force: members.is_some(),
        max_connections: found.max_connections,
        new_connections: found.new_connections,
        connections: found.connections,
        chosen_for_this_node: members.as_ref().is_some_and(|members| members.chosen_for_this_node),
        assignment: found.assignment,
        endpoints: members.as_ref().map(of).unwrap_or_default(),
        versions,
    })
}

fn endpoints(
    members: &MembersInForce,
    share: f64,
    to: SocketAddr,
    is_out: impl Fn(&str) -> Option<u64>,
) -> Vec<ExpectedEndpoint> {
    let v4 = to.ip().to_canonical().is_ipv4();
    let of_family: Vec<_> =
        members.endpoints.iter().filter(|endpoint| endpoint.address.starts_with('[') != v4).collect();
    let sum: f64 = of_family.iter().map(|endpoint| f64::from(endpoint.weight)).sum();
    of_family
        .into_iter()
        .map(|endpoint| ExpectedEndpoint {
            address: endpoint.address.clone(),
            weight: endpoint.weight,
            share: share * f64::from(endpoint.weight) / sum,
            locality: members.localities.get(endpoint.locality).map(place).filter(|place| !place.is_empty()),
            left_out_seconds: is_out(&endpoint.address),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_chain_is_the_callers() {
        let named = |name: &str, port, callers: &[&str]| ChainInForce {
            name: Some(name.to_owned()),
            port,
            callers: callers.iter().map(|&caller| caller.to_owned()).collect(),
            to: ActionInForce::default(),
        };
        let chains = [
            named("class", None, &["shop#1", "shop#2"]),
            named("namespace", None, &["shop"]),
            named("port", Some(81), &[]),
            named("all", None, &[]),
        ];
        let of =
            |class, namespace, port| chain(&chains, class, namespace, port).unwrap().name.clone().unwrap();
        assert_eq!(of(Some("shop#2"), "shop", 80), "class");
        assert_eq!(of(Some("shop#3"), "shop", 80), "namespace");
        assert_eq!(of(None, "other", 81), "port");
        assert_eq!(of(None, "other", 80), "all");
    }

    #[test]
    fn an_address_with_its_port_goes_before_the_address() {
        let named = |name: &str, domain: &str| HostInForce {
            name: name.to_owned(),
            domains: vec![domain.to_owned()],
            routes: Vec::new(),
        };
        let hosts = [
            named("all", "*"),
            named("ip", "10.0.0.1"),
            named("both", "10.0.0.1:80"),
            named("six", "[fd00::1]"),
        ];
        let of = |to: &str| host(&hosts, to.parse().unwrap()).unwrap().name.as_str();
        assert_eq!(of("10.0.0.1:80"), "both");
        assert_eq!(of("[::ffff:10.0.0.1]:81"), "ip");
        assert_eq!(of("[fd00::1]:80"), "six");
        assert_eq!(of("10.0.0.2:80"), "all");
        assert!(host(&hosts[1..], "10.0.0.2:80".parse().unwrap()).is_none());
    }
}
