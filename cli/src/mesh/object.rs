//! Conditions of one object, and whether all nodes have it in force.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Client, Error, api::DynamicObject};
use serde::Serialize;

use super::pending::{ProgrammedKind, placed_conditions};
use crate::render::{Columns, Paint, or_dash};

/// An object that somebody asks about.
#[derive(Debug)]
pub struct AskedObject {
    kind: ProgrammedKind,
    namespace: String,
    name: String,
}

/// Its state.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectState {
    object: String,
    /// All nodes that it is for have it in force, as it is now.
    pub in_force: bool,
    /// The same in words.
    meaning: String,
    conditions: Vec<PlacedCondition>,
}

/// A condition, and of which parent or ancestor it is said.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PlacedCondition {
    at: String,
    #[serde(rename = "type")]
    ty: String,
    status: String,
    reason: String,
    message: String,
    since: Time,
    /// It is said of another generation than the newest.
    outdated: bool,
}

impl AskedObject {
    /// An object by kind and `NAMESPACE/NAME`.
    ///
    /// # Errors
    /// Where there can't be such an object.
    pub fn new(kind: &str, name: &str) -> anyhow::Result<Self> {
        let Some(known) = ProgrammedKind::of(kind) else {
            bail!("nothing is said of a {kind}; there are {}", ProgrammedKind::names());
        };
        let (namespace, name) = match name.split_once('/') {
            Some((namespace, name)) if known.is_namespaced() => (namespace, name),
            None if !known.is_namespaced() => ("", name),
            Some(_) => bail!("a {} lies in no namespace; name it alone", known.kind),
            None => bail!("expected NAMESPACE/NAME, such as shop/{name}"),
        };
        Ok(Self { kind: known, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Its state now.
    ///
    /// # Errors
    /// Where it isn't there, or can't be read.
    pub async fn state(&self, client: &Client) -> anyhow::Result<ObjectState> {
        let Self { kind, namespace, name } = self;
        let slash = if namespace.is_empty() { "" } else { "/" };
        let object = format!("{} {namespace}{slash}{name}", kind.kind);
        for resource in kind.resources() {
            let api: Api<DynamicObject> = if namespace.is_empty() {
                Api::all_with(client.clone(), &resource)
            } else {
                Api::namespaced_with(client.clone(), namespace, &resource)
            };
            match api.get(name).await {
                Ok(found) => return Ok(state(object, &found)),
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error).with_context(|| format!("{object} can't be read")),
            }
        }
        bail!("there is no {object}")
    }
}

fn state(object: String, found: &DynamicObject) -> ObjectState {
    let generation = found.metadata.generation;
    let conditions: Vec<PlacedCondition> = placed_conditions(&found.data)
        .into_iter()
        .map(|(at, condition)| PlacedCondition {
            at,
            outdated: condition.observed_generation.is_some() && condition.observed_generation != generation,
            ty: condition.type_,
            status: condition.status,
            reason: condition.reason,
            message: condition.message,
            since: condition.last_transition_time,
        })
        .collect();
    let of = |ty: &str| conditions.iter().filter(move |condition| condition.ty == ty).collect::<Vec<_>>();
    let programmed = of("Programmed");
    let is = |condition: &&PlacedCondition, status: &str| !condition.outdated && condition.status == status;
    let fault = |condition: &&&PlacedCondition| match condition.ty.as_str() {
        "Accepted" | "ResolvedRefs" => is(condition, "False"),
        "Conflicted" | "PartiallyInvalid" => is(condition, "True"),
        _ => false,
    };
    let faults = conditions.iter().collect::<Vec<_>>();
    let fault = faults.iter().find(fault).copied();
    let in_force = !programmed.is_empty() && programmed.iter().all(|condition| is(condition, "True"));
    let meaning = match (in_force, fault, programmed.iter().find(|one| !is(one, "True"))) {
        (true, None, _) => "in force on all nodes that it is for".to_owned(),
        (true, Some(fault), _) => format!("in force on all nodes that it is for, but in part: {}", fault.message),
        (false, Some(fault), _) => format!("not in force: {}", fault.message),
        (false, None, Some(one)) if one.outdated => {
            "it has just been changed, and nothing is said of that yet".to_owned()
        }
        (false, None, Some(one)) => format!("not in force on all nodes: {}", one.message),
        (false, None, None) => {
            "nothing is said of it: does an operator run (`slotmesh status`), and does any Service that it names exist?"
                .to_owned()
        }
    };
    ObjectState { object, in_force, meaning, conditions }
}

/// All that there is to say.
pub fn text(state: &ObjectState) -> String {
    let ObjectState { object, in_force, meaning, conditions } = state;
    let paint = if *in_force { Paint::Green } else { Paint::Yellow };
    let mut text = format!("{object}: {}\n", paint.on(meaning));
    if conditions.is_empty() {
        return text;
    }
    let mut table = Columns::new(["AT", "CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"]);
    for condition in conditions {
        let PlacedCondition { at, ty, status, reason, message, since, outdated } = condition;
        let status = if *outdated { format!("{status} (outdated)") } else { status.clone() };
        let at = or_dash(Some(at).filter(|at| !at.is_empty()));
        table.row([at, ty.clone(), status, format!("{:.0}", since.0), reason.clone(), message.clone()]);
    }
    _ = write!(text, "\n{table}");
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn policy(conditions: &[(&str, &str, i64)]) -> DynamicObject {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(ty, status, generation)| {
                json!({"type": ty, "status": status, "reason": "R", "message": format!("{ty} is {status}"),
                    "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let reference = json!({"group": "", "kind": "Service", "name": "web"});
        from_value(json!({"metadata": {"name": "turns", "namespace": "shop", "generation": 2},
            "status": {"ancestors": [{"ancestorRef": reference, "conditions": conditions}]}}))
        .unwrap()
    }

    #[test]
    fn an_object_is_in_force_where_all_say_so_of_what_it_is_now() {
        let said = |conditions: &[(&str, &str, i64)]| {
            let state = state("TrafficPolicy shop/turns".to_owned(), &policy(conditions));
            (state.in_force, state.meaning.clone(), text(&state))
        };
        let (in_force, _, text) = said(&[("Accepted", "True", 2), ("Programmed", "True", 2)]);
        assert!(in_force && text.contains("in force on all nodes") && text.contains("Service web"), "{text}");
        let (in_force, meaning, _) = said(&[("Accepted", "True", 1), ("Programmed", "True", 1)]);
        assert!(!in_force && meaning.contains("just been changed"), "{meaning}");
        let (in_force, meaning, _) = said(&[("Conflicted", "True", 2), ("Programmed", "False", 2)]);
        assert!(!in_force && meaning.contains("Conflicted is True"), "{meaning}");
        let (in_force, meaning, _) = said(&[]);
        assert!(!in_force && meaning.contains("nothing is said"), "{meaning}");
    }

    #[test]
    fn a_kind_is_known_by_each_of_its_names() {
        for kind in ["trafficpolicy", "TrafficPolicies", "TLSRoute", "tcproutes"] {
            assert!(AskedObject::new(kind, "shop/web").is_ok(), "{kind}");
        }
        assert!(AskedObject::new("slotprofile", "big").is_ok());
        for (kind, name) in [("service", "shop/web"), ("httproute", "web"), ("slotprofile", "shop/big")] {
            assert!(AskedObject::new(kind, name).is_err(), "{kind} {name}");
        }
    }
}
