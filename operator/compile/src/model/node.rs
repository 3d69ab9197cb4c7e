//! Nodes: labels, by which SlotProfiles select them, and addresses, which nobody else can have.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1;

use crate::Cidr;

/// What is needed of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// Those of its Pods.
    pub(crate) pod_ranges: Vec<Cidr>,
}

/// The label that tells a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

impl Node {
    /// Its zone, where it has one.
    pub(crate) fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE).map(String::as_str)
    }

    pub(crate) fn read(object: &v1::Node) -> Self {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let known = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
        // Host names are among them.
        let mut addresses: Vec<IpAddr> = known.filter_map(|known| known.address.parse().ok()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let spec = object.spec.as_ref();
        let ranges = spec.into_iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
        let mut pod_ranges: Vec<Cidr> = ranges.filter_map(|range| range.parse().ok()).collect();
        pod_ranges.sort_unstable();
        pod_ranges.dedup();
        Self { labels, addresses, pod_ranges }
    }
}
