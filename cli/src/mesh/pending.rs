//! Objects that aren't in force on all nodes, as the operator says in their conditions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, Client, Error, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

/// A kind with a condition `Programmed`.
#[derive(Clone, Copy, Debug)]
pub struct ProgrammedKind {
    pub kind: &'static str,
    plural: &'static str,
    group: &'static str,
    /// Newest first: a cluster has one of them.
    versions: &'static [&'static str],
}

const fn known(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
) -> ProgrammedKind {
    ProgrammedKind { kind, plural, group, versions }
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const ISTIO: &str = "networking.istio.io";

impl ProgrammedKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        known("slotmesh.dev", &["v1alpha1"], "TrafficPolicy", "trafficpolicies"),
        known("slotmesh.dev", &["v1alpha1"], "SlotProfile", "slotprofiles"),
        known(GATEWAY, &["v1"], "HTTPRoute", "httproutes"),
        known(GATEWAY, &["v1", "v1alpha2"], "GRPCRoute", "grpcroutes"),
        known(GATEWAY, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute", "tlsroutes"),
        known(GATEWAY, &["v1", "v1alpha2"], "TCPRoute", "tcproutes"),
        known(ISTIO, &["v1", "v1beta1"], "VirtualService", "virtualservices"),
        known(ISTIO, &["v1", "v1beta1"], "DestinationRule", "destinationrules"),
        known(ISTIO, &["v1", "v1beta1"], "ServiceEntry", "serviceentries"),
        known(ISTIO, &["v1", "v1beta1"], "WorkloadEntry", "workloadentries"),
    ];

    /// The kind of this name, in the singular or the plural, in letters of either case.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| [known.kind, known.plural].iter().any(|one| one.eq_ignore_ascii_case(name)))
    }

    /// The names of all kinds.
    pub fn names() -> String {
        Self::ALL.map(|known| known.kind).join(", ")
    }

    /// The kind in each of its versions.
    pub fn resources(self) -> impl Iterator<Item = ApiResource> {
        let Self { kind, plural, group, versions } = self;
        versions.iter().map(move |version| ApiResource {
            group: group.to_owned(),
            version: (*version).to_owned(),
            api_version: format!("{group}/{version}"),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        })
    }

    /// True where its objects lie in namespaces.
    pub fn is_namespaced(self) -> bool {
        self.kind != "SlotProfile"
    }
}

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
    /// A sentence about it.
    pub fn advice(&self) -> String {
        let Self { kind, namespace, name, message, since, .. } = self;
        let since = since.as_ref().map_or(String::new(), |Time(since)| format!(" since {since:.0}"));
        format!("{kind} {namespace}/{name} isn't in force on all nodes{since}: {message}")
    }
}

/// All of them. Kinds that aren't installed have none; of those that can't be listed `unknown` tells.
pub async fn pending(client: &Client, unknown: &mut Vec<String>) -> Vec<PendingObject> {
    let mut asked = JoinSet::new();
    for (place, kind) in ProgrammedKind::ALL.into_iter().enumerate() {
        let client = client.clone();
        asked.spawn(async move { (place, of_kind(client, kind).await) });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(place, _)| *place);
    let mut found = Vec::new();
    for (_, answer) in answers {
        match answer {
            Ok(pending) => found.extend(pending),
            Err(why) => unknown.push(why),
        }
    }
    found
}

/// Those of a kind, or why they can't be listed.
async fn of_kind(client: Client, kind: ProgrammedKind) -> Result<Vec<PendingObject>, String> {
    for resource in kind.resources() {
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let mut params = ListParams::default().limit(TOGETHER);
        let mut found = Vec::new();
        loop {
            match api.list(&params).await {
                Ok(list) => {
                    found.extend(list.items.iter().filter_map(|object| of_object(kind.kind, object)));
                    match list.metadata.continue_.filter(|more| !more.is_empty()) {
                        Some(more) => params = params.continue_token(&more),
                        None => return Ok(found),
                    }
                }
                // The kind isn't there in this version.
                Err(Error::Api(status)) if status.code == 404 => break,
                Err(error) => return Err(format!("{}.{} can't be listed: {error}", kind.plural, kind.group)),
            }
        }
    }
    Ok(Vec::new())
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
    placed_conditions(object).into_iter().map(|(_, condition)| condition).collect()
}

/// The same, each with the parent or ancestor of which it is said; nothing where it is said of the object itself.
pub fn placed_conditions(object: &Value) -> Vec<(String, Condition)> {
    let status = &object["status"];
    let lists = [("parents", "parentRef"), ("ancestors", "ancestorRef")].into_iter();
    let lists = lists.filter_map(|(list, place)| Some((status[list].as_array()?, place)));
    let lists = lists
        .flat_map(|(list, place)| list.iter().map(move |one| (referred(&one[place]), &one["conditions"])));
    let lists = lists.chain([(String::new(), &status["conditions"])]);
    let of_list = |(place, list): (String, &Value)| {
        let conditions = list.as_array().into_iter().flatten();
        // Others write conditions, too, and not all of them well.
        let conditions = conditions.filter_map(|condition| serde_json::from_value(condition.clone()).ok());
        conditions.map(|condition| (place.clone(), condition)).collect::<Vec<_>>()
    };
    lists.flat_map(of_list).collect()
}

/// `Service shop/web` of a reference.
fn referred(to: &Value) -> String {
    let part = |key: &str| to[key].as_str().unwrap_or_default();
    let namespace = part("namespace");
    let slash = if namespace.is_empty() { "" } else { "/" };
    format!("{} {namespace}{slash}{}", part("kind"), part("name"))
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
