//! TrafficPolicies: how connections to Services, or ports of them, are spread and bounded.

use slotmesh_crds::own::{self, Balancing};

use super::{Age, LbPolicy, Localities, Outliers, Rate, Read, TrafficSettings, locality as localities};
use crate::{CompileOptions, ObjectName, ServiceId, object::name_fault, report::Findings};

/// A Service, or a port of one, that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The field that says so.
    pub(crate) field: String,
    pub(crate) service: ServiceId,
    /// The name of a port; `None` for all.
    pub(crate) port: Option<String>,
}

/// A valid TrafficPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TrafficPolicy {
    pub(crate) age: Age,
    pub(crate) targets: Vec<Target>,
    pub(crate) traffic: TrafficSettings,
}

impl Read<own::TrafficPolicy> for TrafficPolicy {
    /// Reads a policy; `None` when it must be refused.
    fn read(
        object: &own::TrafficPolicy,
        key: &ObjectName,
        _: &CompileOptions,
        found: &mut Findings,
    ) -> Option<Self> {
        let own::TrafficPolicySpec {
            target_refs,
            load_balancing,
            max_connections,
            locality,
            outlier_detection,
            new_connections,
        } = &object.spec;
        if target_refs.is_empty() {
            found.refuse("spec.targetRefs", "the policy is attached to nothing; name a Service");
        }
        if load_balancing.is_none()
            && max_connections.is_none()
            && locality.is_none()
            && outlier_detection.is_none()
            && new_connections.is_none()
        {
            let fault = "the policy says nothing; set loadBalancing, maxConnections, newConnections, locality or \
                         outlierDetection";
            found.refuse("spec", fault);
        }
        if *max_connections == Some(0) {
            found.refuse("spec.maxConnections", "0 would refuse every connection; the least is 1");
        }
        let balance = load_balancing.as_ref().map(|balancing| match balancing.algorithm {
            Balancing::Random => LbPolicy::Random,
            Balancing::RoundRobin => LbPolicy::RoundRobin,
            Balancing::LeastConnections => LbPolicy::LeastConnections,
            Balancing::ConsistentHash => LbPolicy::ConsistentHash,
        });
        let targets = read_targets(target_refs, key, found);
        let localities = locality.as_ref().map(|locality| {
            let own::LocalityPreference { distribute, failover, failover_priority } = locality;
            let said = localities::Said {
                distribute: distribute.iter().map(|one| (one.from.as_str(), &one.to)).collect(),
                failover: failover.iter().map(|one| (one.from.as_str(), one.to.as_str())).collect(),
                priority: failover_priority,
            };
            Localities::By { policy: said.read("spec.locality", found).into(), always: true }
        });
        let max_connections = *max_connections;
        let outliers =
            outlier_detection.as_ref().map(|said| Outliers::of_policy("spec.outlierDetection", said, found));
        let rate = new_connections.as_ref().map(|said| {
            let own::NewConnections { per_second, burst, per } = *said;
            for (field, value) in [("perSecond", per_second), ("burst", burst.unwrap_or(1))] {
                if value == 0 {
                    let fault = "0 would refuse every connection; the least is 1";
                    found.refuse(format!("spec.newConnections.{field}"), fault);
                }
            }
            let per_caller = per == own::RateScope::Caller;
            Rate { per_second, burst: burst.unwrap_or(per_second), per_caller }
        });
        let traffic =
            TrafficSettings { balance, max_connections, localities, outliers, rate, fails_over: false };
        (!found.refused()).then(|| Self { age: Age::of(&object.metadata), targets, traffic })
    }
}

fn read_targets(refs: &[own::PolicyTarget], key: &ObjectName, found: &mut Findings) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for (i, own::PolicyTarget { group, kind, name, section_name }) in refs.iter().enumerate() {
        let field = format!("spec.targetRefs[{i}]");
        if !group.is_empty() || kind != "Service" {
            let fault = format!("{kind} of group {group:?} can't have a policy; Services (group \"\") can");
            found.refuse(format!("{field}.kind"), fault);
        }
        if let Some(fault) = name_fault(name) {
            found.refuse(format!("{field}.name"), format!("the name {fault}"));
        }
        let service = ServiceId::service(key.namespace.clone(), name.as_str());
        if targets.iter().any(|target| target.service == service && target.port == *section_name) {
            found.refuse(field, format!("{name} stands there twice; remove one"));
            continue;
        }
        targets.push(Target { field, service, port: section_name.clone() });
    }
    targets
}
