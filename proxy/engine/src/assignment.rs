//! Load assignments, validated: endpoints by priority and health, with the shares of each level.
//!
//! Immutable, shared by all workers.

use std::net::SocketAddr;

use slotmesh_routing::InvalidField;
use slotmesh_xds::envoy::envoy::config::{
    core::v3::HealthStatus,
    endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
};

use crate::{
    hashing::EndpointTable,
    upstream::{EndpointChoice, refuse_set, socket_address, wrong},
};

/// An endpoint that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub address: SocketAddr,
    pub weight: u32,
}

/// Endpoints among which one is chosen: those of a priority that are of the same health.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Level {
    pub endpoints: Vec<Endpoint>,
    /// Sums of the weights up to each endpoint; empty where all are equal.
    pub sums: Vec<u64>,
    /// Of 100 requests, those that this level and the ones before it get.
    pub share_up_to: u32,
    /// For clusters that choose by hash.
    pub table: Option<EndpointTable>,
}

/// The endpoints of a cluster that may be chosen, by level.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct EndpointSet {
    pub levels: Vec<Level>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    endpoint: Endpoint,
    priority: u32,
    health: Health,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Healthy,
    Degraded,
    /// Not chosen; it counts for how healthy its priority is.
    Unhealthy,
}

impl EndpointSet {
    pub(crate) fn new(assignment: &ClusterLoadAssignment) -> Result<Self, InvalidField> {
        Self::at("", assignment)
    }

    pub(crate) fn at(at: &str, assignment: &ClusterLoadAssignment) -> Result<Self, InvalidField> {
        let mut candidates = Vec::new();
        for (index, locality) in assignment.endpoints.iter().enumerate() {
            let at = format!("{at}endpoints[{index}].");
            let LocalityLbEndpoints { lb_endpoints, priority, lb_config, .. } = locality;
            refuse_set!(at, "not supported": lb_config;);
            for (index, endpoint) in lb_endpoints.iter().enumerate() {
                let at = format!("{at}lb_endpoints[{index}].");
                candidates.push(Candidate::new(&at, *priority, endpoint)?);
            }
        }
        Ok(Self { levels: levels(&candidates) })
    }

    /// The same endpoints with tables, if this way of choosing needs them.
    pub(crate) fn with_tables(mut self, choice: EndpointChoice) -> Self {
        if let EndpointChoice::Hash(kind) = choice {
            for level in &mut self.levels {
                level.table = EndpointTable::build(kind, &level.endpoints);
            }
        }
        self
    }

    /// True for an endpoint that may be chosen.
    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        self.levels.iter().any(|level| level.endpoints.iter().any(|endpoint| endpoint.address == address))
    }
}

