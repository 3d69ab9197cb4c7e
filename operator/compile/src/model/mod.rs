//! The part of each object that acts, validated.
//!
//! Invariant: a model that exists can be compiled; whatever is wrong with an object was reported
//! when it was read. References to other objects are only resolved to names here.

mod callers;
mod candidate;
mod destination_rule;
mod ejection;
mod endpoint_slice;
mod gateway;
mod gateway_requests;
mod istio_requests;
mod json_fields;
mod locality;
mod namespace;
mod node;
mod pod;
mod routes;
mod service;
mod service_entry;
mod service_ranges;
mod sidecar;
mod slot_profile;
mod traffic;
mod traffic_policy;
mod treatment;
mod virtual_service;
mod workload;

pub(crate) use callers::{Caller, Class, Export, Labels};
pub use candidate::{ANNOTATIONS, LeftAlone, MESH, is_sidecar};
pub(crate) use candidate::{Absence, Candidate, DISABLED, ENABLED, mesh_value, mesh_values};
pub(crate) use destination_rule::{DestinationRule, Subset};
pub(crate) use ejection::Outliers;
pub(crate) use endpoint_slice::{Endpoint, EndpointSlice, Hints, SlicePort};
pub(crate) use gateway::ReferenceGrant;
pub(crate) use istio_requests::default_retries;
pub(crate) use locality::{Localities, Locality, Place};
pub(crate) use namespace::Namespace;
pub(crate) use node::Node;
pub(crate) use pod::Pod;
pub(crate) use routes::{
    Connection, Destination, Forwarding, From, Host, Match, Route, RouteKind, Routes, WeightedBackend,
    WildHost,
};
pub(crate) use service::{Protocol, Service, ServicePort, TargetPort};
pub(crate) use service_entry::ServiceEntry;
pub(crate) use service_ranges::ServiceRanges;
pub(crate) use sidecar::Sidecar;
pub(crate) use slot_profile::SlotProfile;
pub(crate) use traffic::{HashedPart, LbPolicy, Policy, Rate, TrafficSettings};
pub(crate) use traffic_policy::{Target, TrafficPolicy};
pub(crate) use treatment::{
    HeaderEdits, MessageEdits, Mirrored, OwnAnswer, RequestCondition, Treatment, duration, every_request,
    fraction,
};
pub(crate) use workload::Workload;

pub(crate) use crate::port::PortKey;

use std::net::IpAddr;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

use crate::{CompileOptions, ObjectName, report::Findings};

/// The part of an object of type `O` that acts.
pub(crate) trait Read<O>: Sized {
    /// Reads an object of this name; `None` when it must be refused, or is none of the mesh's. All that is wrong with
    /// it, or has no effect, is added to `found`.
    fn read(object: &O, name: &ObjectName, options: &CompileOptions, found: &mut Findings) -> Option<Self>;
}

/// How old an object is, for "the oldest wins". An object that doesn't say counts as the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Age {
    Since(Timestamp),
    Unknown,
}

impl Age {
    /// Not younger than any.
    pub(crate) const FIRST: Self = Self::Since(Timestamp::MIN);

    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        meta.creation_timestamp.as_ref().map_or(Self::Unknown, |t| Self::Since(t.0))
    }
}

/// A port number from a field of a Kubernetes object.
pub(crate) fn port_number(port: impl TryInto<u16>) -> Option<u16> {
    port.try_into().ok().filter(|port| *port != 0)
}

/// Parses an address; an IPv4 address in IPv6 clothes is refused because the kernel treats
/// connections to it as IPv4.
pub(crate) fn ip_address(text: &str) -> Result<IpAddr, String> {
    let ip: IpAddr = text.parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("{text} is an IPv4 address written as IPv6; write it as IPv4"))
        }
        ip if ip.is_unspecified() => Err(format!("{text} is not the address of anything")),
        ip => Ok(ip),
    }
}
