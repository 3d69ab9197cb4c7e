//! Pods: labels for subsets, addresses to find them, and whether they could take part.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1;

use super::{Candidate, DISABLED, ENABLED, MESH, Read, mesh_values};
use crate::{CompileOptions, ObjectName, report::Findings};

/// The part of a Pod that is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
    /// The node that it is on.
    pub(crate) node: Option<Box<str>>,
    /// Only where it could take part, and it is asked for.
    pub(crate) candidate: Option<Box<Candidate>>,
}

impl Read<v1::Pod> for Pod {
    /// Reads a Pod; addresses that are none are of no use for a look-up and left out.
    fn read(
        object: &v1::Pod,
        _: &ObjectName,
        options: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let status = object.status.as_ref();
        let mut ips: Vec<IpAddr> = status
            .into_iter()
            .flat_map(|s| s.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(s.pod_ip.as_deref()))
            .filter_map(|ip| ip.parse().ok())
            .collect();
        ips.sort_unstable();
        ips.dedup();
        // One that says nothing of conditions comes from a manifest.
        let ready = status.and_then(|s| s.conditions.as_ref()).is_none_or(|conditions| {
            conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
        let ended = status.is_some_and(|s| matches!(s.phase.as_deref(), Some("Failed" | "Succeeded")));
        if ended {
            // It keeps its address in the status; another Pod may have it.
            ips.clear();
        }
        let terminating = object.metadata.deletion_timestamp.is_some();
        let node = object.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).map(Box::from);
        let candidate = options.enrols().then(|| Candidate::read(object)).flatten().map(Box::new);
        for (field, value) in mesh_values(object).filter(|_| options.enrols()) {
            if ![ENABLED, DISABLED].contains(&value) {
                let message = format!(
                    "{MESH} is {value:?}, which changes nothing: a pod takes part where its namespace does, unless it says {DISABLED:?}"
                );
                found.refuse(format!("metadata.{field}[{MESH}]"), message);
            }
        }
        Some(Self { labels, ips, ready: ready && !ended, terminating, node, candidate })
    }
}
