//! Renders a desired status as that of an object of its kind, made of the object as it was read.
//!
//! The form is that of the object's kind ([`StatusForm`]):
//!
//! | kind | where | who else writes there |
//! | --- | --- | --- |
//! | TrafficPolicy | `status.ancestors[]`, ours by `controllerName` | nobody |
//! | SlotProfile | `status.conditions[]` and counts | nobody |
//! | GRPCRoute, HTTPRoute, TLSRoute, TCPRoute | `status.parents[]`, ours by `controllerName` | controllers of their Gateways |
//! | VirtualService, DestinationRule, ServiceEntry, WorkloadEntry | `status.conditions[]`, ours by type | istiod |
//!
//! Invariants: what others wrote is left as it is and where it is: in lists that are shared our entries are
//! changed in place, so two controllers that do so never undo each other's work. A condition that says the same
//! keeps its time; and a status that says the same isn't written.

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Map, Value, json};
use slotmesh_compile::{At, Condition, ConditionStatus, ConditionType, Kind, StatusForm};
use slotmesh_crds::own::CONTROLLER;

use super::{
    programmed::{AncestorStatus, DesiredStatus},
    shorten,
};

/// How long a message about several ancestors may be.
const LONGEST: usize = 4_096;

/// The parts of `status` that are to be written; `None` where the object says all of it already.
pub(super) fn render(kind: Kind, object: &Value, desired: &DesiredStatus, now: Timestamp) -> Option<Value> {
    let render = Render { generation: desired.generation, now };
    let before = &object["status"];
    let status = match kind.spec().status {
        StatusForm::Ancestors => render.policy(object, desired),
        StatusForm::Parents => render.route(object, desired),
        StatusForm::NodeCounts => json!({
            "selectedNodes": desired.nodes.due,
            "programmedNodes": desired.nodes.have,
            "conditions": render.conditions(&all(&desired.ancestors), &before["conditions"]),
        }),
        StatusForm::Conditions => {
            let ours = render.conditions(&all(&desired.ancestors), &before["conditions"]);
            // In lists that have no other owner's name.
            let is_ours = |c: &Value| ConditionType::ALL.iter().any(|ours| c["type"] == ours.as_str());
            let same = |a: &Value, b: &Value| a["type"] == b["type"];
            json!({"conditions": in_place(&before["conditions"], ours, is_ours, same)})
        }
        StatusForm::None => return None,
    };
    (!says(before, &status)).then_some(status)
}

struct Render {
    generation: Option<i64>,
    now: Timestamp,
}

impl Render {
    fn policy(&self, object: &Value, desired: &DesiredStatus) -> Value {
        let before = &object["status"]["ancestors"];
        let mut ancestors = Vec::new();
        for ancestor in &desired.ancestors {
            let references = match &ancestor.at {
                Some(at) => vec![service(at)],
                // Of the policy as a whole, which is refused: it stands at each of its targets.
                None => targets(object),
            };
            for reference in references {
                let conditions =
                    self.conditions(&ancestor.conditions, &ours(before, "ancestorRef", &reference));
                ancestors.push(
                    json!({"ancestorRef": reference, "controllerName": CONTROLLER, "conditions": conditions}),
                );
            }
        }
        let same = |a: &Value, b: &Value| a["ancestorRef"] == b["ancestorRef"];
        json!({"ancestors": in_place(before, ancestors, by_us, same)})
    }

