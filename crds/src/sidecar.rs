//! Istio's `Sidecar`: which hosts callers of a namespace see.

use std::collections::BTreeMap;

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::{Rest, or_default};

/// The spec of a [`Sidecar`].
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "Sidecar",
    namespaced,
    schema = "disabled",
    doc = "Which hosts callers of a namespace see.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    /// Which callers of its namespace it is for; unset means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<SidecarSelector>,
    /// What they see; none means everything.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressListener>,
    /// What becomes of connections to what they don't see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Which callers are meant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SidecarSelector {
    /// The labels that a caller must carry.
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// Some of the hosts that callers see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EgressListener {
    /// The hosts, as `NAMESPACE/HOST`.
    #[serde(default, deserialize_with = "or_default")]
    pub hosts: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}

/// What becomes of connections to what callers don't see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutboundTrafficPolicy {
    /// `ALLOW_ANY` or `REGISTRY_ONLY`; unset means the former.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Rest,
}
