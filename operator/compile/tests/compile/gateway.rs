//! Gateway API routes on Services: who decides, weights, grants, and what can't be decided.

use serde_json::json;
use slotmesh_compile::{
    Object, Severity,
    builder::{backend, grant, http_route, parent, service, tcp_route, to, virtual_service},
};
use slotmesh_crds::gateway::{HttpRouteMatch, HttpRule, PathMatch};
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, cluster};

/// A Service in namespace `default` with the ports http 80 and tcp 81.
fn of(name: &str, ip: u8) -> Object {
    service(name).ip(&format!("10.0.0.{ip}")).named_port("http", 80).named_port("tcp", 81).build()
}

fn shop() -> Vec<Object> {
    vec![of("web", 1), of("web-v1", 2), of("web-v2", 3)]
}

#[test]
fn weights_of_an_http_route_and_of_a_tcp_route() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        http_route("h", "web").to([backend("web-v1:80", 80), backend("web-v2:80", 20)]).build(),
        tcp_route("t", "web").to([backend("web-v1:81", 1), backend("web-v2:81", 0)]).build(),
    ]);
    let [v1, v2] = ["web-v1", "web-v2"].map(|name| cluster(name, 80, ""));
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{v1}=80 {v2}=20"));
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web-v1", 81, ""));
    // The versions' own addresses are as before.
    assert_eq!(cluster_.goes("10.0.0.2_80"), v1);
    assert_eq!(cluster_.compiler.reports().count(), 0);
    cluster_.delete(&http_route("h", "web").build());
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(cluster_.names(ResourceType::Route).is_empty());
}

