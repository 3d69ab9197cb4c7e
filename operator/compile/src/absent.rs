//! The reason why a pod doesn't take part, for a person who asks about one pod.
//!
//! Invariant: it is said of a pod exactly if [`Candidate`] and its namespace's label keep it from being enrolled.

use k8s_openapi::api::core::v1::{Namespace, Pod};

use crate::model::{Absence, Candidate, DISABLED, ENABLED, MESH, mesh_value, mesh_values};

/// Why a pod doesn't take part, in words; `None` where it does. What other pods say of themselves isn't looked at.
pub fn why_absent(namespace: &Namespace, pod: &Pod) -> Option<String> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    match mesh_value(namespace) {
        Some(ENABLED) => {}
        Some(other) => {
            return Some(format!(
                "namespace {name} has the label {MESH}={other}; it takes part with {MESH}={ENABLED}"
            ));
        }
        None => {
            return Some(format!(
                "namespace {name} takes no part: it hasn't the label {MESH}={ENABLED} (`kubectl label namespace {name} \
                 {MESH}={ENABLED}`)"
            ));
        }
    }
    let why = match Absence::of(pod) {
        Some(Absence::SaysNo) => {
            let said = mesh_values(pod).find(|(_, value)| *value == DISABLED);
            let field = said.map_or("labels", |(field, _)| field);
            return Some(format!("its metadata.{field} has {MESH}={DISABLED}"));
        }
        Some(Absence::HostNetwork) => "it has spec.hostNetwork, so its connections are its node's",
        Some(Absence::Ended) => "it has ended",
        Some(Absence::Unscheduled) => "it isn't scheduled to a node yet",
        None => return Candidate::read(pod)?.left_alone.map(|why| why.to_string()),
    };
    Some(why.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn why(label: &Value, metadata: &Value, spec: &Value, phase: &str) -> Option<String> {
        let labels = if label.is_null() { json!({}) } else { json!({"slotmesh.dev/mesh": label}) };
        let namespace: Namespace =
            from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap();
        let mut pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u"},
            "spec": {"nodeName": "n1", "containers": [{"name": "web"}]}, "status": {"phase": phase}});
        for (part, more) in [("metadata", metadata), ("spec", spec)] {
            let more = more.as_object().into_iter().flatten();
            more.for_each(|(key, value)| pod[part][key] = value.clone());
        }
        why_absent(&namespace, &from_value::<Pod>(pod).unwrap())
    }

    #[test]
    fn each_reason_is_named_and_none_is_made_up() {
        let (enabled, none) = (json!("enabled"), json!({}));
        assert_eq!(why(&enabled, &none, &none, "Running"), None);
        for (label, metadata, spec, phase, said) in [
            (json!(null), none.clone(), none.clone(), "Running", "kubectl label namespace shop"),
            (json!("true"), none.clone(), none.clone(), "Running", "slotmesh.dev/mesh=true"),
            (
                enabled.clone(),
                json!({"annotations": {"slotmesh.dev/mesh": "disabled"}}),
                none.clone(),
                "Running",
                "metadata.annotations has",
            ),
            (enabled.clone(), none.clone(), json!({"hostNetwork": true}), "Running", "hostNetwork"),
            (enabled.clone(), none.clone(), none.clone(), "Failed", "ended"),
            (enabled.clone(), none.clone(), json!({"nodeName": null}), "Pending", "scheduled"),
            (enabled, none, json!({"containers": [{"name": "istio-proxy"}]}), "Running", "sidecar"),
        ] {
            let why = why(&label, &metadata, &spec, phase).unwrap_or_default();
            assert!(why.contains(said), "{said}: {why}");
        }
    }
}
