//! Gateway API routes on Services: who decides, weights, grants, and what can't be decided.

use serde_json::json;
use slotmesh_builders::{
    backend, grant, grpc_route, http_route, parent, service, tcp_route, tls_route, to, virtual_service,
};
use slotmesh_compile::{CompileOptions, Object, Severity};
use slotmesh_crds::gateway::{HttpRouteMatch, HttpRule, PathMatch};
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, NOWHERE, cluster};

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
        tcp_route("t", "web:81").to([backend("web-v1:81", 1), backend("web-v2:81", 0)]).build(),
    ]);
    let [v1, v2] = ["web-v1", "web-v2"].map(|name| cluster(name, 80, ""));
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{v1}=80 {v2}=20"));
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web-v1", 81, ""));
    // The versions' own addresses are as before.
    assert_eq!(cluster_.goes("10.0.0.2_80"), v1);
    assert_eq!(cluster_.reports(), 0);
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
fn another_namespace_has_to_allow_it_where_grants_are_asked_for() {
    let elsewhere = service("db").namespace("data").ip("10.0.0.9").port(80).build();
    let route = || http_route("h", "web").to([backend("data/db:80", 1)]).build();
    let open = Cluster::with(shop().into_iter().chain([elsewhere.clone(), route()]));
    assert_eq!(open.goes("10.0.0.1_80"), "http:outbound|80||db.data.svc.cluster.local");
    assert_eq!(open.reports(), 0, "in a mesh nobody needs a grant, unless the installation says so");

    let mut cluster_ = Cluster::new(CompileOptions { require_grants: true, ..CompileOptions::default() });
    cluster_.apply(shop());
    cluster_.apply([elsewhere, route()]);
    let nowhere = format!("http:{NOWHERE}");
    let db = "http:outbound|80||db.data.svc.cluster.local";
    assert_eq!(cluster_.goes("10.0.0.1_80"), nowhere);
    assert_eq!(
        cluster_.refused(),
        [
            "HTTPRoute default/h: spec.rules[0].backendRefs[0].namespace: no ReferenceGrant in namespace data lets HTTPRoute \
         of namespace default send connections to Service db; until it allows it, every connection to port 80 is \
         refused"
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
        assert_eq!(cluster_.goes("10.0.0.1_80"), nowhere);
    }
    cluster_.apply([grant("g", "TCPRoute", "default").namespace("data").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), nowhere);
    cluster_.apply([grant_("default").build()]);
    cluster_.delete(&grant_("default").build());
    assert_eq!(cluster_.goes("10.0.0.1_80"), nowhere);
}

#[test]
fn a_backend_that_is_missing_refuses_its_share() {
    let mut cluster_ = Cluster::with(shop());
    let v1 = cluster("web-v1", 80, "");
    cluster_.apply([http_route("h", "web").to([backend("web-v1:80", 20), backend("web-v9:80", 80)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{v1}=20 {NOWHERE}=80"));
    cluster_.apply([http_route("h", "web").to([backend("web-v3:80", 1), backend("web-v1:99", 2)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{NOWHERE}"));
    assert_eq!(
        cluster_.refused(),
        [
            "HTTPRoute default/h: spec.rules[0].backendRefs[0].name: there is no Service default/web-v3; until it exists, \
             its share of the connections to port 80 is refused",
            "HTTPRoute default/h: spec.rules[0].backendRefs[1].port: Service default/web-v1 has no TCP port 99 (it has 80, \
             81); until it exists, its share of the connections to port 80 is refused",
        ]
    );
    cluster_.apply([tcp_route("t", "web:81").to([backend("web-v1:81", 1), backend("web-v9:81", 4)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_81"), format!("{}=1 {NOWHERE}=4", cluster("web-v1", 81, "")));
}

#[test]
fn without_any_weight_nobody_gets_the_connections() {
    for zero in [
        http_route("h", "web:80").to([backend("web-v1:80", 0)]).build(),
        http_route("h", "web:80").to([backend("web-v1:80", 0), backend("web-v2:80", 0)]).build(),
    ] {
        let mut cluster_ = Cluster::with(shop());
        cluster_.apply([http_route("h", "web:80").to([backend("web-v1:80", 1)]).build()]);
        cluster_.apply([zero.clone()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{NOWHERE}"));
        assert!(cluster_.refused().is_empty());
        let accepted = &cluster_.compiler.conditions(&zero.key()).unwrap().ancestors[0].conditions[0];
        assert!(accepted.holds(), "{accepted:?}");
    }
}

#[test]
fn a_rule_that_needs_a_request_does_not_take_the_others_along() {
    let canary = |weights: [i32; 2]| {
        let by_header = serde_json::from_value(json!({"headers": [{"name": "x-canary", "value": "true"}]}));
        http_route("h", "web:80")
            .to([backend("web-v1:80", weights[0]), backend("web-v2:80", weights[1])])
            .rule(HttpRule {
                matches: vec![by_header.unwrap()],
                backend_refs: vec![backend("web-v2:80", 0)],
                ..Default::default()
            })
            .build()
    };
    let mut cluster_ = Cluster::with(shop());
    let [v1, v2] = ["web-v1", "web-v2"].map(|name| cluster(name, 80, ""));
    for [a, b] in [[80, 20], [50, 50]] {
        cluster_.apply([canary([a, b])]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{v1}={a} {v2}={b}"));
        assert!(cluster_.refused().is_empty());
    }
}

#[test]
fn a_rule_without_backends_leads_to_the_services_own_endpoints_and_a_redirect_is_skipped() {
    let mut redirect = HttpRule::default();
    redirect.rest.insert("filters".into(), json!([{"type": "RequestRedirect", "requestRedirect": {}}]));
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        http_route("h", "web:80").rule(HttpRule::default()).to([backend("web-v1:80", 1)]).build(),
        http_route("r", "web-v1:80").rule(redirect).to([backend("web-v2:80", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "")));
    assert_eq!(cluster_.goes("10.0.0.2_80"), format!("http:{}", cluster("web-v2", 80, "")));
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        [
            "HTTPRoute default/r: not supported: field spec.rules[0].filters; a redirect takes a request, so the rule is skipped"
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
fn what_is_wrong_with_one_parent_or_backend_is_said_by_field_and_takes_nothing_else_along() {
    let mut parents = http_route("parents", "web").to([backend("web-v1:80", 1)]);
    parents.0.spec.parent_refs =
        vec![parent("web-v2:70000"), parent("Web"), parent("web:80"), parent("other")];
    parents.0.spec.parent_refs[3].namespace = Some("other".into());
    let mut backends = tcp_route("backends", "web:81").to([
        backend("web-v1:81", -1),
        backend("web-v1:81", 2),
        backend("web-v1:81", 3),
        backend("web-v1:0", 4),
        backend("Web:81", 5),
        backend("web-v2:81", 6),
    ]);
    let refs = &mut backends.0.spec.rules[0].backend_refs;
    (refs[1].port, refs[2].kind) = (None, Some("Bucket".into()));
    let mut cluster_ = Cluster::with(shop());
    let parents = parents.build();
    cluster_.apply([
        parents.clone(),
        backends.build(),
        tcp_route("nowhere", "missing").to([backend("web-v1:80", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v1", 80, "")));
    assert_eq!(cluster_.goes("10.0.0.1_81"), format!("{}=6 {NOWHERE}=14", cluster("web-v2", 81, "")));
    let refused = cluster_.refused();
    let share = "the backend's share of the connections is refused";
    for (said, ends) in [
        ("HTTPRoute default/parents: spec.parentRefs[0].port: 70000 is not a port", ""),
        ("HTTPRoute default/parents: spec.parentRefs[1].name: the name contains 'W'", ""),
        (
            "HTTPRoute default/parents: spec.parentRefs[3]: there is no Service other/other; the routes take effect",
            "",
        ),
        ("TCPRoute default/backends: spec.rules[0].backendRefs[0].weight: it is below 0", ""),
        ("TCPRoute default/backends: spec.rules[0].backendRefs[1].port: it is missing", share),
        (
            "TCPRoute default/backends: spec.rules[0].backendRefs[2].kind: connections can't go to a Bucket",
            share,
        ),
        ("TCPRoute default/backends: spec.rules[0].backendRefs[3].port: 0 is not a port", share),
        ("TCPRoute default/backends: spec.rules[0].backendRefs[4].name: the name contains 'W'", share),
        (
            "TCPRoute default/nowhere: spec.parentRefs[0]: there is no Service default/missing; the routes take effect",
            "",
        ),
    ] {
        assert!(refused.iter().any(|r| r.starts_with(said) && r.ends_with(ends)), "{said}: {refused:#?}");
    }
    assert_eq!(refused.len(), 9, "{refused:#?}");
    // The status tells them apart.
    let accepted =
        cluster_.compiler.conditions(&parents.key()).unwrap().ancestors.into_iter().map(|ancestor| {
            (
                ancestor.at.unwrap().service.to_string(),
                ancestor.conditions[0].holds(),
                ancestor.resources.is_empty(),
            )
        });
    let [no, yes] = [(false, true), (true, false)];
    assert_eq!(
        accepted.collect::<Vec<_>>(),
        [("default/web-v2", no), ("default/Web", no), ("default/web", yes), ("other/other", no)]
            .map(|(at, (holds, empty))| (at.to_owned(), holds, empty))
    );
}

#[test]
fn parents_that_are_no_services_are_left_alone() {
    let mut gateway = http_route("gateway", "web").to([backend("web-v1:80", 1)]);
    gateway.0.spec.parent_refs[0].kind = None;
    let mut groupless = http_route("groupless", "web").to([backend("web-v1:80", 1)]);
    groupless.0.spec.parent_refs[0].group = None;
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([gateway.build(), groupless.build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    // Of what is somebody else's nothing is said.
    let said: Vec<_> = cluster_.compiler.reports().map(ToString::to_string).collect();
    assert!(!said.iter().any(|said| said.contains("default/gateway")), "{said:?}");
    let group = "HTTPRoute default/groupless: not supported: field spec.parentRefs[0].group; a Service of the group \
                 gateway.networking.k8s.io is meant, and there is none; write group: \"\"";
    assert_eq!(cluster_.said(Severity::NotSupported), [group]);
}

#[test]
fn routes_of_all_kinds_count_in_the_order_of_the_specification_whatever_their_age() {
    let to_ = |n: usize| [backend(&format!("b{n}:80"), 1)];
    // The one that counts least is the oldest.
    let routes = [
        grpc_route("r", "web").to(to_(0)).created(4).build(),
        http_route("r", "web").to(to_(1)).created(3).build(),
        tls_route("r", "web").to(to_(2)).created(2).build(),
        tcp_route("r", "web").to(to_(3)).created(1).build(),
    ];
    let mut cluster_ = Cluster::with([service("web").ip("10.0.0.1").port(80).build()]);
    cluster_.apply((0..4).map(|n| service(&format!("b{n}")).ip(&format!("10.0.1.{n}")).port(80).build()));
    cluster_.apply(routes.clone());
    for (n, route) in routes.iter().enumerate() {
        let goes = cluster(&format!("b{n}"), 80, "");
        assert_eq!(cluster_.goes("10.0.0.1_80"), if n < 2 { format!("http:{goes}") } else { goes });
        let refused = cluster_.refused();
        assert_eq!(refused.len(), 3 - n, "{refused:?}");
        let winner = format!("is already routed by {}, which goes before", route.key());
        assert!(refused.iter().all(|said| said.contains(&winner)), "{refused:?}");
        cluster_.delete(route);
    }
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
}

#[test]
fn all_routes_of_a_kind_take_part_the_older_first_then_by_name() {
    let by_path = |to_: &str| HttpRule {
        matches: vec![HttpRouteMatch {
            path: Some(PathMatch { kind: None, value: Some("/api".into()) }),
            ..Default::default()
        }],
        backend_refs: vec![backend(to_, 1)],
        ..Default::default()
    };
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        // It says nothing that can be decided, and keeps nobody out.
        http_route("oldest", "web:80").created(1).rule(by_path("web-v2:80")).build(),
        http_route("b", "web:80").created(2).to([backend("web-v2:80", 1)]).build(),
        http_route("a", "web:80").created(2).to([backend("web-v1:80", 1)]).build(),
    ]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v1", 80, "")));
    let refused = cluster_.refused();
    assert!(
        refused[1].starts_with("HTTPRoute default/oldest: spec.parentRefs[0]: no route that can be decided")
    );
    assert!(
        refused.len() == 2 && refused[0].starts_with("HTTPRoute default/b: spec.parentRefs[0]"),
        "{refused:?}"
    );
}

/// A kind of route, and one of it that leads from `web` to `b`.
type RouteOfKind = (&'static str, fn() -> Object);

#[test]
fn which_ports_a_kind_of_route_is_for() {
    let kinds: [RouteOfKind; 4] = [
        ("grpc", || grpc_route("r", "web").to([backend("b:80", 1)]).build()),
        ("http", || http_route("r", "web").to([backend("b:80", 1)]).build()),
        ("tls", || tls_route("r", "web").to([backend("b:80", 1)]).build()),
        ("tcp", || tcp_route("r", "web").to([backend("b:80", 1)]).build()),
    ];
    for (kind, route) in kinds {
        for (port, takes_part) in [
            ("http", kind != "tls"),
            ("grpc", kind != "tls"),
            ("redis", kind == "tcp"),
            ("https", matches!(kind, "tls" | "tcp")),
            ("main", true),
        ] {
            let cluster_ = Cluster::with([
                service("web").ip("10.0.0.1").named_port(port, 80).build(),
                service("b").ip("10.0.0.2").port(80).build(),
                route(),
            ]);
            let goes = cluster_.goes("10.0.0.1_80");
            let goes = goes.strip_prefix("http:").unwrap_or(&goes);
            let expected = cluster(if takes_part { "b" } else { "web" }, 80, "");
            assert_eq!(goes, expected, "{kind} at {port}");
        }
    }
}

#[test]
fn what_takes_a_request_is_named_in_grpc_and_tls_routes_too() {
    let mut grpc = grpc_route("g", "web:80").to([backend("web-v1:80", 1)]).to([backend("web-v2:80", 1)]);
    let by_method = json!({"method": {"service": "shop.Cart", "method": "Add"}, "headers": [{"name": "x", "value": "y"}]});
    grpc.0.spec.rules[0].matches = vec![serde_json::from_value(by_method).unwrap()];
    grpc.0.spec.rules[1].matches = vec![HttpRouteMatch::default()];
    let mut tls = tls_route("t", "web:81").to([backend("web-v1:81", 1)]);
    tls.0.spec.hostnames = vec!["web.example".into()];
    let tls_port = service("web").ip("10.0.0.1").named_port("grpc", 80).named_port("tls", 81).build();
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([tls_port, grpc.build(), tls.clone().build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v2", 80, "")));
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web", 81, ""));
    let said = cluster_.said(Severity::NotSupported);
    for field in [
        "g: not supported: field spec.rules[0].matches[0].method",
        "g: not supported: field spec.rules[0].matches[0].headers",
        "t: not supported: field spec.hostnames",
    ] {
        assert!(said.iter().any(|said| said.contains(field)), "{field}: {said:?}");
    }
    tls.0.spec.hostnames.clear();
    cluster_.apply([tls.build()]);
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web-v1", 81, ""));
}
