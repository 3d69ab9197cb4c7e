//! In what kernel, records and operator differ, and why endpoints are left out.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use slotmesh_admin::{AskedInForce, AssignmentInForce, OriginsView, ShareInForce, paths};

use super::{
    expected::{Expected, ExpectedCluster},
    source::{InForceSource, record},
};
use crate::{
    ask::{AdminSite, encoded},
    in_force::place,
};

/// The least share of connections, of which the kernel has to show some.
const NOTICEABLE: f64 = 0.02;

/// In what the kernel decides otherwise than its records say.
pub fn kernel_and_records(asked: &AskedInForce, records: &Expected) -> Vec<String> {
    let mut differing = Vec::new();
    for share in &asked.routed {
        let cluster = share.cluster.as_deref().unwrap_or("a cluster that has gone");
        let known = records.clusters.iter().any(|one| {
            one.name == cluster && one.endpoints.iter().any(|endpoint| endpoint.address == share.address)
        });
        if !known {
            let address = &share.address;
            differing
                .push(format!("the kernel chooses {address} of {cluster}, to which the records don't lead"));
        }
    }
    // Of one that has as many connections as it may have, the kernel refuses more.
    let is_full = |cluster: &ExpectedCluster| {
        let active = cluster.connections.as_ref().map_or(0, |connections| connections.active);
        cluster.max_connections.is_some_and(|most| active >= u64::from(most))
    };
    for cluster in records.clusters.iter().filter(|cluster| !is_full(cluster)) {
        for endpoint in cluster.endpoints.iter().filter(|endpoint| endpoint.left_out_seconds.is_none()) {
            let counted = count(asked, &cluster.name, &endpoint.address);
            if counted == 0 && endpoint.share > NOTICEABLE {
                differing.push(format!(
                    "the records lead to {} of {} with a share of {:.1}%, and the kernel never chooses it",
                    endpoint.address,
                    cluster.name,
                    endpoint.share * 100.0
                ));
            }
        }
    }
    differing
}

/// How many of the connections that were asked about go to an endpoint of a cluster.
pub fn count(asked: &AskedInForce, cluster: &str, address: &str) -> u32 {
    let of = |share: &&ShareInForce| share.cluster.as_deref() == Some(cluster) && share.address == address;
    asked.routed.iter().filter(of).map(|share| share.count).sum()
}

/// Resources of which the operator serves another version than the node has.
///
/// # Errors
/// Where it doesn't answer.
pub fn records_and_operator(records: &Expected, operator: &AdminSite) -> anyhow::Result<Vec<String>> {
    let held = records.versions.iter().chain(records.clusters.iter().flat_map(|cluster| &cluster.versions));
    let mut differing = BTreeSet::new();
    for (ty, name, version) in held {
        let page = format!("{}/{ty}/{}", paths::SERVED, encoded(name));
        let served: Option<serde_json::Value> = operator.find(&page)?;
        let served = served.as_ref().and_then(|served| served["version"].as_str());
        match served {
            Some(served) if served == version => {}
            Some(served) => {
                differing.insert(format!(
                    "the node has {ty} {name} in version {version}, and the operator serves {served}: the node's agent refuses \
                     it, or is behind"
                ));
            }
            None => {
                differing
                    .insert(format!("the node has {ty} {name}, and the operator serves none of that name"));
            }
        }
    }
    Ok(differing.into_iter().collect())
}

/// An endpoint that connections don't go to.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftOut {
    address: String,
    why: String,
    slice: String,
    pod: Option<String>,
}

impl LeftOut {
    /// The endpoint in words.
    pub fn text(&self) -> String {
        let pod = self.pod.as_ref().map_or(String::new(), |pod| format!(", Pod {pod}"));
        format!("{}: {} ({}{pod})", self.address, self.why, self.slice)
    }
}

/// The endpoints that connections don't go to. `served` has the endpoints of the callers of all nodes.
pub fn left_out(
    origins: Option<&OriginsView>,
    records: Option<&Expected>,
    served: Option<&dyn InForceSource>,
) -> Vec<LeftOut> {
    let Some(origins) = origins else { return Vec::new() };
    let ip = |address: &str| Some(address.rsplit_once(':')?.0.trim_matches(['[', ']']).to_owned());
    let clusters = records.map(|records| records.clusters.as_slice()).unwrap_or_default();
    let endpoints = clusters.iter().flat_map(|cluster| &cluster.endpoints);
    let chosen: BTreeSet<String> = endpoints.filter_map(|endpoint| ip(&endpoint.address)).collect();
    // By address: where it is, of clusters whose endpoints are chosen by that.
    let mut elsewhere: BTreeMap<String, String> = BTreeMap::new();
    for cluster in clusters.iter().filter(|cluster| cluster.chosen_for_this_node) {
        let (Some(assignment), Some(served)) = (&cluster.assignment, served) else { continue };
        let Ok(Some(all)) = record::<AssignmentInForce>(served, "endpoints", assignment) else { continue };
        let at = |locality: usize| all.members.localities.get(locality).map(place).unwrap_or_default();
        let of_all = all.members.endpoints.iter();
        elsewhere.extend(of_all.filter_map(|one| Some((ip(&one.address)?, at(one.locality)))));
    }
    let out = origins.endpoints.iter().filter(|one| !chosen.contains(&one.address));
    out.map(|endpoint| {
        let why = match (endpoint.readiness.as_str(), elsewhere.get(&endpoint.address)) {
            ("ready", Some(place)) if place.is_empty() => {
                "ready, but endpoints are chosen by where the caller's node is, and others are nearer"
                    .to_owned()
            }
            ("ready", Some(place)) => {
                format!("ready, but in {place}, and endpoints are chosen by where the caller's node is")
            }
            ("ready", None) => {
                "ready, but in no cluster that they are led to, or not for callers on this node".to_owned()
            }
            (other, _) => other.to_owned(),
        };
        let (slice, pod) = (endpoint.slice.clone(), endpoint.pod.clone());
        LeftOut { address: endpoint.address.clone(), why, slice, pod }
    })
    .collect()
}
