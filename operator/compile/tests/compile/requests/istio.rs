//! VirtualServices and DestinationRules whose rules take a request.

use prost::Message as _;
use serde_json::{Value, json};
use slotmesh_compile::{Object, Severity};
use slotmesh_crds::DestinationRule;
use slotmesh_xds::{
    ResourceType,
    envoy::envoy::{
        config::{
            listener::v3::{Listener, filter::ConfigType},
            route::v3::{
                RouteAction,
                redirect_action::PathRewriteSpecifier,
                route::Action,
                route_action::{HashPolicy, hash_policy::PolicySpecifier},
            },
        },
        extensions::filters::network::http_connection_manager::v3::{
            HttpConnectionManager, http_connection_manager::PathWithEscapedSlashesAction,
        },
    },
    envoy::google::protobuf::Duration,
};

use super::{WEB, configuration, everything::everything, http, istio, proxied, routes, shop};
use crate::support::{Cluster, cluster};

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

pub(super) fn hashing(name: &str, host: &str, hash: Value) -> Object {
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
