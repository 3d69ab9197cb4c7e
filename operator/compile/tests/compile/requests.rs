//! Rules that take a request, where a proxy on the node looks at requests.

use std::{collections::BTreeMap, path::Path};

use prost::{Message as _, Name as _};
use serde_json::{Value, json};
use slotmesh_builders::{
    backend, grpc_route, http_route, pod, rule, service, slice, tcp_route, to, virtual_service,
};
use slotmesh_compile::{CompileOptions, ConditionType, Object, Severity};
use slotmesh_crds::{
    DestinationRule, VirtualService,
    gateway::{GrpcRoute, HttpRoute},
};
use slotmesh_xds::{
    ResourceType, RoutedByRequest,
    envoy::envoy::{
        config::{
            bootstrap::v3::{Bootstrap, bootstrap::StaticResources},
            cluster::v3::{
                Cluster as EnvoyCluster,
                cluster::{ClusterDiscoveryType, DiscoveryType},
            },
            core::v3::Node,
            endpoint::v3::ClusterLoadAssignment,
            listener::v3::{Listener, filter::ConfigType},
            route::v3::{
                Route, RouteAction, RouteConfiguration,
                redirect_action::PathRewriteSpecifier,
                route::Action,
                route_action::{
                    ClusterNotFoundResponseCode, ClusterSpecifier, HashPolicy, hash_policy::PolicySpecifier,
                },
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager,
            http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier},
        },
    },
    envoy::google::protobuf::Duration,
};

use crate::{
    golden::compare,
    support::{Cluster, cluster},
};

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
    assert!(ancestor.conditions.iter().any(|c| c.ty == ConditionType::Accepted && c.holds));
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
    assert!(conditions.iter().any(|c| c.ty == ConditionType::Accepted && c.holds));
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

#[test]
fn a_delegate_adds_to_the_match_and_fills_in() {
    let mut cluster_ = proxied(shop());
    cluster_.apply([
        istio(
            "first",
            json!({"hosts": ["web"], "http": [
                {"match": [{"uri": {"prefix": "/api"}}], "delegate": {"name": "inner"}, "timeout": "3s"},
                {"route": [{"destination": {"host": "web"}}]},
            ]}),
        ),
        istio(
            "inner",
            json!({"http": [
                {"match": [{"uri": {"prefix": "/api/v2"}, "headers": {"x": {}}}],
                    "route": [{"destination": {"host": "web-v2"}}]},
                {"match": [{"uri": {"prefix": "/other"}}], "route": [{"destination": {"host": "web-v2"}}]},
                {"route": [{"destination": {"host": "web-v1"}}]},
            ]}),
        ),
    ]);
    assert_eq!(routes(&cluster_, WEB), ["/api/v2* x -> web-v2:80", "/api* -> web-v1:80", "/* -> web:80"]);
    let routes = configuration(&cluster_, WEB).virtual_hosts.remove(0).routes;
    let Some(Action::Route(action)) = &routes[0].action else { panic!("a route action") };
    assert_eq!(action.timeout.unwrap().seconds, 3);
    assert_eq!(routes[0].name, "VirtualService/default/inner/http[0]");
    cluster_.delete(&istio("inner", json!({})));
    assert_eq!(self::routes(&cluster_, WEB), ["/api* -> InvalidBackend", "/* -> web:80"]);
    assert!(cluster_.refused()[0].contains("spec.http[0].delegate"), "{:?}", cluster_.refused());
}