    fn route(&self, object: &Value, desired: &DesiredStatus) -> Value {
        let before = &object["status"]["parents"];
        let own = &object["metadata"]["namespace"];
        let mut parents = Vec::new();
        for (i, reference) in object["spec"]["parentRefs"].as_array().into_iter().flatten().enumerate() {
            let Some(ancestor) = desired.ancestors.iter().find(|ancestor| is_at(ancestor, i, reference))
            else {
                continue;
            };
            let conditions = self.conditions(&ancestor.conditions, &ours(before, "parentRef", reference));
            parents.push(
                json!({"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}),
            );
        }
        let same = |a: &Value, b: &Value| is_same_parent(&a["parentRef"], &b["parentRef"], own);
        json!({"parents": in_place(before, parents, by_us, same)})
    }

    /// As conditions, with the times of those before that have the same status.
    fn conditions(&self, conditions: &[Condition], before: &Value) -> Vec<Value> {
        let one = |new: &Condition| {
            let known = before.as_array().into_iter().flatten();
            let since = known
                .filter(|c| c["type"] == new.ty.as_str() && c["status"] == new.status.as_str())
                .map(|c| c["lastTransitionTime"].clone())
                .find(|time| !time.is_null())
                .unwrap_or_else(|| json!(Time(self.now)));
            let mut condition = json!({
                "type": new.ty.as_str(),
                "status": new.status.as_str(),
                "reason": new.reason,
                "message": new.message,
                "lastTransitionTime": since,
            });
            if let Some(generation) = self.generation {
                condition["observedGeneration"] = generation.into();
            }
            condition
        };
        conditions.iter().map(one).collect()
    }
}

/// A list in which our entries are these: those of others stay as and where they are, ours that are there
/// already are exchanged where they stand, ours that aren't wanted go, and new ones come last.
fn in_place(
    before: &Value,
    ours: Vec<Value>,
    is_ours: impl Fn(&Value) -> bool,
    same: impl Fn(&Value, &Value) -> bool,
) -> Vec<Value> {
    let mut ours: Vec<Option<Value>> = ours.into_iter().map(Some).collect();
    let mut list = Vec::new();
    for entry in before.as_array().into_iter().flatten() {
        if !is_ours(entry) {
            list.push(entry.clone());
        } else if let Some(new) = ours.iter_mut().find(|new| new.as_ref().is_some_and(|new| same(entry, new)))
        {
            list.extend(new.take());
        }
    }
    list.extend(ours.into_iter().flatten());
    list
}

fn by_us(entry: &Value) -> bool {
    entry["controllerName"] == CONTROLLER
}

/// Tells whether two references are to the same parent, `own` being the namespace of the route.
fn is_same_parent(a: &Value, b: &Value, own: &Value) -> bool {
    let text = |reference: &Value, field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    let namespace = |reference: &Value| match &reference["namespace"] {
        Value::Null => own.clone(),
        namespace => namespace.clone(),
    };
    namespace(a) == namespace(b)
        && a["port"] == b["port"]
        && ["group", "kind", "name", "sectionName"].iter().all(|field| text(a, field) == text(b, field))
}

/// The conditions of our entry for this reference.
fn ours(list: &Value, field: &str, reference: &Value) -> Value {
    let mut ours = list.as_array().into_iter().flatten();
    let is = |entry: &&Value| entry["controllerName"] == CONTROLLER && entry[field] == *reference;
    ours.find(is).map(|entry| entry["conditions"].clone()).unwrap_or_default()
}

fn service(at: &At) -> Value {
    let mut reference = json!({"group": "", "kind": "Service"});
    if let Some(service) = at.service.object() {
        reference["namespace"] = json!(&*service.namespace);
        reference["name"] = json!(&*service.name);
    }
    if let Some(section) = &at.section {
        reference["sectionName"] = section.as_str().into();
    }
    reference
}

/// The targets of a policy, as [`service`] writes them.
fn targets(policy: &Value) -> Vec<Value> {
    let all = policy["spec"]["targetRefs"].as_array().into_iter().flatten();
    all.map(|target| {
        let mut reference = target.clone();
        reference["namespace"] = policy["metadata"]["namespace"].clone();
        reference
    })
    .collect()
}

/// Tells whether an ancestor is that of the reference at this position. What is said of a route as a whole, which is refused, is
/// said at each Service; other parents are not ours.
fn is_at(ancestor: &AncestorStatus, i: usize, reference: &Value) -> bool {
    let is_service =
        matches!(reference["group"].as_str(), Some("" | "core")) && reference["kind"] == "Service";
    is_service && ancestor.at.as_ref().is_none_or(|at| at.field == format!("spec.parentRefs[{i}]"))
}

/// All ancestors as one, where a status has no room for more: what holds at all, and what is said of those
/// where something doesn't.
fn all(ancestors: &[AncestorStatus]) -> Vec<Condition> {
    if let [ancestor] = ancestors {
        return ancestor.conditions.clone();
    }
    ConditionType::ALL
        .into_iter()
        .filter_map(|ty| {
            let at = |ancestor: &'_ AncestorStatus| {
                ancestor.at.as_ref().map(|at| at.service.to_string()).unwrap_or_default()
            };
            let of_type = ancestors.iter().filter_map(|ancestor| {
                Some((at(ancestor), ancestor.conditions.iter().find(|c| c.ty == ty)?))
            });
            // A conflict anywhere is one; what is good has to hold everywhere.
            let mut all: Vec<(String, &Condition)> = of_type.collect();
            for worst in [ty.bad(), ConditionStatus::Unknown] {
                if all.iter().any(|(_, condition)| condition.status == worst) {
                    all.retain(|(_, condition)| condition.status == worst);
                    let message: Vec<String> =
                        all.iter().map(|(at, condition)| format!("{at}: {}", condition.message)).collect();
                    let first = all.first()?.1;
                    let message = shorten(&message.join(". "), LONGEST).into_owned();
                    return Some(Condition { message, ..first.clone() });
                }
            }
            all.first().map(|(_, condition)| (*condition).clone())
        })
        .collect()
}

/// Tells whether a status has all that is to be written, whatever else it has.
fn says(before: &Value, status: &Value) -> bool {
    match (before, status) {
        (Value::Object(before), Value::Object(status)) => {
            let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
            let same = |(name, value): (&String, &Value)| match before.get(name) {
                Some(before) => says(before, value),
                None => empty(value),
            };
            status.iter().all(same)
        }
        (Value::Array(before), Value::Array(status)) => {
            before.len() == status.len()
                && before.iter().zip(status).all(|(before, status)| says(before, status))
        }
        (Value::Null, Value::Object(status)) => {
            says(&Value::Object(Map::new()), &Value::Object(status.clone()))
        }
        (before, status) => before == status,
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_compile::ServiceId;

    use super::{super::programmed::Count, *};

    fn now() -> Timestamp {
        Timestamp::from_second(1_700_000_000).unwrap()
    }

    fn condition(ty: ConditionType, status: ConditionStatus) -> Condition {
        let message = format!("{} is {}", ty.as_str(), status.as_str());
        Condition { ty, status, reason: "Because", message }
    }

    fn ancestor(service: &str, section: Option<&str>, programmed: ConditionStatus) -> AncestorStatus {
        let service = ServiceId::service("shop", service);
        let (section, field) = (section.map(str::to_owned), "spec.parentRefs[0]".to_owned());
        let at = At { service, section, port: None, field };
        let conditions = vec![
            condition(ConditionType::Accepted, ConditionStatus::True),
            condition(ConditionType::Programmed, programmed),
        ];
        AncestorStatus { at: Some(at), conditions }
    }

    fn desired(ancestors: Vec<AncestorStatus>) -> DesiredStatus {
        DesiredStatus { generation: Some(3), ancestors, nodes: Count { due: 2, have: 1 }, waits: false }
    }

    /// Writes into the object what is to be written.
    fn write(kind: Kind, object: &mut Value, desired: &DesiredStatus) -> bool {
        let Some(status) = render(kind, object, desired, now()) else { return false };
        if object["status"].is_null() {
            object["status"] = json!({});
        }
        for (name, value) in status.as_object().unwrap() {
            object["status"][name] = value.clone();
        }
        true
    }

    #[test]
    fn what_is_said_already_is_not_written_and_an_unchanged_condition_keeps_its_time() {
        let mut object = json!({"spec": {}});
        let old = desired(vec![AncestorStatus { at: None, ..ancestor("", None, ConditionStatus::False) }]);
        assert!(write(Kind::SlotProfile, &mut object, &old));
        assert_eq!(object["status"]["selectedNodes"], 2);
        object["status"]["conditions"][0]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        object["status"]["conditions"][1]["lastTransitionTime"] = "2020-01-01T00:00:00Z".into();
        assert!(!write(Kind::SlotProfile, &mut object, &old));
        let new = desired(vec![AncestorStatus { at: None, ..ancestor("", None, ConditionStatus::True) }]);
        assert!(write(Kind::SlotProfile, &mut object, &new));
        let conditions = &object["status"]["conditions"];
        assert_eq!(conditions[0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(conditions[1]["lastTransitionTime"], json!(Time(now())));
        assert_eq!(conditions[1]["observedGeneration"], 3);
    }

    #[test]
    fn the_parents_of_others_stay_and_ours_echo_their_reference() {
        let gateway = json!({
            "parentRef": {"name": "edge"}, "controllerName": "example.com/gateway",
            "conditions": [{"type": "Accepted", "status": "True"}],
        });
        let reference = json!({"group": "", "kind": "Service", "name": "web"});
        let mut object = json!({
            "spec": {"parentRefs": [{"name": "edge"}, reference]},
            "status": {"parents": [gateway]},
        });
        let mut second = ancestor("web", None, ConditionStatus::True);
        second.at.as_mut().unwrap().field = "spec.parentRefs[1]".to_owned();
        let ancestors = desired(vec![second]);
        assert!(write(Kind::HttpRoute, &mut object, &ancestors));
        let parents = object["status"]["parents"].clone();
        assert_eq!((&parents[0], &parents[1]["parentRef"]), (&gateway, &reference));
        assert_eq!(parents[1]["controllerName"], CONTROLLER);
        assert!(!write(Kind::HttpRoute, &mut object, &ancestors));
        // The Service is no longer a parent.
        object["spec"]["parentRefs"] = json!([{"name": "edge"}]);
        assert!(write(Kind::HttpRoute, &mut object, &desired(vec![])));
        assert_eq!(object["status"]["parents"], json!([gateway]));
    }

    #[test]
    fn parents_that_differ_by_port_have_entries_of_their_own() {
        let reference = |port: u16| json!({"group": "", "kind": "Service", "name": "web", "port": port});
        let mut object = json!({
            "metadata": {"namespace": "shop"},
            "spec": {"parentRefs": [reference(80), reference(81)]},
        });
        let of = |port: u16, programmed| {
            let mut ancestor = ancestor("web", None, programmed);
            let at = ancestor.at.as_mut().unwrap();
            (at.port, at.field) = (Some(port), format!("spec.parentRefs[{}]", port - 80));
            ancestor
        };
        let both = desired(vec![of(80, ConditionStatus::True), of(81, ConditionStatus::False)]);
        assert!(write(Kind::HttpRoute, &mut object, &both));
        let parents = &object["status"]["parents"];
        let programmed =
            |i: usize| (&parents[i]["parentRef"]["port"], &parents[i]["conditions"][1]["status"]);
        assert_eq!(programmed(0), (&json!(80), &json!("True")));
        assert_eq!(programmed(1), (&json!(81), &json!("False")));
    }

    /// Whoever writes a list changes its own entries in place, whatever order another prefers.
    #[test]
    fn two_controllers_do_not_fight_over_a_list() {
        let web = json!({"group": "", "kind": "Service", "name": "web"});
        let theirs = |n: u32| {
            json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/gateway",
                   "conditions": [{"type": "Accepted", "status": "True", "observedGeneration": n}]})
        };
        let mut object = json!({
            "metadata": {"namespace": "shop"},
            "spec": {"parentRefs": [web, {"name": "edge"}]},
        });
        let ours = desired(vec![ancestor("web", None, ConditionStatus::True)]);
        assert!(write(Kind::HttpRoute, &mut object, &ours));
        // The other sorts its own entry to the end, or to the front, and writes it a hundred times.
        for n in 0..100 {
            let mine =
                object["status"]["parents"].as_array().unwrap().iter().find(|p| by_us(p)).cloned().unwrap();
            object["status"]["parents"] =
                if n % 2 == 0 { json!([mine, theirs(n)]) } else { json!([theirs(n), mine]) };
            assert!(!write(Kind::HttpRoute, &mut object, &ours), "write {n}");
        }
        // One that differs only in a namespace that goes without saying is the same entry.
        object["status"]["parents"][1]["parentRef"]["namespace"] = "shop".into();
        assert!(!write(Kind::HttpRoute, &mut object, &ours));
        // What they overwrote of ours comes back where it was.
        object["status"]["parents"][1]["conditions"] = json!([]);
        assert!(write(Kind::HttpRoute, &mut object, &ours));
        assert_eq!(object["status"]["parents"][1]["conditions"][0]["type"], "Accepted");
    }

    #[test]
    fn a_message_about_many_hosts_is_bounded() {
        let many = (0..2_000).map(|n| ancestor(&format!("web-{n}"), None, ConditionStatus::False)).collect();
        let mut object = json!({});
        assert!(write(Kind::VirtualService, &mut object, &desired(many)));
        let message = object["status"]["conditions"][1]["message"].as_str().unwrap();
        assert!(message.len() <= LONGEST + "…".len() && message.ends_with('…'), "{}", message.len());
    }

    #[test]
    fn a_route_that_is_not_for_services_is_left_alone() {
        let mut object = json!({"spec": {"parentRefs": [{"name": "edge"}]}});
        assert!(!write(Kind::HttpRoute, &mut object, &desired(vec![])));
    }

    #[test]
    fn a_policy_has_an_entry_for_each_target() {
        let mut object = json!({});
        let both = desired(vec![
            ancestor("web", None, ConditionStatus::True),
            ancestor("api", Some("http"), ConditionStatus::False),
        ]);
        assert!(write(Kind::TrafficPolicy, &mut object, &both));
        let ancestors = &object["status"]["ancestors"];
        assert_eq!(ancestors[1]["ancestorRef"]["sectionName"], "http");
        assert_eq!(ancestors[0]["conditions"][1]["status"], "True");
        assert!(!write(Kind::TrafficPolicy, &mut object, &both));
    }

    #[test]
    fn what_is_refused_as_a_whole_is_said_at_each_service() {
        let refused = || {
            desired(vec![AncestorStatus {
                at: None,
                conditions: vec![condition(ConditionType::Accepted, ConditionStatus::False)],
            }])
        };
        let web = json!({"group": "", "kind": "Service", "name": "web"});
        let port = json!({"group": "", "kind": "Service", "name": "api", "sectionName": "http"});
        let mut policy =
            json!({"metadata": {"namespace": "shop"}, "spec": {"targetRefs": [web.clone(), port]}});
        assert!(write(Kind::TrafficPolicy, &mut policy, &refused()));
        let ancestors = policy["status"]["ancestors"].as_array().unwrap();
        let at = |name, section: Option<&str>| {
            let section = section.map(str::to_owned);
            let service_name = ServiceId::service("shop", name);
            service(&At { service: service_name, section, port: None, field: String::new() })
        };
        let said: Vec<_> = ancestors.iter().map(|a| &a["ancestorRef"]).collect();
        assert_eq!(said, [&at("web", None), &at("api", Some("http"))]);
        assert_eq!(ancestors[1]["conditions"][0]["status"], "False");
        assert!(!write(Kind::TrafficPolicy, &mut policy, &refused()));

        let mut route = json!({"spec": {"parentRefs": [{"name": "edge"}, web]}});
        assert!(write(Kind::HttpRoute, &mut route, &refused()));
        let parents = route["status"]["parents"].as_array().unwrap();
        assert_eq!(parents.iter().map(|p| &p["parentRef"]).collect::<Vec<_>>(), [&web]);
    }

    #[test]
    fn istios_own_conditions_stay_and_several_hosts_are_one() {
        let reconciled = json!({"type": "Reconciled", "status": "True"});
        let mut object = json!({"status": {"conditions": [reconciled], "validationMessages": [1]}});
        let both = desired(vec![
            ancestor("web", None, ConditionStatus::True),
            ancestor("api", None, ConditionStatus::False),
        ]);
        assert!(write(Kind::VirtualService, &mut object, &both));
        let conditions = &object["status"]["conditions"];
        assert_eq!(conditions[0], reconciled);
        assert_eq!((&conditions[1]["type"], &conditions[1]["status"]), (&json!("Accepted"), &json!("True")));
        assert_eq!(conditions[2]["message"], "shop/api: Programmed is False");
        assert!(!write(Kind::VirtualService, &mut object, &both));
    }
}