/// The healthy of each priority, then the degraded of each. A level is fully available while at least 72 % of its
/// priority are (Envoy's overprovisioning factor of 1.4); what it isn't goes to the next.
fn levels(candidates: &[Candidate]) -> Vec<Level> {
    let mut priorities: Vec<u32> = candidates.iter().map(|of| of.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut available = Vec::new();
    for health in [Health::Healthy, Health::Degraded] {
        for priority in &priorities {
            let of = || candidates.iter().filter(|of| of.priority == *priority);
            let endpoints: Vec<Endpoint> =
                of().filter(|of| of.health == health).map(|of| of.endpoint).collect();
            if !endpoints.is_empty() {
                let percent = (endpoints.len() * 140 / of().count()).min(100);
                available.push((endpoints, u32::try_from(percent).unwrap_or(100)));
            }
        }
    }
    let total: u32 = available.iter().map(|(_, percent)| *percent).sum();
    let mut levels = Vec::with_capacity(available.len());
    let mut up_to = 0;
    for (endpoints, percent) in available {
        let percent = if total < 100 { percent * 100 / total.max(1) } else { percent };
        up_to = (up_to + percent).min(100);
        levels.push(Level::new(endpoints, up_to));
    }
    // Rounding loses a part.
    if let Some(last) = levels.last_mut() {
        last.share_up_to = 100;
    }
    levels
}

impl Level {
    fn new(endpoints: Vec<Endpoint>, share_up_to: u32) -> Self {
        let equal = endpoints.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let sums = if equal {
            Vec::new()
        } else {
            let mut sum = 0;
            endpoints
                .iter()
                .map(|endpoint| {
                    sum += u64::from(endpoint.weight);
                    sum
                })
                .collect()
        };
        Self { endpoints, sums, share_up_to, table: None }
    }
}

impl Candidate {
    fn new(at: &str, priority: u32, endpoint: &LbEndpoint) -> Result<Self, InvalidField> {
        let LbEndpoint { health_status, metadata: _, load_balancing_weight, host_identifier } = endpoint;
        let Some(HostIdentifier::Endpoint(endpoint)) = host_identifier else {
            return Err(wrong(format!("{at}endpoint"), "there is none"));
        };
        let additional_addresses = &endpoint.additional_addresses;
        refuse_set!(format!("{at}endpoint."), "not supported": additional_addresses;);
        let address = socket_address(&format!("{at}endpoint.address"), endpoint.address.as_ref())?;
        let weight = load_balancing_weight.map_or(1, |weight| weight.value);
        if weight == 0 {
            return Err(wrong(format!("{at}load_balancing_weight"), "it is 0"));
        }
        let health = match HealthStatus::try_from(*health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
            Ok(HealthStatus::Degraded) => Health::Degraded,
            Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => Health::Unhealthy,
            Err(_) => return Err(wrong(format!("{at}health_status"), "there is no such status")),
        };
        Ok(Self { endpoint: Endpoint { address, weight }, priority, health })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use slotmesh_xds::envoy::{
        envoy::config::{
            core::v3::{self as core, address::Address, socket_address::PortSpecifier},
            endpoint::v3 as endpoint,
        },
        google::protobuf::UInt32Value,
    };

    use super::*;

    /// A load assignment of endpoints with port, priority, weight and health.
    pub(crate) fn assignment(endpoints: &[(u16, u32, u32, HealthStatus)]) -> ClusterLoadAssignment {
        ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: endpoints
                .iter()
                .map(|&(port, priority, weight, health)| LocalityLbEndpoints {
                    priority,
                    lb_endpoints: vec![LbEndpoint {
                        health_status: health.into(),
                        load_balancing_weight: Some(UInt32Value { value: weight }),
                        host_identifier: Some(HostIdentifier::Endpoint(endpoint::Endpoint {
                            address: Some(core::Address {
                                address: Some(Address::SocketAddress(core::SocketAddress {
                                    address: "10.0.0.1".into(),
                                    port_specifier: Some(PortSpecifier::PortValue(port.into())),
                                    ..Default::default()
                                })),
                            }),
                            ..Default::default()
                        })),
                        ..Default::default()
                    }],
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    const UP: HealthStatus = HealthStatus::Healthy;
    const DOWN: HealthStatus = HealthStatus::Unhealthy;

    fn levels(endpoints: &[(u16, u32, u32, HealthStatus)]) -> Vec<(usize, u32)> {
        let set = EndpointSet::new(&assignment(endpoints)).unwrap();
        set.levels.iter().map(|level| (level.endpoints.len(), level.share_up_to)).collect()
    }

    #[test]
    fn a_lower_priority_gets_what_a_higher_one_cannot_take() {
        assert_eq!(levels(&[(1, 0, 1, UP), (2, 1, 1, UP)]), [(1, 100), (1, 100)]);
        assert_eq!(levels(&[(1, 0, 1, UP), (2, 0, 1, DOWN), (3, 1, 1, UP)]), [(1, 70), (1, 100)]);
        assert_eq!(levels(&[(1, 0, 1, DOWN), (3, 1, 1, UP)]), [(1, 100)]);
        // Together they could take less than all: they share it.
        assert_eq!(levels(&[(1, 0, 1, UP), (2, 0, 1, DOWN), (3, 0, 1, DOWN)]), [(1, 100)]);
        assert_eq!(levels(&[(1, 0, 1, HealthStatus::Degraded), (2, 0, 1, UP)]), [(1, 70), (1, 100)]);
        assert_eq!(levels(&[(1, 0, 1, DOWN)]), []);
    }
}
