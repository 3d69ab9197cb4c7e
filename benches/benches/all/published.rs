//! The published flatten: a record for every message, every string and every array of pointers, as the
//! other project stores the C structs that protobuf-c generates. A pointer is the 8-byte field that holds
//! the record's number; a scalar takes 8 bytes too (fields and their padding).
//!
//! A cluster of 10 localities with one endpoint each is 46 records.

use anyhow::Context as _;
use prost::Message as _;
use slotmesh_agent::config::Message;
use slotmesh_xds::envoy::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::ClusterDiscoveryType},
        core::v3::{Address, address, socket_address::PortSpecifier},
        endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
        listener::v3::{FilterChain, Listener, filter::ConfigType},
        route::v3::{
            RouteConfiguration, VirtualHost, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
    },
    extensions::filters::network::tcp_proxy::v3::{
        TcpProxy, tcp_proxy::ClusterSpecifier as TcpClusterSpecifier,
    },
};

use crate::{
    session::{Draft, Session},
    store::{Id, Store},
};

/// Writes a message's records and makes them current.
pub fn flush<S: Store>(session: &mut Session<S>, name: &str, message: &Message) -> anyhow::Result<()> {
    let mut writer = Writer(session.draft());
    let (kind, root) = match message {
        Message::Cluster(cluster) => (1, writer.cluster(cluster)?),
        Message::Endpoints(assignment) => (2, writer.assignment(assignment)?),
        Message::Route(config) => (3, writer.route_configuration(config)?),
        Message::Listener(listener) => (4, writer.listener(listener)?),
    };
    writer.0.make_current(kind, name, root)
}

struct Writer<'s, S>(Draft<'s, S>);

