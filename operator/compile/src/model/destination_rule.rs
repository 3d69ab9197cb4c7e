//! DestinationRules: named subsets of a Service.

use std::collections::BTreeMap;

use slotmesh_crds as crds;

use super::Age;
use crate::{
    ObjectName,
    names::{name_fault, resolve_host},
    report::Findings,
};

/// A valid DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DestinationRule {
    pub(crate) age: Age,
    pub(crate) service: ObjectName,
    /// Name of the subset, and the labels that its pods carry.
    pub(crate) subsets: BTreeMap<String, BTreeMap<String, String>>,
}

impl DestinationRule {
    /// Reads a rule; `None` when it must be refused.
    pub(crate) fn read(
        object: &crds::DestinationRule,
        key: &ObjectName,
        found: &mut Findings,
    ) -> Option<Self> {
        let spec = &object.spec;
        refuse_export(&spec.export_to, found);
        let service = resolve_host(&spec.host, &key.namespace);
        if service.is_none() {
            found
                .refuse("spec.host", format!("{:?} is not the host of a Service of this cluster", spec.host));
        }
        policy("spec.trafficPolicy", spec.traffic_policy.as_ref(), found);
        found.unsupported_rest("spec", &spec.rest);
        let mut subsets = BTreeMap::new();
        for (i, subset) in spec.subsets.iter().enumerate() {
            let at = format!("spec.subsets[{i}]");
            if let Some(fault) = name_fault(&subset.name) {
                found.refuse(format!("{at}.name"), format!("the subset's name {fault}"));
            }
            if subsets.insert(subset.name.clone(), subset.labels.clone()).is_some() {
                found.refuse(
                    format!("{at}.name"),
                    format!("subset {} is defined twice; remove one", subset.name),
                );
            }
            policy(&format!("{at}.trafficPolicy"), subset.traffic_policy.as_ref(), found);
            found.unsupported_rest(&at, &subset.rest);
        }
        let service = service.filter(|_| !found.refused())?;
        Some(Self { age: Age::of(&object.metadata), service, subsets })
    }
}

fn policy(at: &str, policy: Option<&crds::TrafficPolicy>, found: &mut Findings) {
    let Some(policy) = policy else { return };
    found.unsupported_rest(at, &policy.rest);
    let Some(balancer) = &policy.load_balancer else { return };
    match balancer.simple.as_deref() {
        None | Some("" | "UNSPECIFIED" | "RANDOM") => {}
        Some(other) => {
            let consequence = format!("{other} is not there yet, RANDOM is used instead");
            found.unsupported(format!("{at}.loadBalancer.simple"), &consequence);
        }
    }
    for name in balancer.rest.keys() {
        found.unsupported(format!("{at}.loadBalancer.{name}"), "RANDOM is used instead");
    }
}

/// One node serves callers of all namespaces, and what each of them may see isn't told apart yet.
pub(super) fn refuse_export(export_to: &[String], found: &mut Findings) {
    if !matches!(export_to, [] | [_]) || export_to.first().is_some_and(|ns| ns != "*") {
        found.refuse(
            "spec.exportTo",
            "not supported: field spec.exportTo other than [\"*\"], because every namespace would see the \
             object; remove the field",
        );
    }
}
