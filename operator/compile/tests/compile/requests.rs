//! Rules that take a request, where a proxy on the node looks at requests.

mod everything;
mod istio;

use std::collections::BTreeMap;

use prost::Message as _;
use serde_json::{Value, json};
use slotmesh_builders::{backend, grpc_route, http_route, rule, service, tcp_route, to, virtual_service};
use slotmesh_compile::{CompileOptions, ConditionType, Object, Severity};
use slotmesh_crds::{
    VirtualService,
    gateway::{GrpcRoute, HttpRoute},
};
use slotmesh_xds::{
    ResourceType, RoutedByRequest,
    envoy::envoy::config::route::v3::{
        Route, RouteConfiguration,
        route::Action,
        route_action::{ClusterNotFoundResponseCode, ClusterSpecifier},
        route_match::PathSpecifier,
        weighted_cluster::ClusterWeight,
    },
};

use crate::support::{Cluster, cluster};

fn proxied(objects: impl IntoIterator<Item = Object>) -> Cluster {
    let mut proxied = Cluster::new(CompileOptions { proxy: true, ..CompileOptions::default() });
    proxied.apply(objects);
    proxied
}

fn shop() -> Vec<Object> {
    let of = |name: &str, ip: u8| {
        service(name).ip(&format!("10.0.0.{ip}")).named_port("http", 80).named_port("tcp", 81).build()
    };
    vec![of("web", 1), of("web-v1", 2), of("web-v2", 3)]
}

/// An HTTPRoute of namespace `default`, or of another, for Service `web` of `default`.
fn http(name: &str, namespace: &str, rules: Value) -> Object {
    let route: HttpRoute = serde_json::from_value(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "default"}],
            "rules": rules,
        },
    }))
    .unwrap();
    route.into()
}

fn grpc(rules: Value) -> Object {
    let route: GrpcRoute = serde_json::from_value(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": {"name": "g", "namespace": "default"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    }))
    .unwrap();
    route.into()
}

fn istio(name: &str, spec: Value) -> Object {
    let route: VirtualService = serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    }))
    .unwrap();
    route.into()
}

const WEB: &str = "80|web.default.svc.cluster.local";

fn configuration(cluster: &Cluster, name: &str) -> RouteConfiguration {
    let content = &cluster.served()[&(ResourceType::Route, name.to_owned())];
    RouteConfiguration::decode(content.as_slice()).unwrap()
}

/// Each route of a configuration as `path headers -> where`.
fn routes(cluster: &Cluster, name: &str) -> Vec<String> {
    let message = configuration(cluster, name);
    assert!(message.metadata.unwrap().typed_filter_metadata.contains_key(RoutedByRequest::KEY));
    let [host] = &message.virtual_hosts[..] else { panic!("one virtual host") };
    assert_eq!(host.domains, ["*"]);
    let route = |route: &Route| {
        let matched = route.r#match.as_ref().unwrap();
        let path = match matched.path_specifier.as_ref().unwrap() {
            PathSpecifier::Prefix(path) => format!("{path}*"),
            PathSpecifier::Path(path) => format!("={path}"),
            PathSpecifier::PathSeparatedPrefix(path) => format!("{path}/*"),
            PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
            other => panic!("{other:?}"),
        };
        let headers = matched.headers.iter().map(|header| format!(" {}", header.name));
        let query = matched.query_parameters.iter().map(|query| format!(" ?{}", query.name));
        let to = match route.action.as_ref().unwrap() {
            Action::Route(action) => match action.cluster_specifier.as_ref().unwrap() {
                ClusterSpecifier::Cluster(name) => short(name),
                ClusterSpecifier::WeightedClusters(weighted) => {
                    let one =
                        |of: &ClusterWeight| format!("{}={}", short(&of.name), of.weight.unwrap().value);
                    weighted.clusters.iter().map(one).collect::<Vec<_>>().join(" ")
                }
                other => panic!("{other:?}"),
            },
            Action::Redirect(_) => "redirect".to_owned(),
            Action::DirectResponse(direct) => direct.status.to_string(),
            other => panic!("{other:?}"),
        };
        format!("{path}{}{} -> {to}", headers.collect::<String>(), query.collect::<String>())
    };
    host.routes.iter().map(route).collect()
}

