//! VirtualServices.

use serde_json::{Value, json};
use slotmesh_builders::{VirtualServiceBuilder, pod, rule, service, slice, to, virtual_service};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds as crds;
use slotmesh_xds::ResourceType;

use crate::support::{Cluster, cluster};

/// `web` with two versions.
pub fn shop() -> Vec<Object> {
    vec![
        service("web").ip("10.0.0.1").port(80).build(),
        slice("web", "web").port(8080).pod_endpoint("10.1.0.1", "a").pod_endpoint("10.1.0.2", "b").build(),
        pod("a").label("version", "v1").build(),
        pod("b").label("version", "v2").build(),
        rule("web", "web").version("v1").version("v2").build(),
    ]
}

fn route(json: Value) -> crds::HttpRoute {
    serde_json::from_value(json).unwrap()
}

fn web() -> VirtualServiceBuilder {
    virtual_service("web", "web")
}

fn split(v1: u32, v2: u32) -> String {
    format!("http:{}={v1} {}={v2}", cluster("web", 80, "v1"), cluster("web", 80, "v2"))
}

#[test]
fn weights_split_connections_and_change_alone() {
    let mut cluster_ = Cluster::with(shop());
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    cluster_.apply([web().http([to("web/v1", 80), to("web/v2", 20)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), split(80, 20));
    assert_eq!(cluster_.names(ResourceType::Route), ["80|web.default.svc.cluster.local"]);

    let output = cluster_.apply([web().http([to("web/v1", 50), to("web/v2", 50)]).build()]);
    assert_eq!(output.changes.len(), 1, "only the route: {:?}", output.changes);
    assert_eq!(cluster_.goes("10.0.0.1_80"), split(50, 50));

    // No share, no part in the choice.
    cluster_.apply([web().http([to("web/v1", 0), to("web/v2", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v2")));

    cluster_.delete(&web().build());
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(cluster_.names(ResourceType::Route).is_empty());
}

#[test]
fn a_single_destination_needs_no_weight() {
    let mut cluster_ = Cluster::with(shop());
    // Istio's API can't tell 0 from unset.
    for weight in [None, Some(0)] {
        let mut single = to("web/v1", 0);
        single.weight = weight;
        cluster_.apply([web().http([single]).build()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v1")));
        assert_eq!(cluster_.refused(), [""; 0]);
    }
}

#[test]
fn hosts_resolve_in_the_objects_own_namespace() {
    let mut cluster_ = Cluster::with(shop());
    let full = "web.default.svc.cluster.local/v1";
    cluster_.apply([virtual_service("web", "web.default").namespace("ops").http([to(full, 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v1")));
    cluster_.apply([virtual_service("web", "web").namespace("ops").http([to(full, 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert_eq!(
        cluster_.refused(),
        [
            "VirtualService ops/web: spec.hosts[0]: there is no Service ops/web; the routes take effect when it \
          appears"
        ]
    );
}

#[test]
fn the_protocol_of_a_port_decides_which_routes_apply() {
    let mut cluster_ = Cluster::with(shop());
    let both = || web().http([to("web/v1", 1)]).tcp([to("web/v2", 1)]);
    let v1 = format!("http:{}", cluster("web", 80, "v1"));
    let v2 = cluster("web", 80, "v2");
    let plain = cluster("web", 80, "");
    cluster_.apply([both().build()]);
    for (name, app_protocol, expected) in [
        ("http", None, &v1),
        ("grpc-api", None, &v1),
        ("http2", None, &v1),
        ("tcp", None, &v2),
        ("redis-cache", None, &v2),
        ("main", None, &v1),
        ("https", None, &plain),
        ("tcp", Some("http"), &v1),
        ("http", Some("tcp"), &v2),
        ("main", Some("kubernetes.io/h2c"), &v1),
    ] {
        let mut changed = service("web").ip("10.0.0.1").named_port(name, 80);
        changed.0.spec.as_mut().unwrap().ports.as_mut().unwrap()[0].app_protocol =
            app_protocol.map(str::to_owned);
        cluster_.apply([changed.build()]);
        assert_eq!(cluster_.goes("10.0.0.1_80"), *expected, "{name} {app_protocol:?}");
    }
    // Without HTTP routes, TCP routes have an undeclared port.
    cluster_.apply([service("web").ip("10.0.0.1").port(80).build(), web().tcp([to("web/v2", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), v2);
}

#[test]
fn the_first_decidable_route_is_in_force_and_the_others_are_named() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([web()
        .http_route(route(json!({
            "match": [{"uri": {"prefix": "/a"}, "port": 80}, {"headers": {}, "port": 81}],
            "route": [{"destination": {"host": "web", "subset": "v1"}}],
        })))
        .http_route(route(json!({
            "match": [{"port": 81}],
            "route": [{"destination": {"host": "web", "subset": "v1"}}],
        })))
        .http_route(route(json!({
            "name": "main", "timeout": "3s", "retries": {},
            "match": [{"uri": {"exact": "/"}}, {"port": 80, "name": "plain"}],
            "route": [{"destination": {"host": "web", "subset": "v2"}, "headers": {}}],
        })))
        .build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v2")));
    let fields: Vec<_> =
        cluster_.compiler.reports().map(|r| (r.severity, r.field.clone().unwrap_or_default())).collect();
    let fields: Vec<_> = fields.iter().map(|(s, f)| (*s, f.as_str())).collect();
    for field in [
        "spec.http[0].match[0].uri",
        "spec.http[0].match[1].headers",
        "spec.http[2].match[0].uri",
        "spec.http[2].retries",
        "spec.http[2].route[0].headers",
        "spec.http[2].timeout",
    ] {
        assert!(fields.contains(&(Severity::NotSupported, field)), "{field} in {fields:?}");
    }
    assert_eq!(fields.len(), 6);
    let said = cluster_.said(Severity::NotSupported);
    let uri = said.iter().find(|s| s.contains("spec.http[0].match[0].uri")).unwrap();
    assert!(uri.contains("not supported: field spec.http[0].match[0].uri"), "{uri}");
}

/// The form in which routes through an egress gateway are written.
#[test]
fn a_match_is_for_the_mesh_unless_it_names_gateways_only() {
    let mut cluster_ = Cluster::with(shop());
    let to_subset = |gateways: Value, subset: &str| json!({"match": [{"gateways": gateways, "port": 80}], "route": [{"destination": {"host": "web", "subset": subset}}]});
    let [mesh, ingress] = [json!(["mesh"]), json!(["shop/ingress"])];
    let both = json!(["shop/ingress", "mesh"]);
    for (rules, goes) in [
        ([(&mesh, "v1"), (&ingress, "v2")], cluster("web", 80, "v1")),
        ([(&ingress, "v2"), (&mesh, "v1")], cluster("web", 80, "v1")),
        ([(&ingress, "v1"), (&both, "v2")], cluster("web", 80, "v2")),
        ([(&ingress, "v1"), (&ingress, "v2")], cluster("web", 80, "")),
    ] {
        let mut http = web();
        let mut tcp = web();
        for (gateways, subset) in rules {
            let rule = to_subset(gateways.clone(), subset);
            http = http.http_route(route(rule.clone()));
            tcp.0.spec.tcp.push(serde_json::from_value(rule).unwrap());
        }
        let in_http = if goes.contains("||") { goes.clone() } else { format!("http:{goes}") };
        for (object, goes) in [(http, in_http), (tcp, goes)] {
            cluster_.apply([object.build()]);
            assert_eq!(cluster_.goes("10.0.0.1_80"), goes);
            assert!(
                cluster_.said(Severity::NotSupported).is_empty(),
                "{:?}",
                cluster_.said(Severity::NotSupported)
            );
        }
    }
}

#[test]
fn a_prefix_that_every_path_has_matches_everything() {
    let mut cluster_ = Cluster::with(shop());
    for (uri, every) in [
        (json!({"prefix": "/"}), true),
        (json!({"regex": ".*"}), true),
        (json!({"regex": "/.*"}), true),
        (json!({"prefix": "/a"}), false),
        (json!({"exact": "/"}), false),
        (json!({"regex": "/a.*"}), false),
        (json!({"prefix": "/", "exact": "/a"}), false),
        (json!("/"), false),
    ] {
        let to_v1 = json!({"match": [{"uri": uri, "ignoreUriCase": true}], "route": [{"destination": {"host": "web", "subset": "v1"}}]});
        cluster_.apply([web().http_route(route(to_v1)).http([to("web/v2", 1)]).build()]);
        let goes = cluster("web", 80, if every { "v1" } else { "v2" });
        assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{goes}"), "{uri}");
        assert_eq!(cluster_.said(Severity::NotSupported).is_empty(), every, "{uri}");
    }
}

#[test]
fn destinations_in_another_service_and_port() {
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([
        service("blue").namespace("x").ip("10.0.0.2").port(8000).build(),
        service("two").ip("10.0.0.3").named_port("a", 80).named_port("b", 81).build(),
    ]);
    let blue = "http:outbound|8000||blue.x.svc.cluster.local";
    cluster_.apply([web().http([to("blue.x", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), blue, "the only port is clear");
    cluster_.apply([web().http([to("two", 1)]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("two", 80, "")), "the same port");
    let mut named = to("two", 1);
    named.destination.port = Some(crds::PortSelector { number: Some(81), ..Default::default() });
    cluster_.apply([web().http([named]).build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("two", 81, "")));
}

#[test]
fn of_two_objects_for_a_host_the_oldest_wins_and_the_other_takes_over() {
    let older = virtual_service("z", "web").created(1).http([to("web/v1", 1)]).build();
    let younger = virtual_service("a", "web").created(2).http([to("web/v2", 1)]).build();
    let mut cluster_ = Cluster::with(shop());
    cluster_.apply([younger, older.clone()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v1")));
    let refused = cluster_.refused();
    assert_eq!(refused.len(), 1);
    assert!(
        refused[0].starts_with("VirtualService default/a: spec.hosts[0]: Service default/web is already")
    );
    assert!(refused[0].contains("VirtualService default/z"), "{}", refused[0]);
    cluster_.delete(&older);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v2")));
    assert!(cluster_.refused().is_empty());
}

#[test]
fn gateways_and_load_balancing_values_are_named() {
    let mut cluster_ = Cluster::with(shop());
    let mut gateway = web().http([to("web/v1", 1)]);
    gateway.0.spec.gateways = vec!["istio-ingress/public".into()];
    cluster_
        .apply([gateway.clone().build(), rule("web", "web").version("v1").balance("PASSTHROUGH").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.said(Severity::Note), [""; 0], "it is the gateway's");
    assert_eq!(
        cluster_.said(Severity::NotSupported),
        [
            "DestinationRule default/web: not supported: field spec.trafficPolicy.loadBalancer.simple; PASSTHROUGH \
          is not there yet, RANDOM is used instead"
        ]
    );
    gateway.0.spec.gateways.push("mesh".into());
    cluster_.apply([gateway.build(), rule("web", "web").version("v1").balance("RANDOM").build()]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web", 80, "v1")));
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn routes_without_effect_are_refused() {
    let mut cluster_ = Cluster::with(shop());
    let said = |cluster_: &Cluster| {
        let mut refused = cluster_.refused();
        refused.retain(|refused| refused.starts_with("VirtualService"));
        refused.join("")
    };
    cluster_.apply([
        service("web").ip("10.0.0.1").named_port("https", 80).build(),
        web().http([to("web/v1", 1)]).build(),
    ]);
    let expected = "VirtualService default/web: spec.hosts[0]: no route that can be decided applies to a port of \
                    Service default/web; it has 80 (TLS); connections go as if the object weren't there";
    assert_eq!(said(&cluster_), expected);
    cluster_.apply([service("web").ip("None").port(80).build()]);
    assert!(said(&cluster_).contains("Service default/web has no cluster IP"));
    cluster_.apply([service("web").ip("10.0.0.1").port(80).build()]);
    assert_eq!(said(&cluster_), "");
}
