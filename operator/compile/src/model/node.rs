//! Nodes: labels, by which SlotProfiles select them, and addresses, which nobody else can have.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1;
use slotmesh_xds::LocalityPolicy;

use super::{Place, Read};
use crate::{Cidr, CompileOptions, ObjectName, report::Findings};

/// The part of a Node that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Of these, those by which it is reached from within the cluster.
    pub(crate) internal: Vec<IpAddr>,
    /// Those of its Pods.
    pub(crate) pod_ranges: Vec<Cidr>,
}

impl Node {
    /// Where it is, by its labels.
    pub(crate) fn place(&self) -> Place<'_> {
        let label = |label: &str| self.labels.get(label).map_or("", String::as_str);
        Place {
            region: label(LocalityPolicy::REGION),
            zone: label(LocalityPolicy::ZONE),
            sub_zone: label(LocalityPolicy::SUB_ZONE),
        }
    }
}

impl Read<v1::Node> for Node {
    fn read(object: &v1::Node, _: &ObjectName, _: &CompileOptions, _: &mut Findings) -> Option<Self> {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let known = || object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        // Host names are among them.
        let mut addresses: Vec<IpAddr> = known().filter_map(|known| known.address.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let internal = known().filter(|known| known.type_ == "InternalIP");
        let mut internal: Vec<IpAddr> = internal.filter_map(|known| known.address.parse().ok()).collect();
        internal.sort_unstable();
        internal.dedup();
        let spec = object.spec.as_ref();
        let ranges = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let mut pod_ranges: Vec<Cidr> = ranges.filter_map(|range| range.parse().ok()).collect();
        pod_ranges.sort_unstable();
        pod_ranges.dedup();
        Some(Self { labels, addresses, internal, pod_ranges })
    }
}
