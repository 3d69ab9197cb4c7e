//! Services and their endpoints.

use k8s_openapi::{api::core::v1::ServicePort, apimachinery::pkg::util::intstr::IntOrString};
use slotmesh_compile::{
    Object, Severity,
    builder::{pod, rule, service, slice},
};
use slotmesh_xds::{Change, ResourceType};

use crate::support::{Cluster, cluster};

#[test]
fn a_dual_stack_service_has_a_listener_per_address_and_one_assignment() {
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").ip("fd00::1").port(80).build(),
        slice("web-4", "web").port(8080).endpoint("10.1.0.2").endpoint("10.1.0.1").build(),
        slice("web-6", "web").port(8080).endpoint("fd01::1").build(),
    ]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "[fd00::1]_80"]);
    assert_eq!(cluster_.names(ResourceType::Cluster), [cluster("web", 80, "")]);
    assert_eq!(
        cluster_.endpoints(&cluster("web", 80, "")),
        ["10.1.0.1 8080", "10.1.0.2 8080", "fd01::1 8080"]
    );
    assert_eq!(cluster_.goes("[fd00::1]_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.compiler.reports().count(), 0);
}

#[test]
fn ports_are_matched_by_name_and_others_than_tcp_are_named() {
    let named = ServicePort {
        name: Some("admin".into()),
        port: 9000,
        target_port: Some(IntOrString::String("adm".into())),
        ..Default::default()
    };
    let udp = ServicePort {
        name: Some("dns".into()),
        port: 53,
        protocol: Some("UDP".into()),
        ..Default::default()
    };
    let cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").named_port("http", 80).full_port(named).full_port(udp).build(),
        slice("a", "web").named_port("http", 8080).named_port("admin", 9001).endpoint("10.1.0.1").build(),
        slice("b", "web").named_port("admin", 9002).endpoint("10.1.0.2").build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 8080"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 9000, "")), ["10.1.0.1 9001", "10.1.0.2 9002"]);
    assert_eq!(cluster_.names(ResourceType::Listener), ["10.0.0.1_80", "10.0.0.1_9000"]);
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        ["Service default/web: not supported: field spec.ports[2].protocol; UDP port 53 is left alone"]
    );
}

#[test]
fn endpoints_are_used_as_kube_proxy_does() {
    let web = || service("web").ip("10.0.0.1").ip("fd00::1").port(80).build();
    let ready = |ready| {
        slice("v4", "web")
            .port(80)
            .endpoint_when("10.1.0.1", ready, true, false)
            .endpoint_when("10.1.0.2", false, true, true)
            .endpoint_when("10.1.0.3", false, false, true)
            .endpoint_when("10.1.0.4", false, true, false)
            .build()
    };
    let v6 = slice("v6", "web").port(80).endpoint_when("fd01::1", false, true, true).build();
    let mut cluster_ = Cluster::with([web(), ready(true), v6]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80", "fd01::1 80"]);
    cluster_.apply([ready(false)]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.2 80", "fd01::1 80"]);
}

#[test]
fn a_service_without_endpoints_has_an_empty_assignment() {
    let web = slice("web", "web").port(80).endpoint("10.1.0.1").build();
    let mut cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build()]);
    assert!(cluster_.endpoints(&cluster("web", 80, "")).is_empty());
    assert_eq!(cluster_.apply([web.clone()]).changes.len(), 1);
    assert_eq!(cluster_.delete(&web).changes.len(), 1);
    assert!(cluster_.endpoints(&cluster("web", 80, "")).is_empty());
}

#[test]
fn headless_and_external_services_have_no_listener() {
    let mut external = service("ext").port(80);
    external.0.spec.as_mut().unwrap().type_ = Some("ExternalName".into());
    let cluster_ = Cluster::with([service("db").ip("None").port(5432).build(), external.build()]);
    assert!(cluster_.names(ResourceType::Listener).is_empty());
    assert_eq!(cluster_.names(ResourceType::Cluster), [cluster("db", 5432, "")]);
    assert_eq!(cluster_.said(Severity::Note).len(), 1);
}

