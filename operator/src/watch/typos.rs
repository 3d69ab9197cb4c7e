//! Fields and kinds that aren't any, and what somebody meant who wrote them.
//!
//! Serde leaves out what it doesn't know, and an API server says so where a schema is strict. A directory has no API
//! server, so manifests are compared with what was read of them: at the levels that slotmesh reads, a field that
//! stands in no API is found, and the nearest one named.
//!
//! Invariant: a field of a known API is never taken for a mistake, whether it is supported or not.

use std::fmt::Write as _;

use serde_yaml::Value;
use slotmesh_compile::Kind;
use slotmesh_crds::{ISTIO_GROUP, gateway::GATEWAY_GROUP};

/// A field that isn't one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unknown {
    /// The level that it is on, such as `spec.http[0]`; empty for the object.
    pub(super) at: String,
    pub(super) name: String,
    /// The field that is likely to be meant.
    pub(super) meant: Option<&'static str>,
}

impl Unknown {
    /// The field's path.
    pub(super) fn path(&self) -> String {
        if self.at.is_empty() { self.name.clone() } else { format!("{}.{}", self.at, self.name) }
    }
}

/// The fields of a manifest that are none. `read` is what was read of it, written again.
pub(super) fn unknown_fields(kind: Kind, manifest: &Value, read: &serde_json::Value) -> Vec<Unknown> {
    let mut found = Vec::new();
    walk(kind, manifest, read, &mut String::new(), &mut String::new(), &mut found);
    found
}

/// `level` is the path without numbers.
fn walk(
    kind: Kind,
    manifest: &Value,
    read: &serde_json::Value,
    at: &mut String,
    level: &mut String,
    found: &mut Vec<Unknown>,
) {
    let lengths = (at.len(), level.len());
    match (manifest, read) {
        (Value::Mapping(manifest), serde_json::Value::Object(read)) => {
            let known = fields(kind, level);
            for (key, value) in manifest {
                let Some(name) = key.as_str() else { continue };
                // Whoever reads objects leaves the status of others alone.
                if (level.is_empty() && name == "status" && !has_status(kind)) || says_nothing(value) {
                    continue;
                }
                let unknown = match read.get(name) {
                    // Where everything that isn't supported is kept, it is read all the same.
                    Some(_) => keeps_the_rest(kind) && known.is_some_and(|known| !known.contains(&name)),
                    None => true,
                };
                if unknown {
                    let meant = nearest(name, known.unwrap_or_default().iter().copied());
                    found.push(Unknown { at: at.clone(), name: name.to_owned(), meant });
                    continue;
                }
                for path in [&mut *at, &mut *level] {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(name);
                }
                walk(kind, value, &read[name], at, level, found);
                at.truncate(lengths.0);
                level.truncate(lengths.1);
            }
        }
        (Value::Sequence(manifest), serde_json::Value::Array(read)) => {
            for (i, (manifest, read)) in manifest.iter().zip(read).enumerate() {
                _ = write!(at, "[{i}]");
                level.push_str("[]");
                walk(kind, manifest, read, at, level, found);
                at.truncate(lengths.0);
                level.truncate(lengths.1);
            }
        }
        _ => {}
    }
}

/// Tells whether a value may be left out without anybody noticing.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Sequence(list) => list.is_empty(),
        Value::Mapping(map) => map.is_empty(),
        _ => false,
    }
}

/// Tells whether slotmesh reads the status that others write.
const fn has_status(kind: Kind) -> bool {
    matches!(kind, Kind::Pod | Kind::Node)
}

/// Tells whether fields that aren't typed are kept by name, to be reported: the types of others' kinds do so.
fn keeps_the_rest(kind: Kind) -> bool {
    matches!(kind.spec().group, ISTIO_GROUP | GATEWAY_GROUP)
}

/// The nearest of these, if one is near enough.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let far = |known: &str| strsim::damerau_levenshtein(&lower, &known.to_lowercase());
    let near = known.map(|known| (far(known), known)).min()?;
    let most = (name.chars().count() / 3).clamp(1, 3);
    (near.0 <= most).then_some(near.1)
}