#[test]
fn a_prefix_is_only_replaced_where_one_is_matched() {
    let mut cluster_ = proxied(shop());
    let redirect = json!([{"type": "RequestRedirect", "requestRedirect": {
        "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}, "statusCode": 301}}]);
    cluster_.apply([http(
        "h",
        "default",
        json!([
            {"matches": [{"path": {"value": "/old"}}], "filters": redirect},
            {"matches": [{"path": {"type": "Exact", "value": "/one"}}], "filters": redirect},
        ]),
    )]);
    assert_eq!(routes(&cluster_, WEB), ["/old/* -> redirect"]);
    let route = configuration(&cluster_, WEB).virtual_hosts.remove(0).routes.remove(0);
    let Some(Action::Redirect(redirect)) = route.action else { panic!("a redirect") };
    let Some(PathRewriteSpecifier::RegexRewrite(rewrite)) = redirect.path_rewrite_specifier else {
        panic!("by a regular expression")
    };
    assert_eq!(
        (rewrite.pattern.unwrap().regex.as_str(), rewrite.substitution.as_str()),
        ("^/old(/?)", r"/new\1")
    );
    assert_eq!(cluster_.said(Severity::NotSupported).len(), 1);
}

/// The route actions of a configuration.
fn actions(cluster: &Cluster, name: &str) -> Vec<RouteAction> {
    let routes = configuration(cluster, name).virtual_hosts.remove(0).routes;
    routes
        .into_iter()
        .filter_map(|route| match route.action {
            Some(Action::Route(action)) => Some(action),
            _ => None,
        })
        .collect()
}

#[test]
fn a_virtual_service_tries_again_as_istio_does() {
    let mut cluster_ = proxied(shop());
    let to = json!([{"destination": {"host": "web-v1"}}]);
    let by = |path: &str| json!([{"uri": {"prefix": path}}]);
    cluster_.apply([istio(
        "r",
        json!({"hosts": ["web"], "http": [
            {"match": by("/default"), "route": to},
            {"match": by("/never"), "route": to, "retries": {"attempts": 0}},
            {"match": by("/often"), "route": to, "retries": {"attempts": 5, "retryOn": "reset"}},
        ]}),
    )]);
    let of = |action: &RouteAction| {
        let policy = action.retry_policy.clone()?;
        let hosts = policy.retry_host_predicate.len();
        Some((policy.retry_on, policy.num_retries?.value, hosts, policy.host_selection_retry_max_attempts))
    };
    let default = "connect-failure,refused-stream,unavailable,cancelled";
    assert_eq!(
        actions(&cluster_, WEB).iter().map(of).collect::<Vec<_>>(),
        [Some((default.to_owned(), 2, 1, 5)), None, Some(("reset".to_owned(), 5, 1, 5))]
    );
    // An HTTPRoute that says nothing has none, and what can be decided when a connection is made still is.
    cluster_.delete(&istio("r", json!({})));
    cluster_.apply([http("h", "default", json!([{"matches": [{"path": {"value": "/a"}}]}]))]);
    assert_eq!(actions(&cluster_, WEB).iter().map(of).collect::<Vec<_>>(), [None]);
    cluster_.delete(&http("h", "default", json!([])));
    cluster_
        .apply([istio("r", json!({"hosts": ["web"], "http": [{"route": to, "retries": {"attempts": 0}}]}))]);
    assert_eq!(cluster_.goes("10.0.0.1_80"), format!("http:{}", cluster("web-v1", 80, "")));
    let message = configuration(&cluster_, WEB);
    assert!(message.metadata.is_none(), "no request is looked at");
}

#[test]
#[expect(deprecated, reason = "the field that says it")]
fn a_deadline_of_grpc_counts_up_to_the_timeout() {
    let mut cluster_ = proxied(shop());
    cluster_.apply([http(
        "h",
        "default",
        json!([
            {"matches": [{"path": {"value": "/a"}}], "timeouts": {"request": "3s"}},
            {"matches": [{"path": {"value": "/b"}}]},
        ]),
    )]);
    let seconds = |time: Option<Duration>| time.map(|time| time.seconds);
    let found: Vec<_> = actions(&cluster_, WEB)
        .iter()
        .map(|action| (seconds(action.timeout), seconds(action.max_grpc_timeout)))
        .collect();
    // 0 is no limit.
    assert_eq!(found, [(Some(3), Some(3)), (Some(0), Some(0))]);
}

fn hashing(name: &str, host: &str, hash: Value) -> Object {
    let rule: DestinationRule = serde_json::from_value(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"host": host, "trafficPolicy": {"loadBalancer": {"consistentHash": hash}}},
    }))
    .unwrap();
    rule.into()
}

#[test]
fn a_part_of_the_request_chooses_the_endpoint() {
    let mut cluster_ = proxied(shop());
    let policies = |cluster: &Cluster, name: &str| -> Vec<Vec<String>> {
        let show = |policy: &HashPolicy| {
            assert!(policy.terminal);
            match policy.policy_specifier.as_ref().unwrap() {
                PolicySpecifier::Header(header) => format!("header {}", header.header_name),
                PolicySpecifier::QueryParameter(query) => format!("query {}", query.name),
                PolicySpecifier::Cookie(cookie) => {
                    let ttl = cookie.ttl.map(|ttl| ttl.seconds);
                    format!("cookie {} {} {ttl:?} {:?}", cookie.name, cookie.path, cookie.attributes.len())
                }
                other => format!("{other:?}"),
            }
        };
        let of = |action: &RouteAction| action.hash_policy.iter().map(show).collect();
        actions(cluster, name).iter().map(of).collect()
    };
    // Where no route is, the rule alone takes the port's requests to the proxy; other ports stay as they are.
    cluster_.apply([hashing("web", "web", json!({"httpHeaderName": "X-User"}))]);
    assert_eq!(routes(&cluster_, WEB), ["/* -> web:80"]);
    assert_eq!(policies(&cluster_, WEB), [["header x-user"]]);
    assert_eq!(cluster_.goes("10.0.0.1_81"), cluster("web", 81, ""));
    assert_eq!(cluster_.traffic(&cluster("web", 80, "")), "MAGLEV");
    assert_eq!(cluster_.traffic(&cluster("web", 81, "")), "RANDOM");
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.said(Severity::NotSupported));
    // A route's destinations say it, each once.
    let cookie = json!({"name": "user", "path": "/", "ttl": "1h", "attributes": [{"name": "SameSite", "value": "Lax"}]});
    cluster_.apply([
        hashing("v1", "web-v1", json!({"httpCookie": cookie})),
        hashing("v2", "web-v2", json!({"httpQueryParameterName": "user"})),
        istio(
            "r",
            json!({"hosts": ["web"], "http": [
                {"match": [{"uri": {"prefix": "/v"}}], "route": [
                    {"destination": {"host": "web-v1"}, "weight": 50},
                    {"destination": {"host": "web-v2"}, "weight": 50},
                ]},
                {"route": [{"destination": {"host": "web"}}]},
            ]}),
        ),
    ]);
    assert_eq!(
        policies(&cluster_, WEB),
        [
            vec!["cookie user / Some(3600) 1".to_owned(), "query user".to_owned()],
            vec!["header x-user".to_owned()]
        ]
    );
    // Those who have an endpoint of their own aren't sent to another one.
    assert!(actions(&cluster_, WEB)[1].retry_policy.as_ref().unwrap().retry_host_predicate.is_empty());
    // It follows the rule, and goes with it.
    cluster_.apply([hashing("web", "web", json!({"httpQueryParameterName": "q"}))]);
    assert_eq!(policies(&cluster_, WEB)[1], ["query q"]);
    cluster_.delete(&hashing("web", "web", json!({})));
    assert!(policies(&cluster_, WEB)[1].is_empty());
    cluster_.delete(&istio("r", json!({})));
    assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    assert!(!cluster_.names(ResourceType::Route).contains(&WEB));
}

