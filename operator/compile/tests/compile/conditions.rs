//! Facts that a status writer is told of an object: conditions, and the resources that it compiled to.

use std::collections::BTreeSet;

use slotmesh_builders::{
    backend, http_route, node, pod, policy, profile, rule, service, slice, to, virtual_service,
};
use slotmesh_compile::{Ancestor, ConditionType, Conditions, Object, ObjectKey};
use slotmesh_crds::{
    gateway::{BackendRef, HttpRouteMatch, HttpRule, PathMatch},
    own::Balancing::RoundRobin,
};
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, cluster};

fn web() -> Object {
    service("web").ip("10.0.0.1").named_port("http", 80).build()
}

/// `type=holds reason` of all conditions.
fn said(ancestor: &Ancestor) -> Vec<String> {
    let one = |c: &slotmesh_compile::Condition| format!("{}={} {}", c.ty.as_str(), c.holds(), c.reason);
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
    assert_eq!(conditions.ancestors[0].resources.len(), 1, "a cluster; endpoints don't count");
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
    assert!(affected(cluster_.apply([endpoints])).is_empty(), "pods come and go all the time");
    assert_eq!(affected(cluster_.delete(&vs)), keys(&[&p, &r, &vs]), "the subset's cluster goes with it");
    assert!(affected(cluster_.flush()).is_empty());
}

/// A rule that asks for a path.
fn undecidable(backend_ref: BackendRef) -> HttpRule {
    let path = PathMatch { kind: None, value: Some("/beta".to_owned()) };
    HttpRule {
        matches: vec![HttpRouteMatch { path: Some(path), ..HttpRouteMatch::default() }],
        backend_refs: vec![backend_ref],
        ..HttpRule::default()
    }
}

#[test]
fn a_route_none_of_whose_rules_acts_is_not_accepted_and_has_made_nothing() {
    let beta = http_route("beta", "web").rule(undecidable(backend("web:80", 1))).build();
    let header = virtual_service("header", "api").http_route(header_only()).build();
    let api = service("api").ip("10.0.0.2").named_port("http", 80).build();
    let mut cluster_ = Cluster::with([web(), api, beta.clone(), header.clone()]);
    for object in [&beta, &header] {
        let conditions = of(&cluster_, object);
        let ancestor = &conditions.ancestors[0];
        assert_eq!(said(ancestor)[0], "Accepted=false UnsupportedValue", "{}", object.key());
        let text = message(ancestor, ConditionType::Accepted);
        assert!(text.contains("connections go as if the object weren't there"), "{text}");
        assert!(ancestor.resources.is_empty(), "the Service's own listener isn't the route's");
    }
    // With a rule that acts it is accepted, and says which doesn't.
    let both =
        http_route("beta", "web").rule(undecidable(backend("web:80", 1))).to([backend("web:80", 1)]).build();
    cluster_.apply([both.clone()]);
    let conditions = of(&cluster_, &both);
    let ancestor = &conditions.ancestors[0];
    assert_eq!(
        said(ancestor),
        [
            "Accepted=true SomeFieldsNotSupported",
            "PartiallyInvalid=true UnsupportedValue",
            "ResolvedRefs=true ResolvedRefs",
            "Conflicted=false NoConflict"
        ]
    );
    assert!(message(ancestor, ConditionType::PartiallyInvalid).starts_with("Dropped Rule: spec.rules[0]. "));
    assert_eq!(ancestor.resources.len(), 2, "a listener and a route");
}

fn header_only() -> slotmesh_crds::HttpRoute {
    let mut wanted = slotmesh_crds::HttpMatch::default();
    wanted.rest.insert("headers".to_owned(), serde_json::json!({"x": {"exact": "y"}}));
    slotmesh_crds::HttpRoute { matches: vec![wanted], route: vec![to("api", 1)], ..Default::default() }
}

#[test]
fn parents_that_differ_by_port_are_judged_each_by_itself() {
    let web = service("web").ip("10.0.0.1").named_port("http", 80).named_port("http-b", 81).build();
    let mut both = http_route("both", "web:80").to([backend("web:80", 1)]);
    both.0.spec.parent_refs.extend(http_route("x", "web:81").0.spec.parent_refs);
    both.0.spec.parent_refs.extend(http_route("x", "web:82").0.spec.parent_refs);
    let both = both.created(2).build();
    let first = http_route("first", "web:81").created(1).to([backend("web:80", 1)]).build();
    let cluster_ = Cluster::with([web, both.clone(), first]);
    let conditions = of(&cluster_, &both);
    let [a, b, c] = &conditions.ancestors[..] else { panic!("three parents") };
    let at = |ancestor: &Ancestor| ancestor.at.as_ref().map(|at| (at.port, at.field.clone())).unwrap();
    assert_eq!(at(b), (Some(81), "spec.parentRefs[1]".to_owned()));
    assert_eq!(said(a)[0], "Accepted=true Accepted");
    assert_eq!(said(b)[0], "Accepted=false Conflicted");
    assert_eq!(said(c)[0], "Accepted=false TargetNotFound");
    let of_80 = |name: &str| name == "10.0.0.1_80" || name.starts_with("80|");
    assert!(
        a.resources.iter().all(|r| of_80(r.name.as_str())) && a.resources.len() == 2,
        "{:?}",
        a.resources
    );
    assert!(b.resources.is_empty() && c.resources.is_empty());
}