/// The Service and port of a cluster in namespace `default`.
fn short(cluster: &str) -> String {
    match cluster.split('|').collect::<Vec<_>>()[..] {
        ["outbound", port, subset, host, ..] => {
            let subset = if subset.is_empty() { String::new() } else { format!("/{subset}") };
            format!("{}{subset}:{port}", host.split('.').next().unwrap())
        }
        _ => cluster.to_owned(),
    }
}

#[test]
fn the_most_specific_match_of_all_routes_goes_before() {
    let mut cluster_ = proxied(shop());
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    cluster_.apply([
        http("a", "default", json!([
            {"matches": [{"path": {"type": "PathPrefix", "value": "/"}}], "backendRefs": to("web-v1")},
            {"matches": [
                {"path": {"type": "PathPrefix", "value": "/api/"}},
                {"path": {"type": "RegularExpression", "value": "/r.*"}},
            ], "backendRefs": to("web-v1")},
        ])),
        http("b", "default", json!([
            {"matches": [
                {"headers": [{"name": "Version", "value": "two"}, {"name": "VERSION", "value": "three"}]},
                {"path": {"type": "Exact", "value": "/api/v2"}, "method": "GET"},
                {"path": {"type": "PathPrefix", "value": "/api"}, "queryParams": [{"name": "v", "value": "2"}]},
            ], "backendRefs": to("web-v2")},
        ])),
    ]);
    assert_eq!(
        routes(&cluster_, WEB),
        [
            "=/api/v2 :method -> web-v2:80",
            "~/r.* -> web-v1:80",
            "/api/* ?v -> web-v2:80",
            "/api/* -> web-v1:80",
            "/* version -> web-v2:80",
            "/* -> web-v1:80",
        ]
    );
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.said(Severity::NotSupported));
    let names: Vec<_> = configuration(&cluster_, WEB).virtual_hosts.remove(0).routes;
    assert_eq!(names[0].name, "HTTPRoute/default/b/rules[0]");
    // All TCP, and the versions' own addresses, are decided as before.
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web", 81, ""));
    assert_eq!(cluster_.goes("10.0.0.2_80"), cluster("web-v1", 80, ""));
    // A route behind one for every request has no effect.
    cluster_.apply([http("c", "default", json!([{"backendRefs": to("web-v2")}]))]);
    assert_eq!(routes(&cluster_, WEB).len(), 6);
    let refused = cluster_.refused();
    assert!(refused.len() == 1 && refused[0].starts_with("HTTPRoute default/c: spec.parentRefs[0]: port 80"));
}

#[test]
fn a_port_on_which_nothing_takes_a_request_is_decided_when_a_connection_is_made() {
    let objects = || {
        let mut objects = shop();
        objects.extend([
            http_route("h", "web").to([backend("web-v1:80", 80), backend("web-v2:80", 20)]).build(),
            tcp_route("t", "web:81").to([backend("web-v1:81", 1)]).build(),
            virtual_service("vs", "web-v1").http([to("web-v2", 1)]).build(),
            rule("r", "web-v1").version("v1").build(),
        ]);
        objects
    };
    let (without, with) = (Cluster::with(objects()), proxied(objects()));
    let of = |cluster: &Cluster| -> BTreeMap<(ResourceType, String), Vec<u8>> {
        let kept = [ResourceType::Listener, ResourceType::Route, ResourceType::Endpoints];
        cluster.served().clone().into_iter().filter(|((ty, _), _)| kept.contains(ty)).collect()
    };
    assert_eq!(of(&without), of(&with));
    assert_eq!(without.names(ResourceType::Cluster), with.names(ResourceType::Cluster));
}