#[test]
fn a_hash_that_cannot_be_is_named() {
    for (hash, says) in [
        (json!({"httpHeaderName": ""}), "consistentHash.httpHeaderName: it is empty; RANDOM is used instead"),
        (
            json!({"httpHeaderName": "a", "httpQueryParameterName": "b"}),
            "consistentHash: only one thing can be hashed; RANDOM is used instead",
        ),
        (json!({"httpCookie": {"ttl": "1h"}}), "consistentHash.httpCookie.name: it is empty"),
        (
            json!({"httpCookie": {"name": "a", "ttl": "soon"}}),
            "consistentHash.httpCookie.ttl: \"soon\" is no time",
        ),
        (json!({"somethingElse": 1}), "consistentHash.somethingElse; RANDOM is used instead"),
    ] {
        let mut cluster_ = proxied(shop());
        cluster_.apply([hashing("web", "web", hash.clone())]);
        let said = cluster_.said(Severity::NotSupported);
        assert!(said.len() == 1 && said[0].contains(says), "{hash}: {said:?}");
        assert_eq!(cluster_.goes("10.0.0.1_80"), cluster("web", 80, ""));
    }
}

#[test]
fn paths_are_normalised_as_istio_does() {
    let cluster_ = proxied(everything());
    let content = &cluster_.served()[&(ResourceType::Listener, "10.0.0.1_80".to_owned())];
    let listener = Listener::decode(content.as_slice()).unwrap();
    let Some(ConfigType::TypedConfig(any)) = &listener.filter_chains[0].filters[0].config_type else {
        panic!("a filter with its configuration")
    };
    let manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    assert_eq!(manager.normalize_path.map(|on| on.value), Some(true));
    assert!(!manager.merge_slashes);
    let kept = PathWithEscapedSlashesAction::KeepUnchanged;
    assert_eq!(manager.path_with_escaped_slashes_action(), kept);
}

