//! `envoy.config.endpoint.v3.ClusterLoadAssignment`

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use slotmesh_xds::envoy::envoy::config::{
    core::v3::HealthStatus,
    endpoint::v3::{self as proto, lb_endpoint::HostIdentifier},
};

use super::{Invalid, invalid, socket_address, unsupported};

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
    pub(super) fn from_proto(assignment: proto::ClusterLoadAssignment) -> Result<Self, Invalid> {
        let mut endpoints = Self::default();
        for (i, locality) in assignment.endpoints.into_iter().enumerate() {
            if locality.priority != 0 {
                return Err(unsupported(
                    format!("endpoints[{i}].priority"),
                    format!("priority {}; all endpoints need priority 0", locality.priority),
                ));
            }
            for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
                let field = format!("endpoints[{i}].lb_endpoints[{j}]");
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
        let healthy = [HealthStatus::Unknown, HealthStatus::Healthy, HealthStatus::Degraded];
        if !healthy.iter().any(|&status| status as i32 == endpoint.health_status) {
            return Ok(None);
        }
        let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
            return Err(unsupported(field, "an endpoint by name; give its address"));
        };
        let (ip, port) = socket_address(&format!("{field}.endpoint.address"), host.address.as_ref())?;
        let weight = match endpoint.load_balancing_weight {
            None => NonZeroU32::MIN,
            Some(weight) => NonZeroU32::new(weight.value)
                .ok_or_else(|| invalid(format!("{field}.load_balancing_weight"), "0 is not a weight"))?,
        };
        Ok(Some(Self { ip: ip.to_canonical(), port, weight }))
    }
}