#[test]
fn an_unresolved_backend_answers_its_share_with_500() {
    let mut cluster_ = proxied(shop());
    cluster_.apply([http("h", "default", json!([
        {"matches": [{"path": {"value": "/a"}}], "backendRefs": [
            {"name": "web-v1", "port": 80, "weight": 3}, {"name": "gone", "port": 80, "weight": 1},
        ]},
        {"matches": [{"path": {"value": "/b"}}], "backendRefs": [{"kind": "Bucket", "name": "x", "port": 80}]},
    ]))]);
    assert_eq!(routes(&cluster_, WEB), ["/a/* -> web-v1:80=3 InvalidBackend=1", "/b/* -> InvalidBackend"]);
    for route in &configuration(&cluster_, WEB).virtual_hosts[0].routes {
        let Some(Action::Route(action)) = &route.action else { panic!("a route action") };
        assert_eq!(
            action.cluster_not_found_response_code(),
            ClusterNotFoundResponseCode::InternalServerError
        );
        assert_eq!(action.timeout, Some(Default::default()), "no limit, where Envoy has 15 s");
    }
    assert!(!cluster_.names(ResourceType::Cluster).contains(&"InvalidBackend"));
    let refused = cluster_.refused();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert_eq!(
        refused[0],
        "HTTPRoute default/h: spec.rules[0].backendRefs[1].name: there is no Service default/gone; until it exists, \
         its share of the requests is answered with 500"
    );
    assert_eq!(
        refused[1],
        "HTTPRoute default/h: spec.rules[1].backendRefs[0].kind: connections can't go to a Bucket, only to a Service; \
         the backend's share of the requests is answered with 500"
    );
    // Nothing matches the rest: 404, and without a proxy a refusal.
    assert!(cluster_.names(ResourceType::Cluster).contains(&"BlackHoleCluster"));
    cluster_.apply([service("gone").ip("10.0.0.9").named_port("http", 80).build()]);
    assert_eq!(routes(&cluster_, WEB)[0], "/a/* -> web-v1:80=3 gone:80=1");
}

#[test]
fn a_consumers_route_has_a_configuration_of_its_own() {
    let mut cluster_ = proxied(shop());
    let of = |value: &str| {
        json!([{"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
            "set": [{"name": "X-Header-Set", "value": value}]}}]}])
    };
    cluster_.apply([http("consumer", "other", of("it"))]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert_eq!(cluster_.classes("10.0.0.1_80"), ["other"]);
    let name = format!("{WEB}|other");
    assert_eq!(cluster_.names(ResourceType::Route), [name.as_str()]);
    assert_eq!(routes(&cluster_, &name), ["/* -> web:80"]);
    let set = &configuration(&cluster_, &name).virtual_hosts[0].routes[0].response_headers_to_add[0];
    let header = set.header.as_ref().unwrap();
    assert_eq!((header.key.as_str(), header.value.as_str()), ("x-header-set", "it"));
    // With a producer's route everybody has one.
    cluster_.apply([http("producer", "default", of("all"))]);
    assert_eq!(cluster_.names(ResourceType::Route), [WEB, name.as_str()]);
    let conditions = cluster_.compiler.conditions(&http("consumer", "other", json!([])).key());
    let [ancestor] = &conditions.unwrap().ancestors[..] else { panic!("one parent") };
    assert!(ancestor.conditions.iter().any(|c| c.ty == ConditionType::Accepted && c.holds()));
    assert!(ancestor.resources.iter().any(|resource| resource.name.as_str() == name), "{ancestor:?}");
    cluster_.delete(&http("consumer", "other", json!([])));
    assert!(cluster_.classes("10.0.0.1_80").is_empty());
}