#[test]
fn a_policy_has_made_the_clusters_of_its_port() {
    let web = service("web").ip("10.0.0.1").named_port("http", 80).named_port("http-b", 81).build();
    let (one, all) = (policy("one", "web/http-b").max(1).build(), policy("all", "web").max(2).build());
    let cluster_ = Cluster::with([web, one.clone(), all.clone()]);
    let names = |object: &Object| {
        let conditions = of(&cluster_, object);
        conditions.ancestors[0].resources.iter().map(|r| r.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names(&one), [cluster("web", 81, "")]);
    // What the one for the port doesn't say, it says there, too.
    assert_eq!(names(&all), [cluster("web", 80, ""), cluster("web", 81, "")]);
}

#[test]
fn what_is_none_of_the_meshs_is_met_with_silence() {
    let mut gateway = http_route("gateway", "web").rule(undecidable(backend("nowhere:80", 1)));
    gateway.0.spec.parent_refs =
        vec![slotmesh_crds::gateway::ParentRef { name: "edge".to_owned(), ..Default::default() }];
    let mut edge = virtual_service("edge", "web").http_route(header_only());
    edge.0.spec.gateways = vec!["istio-system/edge".to_owned()];
    let mut delegate = virtual_service("delegate", "web").http([to("nowhere", 1)]);
    delegate.0.spec.hosts.clear();
    let mut tls = rule("tls", "*.local");
    let policy = tls.0.spec.traffic_policy.get_or_insert_default();
    policy.rest.insert("tls".to_owned(), serde_json::json!({"mode": "ISTIO_MUTUAL"}));
    let objects = [gateway.build(), edge.build(), delegate.build(), tls.build()];
    let cluster_ = Cluster::with([web()].into_iter().chain(objects.clone()));
    for object in &objects {
        assert!(of(&cluster_, object).ancestors.is_empty(), "{}", object.key());
    }
    let about = |key: &ObjectKey| {
        let reports = cluster_.compiler.reports().filter(|r| r.object.kind == key.kind.as_str());
        reports.map(ToString::to_string).collect::<Vec<_>>()
    };
    for object in &objects {
        assert_eq!(about(&object.key()), [""; 0]);
    }
    // Who asks something of connections to many hosts is heard.
    let many = rule("many", "*.local").balance("RANDOM").build();
    let cluster_ = Cluster::with([web(), many.clone()]);
    assert_eq!(said(&of(&cluster_, &many).ancestors[0])[0], "Accepted=true Accepted");
}

#[test]
fn connections_that_are_refused_for_want_of_endpoints_are_told() {
    let vs = virtual_service("vs", "web").http([to("web/v1", 1)]).build();
    let subsets = rule("r", "web").version("v1").version("v2").build();
    let mut cluster_ = Cluster::with([web(), vs, subsets.clone()]);
    let refused = "DestinationRule default/r: spec.subsets: no endpoint of Service default/web has the labels of subset v1 \
                   (version=v1) for port 80; connections that routes send there are refused until one has";
    let none = "Service default/web: spec.selector: no endpoint of Service default/web is ready for port 80; connections to \
                it are refused";
    assert_eq!(cluster_.without_endpoints(), [refused, none], "of v2 nobody asks for anything");
    // It acts all the same.
    assert_eq!(said(&of(&cluster_, &subsets).ancestors[0])[0], "Accepted=true Accepted");
    // An ended Pod keeps its address in its status, and another one has got it since.
    let mut ended = pod("a-old").label("version", "v0").ip("10.1.0.1");
    ended.0.status.get_or_insert_default().phase = Some("Succeeded".to_owned());
    let new = pod("b-new").label("version", "v1").ip("10.1.0.1").build();
    let endpoints = slice("web", "web").named_port("http", 8080).endpoint("10.1.0.1").build();
    cluster_.apply([ended.build(), new, endpoints]);
    assert_eq!(cluster_.without_endpoints(), [""; 0]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 8080"]);
}