impl<S: Store> Writer<'_, S> {
    fn message<const N: usize>(&mut self, fields: [u64; N]) -> anyhow::Result<u64> {
        Ok(self.0.record(bytemuck::cast_slice(&fields), &[])?.into())
    }

    /// With its terminating zero.
    fn string(&mut self, text: &str) -> anyhow::Result<u64> {
        Ok(self.0.record(text.as_bytes(), &[0])?.into())
    }

    fn array<T>(
        &mut self,
        elements: &[T],
        mut write: impl FnMut(&mut Self, &T) -> anyhow::Result<u64>,
    ) -> anyhow::Result<u64> {
        let pointers = elements.iter().map(|element| write(self, element)).collect::<Result<Vec<_>, _>>()?;
        Ok(self.0.record(bytemuck::cast_slice(&pointers), &[])?.into())
    }

    fn root<const N: usize>(&mut self, fields: [u64; N]) -> anyhow::Result<Id> {
        self.0.record(bytemuck::cast_slice(&fields), &[])
    }

    fn address(&mut self, address: Option<&Address>) -> anyhow::Result<u64> {
        let Some(Address { address: Some(address::Address::SocketAddress(socket)) }) = address else {
            return Ok(0);
        };
        let ip: std::net::Ipv4Addr = socket.address.parse().context("an IPv4 address")?;
        let port = match socket.port_specifier {
            Some(PortSpecifier::PortValue(port)) => port,
            _ => 0,
        };
        self.message([socket.protocol as u64, u32::from_ne_bytes(ip.octets()).into(), port.into()])
    }

    fn cluster(&mut self, cluster: &Cluster) -> anyhow::Result<Id> {
        let name = self.string(&cluster.name)?;
        let timeout = cluster
            .connect_timeout
            .as_ref()
            .map_or(0, |d| d.seconds as u64 * 1000 + d.nanos as u64 / 1_000_000);
        let thresholds = cluster.circuit_breakers.as_ref().and_then(|breakers| breakers.thresholds.first());
        let breakers = match thresholds {
            Some(t) => {
                let number = |n: &Option<slotmesh_xds::envoy::google::protobuf::UInt32Value>| {
                    n.as_ref().map_or(0, |n| n.value.into())
                };
                self.message([
                    t.priority as u64,
                    number(&t.max_connections),
                    number(&t.max_pending_requests),
                    number(&t.max_requests),
                    number(&t.max_retries),
                ])?
            }
            None => 0,
        };
        let kind = match cluster.cluster_discovery_type {
            Some(ClusterDiscoveryType::Type(kind)) => kind as u64,
            _ => 0,
        };
        let assignment = match &cluster.load_assignment {
            Some(assignment) => self.assignment(assignment)?.into(),
            None => 0,
        };
        self.root([name, kind, timeout, cluster.lb_policy as u64, breakers, assignment])
    }

    fn assignment(&mut self, assignment: &ClusterLoadAssignment) -> anyhow::Result<Id> {
        let name = self.string(&assignment.cluster_name)?;
        let localities = self.array(&assignment.endpoints, |writer, locality| {
            let endpoints = writer.array(&locality.lb_endpoints, |writer, endpoint| {
                let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { return Ok(0) };
                let address = writer.address(host.address.as_ref())?;
                let weight = endpoint.load_balancing_weight.as_ref().map_or(1, |w| w.value);
                writer.message([address, endpoint.health_status as u64, weight.into()])
            })?;
            let weight = locality.load_balancing_weight.as_ref().map_or(0, |w| w.value);
            writer.message([
                endpoints,
                locality.lb_endpoints.len() as u64,
                locality.priority.into(),
                weight.into(),
            ])
        })?;
        self.root([name, localities, assignment.endpoints.len() as u64])
    }

    fn listener(&mut self, listener: &Listener) -> anyhow::Result<Id> {
        let name = self.string(&listener.name)?;
        let address = self.address(listener.address.as_ref())?;
        let chains = self.array(&listener.filter_chains, Self::chain)?;
        self.root([name, address, chains, listener.filter_chains.len() as u64])
    }

    fn chain(&mut self, chain: &FilterChain) -> anyhow::Result<u64> {
        let name = self.string(&chain.name)?;
        let condition = match &chain.filter_chain_match {
            Some(condition) => {
                let port = condition.destination_port.as_ref().map_or(0, |port| port.value);
                self.message([port.into(), 0, 0, 0])?
            }
            None => 0,
        };
        let filters = self.array(&chain.filters, |writer, filter| {
            let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { return Ok(0) };
            let proxy = TcpProxy::decode(any.value.as_slice())?;
            let prefix = writer.string(&proxy.stat_prefix)?;
            let cluster = match &proxy.cluster_specifier {
                Some(TcpClusterSpecifier::Cluster(cluster)) => writer.string(cluster)?,
                _ => 0,
            };
            let proxy = writer.message([prefix, cluster, 0, 0])?;
            let name = writer.string(&filter.name)?;
            writer.message([name, proxy])
        })?;
        self.message([name, condition, filters, chain.filters.len() as u64])
    }

    fn route_configuration(&mut self, config: &RouteConfiguration) -> anyhow::Result<Id> {
        let name = self.string(&config.name)?;
        let hosts = self.array(&config.virtual_hosts, Self::host)?;
        self.root([name, hosts, config.virtual_hosts.len() as u64])
    }

    fn host(&mut self, host: &VirtualHost) -> anyhow::Result<u64> {
        let name = self.string(&host.name)?;
        let domains = self.array(&host.domains, |writer, domain| writer.string(domain))?;
        let routes = self.array(&host.routes, |writer, route| {
            let name = writer.string(&route.name)?;
            let prefix = match route.r#match.as_ref().and_then(|m| m.path_specifier.as_ref()) {
                Some(PathSpecifier::Prefix(prefix)) => writer.string(prefix)?,
                _ => 0,
            };
            let condition = writer.message([prefix, 0, 0])?;
            let action = match &route.action {
                Some(Action::Route(action)) => match &action.cluster_specifier {
                    Some(ClusterSpecifier::WeightedClusters(weighted)) => {
                        let clusters = writer.array(&weighted.clusters, |writer, cluster| {
                            let name = writer.string(&cluster.name)?;
                            let weight = cluster.weight.as_ref().map_or(0, |w| w.value);
                            writer.message([name, weight.into()])
                        })?;
                        let weighted = writer.message([clusters, weighted.clusters.len() as u64])?;
                        writer.message([weighted, 0, 0])?
                    }
                    _ => 0,
                },
                _ => 0,
            };
            writer.message([name, condition, action])
        })?;
        self.message([name, domains, host.domains.len() as u64, routes, host.routes.len() as u64])
    }
}
