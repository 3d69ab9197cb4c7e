//! `envoy.config.endpoint.v3.ClusterLoadAssignment`

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use slotmesh_xds::{
    ResourceName,
    envoy::envoy::config::{
        core::v3::HealthStatus,
        endpoint::v3::{self as proto, cluster_load_assignment::Policy, lb_endpoint::HostIdentifier},
    },
};

use super::{Invalid, invalid, named, refuse_set, socket_address, unsupported};

/// The endpoints that can be chosen, by family, in the order of the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// IPv4, also where written in its IPv6-mapped form.
    pub v4: Vec<Endpoint>,
    /// IPv6.
    pub v6: Vec<Endpoint>,
}

/// One endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The TCP port.
    pub port: NonZeroU16,
    /// The load balancing weight.
    pub weight: NonZeroU32,
}

impl Endpoints {
    pub(super) fn from_proto(
        resource: &ResourceName,
        assignment: proto::ClusterLoadAssignment,
    ) -> Result<Self, Invalid> {
        let proto::ClusterLoadAssignment { cluster_name, endpoints: localities, named_endpoints, policy } =
            &assignment;
        named("cluster_name", resource, cluster_name)?;
        refuse_set!("", "endpoints by name; give their addresses": named_endpoints;);
        if let Some(policy) = policy {
            let Policy {
                drop_overloads,
                endpoint_stale_after,
                // About priorities; there is one.
                overprovisioning_factor: _,
                weighted_priority_health: _,
            } = policy;
            refuse_set!("policy",
                "no connections are dropped": drop_overloads;
                "endpoints stay until they are removed": endpoint_stale_after;
            );
        }
        let mut endpoints = Self::default();
        for (i, locality) in localities.iter().enumerate() {
            let field = format!("endpoints[{i}]");
            let proto::LocalityLbEndpoints {
                lb_endpoints,
                priority,
                lb_config,
                locality: _,
                metadata: _,
                // Have effect by what a cluster is refused for: locality_config_specifier, lb_policy.
                load_balancing_weight: _,
                proximity: _,
            } = locality;
            if *priority != 0 {
                return Err(unsupported(
                    format!("{field}.priority"),
                    format!("priority {priority}; all endpoints need priority 0"),
                ));
            }
            refuse_set!(&field, "only lb_endpoints": lb_config;);
            for (j, endpoint) in lb_endpoints.iter().enumerate() {
                let field = format!("{field}.lb_endpoints[{j}]");
                let Some(endpoint) = Endpoint::from_proto(&field, endpoint)? else { continue };
                match endpoint.ip {
                    IpAddr::V4(_) => endpoints.v4.push(endpoint),
                    IpAddr::V6(_) => endpoints.v6.push(endpoint),
                }
            }
        }
        Ok(endpoints)
    }
}

impl Endpoint {
    /// `None` where its health says that it isn't to be chosen.
    fn from_proto(field: &str, endpoint: &proto::LbEndpoint) -> Result<Option<Self>, Invalid> {
        let proto::LbEndpoint {
            health_status,
            load_balancing_weight,
            host_identifier,
            // Is for subsets and sockets by match, for which a cluster is refused.
            metadata: _,
        } = endpoint;
        match HealthStatus::try_from(*health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => {}
            Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => return Ok(None),
            Err(_) => {
                return Err(unsupported(format!("{field}.health_status"), format!("status {health_status}")));
            }
        }
        let Some(HostIdentifier::Endpoint(host)) = host_identifier else {
            return Err(unsupported(field, "an endpoint by name; give its address"));
        };
        let proto::Endpoint {
            address,
            additional_addresses,
            // There are no health checks.
            health_check_config: _,
            hostname: _,
            observability_name: _,
        } = host;
        let within = format!("{field}.endpoint");
        refuse_set!(&within, "give each address an endpoint of its own": additional_addresses;);
        let (ip, port) = socket_address(&format!("{within}.address"), address.as_ref())?;
        let weight = match load_balancing_weight {
            None => NonZeroU32::MIN,
            Some(weight) => NonZeroU32::new(weight.value)
                .ok_or_else(|| invalid(format!("{field}.load_balancing_weight"), "0 is not a weight"))?,
        };
        Ok(Some(Self { ip: ip.to_canonical(), port, weight }))
    }
}
