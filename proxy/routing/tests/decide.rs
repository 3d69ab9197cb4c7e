//! Which rule a request follows, and what becomes of rules that aren't in force.

mod support;

use std::time::Duration;

use http::{HeaderMap, Method};
use slotmesh_routing::{RequestAction, RequestHead, RouteTable};
use slotmesh_xds::envoy::{
    envoy::{
        config::route::v3::{
            HeaderMatcher, RouteAction, RouteMatch, header_matcher::HeaderMatchSpecifier, route::Action,
            route_match::PathSpecifier,
        },
        r#type::matcher::v3::RegexMatcher,
    },
    google::protobuf::Duration as ProtoDuration,
};

use support::{config, get, host, prefix, route, table, to, weighted};

fn regex(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}

#[test]
fn the_virtual_host_and_the_first_rule_that_match_decide() {
    let mut config = config(vec![route(prefix("/"), to("any"))]);
    config.virtual_hosts.push(host(
        &["web.example.com", "*.shop"],
        vec![
            route(
                RouteMatch { path_specifier: Some(PathSpecifier::Path("/a".into())), ..Default::default() },
                to("exact"),
            ),
            route(prefix("/a"), to("prefix")),
        ],
    ));
    let table = table(&config);
    assert_eq!(get(&table, "web.example.com", "/a?x=1", &[]), "=exact");
    assert_eq!(get(&table, "a.shop", "/ab", &[]), "=prefix");
    assert_eq!(get(&table, "a.shop", "/b", &[]), "404");
    assert_eq!(get(&table, "other", "/b", &[]), "=any");
}

#[test]
fn a_rule_that_is_not_in_force_answers_its_requests_500_and_no_other_rule_does() {
    let broken = |matcher| route(matcher, Action::Route(Default::default()));
    let unread = RouteMatch {
        headers: vec![HeaderMatcher {
            name: "x".into(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        }],
        path_specifier: Some(PathSpecifier::SafeRegex(regex("/regex/(?=no)"))),
        ..Default::default()
    };
    let config =
        config(vec![broken(prefix("/action")), route(unread, to("never")), route(prefix("/"), to("rest"))]);
    let (table, errors) = RouteTable::new(&config);
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        ["virtual_hosts[0].routes[0].route.cluster", "virtual_hosts[0].routes[1].match.safe_regex.regex"]
    );
    assert_eq!(get(&table, "web", "/action/1", &[]), "500");
    // Of what can't be read, the rest still counts.
    assert_eq!(get(&table, "web", "/regex/1", &[("x", "1")]), "500");
    assert_eq!(get(&table, "web", "/regex/1", &[]), "=rest");
    assert_eq!(get(&table, "web", "/other", &[("x", "1")]), "=rest");
}

#[test]
fn what_is_wrong_with_a_virtual_host_takes_down_that_one() {
    let mut config = config(vec![route(prefix("/"), to("any"))]);
    let mut second = host(&["a", "b"], vec![route(prefix("/"), to("second"))]);
    second.require_tls = 2;
    config.virtual_hosts.push(second);
    config.virtual_hosts.push(host(&["b", "c"], vec![route(prefix("/"), to("third"))]));
    let (table, errors) = RouteTable::new(&config);
    let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["virtual_hosts[1].require_tls", "virtual_hosts[2].domains[0]"]);
    for (host, answer) in [("a", "500"), ("b", "500"), ("c", "=third"), ("d", "=any")] {
        assert_eq!(get(&table, host, "/", &[]), answer, "{host}");
    }
    config.vhost_header = "x".into();
    let (table, errors) = RouteTable::new(&config);
    assert_eq!(errors[0].field, "vhost_header");
    assert_eq!(get(&table, "c", "/", &[]), "500");
}

#[test]
#[expect(deprecated, reason = "the field that a timeout goes with")]
fn the_deadline_of_a_call_by_grpc_counts_up_to_the_timeout() {
    let limited = |timeout, most: Option<i64>| {
        let seconds = |seconds| Some(ProtoDuration { seconds, nanos: 0 });
        let Action::Route(action) = to("web") else { unreachable!("it is one") };
        Action::Route(RouteAction {
            timeout: seconds(timeout),
            max_grpc_timeout: most.and_then(seconds),
            ..action
        })
    };
    let table = table(&config(vec![
        route(prefix("/no"), limited(0, Some(0))),
        route(prefix("/five"), limited(5, Some(5))),
        route(prefix("/plain"), limited(5, None)),
    ]));
    let of = |path, content: &str, deadline: Option<&str>| {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", content.parse().unwrap());
        if let Some(deadline) = deadline {
            headers.insert("grpc-timeout", deadline.parse().unwrap());
        }
        let (method, scheme, authority) = (&Method::POST, "http", "web");
        let head = RequestHead { method, scheme, authority, path, headers: &headers, source: None };
        match table.decide(&head, &mut || 0).action {
            RequestAction::Forward(forwarding) => forwarding.timeout,
            other => panic!("{other:?}"),
        }
    };
    let millis = |count| Some(Duration::from_millis(count));
    const GRPC: &str = "application/grpc";
    for (path, content, deadline, expected) in [
        ("/no", GRPC, Some("1S"), millis(1_000)),
        ("/no", GRPC, None, None),
        ("/no", "text/plain", Some("1S"), None),
        ("/no", GRPC, Some("0m"), millis(1)),
        ("/five", GRPC, Some("1S"), millis(1_000)),
        ("/five", GRPC, Some("1M"), millis(5_000)),
        ("/five", GRPC, Some("soon"), millis(5_000)),
        ("/five", GRPC, None, millis(5_000)),
        ("/five", "text/plain", Some("1S"), millis(5_000)),
        ("/plain", GRPC, Some("1S"), millis(5_000)),
    ] {
        assert_eq!(of(path, content, deadline), expected, "{path} {content} {deadline:?}");
    }
}

#[test]
fn backends_are_drawn_by_their_weights() {
    let config =
        config(vec![route(prefix("/"), weighted(&[("none", 0), ("one", 1), ("three", 3), ("zero", 0)]))]);
    let table = table(&config);
    let headers = HeaderMap::new();
    let head = RequestHead {
        method: &Method::GET,
        scheme: "http",
        authority: "web",
        path: "/",
        headers: &headers,
        source: None,
    };
    let drawn: Vec<String> = (0..8_u64)
        .map(|tick| match table.decide(&head, &mut || tick << 61).action {
            RequestAction::Forward(forwarding) => forwarding.cluster.to_owned(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(drawn, ["one", "one", "three", "three", "three", "three", "three", "three"]);
}