#[test]
fn subsets_follow_the_labels_of_pods_by_reference_and_by_address() {
    let mut cluster_ = Cluster::with([
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(80).pod_endpoint("10.1.0.1", "a").endpoint("10.1.0.2").build(),
        rule("web", "web.default.svc.cluster.local").version("v1").version("v2").build(),
        pod("a").label("version", "v1").build(),
        pod("b").label("version", "v2").ip("10.1.0.2").build(),
    ]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v1")), ["10.1.0.1 80"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v2")), ["10.1.0.2 80"]);
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80", "10.1.0.2 80"]);

    // One label changes: two assignments, nothing else.
    let output = cluster_.apply([pod("a").label("version", "v2").build()]);
    assert_eq!(output.changes.len(), 2);
    assert!(cluster_.endpoints(&cluster("web", 80, "v1")).is_empty());
    assert_eq!(cluster_.endpoints(&cluster("web", 80, "v2")).len(), 2);

    // A label that nobody asks for changes nothing.
    let output = cluster_.apply([pod("a").label("version", "v2").label("x", "y").build()]);
    assert!(output.changes.is_empty());
}

#[test]
fn changes_come_in_make_before_break_order() {
    let objects: [Object; 2] = [
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(80).endpoint("10.1.0.1").build(),
    ];
    let mut cluster_ = Cluster::default();
    let added = cluster_.apply(objects.clone()).changes;
    let types: Vec<_> = added
        .iter()
        .map(|c| match c {
            Change::Upsert(r) => r.ty,
            Change::Remove(ty, name) => panic!("{ty} {name}"),
        })
        .collect();
    assert_eq!(types, [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener]);
    let removed = cluster_.delete(&objects[0]).changes;
    let types: Vec<_> = removed
        .iter()
        .map(|c| match c {
            Change::Remove(ty, _) => *ty,
            Change::Upsert(r) => panic!("{}", r.name),
        })
        .collect();
    assert_eq!(types, [ResourceType::Listener, ResourceType::Endpoints, ResourceType::Cluster]);
}

#[test]
fn nothing_is_truncated() {
    let long = "n".repeat(253);
    let mut many = slice("many", &long).port(80);
    for i in 0..300 {
        many = many.endpoint(&format!("10.1.{}.{}", i / 250, i % 250 + 1));
    }
    let subset = "s".repeat(253);
    let mut subsets = rule(&long, &format!("{long}.default.svc.cluster.local"));
    subsets.0.spec.subsets.push(slotmesh_crds::RuleSubset { name: subset.clone(), ..Default::default() });
    let cluster_ =
        Cluster::with([service(&long).ip("10.0.0.1").port(80).build(), many.build(), subsets.build()]);
    assert_eq!(cluster_.endpoints(&cluster(&long, 80, "")).len(), 300);
    assert_eq!(cluster_.endpoints(&cluster(&long, 80, &subset)).len(), 300);
    assert_eq!(cluster_.compiler.reports().count(), 0);
}

#[test]
fn an_endpoint_in_two_slices_stands_there_once_and_ready() {
    let held =
        |name, ready| slice(name, "web").port(80).endpoint_when("10.1.0.1", ready, true, false).build();
    for (a, b) in [(true, false), (false, true)] {
        let web = service("web").ip("10.0.0.1").port(80).build();
        let cluster_ = Cluster::with([web, held("a", a), held("b", b)]);
        assert_eq!(cluster_.endpoints(&cluster("web", 80, "")), ["10.1.0.1 80"]);
    }
}

#[test]
fn slices_of_names_are_reported() {
    let mut names = slice("names", "web").port(80);
    "FQDN".clone_into(&mut names.0.address_type);
    let cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build(), names.build()]);
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        [
            r#"EndpointSlice default/names: not supported: field addressType; endpoints of type "FQDN" are not used"#
        ]
    );
}
