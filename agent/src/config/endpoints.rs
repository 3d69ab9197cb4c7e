//! `envoy.config.endpoint.v3.ClusterLoadAssignment`

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use slotmesh_records::EndpointIndex;
use slotmesh_xds::{
    EndpointHints,
    envoy::envoy::config::{
        core::v3::{HealthStatus, Metadata},
        endpoint::v3::{self as proto, cluster_load_assignment::Policy, lb_endpoint::HostIdentifier},
    },
};

use super::{At, Invalid, decode_any, invalid, refuse_set, socket_address, unsupported};

/// The endpoints that can be chosen, by family, in the order of the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints<'m> {
    /// IPv4, also where written in its IPv6-mapped form.
    pub v4: Vec<Endpoint>,
    /// IPv6.
    pub v6: Vec<Endpoint>,
    /// Where they are.
    pub localities: Vec<Locality<'m>>,
    /// For whom those of each locality are; empty where all are for all callers. Else these are the endpoints of all
    /// nodes until [`see_from`](Self::see_from) has chosen.
    pub hints: Vec<EndpointHints>,
    /// They are chosen by where this node is.
    pub viewed: bool,
    /// Where there are others farther away: whether some of those stand in for nearer ones that are left out.
    pub farther: Option<bool>,
}

/// One endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The TCP port.
    pub port: NonZeroU16,
    /// The number of its locality.
    pub locality: u16,
    /// The load balancing weight.
    pub weight: NonZeroU32,
    /// Taken only where there is no other one of its family.
    pub degraded: bool,
}

/// Where endpoints are. All are chosen from alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Locality<'m> {
    /// The region.
    pub region: &'m str,
    /// The zone within it.
    pub zone: &'m str,
    /// What is within the zone.
    pub sub_zone: &'m str,
    /// The priority, of which there is one, 0.
    pub priority: u32,
    /// The weight among localities; `None` where there is none.
    pub weight: Option<NonZeroU32>,
}

impl Locality<'_> {
    /// Whether it tells anything.
    pub fn is_anonymous(&self) -> bool {
        *self == Self::default()
    }
}

impl<'m> Endpoints<'m> {
    pub(super) fn from_proto(
        at: &At<'_>,
        assignment: &'m proto::ClusterLoadAssignment,
    ) -> Result<Self, Invalid> {
        let proto::ClusterLoadAssignment {
            endpoints: localities,
            named_endpoints,
            policy,
            // Whoever asks for it by its name has checked the name.
            cluster_name: _,
        } = assignment;
        refuse_set!(at, "endpoints by name; give their addresses": named_endpoints;);
        if let Some(policy) = policy {
            let Policy {
                drop_overloads,
                endpoint_stale_after,
                // About priorities; there is one.
                overprovisioning_factor: _,
                weighted_priority_health: _,
            } = policy;
            refuse_set!(at.field("policy"),
                "no connections are dropped": drop_overloads;
                "endpoints stay until they are removed": endpoint_stale_after;
            );
        }
        let count = localities.iter().map(|locality| locality.lb_endpoints.len()).sum();
        bound(at, localities.len(), usize::from(u16::MAX), "localities")?;
        bound(at, count, EndpointIndex::CAPACITY, "endpoints")?;
        let mut endpoints = Self {
            v4: Vec::with_capacity(count),
            v6: Vec::new(),
            localities: Vec::with_capacity(localities.len()),
            hints: Vec::new(),
            viewed: false,
            farther: None,
        };
        for (i, locality) in localities.iter().enumerate() {
            let at = at.element("endpoints", i);
            let proto::LocalityLbEndpoints {
                lb_endpoints,
                priority,
                lb_config,
                locality,
                load_balancing_weight,
                metadata,
                // Has effect by an lb_policy that a cluster is refused for.
                proximity: _,
            } = locality;
            if *priority != 0 {
                let what = format!("priority {priority}; all endpoints need priority 0");
                return Err(unsupported(at.field("priority"), what));
            }
            refuse_set!(at, "only lb_endpoints": lb_config;);
            let (region, zone, sub_zone) = locality
                .as_ref()
                .map_or(("", "", ""), |locality| (&locality.region, &locality.zone, &locality.sub_zone));
            // The weight has effect by what a cluster is refused for: locality_config_specifier.
            let weight = load_balancing_weight.as_ref().and_then(|weight| NonZeroU32::new(weight.value));
            endpoints.localities.push(Locality { region, zone, sub_zone, priority: *priority, weight });
            if let Some(hints) = hints(&at, metadata.as_ref())? {
                endpoints.hints.resize(i, EndpointHints::default());
                endpoints.hints.push(hints);
            }
            for (j, endpoint) in lb_endpoints.iter().enumerate() {
                let Some(endpoint) =
                    Endpoint::from_proto(&at.element("lb_endpoints", j), endpoint, i as u16)?
                else {
                    continue;
                };
                match endpoint.ip {
                    IpAddr::V4(_) => endpoints.v4.push(endpoint),
                    IpAddr::V6(_) => endpoints.v6.push(endpoint),
                }
            }
        }
        for family in [&mut endpoints.v4, &mut endpoints.v6] {
            // So programs find one by its address.
            let order = |endpoint: &Endpoint| (endpoint.ip, endpoint.port);
            if !family.is_sorted_by_key(order) {
                family.sort_by_key(order);
            }
        }
        if endpoints.hints.is_empty() {
            endpoints.leave_degraded();
        } else {
            endpoints.hints.resize(endpoints.localities.len(), EndpointHints::default());
            endpoints.viewed = true;
        }
        Ok(endpoints)
    }