/// Everything that acts, in one shop.
fn everything() -> Vec<Object> {
    let mut objects = shop();
    objects.extend([
        slice("web", "web").named_port("http", 8080).pod_endpoint("10.1.0.1", "web-1").build(),
        pod("web-1").label("version", "v1").build(),
        rule("web", "web").version("v1").build(),
        service("calls").ip("10.0.0.4").named_port("grpc", 90).build(),
        istio("web", json!({"hosts": ["web"], "http": [
            {
                "name": "canary",
                "match": [{
                    "uri": {"exact": "/A"}, "ignoreUriCase": true, "method": {"exact": "GET"},
                    "headers": {"end-user": {"regex": "t.*"}}, "withoutHeaders": {"x-bot": {}},
                    "queryParams": {"v": {"exact": "2"}}, "authority": {"prefix": "web"},
                }],
                "route": [{"destination": {"host": "web", "subset": "v1"}, "headers": {
                    "request": {"set": {"x-to": "v1"}}, "response": {"remove": ["server"]}}}],
                "timeout": "5s",
                "retries": {"attempts": 3, "perTryTimeout": "1500ms", "retryOn": "5xx,429"},
                "fault": {
                    "delay": {"percentage": {"value": 12.5}, "fixedDelay": "2s"},
                    "abort": {"percentage": {"value": 0.1}, "httpStatus": 503},
                },
                "corsPolicy": {"allowOrigins": [{"exact": "https://a.example"}], "allowMethods": ["GET", "POST"],
                    "maxAge": "24h", "allowCredentials": true},
                "mirror": {"host": "web-v2", "port": {"number": 80}}, "mirrorPercentage": {"value": 5},
                "rewrite": {"uri": "/b", "authority": "b.example"},
            },
            {"match": [{"uri": {"prefix": "/old"}}], "redirect": {"uri": "/new", "redirectCode": 308}},
            {"match": [{"uri": {"prefix": "/moved"}}], "redirect": {"prefixRewrite": "/here"}},
            {"match": [{"uri": {"prefix": "/teapot"}}], "directResponse": {"status": 418, "body": {"string": "tea"}}},
            {"match": [{"uri": {"regex": "/x/[0-9]+"}}], "rewrite": {"uriRegexRewrite": {"match": "/x/(.*)", "rewrite": "/y/\\1"}},
                "route": [{"destination": {"host": "web-v1", "port": {"number": 80}}, "weight": 70},
                    {"destination": {"host": "web-v2", "port": {"number": 80}}, "weight": 30}]},
            {"route": [{"destination": {"host": "web"}}]},
        ]})),
        grpc_route("calls", "calls").to([backend("calls:90", 1)]).build(),
        hashing("v2", "web-v2", json!({"httpCookie": {"name": "user", "ttl": "0s"}})),
        hashing("v1", "web-v1", json!({"httpHeaderName": "x-user"})),
    ]);
    objects
}

#[test]
fn everything_compiles_to_the_golden_file() {
    let cluster_ = proxied(everything());
    assert_eq!(cluster_.reports(), 0, "{:?}", cluster_.said(Severity::NotSupported));
    let mut message = configuration(&cluster_, WEB);
    let mut text = String::new();
    for route in &mut message.virtual_hosts[0].routes {
        // A map has no order.
        let filters: BTreeMap<_, _> = route.typed_per_filter_config.drain().collect();
        text.push_str(&format!("# filters of {}\n{filters:?}\n", route.name));
    }
    text.push_str(&format!("{message:#?}"));
    compare("requests.txt", &text);
}

