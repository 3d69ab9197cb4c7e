//! Istio's `ServiceEntry`: a service that isn't a Kubernetes Service; and `WorkloadEntry`: a workload that
//! isn't a Pod.

use std::collections::BTreeMap;

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::{Rest, or_default};

/// The spec of a [`ServiceEntry`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "ServiceEntry",
    plural = "serviceentries",
    namespaced,
    schema = "disabled",
    doc = "A service that isn't a Kubernetes Service.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    /// The hosts by which routes and rules refer to it.
    #[serde(default, deserialize_with = "or_default")]
    pub hosts: Vec<String>,
    /// The addresses to which connections are made, as single addresses or ranges.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The ports.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<EntryPort>,
    /// Whether it is part of the mesh: `MESH_EXTERNAL` or `MESH_INTERNAL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// How endpoints are found, such as `STATIC`; unset means `NONE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<String>,
    /// The endpoints.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// Which WorkloadEntries and Pods of its namespace are endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// The namespaces that see this object; unset means all.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// A port of a [`ServiceEntry`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPort {
    /// The port to which connections are made.
    #[serde(default)]
    pub number: u32,
    /// What is spoken there, such as `HTTP` or `TCP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The name by which endpoints refer to it.
    #[serde(default)]
    pub name: String,
    /// The port of the endpoints, where they don't say; unset means `number`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u32>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Which workloads are meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// The labels that a workload must carry.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// The spec of a [`WorkloadEntry`], and an endpoint of a [`ServiceEntry`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "WorkloadEntry",
    plural = "workloadentries",
    namespaced,
    schema = "disabled",
    doc = "A workload that isn't a Pod.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntrySpec {
    /// Its address.
    #[serde(default)]
    pub address: String,
    /// Its ports by the names of the service's ports, where they differ from the service's.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// The labels by which it is selected.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its share of the connections, relative to those of the others; 0 and unset mean 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Where it is: `REGION/ZONE/SUBZONE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}