#[test]
fn a_parent_port_limits_the_route_to_it() {
    let both = service("web").ip("10.0.0.1").named_port("http", 80).named_port("http-admin", 90).build();
    let cluster_ = Cluster::with([
        both,
        of("web-v1", 2),
        http_route("h", "web:90").to([backend("web-v1:80", 1)]).build(),
        http_route("lost", "web:99").to([backend("web-v1:80", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.goes("10.0.0.1_90"), format!("http:{}", cluster("web-v1", 80, "")));
    assert_eq!(
        cluster_.refused(),
        [
            "HTTPRoute default/lost: spec.parentRefs[0]: Service default/web has no TCP port 99 (it has 80, 90)"
        ]
    );
}

#[test]
fn a_virtual_service_goes_before_and_the_oldest_route_counts() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        virtual_service("vs", "web").created(9).http([to("web-v2", 1)]).build(),
        http_route("old", "web").created(1).to([backend("web-v1:80", 1)]).build(),
        http_route("young", "web").created(2).to([backend("web-v2:80", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v2", 80, "")));
    let refused = cluster_.refused();
    assert_eq!(
        refused[0],
        "HTTPRoute default/old: spec.parentRefs[0]: port 80 of Service default/web is already routed by \
         VirtualService default/vs, which goes before; these routes have no effect there for as long"
    );
    cluster_.delete(&virtual_service("vs", "web").build());
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v1", 80, "")));
    let refused = cluster_.refused();
    assert!(
        refused.len() == 1 && refused[0].contains("already routed by HTTPRoute default/old"),
        "{refused:?}"
    );
}

#[test]
fn another_namespace_has_to_allow_it() {
    let elsewhere = service("db").namespace("data").ip("10.0.0.9").port(80).build();
    let route = || http_route("h", "web").to([backend("data/db:80", 1)]).build();
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([elsewhere, route()]);
    let own = cluster("web", 80, "");
    let db = "http:outbound|80||db.data.svc.cluster.local";
    assert_eq!(cluster_.goes("10.0.0.1_80"), own);
    assert_eq!(
        cluster_.refused(),
        [
            "HTTPRoute default/h: spec.rules[0].backendRefs[0].namespace: no ReferenceGrant in namespace data lets HTTPRoute \
         of namespace default send connections to Service db; until it allows it, port 80 goes to the Service's own \
         endpoints"
        ]
    );
    let grant_ = |namespace: &str| grant("g", "HTTPRoute", namespace).namespace("data");
    cluster_.apply([grant_("default").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), db);
    assert!(cluster_.refused().is_empty());
    // Not what was once allowed, but what is.
    for other in [grant_("default").only("cache"), grant_("elsewhere")] {
        cluster_.apply([grant_("default").only("db").build()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), db);
        cluster_.apply([other.build()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), own);
    }
    cluster_.apply([grant("g", "TCPRoute", "default").namespace("data").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), own);
    cluster_.apply([grant_("default").build()]);
    cluster_.delete(&grant_("default").build());
    assert_eq!(cluster_.goes("10.0.0.1_80"), own);
}

#[test]
fn a_backend_that_is_missing_keeps_the_last_good_version() {
    let mut cluster_ = Cluster::with(shop());
    let v1 = format!("http:{}", cluster("web-v1", 80, ""));
    cluster_.apply([http_route("h", "web").to([backend("web-v1:80", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1);
    cluster_.apply([http_route("h", "web").to([backend("web-v3:80", 1), backend("web-v1:99", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v1);
    assert_eq!(
        cluster_.refused(),
        [
            "HTTPRoute default/h: spec.rules[0].backendRefs[0].name: there is no Service default/web-v3; until it exists, \
             port 80 keeps the route's last good version",
            "HTTPRoute default/h: spec.rules[0].backendRefs[1].port: Service default/web-v1 has no TCP port 99 (it has 80, \
             81); until it exists, port 80 keeps the route's last good version",
        ]
    );
}

#[test]
fn matches_that_need_a_request_are_named_and_skipped() {
    let path = |kind: &str, value: &str| HttpRouteMatch {
        path: Some(PathMatch { kind: Some(kind.into()), value: Some(value.into()) }),
        ..Default::default()
    };
    let by_header: HttpRouteMatch =
        serde_json::from_value(json!({"headers": [{"name": "x", "value": "y"}]})).unwrap();
    let rule = |matches: Vec<HttpRouteMatch>, to: &str| HttpRule {
        matches,
        backend_refs: vec![backend(to, 1)],
        ..Default::default()
    };
    let mut filtered = rule(vec![path("PathPrefix", "/")], "web-v2:80");
    filtered.rest.insert("timeouts".into(), json!({"request": "3s"}));
    let mut route = http_route("h", "web")
        .rule(rule(vec![path("PathPrefix", "/api"), by_header], "web-v1:80"))
        .rule(rule(vec![path("Exact", "/")], "web-v1:80"))
        .rule(filtered);
    route.0.spec.rest.insert("hostnames".into(), json!(["web.example"]));
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([route.build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v2", 80, "")));
    let not_supported = cluster_.said(Severity::NotSupported);
    for field in [
        "spec.hostnames",
        "spec.rules[0].matches[0].path",
        "spec.rules[0].matches[1].headers",
        "spec.rules[1].matches[0].path",
        "spec.rules[2].timeouts",
    ] {
        let says = format!("HTTPRoute default/h: not supported: field {field}");
        assert!(not_supported.iter().any(|said| said.starts_with(&says)), "{field}: {not_supported:#?}");
    }
    assert_eq!(not_supported.len(), 5);
    assert!(cluster_.refused().is_empty());
}

#[test]
fn what_is_wrong_with_a_route_is_said_by_field() {
    let mut parents = http_route("parents", "web").to([backend("web-v1:80", 1)]);
    parents.0.spec.parent_refs = vec![parent("web:70000"), parent("Web")];
    parents.0.spec.parent_refs[1].namespace = Some("other".into());
    let mut gateway = http_route("gateway", "web").to([backend("web-v1:80", 1)]);
    gateway.0.spec.parent_refs[0].kind = None;
    let mut backends = tcp_route("backends", "web").to([
        backend("web-v1:80", -1),
        backend("web-v1:80", 1),
        backend("web-v1:80", 1),
        backend("web-v1:0", 1),
    ]);
    let refs = &mut backends.0.spec.rules[0].backend_refs;
    (refs[1].port, refs[2].kind) = (None, Some("Bucket".into()));
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        parents.build(),
        gateway.build(),
        backends.build(),
        http_route("zero", "web").to([backend("web-v1:80", 0)]).build(),
        tcp_route("nowhere", "missing").to([backend("web-v1:80", 1)]).build(),
    ]);
    let refused = cluster_.refused();
    for said in [
        "HTTPRoute default/parents: spec.parentRefs[0].port: 70000 is not a port",
        "HTTPRoute default/parents: spec.parentRefs[1].namespace: not supported: a Service of another namespace, other",
        "HTTPRoute default/zero: spec.rules[0].backendRefs: the weights sum to 0",
        "TCPRoute default/backends: spec.rules[0].backendRefs[0].weight: it is below 0",
        "TCPRoute default/backends: spec.rules[0].backendRefs[1].port: it is missing",
        "TCPRoute default/backends: spec.rules[0].backendRefs[2].kind: connections can't go to a Bucket",
        "TCPRoute default/backends: spec.rules[0].backendRefs[3].port: 0 is not a port",
        "TCPRoute default/nowhere: spec.parentRefs[0]: there is no Service default/missing; the routes take effect when",
    ] {
        assert!(refused.iter().any(|r| r.starts_with(said)), "{said}: {refused:#?}");
    }
    assert_eq!(refused.len(), 8, "{refused:#?}");
    let notes = cluster_.said(Severity::Note);
    assert!(notes.iter().any(|note| note.contains("a Gateway is left alone")), "{notes:?}");
}
