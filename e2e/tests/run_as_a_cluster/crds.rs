//! The custom resources of Istio, of Gateway API and of the Prometheus operator, with as little schema as the
//! API server takes: slotmesh checks itself what it reads.

use serde_json::{Value, json};

fn resource(group: &str, versions: &[&str], kind: &str) -> Value {
    let singular = kind.to_lowercase();
    let plural = match singular.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{singular}s"),
    };
    let version = |(at, name): (usize, &&str)| {
        json!({"name": name, "served": true, "storage": at == 0, "subresources": {"status": {}}, "schema": {"openAPIV3Schema":
               {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let mut meta = json!({"name": format!("{plural}.{group}")});
    if group.ends_with(".k8s.io") {
        // The API server wants this of names under k8s.io.
        meta["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for tests"});
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": meta,
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": plural, "singular": singular, "kind": kind},
            "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    })
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// Gateway API's.
pub fn gateway_api() -> String {
    let of = |versions: &[&str], kind| resource("gateway.networking.k8s.io", versions, kind);
    list(&[of(&["v1"], "HTTPRoute"), of(&["v1alpha2"], "TCPRoute"), of(&["v1beta1"], "ReferenceGrant")])
}

/// Istio's.
pub fn istio() -> String {
    let of = |kind| resource("networking.istio.io", &["v1", "v1beta1"], kind);
    list(&[of("VirtualService"), of("DestinationRule"), of("ServiceEntry"), of("WorkloadEntry")])
}

/// The Prometheus operator's.
pub fn prometheus_operator() -> String {
    list(&["PodMonitor", "PrometheusRule"].map(|kind| resource("monitoring.coreos.com", &["v1"], kind)))
}
