//! What a status writer is told of an object: conditions, and the resources that it compiled to.

use std::collections::BTreeSet;

use slotmesh_compile::{
    Ancestor, ConditionType, Conditions, Object, ObjectKey,
    builder::{backend, http_route, node, pod, policy, profile, rule, service, slice, to, virtual_service},
};
use slotmesh_crds::own::Balancing::RoundRobin;
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, cluster};

fn web() -> Object {
    service("web").ip("10.0.0.1").named_port("http", 80).build()
}

/// `type=holds reason` of all conditions.
fn said(ancestor: &Ancestor) -> Vec<String> {
    let one = |c: &slotmesh_compile::Condition| format!("{}={} {}", c.ty.as_str(), c.holds, c.reason);
    ancestor.conditions.iter().map(one).collect()
}

fn message(ancestor: &Ancestor, ty: ConditionType) -> &str {
    &ancestor.conditions.iter().find(|c| c.ty == ty).expect("there is one").message
}

fn of(cluster: &Cluster, object: &Object) -> Conditions {
    cluster.compiler.conditions(&object.key()).expect("it is held")
}

const FINE: [&str; 2] = ["Accepted=true Accepted", "Conflicted=false NoConflict"];

#[test]
fn an_accepted_policy_names_the_versions_that_it_compiled_to() {
    let mut p = policy("p", "web").balance(RoundRobin);
    p.0.metadata.generation = Some(3);
    let object = p.build();
    let mut cluster_ = Cluster::with([web(), object.clone()]);
    let conditions = of(&cluster_, &object);
    assert_eq!(conditions.generation, Some(3));
    let [ancestor] = &conditions.ancestors[..] else { panic!("one target") };
    assert_eq!(ancestor.at.as_ref().unwrap().service.to_string(), "default/web");
    assert_eq!(said(ancestor), FINE);
    let [resource] = &ancestor.resources[..] else { panic!("one cluster: {:?}", ancestor.resources) };
    assert_eq!((resource.ty, resource.name.as_str()), (ResourceType::Cluster, &*cluster("web", 80, "")));
    let served = cluster_.compiler.resources();
    let same = served.iter().find(|r| r.ty == resource.ty && r.name == resource.name).unwrap();
    assert!(resource.is(same.version));
    // Another content, another version.
    cluster_.apply([policy("p", "web").max(1).build()]);
    let after = of(&cluster_, &object);
    assert_ne!(after.ancestors[0].resources[0].version, resource.version);
    cluster_.delete(&object);
    assert_eq!(cluster_.compiler.conditions(&object.key()), None);
    assert_eq!(cluster_.compiler.conditions(&web().key()), None, "a Service's status isn't ours");
}

#[test]
fn a_conflict_at_one_service_is_none_at_the_other() {
    let api = service("api").ip("10.0.0.2").port(80).build();
    let late = policy("late", "web").target("api").max(1).build();
    let cluster_ = Cluster::with([web(), api, policy("early", "web").max(2).build(), late.clone()]);
    let conditions = of(&cluster_, &late);
    let [web, api] = &conditions.ancestors[..] else { panic!("two targets") };
    assert_eq!(said(web), ["Accepted=false Conflicted", "Conflicted=true Conflicted"]);
    assert!(message(web, ConditionType::Conflicted).contains("already has TrafficPolicy default/early"));
    assert!(web.resources.is_empty(), "it is not in force there");
    assert_eq!(said(api), FINE);
    assert_eq!(api.resources.len(), 1);
}