    /// Degraded endpoints are for when there is no other of their family.
    fn leave_degraded(&mut self) {
        for family in [&mut self.v4, &mut self.v6] {
            if family.iter().any(|endpoint| !endpoint.degraded) {
                family.retain(|endpoint| !endpoint.degraded);
            }
        }
    }
}

/// For whom the endpoints of a locality are; `None` where they are for all. Other metadata is for subsets, for which a
/// cluster is refused.
fn hints(at: &At<'_>, metadata: Option<&Metadata>) -> Result<Option<EndpointHints>, Invalid> {
    let any = metadata.and_then(|metadata| metadata.typed_filter_metadata.get(EndpointHints::KEY));
    let Some(any) = any else { return Ok(None) };
    let at = at.field("metadata");
    if any.type_url != EndpointHints::TYPE_URL {
        return Err(unsupported(at, format!("{}; only {}", any.type_url, EndpointHints::TYPE_URL)));
    }
    let hints: EndpointHints = decode_any(&at, "EndpointHints", any)?;
    Ok(Some(hints).filter(|hints| *hints != EndpointHints::default()))
}

/// What the records can't hold is refused whole.
fn bound(at: &At<'_>, count: usize, most: usize, what: &str) -> Result<(), Invalid> {
    if count > most {
        return Err(unsupported(at.field("endpoints"), format!("{count} {what}; at most {most}")));
    }
    Ok(())
}

impl Endpoint {
    /// `None` where its health says that it isn't to be chosen.
    fn from_proto(at: &At<'_>, endpoint: &proto::LbEndpoint, locality: u16) -> Result<Option<Self>, Invalid> {
        let proto::LbEndpoint {
            health_status,
            load_balancing_weight,
            host_identifier,
            // Is for subsets and sockets by match, for which a cluster is refused.
            metadata: _,
        } = endpoint;
        let degraded = match HealthStatus::try_from(*health_status) {
            Ok(HealthStatus::Unknown | HealthStatus::Healthy) => false,
            Ok(HealthStatus::Degraded) => true,
            Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => return Ok(None),
            Err(_) => {
                return Err(unsupported(at.field("health_status"), format!("status {health_status}")));
            }
        };
        let Some(HostIdentifier::Endpoint(host)) = host_identifier else {
            return Err(unsupported(at, "an endpoint by name; give its address"));
        };
        let proto::Endpoint {
            address,
            additional_addresses,
            // There are no health checks.
            health_check_config: _,
            hostname: _,
            observability_name: _,
        } = host;
        let within = at.field("endpoint");
        refuse_set!(within, "give each address an endpoint of its own": additional_addresses;);
        // A datagram to an endpoint is one, whatever its address says: the listener's protocol counts.
        let (_, ip, port) = socket_address(&within.field("address"), address.as_ref())?;
        let weight = match load_balancing_weight {
            None => NonZeroU32::MIN,
            Some(weight) => NonZeroU32::new(weight.value)
                .ok_or_else(|| invalid(at.field("load_balancing_weight"), "0 is not a weight"))?,
        };
        Ok(Some(Self { ip: ip.to_canonical(), port, locality, weight, degraded }))
    }
}