/// The fields of a level that slotmesh reads, all that the API has there.
#[rustfmt::skip]
fn fields(kind: Kind, level: &str) -> Option<&'static [&'static str]> {
    const TOP: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
    const PORT: &[&str] = &["number", "protocol", "name", "targetPort"];
    const DESTINATION: &[&str] = &["host", "subset", "port"];
    const MATCH: &[&str] = &[
        "name", "uri", "scheme", "method", "authority", "headers", "port", "sourceLabels", "gateways", "queryParams",
        "ignoreUriCase", "withoutHeaders", "sourceNamespace", "statPrefix",
    ];
    const WORKLOAD: &[&str] =
        &["address", "ports", "labels", "network", "locality", "weight", "serviceAccount"];
    const POLICY: &[&str] = &[
        "loadBalancer", "connectionPool", "outlierDetection", "tls", "portLevelSettings", "tunnel", "proxyProtocol",
        "retryBudget",
    ];
    const BALANCER: &[&str] =
        &["simple", "consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"];
    const POOL: &[&str] = &["tcp", "http"];
    const TCP_POOL: &[&str] =
        &["maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];
    const PARENT: &[&str] = &["group", "kind", "namespace", "name", "sectionName", "port"];
    const BACKEND: &[&str] = &["group", "kind", "namespace", "name", "port", "weight", "filters"];
    match level {
        "" => return match kind {
            Kind::EndpointSlice => Some(&["apiVersion", "kind", "metadata", "addressType", "endpoints", "ports"]),
            _ => Some(TOP),
        },
        "metadata" => return Some(&[
            "name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion", "generation",
            "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences",
            "managedFields", "selfLink",
        ]),
        _ => {}
    }
    Some(match (kind, level) {
        (Kind::Service, "spec") => &[
            "ports", "selector", "clusterIP", "clusterIPs", "type", "externalIPs", "sessionAffinity", "loadBalancerIP",
            "loadBalancerSourceRanges", "externalName", "externalTrafficPolicy", "healthCheckNodePort",
            "publishNotReadyAddresses", "sessionAffinityConfig", "ipFamilies", "ipFamilyPolicy",
            "allocateLoadBalancerNodePorts", "loadBalancerClass", "internalTrafficPolicy", "trafficDistribution",
        ],
        (Kind::Service, "spec.ports[]") => &["name", "protocol", "appProtocol", "port", "targetPort", "nodePort"],
        (Kind::EndpointSlice, "endpoints[]") =>
            &["addresses", "conditions", "hostname", "targetRef", "deprecatedTopology", "nodeName", "zone", "hints"],
        (Kind::EndpointSlice, "endpoints[].conditions") => &["ready", "serving", "terminating"],
        (Kind::EndpointSlice, "endpoints[].targetRef") =>
            &["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"],
        (Kind::EndpointSlice, "ports[]") => &["name", "protocol", "port", "appProtocol"],
        (Kind::Pod, "spec") => &["nodeName", "serviceAccountName", "hostNetwork", "containers"],
        (Kind::Pod, "status") => &["phase", "podIP", "podIPs", "conditions", "hostIP", "hostIPs"],
        (Kind::Pod, "status.conditions[]") => &["type", "status", "reason", "message"],
        (Kind::Pod, "status.podIPs[]") => &["ip"],
        (Kind::VirtualService, "spec") => &["hosts", "gateways", "http", "tls", "tcp", "exportTo"],
        (Kind::VirtualService, "spec.http[]") => &[
            "name", "match", "route", "redirect", "directResponse", "delegate", "rewrite", "timeout", "retries", "fault",
            "mirror", "mirrors", "mirrorPercent", "mirrorPercentage", "corsPolicy", "headers",
        ],
        (Kind::VirtualService, "spec.http[].match[]") => MATCH,
        (Kind::VirtualService, "spec.tcp[]") => &["match", "route"],
        (Kind::VirtualService, "spec.tcp[].match[]") =>
            &["destinationSubnets", "port", "sourceSubnet", "sourceLabels", "gateways", "sourceNamespace"],
        (Kind::VirtualService, "spec.http[].route[]" | "spec.tcp[].route[]") =>
            &["destination", "weight", "headers"],
        (Kind::VirtualService, "spec.http[].route[].destination" | "spec.tcp[].route[].destination") => DESTINATION,
        (
            Kind::VirtualService,
            "spec.http[].route[].destination.port" | "spec.tcp[].route[].destination.port",
        ) => &["number"],
        (Kind::DestinationRule, "spec") =>
            &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"],
        (Kind::DestinationRule, "spec.subsets[]") => &["name", "labels", "trafficPolicy"],
        (Kind::DestinationRule, "spec.trafficPolicy" | "spec.subsets[].trafficPolicy") => POLICY,
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.loadBalancer" | "spec.subsets[].trafficPolicy.loadBalancer",
        ) => BALANCER,
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.loadBalancer.consistentHash"
            | "spec.subsets[].trafficPolicy.loadBalancer.consistentHash",
        ) => &[
            "httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName", "ringHash", "maglev",
            "minimumRingSize",
        ],
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.loadBalancer.localityLbSetting"
            | "spec.subsets[].trafficPolicy.loadBalancer.localityLbSetting",
        ) => &["enabled", "distribute", "failover", "failoverPriority"],
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.outlierDetection" | "spec.subsets[].trafficPolicy.outlierDetection",
        ) => &[
            "consecutive5xxErrors", "consecutiveGatewayErrors", "consecutiveLocalOriginFailures",
            "splitExternalLocalOriginErrors", "consecutiveErrors", "interval", "baseEjectionTime", "maxEjectionPercent",
            "minHealthPercent",
        ],
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.connectionPool" | "spec.subsets[].trafficPolicy.connectionPool",
        ) => POOL,
        (
            Kind::DestinationRule,
            "spec.trafficPolicy.connectionPool.tcp" | "spec.subsets[].trafficPolicy.connectionPool.tcp",
        ) => TCP_POOL,
        (Kind::ServiceEntry, "spec") => &[
            "hosts", "addresses", "ports", "location", "resolution", "endpoints", "workloadSelector", "exportTo",
            "subjectAltNames",
        ],
        (Kind::ServiceEntry, "spec.ports[]") => PORT,
        (Kind::ServiceEntry, "spec.workloadSelector") => &["labels"],
        (Kind::ServiceEntry, "spec.endpoints[]") | (Kind::WorkloadEntry, "spec") => WORKLOAD,
        (Kind::Sidecar, "spec") => &[
            "workloadSelector", "ingress", "egress", "inboundConnectionPool", "outboundTrafficPolicy",
        ],
        (Kind::Sidecar, "spec.workloadSelector") => &["labels"],
        (Kind::Sidecar, "spec.egress[]") => &["port", "bind", "captureMode", "hosts"],
        (Kind::Sidecar, "spec.outboundTrafficPolicy") => &["mode", "egressProxy"],
        (Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute, "spec") => {
            &["parentRefs", "hostnames", "rules", "useDefaultGateways"]
        }
        (Kind::TcpRoute, "spec") => &["parentRefs", "rules", "useDefaultGateways"],
        (Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute, "spec.parentRefs[]") => PARENT,
        (Kind::GrpcRoute | Kind::HttpRoute, "spec.rules[]") =>
            &["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"],
        (Kind::GrpcRoute, "spec.rules[].matches[]") => &["method", "headers"],
        (Kind::HttpRoute, "spec.rules[].matches[]") => &["path", "headers", "queryParams", "method"],
        (Kind::TlsRoute | Kind::TcpRoute, "spec.rules[]") => &["name", "backendRefs"],
        (Kind::GrpcRoute | Kind::HttpRoute | Kind::TlsRoute | Kind::TcpRoute, "spec.rules[].backendRefs[]") => BACKEND,
        (Kind::ReferenceGrant, "spec") => &["from", "to"],
        (Kind::TrafficPolicy, "spec") => &["targetRefs", "loadBalancing", "maxConnections", "locality", "outlierDetection", "newConnections"],
        (Kind::TrafficPolicy, "spec.targetRefs[]") => &["group", "kind", "name", "sectionName"],
        (Kind::TrafficPolicy, "spec.loadBalancing") => &["algorithm"],
        (Kind::TrafficPolicy, "spec.newConnections") => &["perSecond", "burst", "per"],
        (Kind::TrafficPolicy, "spec.outlierDetection") =>
            &["consecutiveFailures", "baseSeconds", "maxSeconds", "maxPercent", "minHealthyPercent"],
        (Kind::TrafficPolicy, "spec.locality") => &["distribute", "failover", "failoverPriority"],
        (Kind::TrafficPolicy, "spec.locality.distribute[]" | "spec.locality.failover[]") => &["from", "to"],
        (Kind::SlotProfile, "spec") => &[
            "nodeSelector", "nodeNames", "growth", "initial", "cap", "memoryBudget", "lowWatermark", "highWatermark",
            "batch",
        ],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["weight", "destination", "headers"];
        for typo in ["wieght", "Weight", "weigth", "wight"] {
            assert_eq!(nearest(typo, known.into_iter()), Some("weight"), "{typo}");
        }
        assert_eq!(nearest("timeout", known.into_iter()), None);
        assert_eq!(nearest("x", known.into_iter()), None);
        assert_eq!(nearest("x", [].into_iter()), None);
    }
}