#[test]
fn the_same_objects_give_the_same_bytes() {
    let first = proxied(everything());
    for _ in 0..20 {
        assert_eq!(proxied(everything()).served(), first.served());
    }
}

/// The compiled resources as the configuration file of an Envoy that gets nothing else.
fn bootstrap(cluster: &Cluster) -> Bootstrap {
    let mut statics = StaticResources::default();
    for ((ty, name), content) in cluster.served() {
        match ty {
            ResourceType::Listener => {
                let mut listener = Listener::decode(content.as_slice()).unwrap();
                for filter in listener.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
                    let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
                    if any.type_url != HttpConnectionManager::type_url() {
                        continue;
                    }
                    let mut manager = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
                    let Some(RouteSpecifier::Rds(rds)) = &manager.route_specifier else { panic!("by rds") };
                    let routes = configuration(cluster, &rds.route_config_name);
                    manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
                    any.value = manager.encode_to_vec();
                }
                statics.listeners.push(listener);
            }
            ResourceType::Cluster => {
                let mut of = EnvoyCluster::decode(content.as_slice()).unwrap();
                if of.eds_cluster_config.take().is_some() {
                    of.cluster_discovery_type =
                        Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
                    let cluster_name = name.clone();
                    of.load_assignment = Some(ClusterLoadAssignment { cluster_name, ..Default::default() });
                }
                statics.clusters.push(of);
            }
            _ => {}
        }
    }
    let node = Node { id: "test".to_owned(), cluster: "test".to_owned(), ..Default::default() };
    Bootstrap { node: Some(node), static_resources: Some(statics), ..Default::default() }
}

#[test]
fn a_stock_envoy_takes_what_is_compiled() {
    let envoy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/envoy/envoy");
    assert!(envoy.is_file(), "there is no {}: `cargo xtask envoy` fetches it", envoy.display());
    let mut objects = everything();
    objects.push(grpc(
        json!([{"matches": [{"method": {"method": "Health"}}, {"headers": [{"name": "x", "value": "y"}]}]}]),
    ));
    // One object a Service: of several the VirtualService goes before.
    for (name, ip) in [("other", "10.0.0.7"), ("more", "10.0.0.8")] {
        objects.push(service(name).ip(ip).named_port("http", 80).build());
    }
    let rules = json!([
        {"matches": [{"path": {"value": "/api"}, "headers": [{"name": "a", "value": "b", "type": "RegularExpression"}]}],
            "filters": [
                {"type": "URLRewrite", "urlRewrite": {"hostname": "x.example", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}}},
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "h", "value": "50%"}], "remove": ["q"]}},
                {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web-v1", "port": 80}, "fraction": {"numerator": 1, "denominator": 3}}},
                {"type": "CORS", "cors": {"allowOrigins": ["https://*.example"], "maxAge": 5}},
            ],
            "backendRefs": [{"name": "web-v1", "port": 80, "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "to", "value": "v1"}]}}]},
                {"name": "gone", "port": 80}],
            "timeouts": {"request": "10s", "backendRequest": "2s"}, "retry": {"attempts": 2, "codes": [503], "backoff": "100ms"}},
        {"matches": [{"path": {"type": "Exact", "value": "/r"}}], "filters": [
            {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/f"}}}]},
    ]);
    let mut route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "other", "namespace": "default"},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "other"}], "rules": rules},
    });
    objects.push(serde_json::from_value::<HttpRoute>(route.clone()).unwrap().into());
    route["metadata"]["name"] = json!("more");
    route["spec"]["parentRefs"][0]["name"] = json!("more");
    objects.push(serde_json::from_value::<HttpRoute>(route).unwrap().into());
    let cluster_ = proxied(objects);
    let notes = cluster_.said(Severity::NotSupported);
    assert!(notes.is_empty(), "{notes:?}");
    let folder = std::env::temp_dir().join(format!("slotmesh-requests-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("bootstrap.pb");
    std::fs::write(&file, bootstrap(&cluster_).encode_to_vec()).unwrap();
    let output = std::process::Command::new(envoy)
        .args(["--mode", "validate", "--config-path"])
        .arg(&file)
        .output()
        .expect("Envoy starts");
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