#[test]
fn what_can_not_be_acted_on_is_named_by_field() {
    let zero = policy("p", "web").max(0).build();
    let nowhere = policy("q", "nowhere").max(1).build();
    let passthrough = rule("r", "web").balance("PASSTHROUGH").build();
    let cluster_ = Cluster::with([web(), zero.clone(), nowhere.clone(), passthrough.clone()]);
    let conditions = of(&cluster_, &zero);
    assert_eq!(said(&conditions.ancestors[0])[0], "Accepted=false Invalid");
    let text = message(&conditions.ancestors[0], ConditionType::Accepted);
    assert!(text.starts_with("spec.maxConnections: 0 would refuse every connection"), "{text}");
    assert_eq!(said(&of(&cluster_, &nowhere).ancestors[0])[0], "Accepted=false TargetNotFound");
    let conditions = of(&cluster_, &passthrough);
    assert_eq!(said(&conditions.ancestors[0])[0], "Accepted=true SomeFieldsNotSupported");
    let text = message(&conditions.ancestors[0], ConditionType::Accepted);
    assert!(text.contains("spec.trafficPolicy.loadBalancer.simple"), "{text}");
    assert_eq!(conditions.ancestors[0].resources.len(), 2, "a cluster and its endpoints");
}

#[test]
fn routes_tell_whether_what_they_lead_to_is_there() {
    let vs = virtual_service("vs", "web").http([to("web/v1", 1)]).build();
    let late = http_route("h", "web").to([backend("web:80", 1)]).build();
    let mut cluster_ = Cluster::with([web(), vs.clone(), late.clone()]);
    let conditions = of(&cluster_, &vs);
    assert_eq!(
        said(&conditions.ancestors[0]),
        ["Accepted=true Accepted", "ResolvedRefs=false BackendNotFound", "Conflicted=false NoConflict"]
    );
    assert_eq!(said(&of(&cluster_, &late).ancestors[0])[0], "Accepted=false Conflicted");
    cluster_.apply([rule("r", "web").version("v1").build()]);
    let conditions = of(&cluster_, &vs);
    assert_eq!(said(&conditions.ancestors[0])[1], "ResolvedRefs=true ResolvedRefs");
    let types: BTreeSet<_> = conditions.ancestors[0].resources.iter().map(|r| r.ty).collect();
    assert_eq!(types, BTreeSet::from([ResourceType::Route, ResourceType::Listener]));
}

#[test]
fn a_profile_is_accepted_where_it_has_some_nodes() {
    let (all, one) = (profile("all").created(2).cap(9).build(), profile("one").created(1).on("a").build());
    let cluster_ = Cluster::with([node("a").build(), node("b").build(), all.clone(), one.clone()]);
    let conditions = of(&cluster_, &all);
    let [ancestor] = &conditions.ancestors[..] else { panic!("the cluster") };
    assert_eq!(ancestor.at, None);
    assert_eq!(said(ancestor), ["Accepted=true Accepted", "Conflicted=true Conflicted"]);
    assert_eq!(ancestor.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(said(&of(&cluster_, &one).ancestors[0]), FINE);
}

#[test]
fn a_flush_names_the_objects_whose_conditions_may_have_changed() {
    let (p, r, vs) = (
        policy("p", "web").max(1).build(),
        rule("r", "web").version("v1").build(),
        virtual_service("vs", "web").http([to("web/v1", 1)]).build(),
    );
    let mut cluster_ = Cluster::default();
    let affected = |output: slotmesh_compile::Output| output.affected;
    let keys = |objects: &[&Object]| objects.iter().map(|o| o.key()).collect::<BTreeSet<ObjectKey>>();
    let all = affected(cluster_.apply([p.clone(), r.clone(), vs.clone(), pod("x").build()]));
    assert_eq!(all, keys(&[&p, &r, &vs]));
    assert_eq!(affected(cluster_.apply([web()])), keys(&[&p, &r, &vs]));
    let other = service("other").ip("10.0.0.7").port(80).build();
    assert!(affected(cluster_.apply([other])).is_empty());
    let endpoints = slice("web", "web").named_port("http", 8080).endpoint("10.1.0.1").build();
    assert_eq!(
        affected(cluster_.apply([endpoints])),
        keys(&[&p, &r]),
        "of the Service's clusters and endpoints"
    );
    assert_eq!(affected(cluster_.delete(&vs)), keys(&[&p, &r, &vs]), "the subset's cluster goes with it");
    assert!(affected(cluster_.flush()).is_empty());
}
