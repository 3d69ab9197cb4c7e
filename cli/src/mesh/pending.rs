//! Objects that aren't in force on all nodes, as the operator says in their conditions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Client, Error, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::Value;

/// Kinds with a condition `Programmed`: group, version, kind and plural.
const KINDS: [(&str, &str, &str, &str); 6] = [
    ("slotmesh.dev", "v1alpha1", "TrafficPolicy", "trafficpolicies"),
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes"),
    ("networking.istio.io", "v1", "VirtualService", "virtualservices"),
    ("networking.istio.io", "v1", "DestinationRule", "destinationrules"),
    ("networking.istio.io", "v1", "ServiceEntry", "serviceentries"),
];

/// Objects in one answer of the API server.
const TOGETHER: u32 = 500;

/// An object that isn't in force on all nodes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingObject {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    /// Why, for machines: `Pending`, or `Refused` by an agent.
    pub reason: String,
    /// Which nodes lack it, and why.
    pub message: String,
    pub since: Option<Time>,
}

impl PendingObject {
    /// What is to be said of it.
    pub fn advice(&self) -> String {
        let Self { kind, namespace, name, message, since, .. } = self;
        let since = since.as_ref().map_or(String::new(), |Time(since)| format!(" since {since:.0}"));
        format!("{kind} {namespace}/{name} isn't in force on all nodes{since}: {message}")
    }
}

/// All of them. Kinds that aren't installed have none; of those that can't be listed `unknown` tells.
pub async fn pending(client: &Client, unknown: &mut Vec<String>) -> Vec<PendingObject> {
    let mut found = Vec::new();
    for (group, version, kind, plural) in KINDS {
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let mut params = ListParams::default().limit(TOGETHER);
        loop {
            match api.list(&params).await {
                Ok(list) => {
                    found.extend(list.items.iter().filter_map(|object| of_object(kind, object)));
                    match list.metadata.continue_.filter(|more| !more.is_empty()) {
                        Some(more) => params = params.continue_token(&more),
                        None => break,
                    }
                }
                Err(Error::Api(status)) if status.code == 404 => break,
                Err(error) => {
                    unknown.push(format!("{plural}.{group} can't be listed: {error}"));
                    break;
                }
            }
        }
    }
    found
}

/// The object, if its newest generation isn't programmed.
fn of_object(kind: &str, object: &DynamicObject) -> Option<PendingObject> {
    let condition = conditions(&object.data)
        .into_iter()
        .find(|condition| condition.type_ == "Programmed" && condition.status == "False")?;
    Some(PendingObject {
        kind: kind.to_owned(),
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        reason: condition.reason,
        message: condition.message,
        since: Some(condition.last_transition_time),
    })
}

/// The conditions of an object, wherever its kind has them: of itself, of its parents, of its ancestors.
fn conditions(object: &Value) -> Vec<Condition> {
    let status = &object["status"];
    let lists = ["parents", "ancestors"].into_iter().filter_map(|list| status[list].as_array()).flatten();
    let lists = lists.map(|one| &one["conditions"]).chain([&status["conditions"]]);
    let conditions = lists.filter_map(Value::as_array).flatten();
    // Others write conditions, too, and not all of them well.
    conditions.filter_map(|condition| serde_json::from_value(condition.clone()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(status: &Value) -> DynamicObject {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "web"}, "status": status}))
            .unwrap()
    }

    #[test]
    fn each_kind_has_its_conditions_somewhere() {
        let condition = |status: &str| {
            json!([{"type": "Programmed", "status": status, "reason": "Pending", "message": "node n1: no stream",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}, {"type": "Odd"}])
        };
        for status in [
            json!({"conditions": condition("False")}),
            json!({"parents": [{"conditions": condition("True")}, {"conditions": condition("False")}]}),
            json!({"ancestors": [{"conditions": condition("False")}]}),
        ] {
            let pending = of_object("HTTPRoute", &object(&status)).expect("it is pending");
            let expected = "HTTPRoute shop/web isn't in force on all nodes since 2026-01-01T00:00:00Z: node n1: no stream";
            assert_eq!(pending.advice(), expected);
        }
        assert!(of_object("HTTPRoute", &object(&json!({"conditions": condition("True")}))).is_none());
        assert!(of_object("HTTPRoute", &object(&Value::Null)).is_none());
    }
}