#[test]
fn a_rule_that_asks_for_what_is_not_supported_is_dropped_and_named() {
    let mut cluster_ = proxied(shop());
    cluster_.apply([http("h", "default", json!([
        {"matches": [{"path": {"value": "/a"}}], "filters": [{"type": "ExtensionRef", "extensionRef": {"name": "x"}}]},
        {"matches": [{"path": {"value": "no slash"}}, {"path": {"value": "/b"}}]},
        {"matches": [{"path": {"value": "/c"}}], "timeouts": {"request": "soon"}},
    ]))]);
    assert_eq!(routes(&cluster_, WEB), ["/b/* -> web:80"]);
    let said = cluster_.said(Severity::NotSupported);
    assert_eq!(
        said,
        [
            "HTTPRoute default/h: spec.rules[0].filters[0].type: filter ExtensionRef isn't supported; the rule is skipped",
            "HTTPRoute default/h: spec.rules[1].matches[0].path.value: \"no slash\" doesn't begin with a slash; this \
             match is skipped",
            "HTTPRoute default/h: spec.rules[2].timeouts.request: \"soon\" is no time such as 1.5s, 200ms or 1m; the \
             rule is skipped",
        ]
    );
    let conditions = cluster_.compiler.conditions(&http("h", "default", json!([])).key()).unwrap();
    let conditions = &conditions.ancestors[0].conditions;
    let partially = conditions.iter().find(|c| c.ty == ConditionType::PartiallyInvalid).unwrap();
    assert!(partially.message.starts_with("Dropped Rule: spec.rules[0], spec.rules[2]. "), "{partially:?}");
    assert!(conditions.iter().any(|c| c.ty == ConditionType::Accepted && c.holds()));
}

#[test]
fn methods_of_grpc_are_paths() {
    let mut cluster_ = proxied(shop());
    let method = |value: Value| json!({"method": value});
    cluster_.apply([grpc(json!([{"matches": [
        method(json!({"service": "shop.Cart", "method": "Add"})),
        method(json!({"service": "shop.Cart"})),
        method(json!({"method": "Health"})),
        method(json!({"type": "RegularExpression", "service": "a.+", "method": "b"})),
        {"headers": [{"name": "x", "value": "y"}]},
    ], "backendRefs": [{"name": "web-v1", "port": 80}]}]))]);
    assert_eq!(
        routes(&cluster_, WEB),
        [
            "=/shop.Cart/Add -> web-v1:80",
            "/shop.Cart/* -> web-v1:80",
            "~/[^/]+/Health -> web-v1:80",
            "~/(?:a.+)/(?:b) -> web-v1:80",
            "/* x -> web-v1:80",
        ]
    );
    assert_eq!(cluster_.reports(), 0);
}

#[test]
fn streams_of_http_2_are_split_one_by_one() {
    let mut cluster_ = proxied(shop());
    let of = |name: &str, ip: u8| {
        service(name).ip(&format!("10.0.1.{ip}")).named_port("grpc", 90).named_port("http", 80).build()
    };
    cluster_.apply([of("calls", 1), of("calls-v1", 2), of("calls-v2", 3)]);
    let split =
        |port: u16| [backend(&format!("calls-v1:{port}"), 70), backend(&format!("calls-v2:{port}"), 30)];
    cluster_.apply([http_route("h", "calls").to(split(90)).build()]);
    let at = |port: u16| format!("{port}|calls.default.svc.cluster.local");
    assert_eq!(routes(&cluster_, &at(90)), ["/* -> calls-v1:90=70 calls-v2:90=30"]);
    // A connection of HTTP/1.1 has one request at a time.
    assert!(configuration(&cluster_, &at(80)).metadata.is_none());
    // What is spoken by a GRPCRoute is gRPC, whatever its port says; with one destination nothing is split.
    cluster_.apply([grpc_route("g", "calls:80").to(split(80)).build()]);
    assert_eq!(routes(&cluster_, &at(80)), ["/* -> calls-v1:80=70 calls-v2:80=30"]);
    cluster_.apply([grpc_route("g", "calls:80").to([backend("calls-v1:80", 1)]).build()]);
    assert!(configuration(&cluster_, &at(80)).metadata.is_none());
}
