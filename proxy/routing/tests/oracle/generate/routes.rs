//! Rules: matches and actions.

use slotmesh_xds::envoy::{
    envoy::{
        config::{
            core::v3::{DataSource, RuntimeFractionalPercent, data_source::Specifier},
            route::v3::{
                DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, Route,
                RouteAction, RouteMatch, WeightedCluster,
                header_matcher::HeaderMatchSpecifier,
                query_parameter_matcher::QueryParameterMatchSpecifier,
                redirect_action::{PathRewriteSpecifier, SchemeRewriteSpecifier},
                route::Action,
                route_action::{ClusterSpecifier, HostRewriteSpecifier},
                route_match::{GrpcRouteMatchOptions, PathSpecifier},
                weighted_cluster::{self, ClusterWeight, RandomValueSpecifier},
            },
        },
        r#type::{
            matcher::v3::{
                RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
            },
            v3::Int64Range,
        },
    },
    google::protobuf::{BoolValue, UInt32Value},
};

use super::{
    Chance, HEADERS, PARAMETERS, REQUEST_NAMES, RESPONSE_NAMES, VALUES, additions,
    filters::{self, ORIGINS},
    path, removals,
};
use crate::CLUSTERS;

const PATH_EXPRESSIONS: [&str; 12] = [
    "/a/.*",
    "/(a|b)/[^/]+",
    "(?i)/shop(/.*)?",
    "/.*",
    r"/[a-z]+(/v\d)?",
    "/(shop|cart).*",
    "a",
    "/a|/ab",
    r"/\w+/\w*",
    "^/a$",
    "/ab?b*",
    "(/[^/]*)*",
];
/// With what is put in their places.
const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("a", "zz"),
    ("^/([^/]*)(/.*)?$", r"\2/\1"),
    ("/", "_/"),
    ("x*", "-"),
    ("(a|b)(b)?", r"[\0|\2]"),
    ("^.*$", "/whole"),
    (r"(?i)SHOP", r"\\s"),
    ("(/[a-z]+)/", r"\1-"),
    ("", "e"),
    ("nothing", "other"),
];

fn expression(regex: &str) -> RegexMatcher {
    RegexMatcher { regex: regex.to_owned(), ..Default::default() }
}

fn substitution(chance: &mut Chance) -> RegexMatchAndSubstitute {
    let (pattern, substitution) = loop {
        let (pattern, substitution) = chance.one(&SUBSTITUTIONS);
        if !pattern.is_empty() {
            break (pattern, substitution);
        }
    };
    RegexMatchAndSubstitute { pattern: Some(expression(pattern)), substitution: substitution.to_owned() }
}

fn text(chance: &mut Chance, values: &[&str]) -> StringMatcher {
    let value = chance.one(values).to_owned();
    let cut = value[..1].to_owned();
    let (pattern, any_case) = match chance.below(7) {
        0 | 1 => (MatchPattern::Exact(value), true),
        2 => (MatchPattern::Exact(String::new()), true),
        3 => (MatchPattern::Prefix(cut), true),
        4 => (MatchPattern::Suffix(value[value.len() - 1..].to_owned()), true),
        5 => (MatchPattern::Contains(cut), true),
        _ => {
            let regex = chance.one(&["a.*", r"\d+", "[ab]+", "(?i)AB", "", "1|2", "x,y", "http://.*"]);
            (MatchPattern::SafeRegex(expression(if regex.is_empty() { "^$" } else { regex })), false)
        }
    };
    StringMatcher { ignore_case: any_case && chance.percent(25), match_pattern: Some(pattern) }
}

pub fn origin(chance: &mut Chance) -> StringMatcher {
    if chance.percent(20) {
        return StringMatcher { match_pattern: Some(MatchPattern::Exact("*".into())), ..Default::default() };
    }
    text(chance, &ORIGINS)
}

pub fn header(chance: &mut Chance) -> HeaderMatcher {
    let (name, values): (&str, &[&str]) = match chance.below(10) {
        0 => (":method", &["GET", "POST", "get"]),
        1 => (":path", &["/a", "/shop/cart", "?q=1"]),
        2 => (chance.one(&[":authority", "host"]), &["h1.test", "test"]),
        3 => (":scheme", &["http", "https"]),
        4 => ("x-never", &VALUES),
        _ => (chance.one(&HEADERS), &VALUES),
    };
    let value = chance.one(values).to_owned();
    #[expect(deprecated, reason = "Envoy still takes them")]
    let specifier = match chance.below(12) {
        0 => None,
        1 | 2 => Some(HeaderMatchSpecifier::PresentMatch(chance.percent(60))),
        3 => {
            let (start, end) = chance.one(&[(1, 3), (-10, 0), (2, 2), (0, 100)]);
            Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start, end }))
        }
        4 => Some(HeaderMatchSpecifier::ExactMatch(value)),
        5 => Some(HeaderMatchSpecifier::PrefixMatch(value[..1].to_owned())),
        6 => Some(HeaderMatchSpecifier::ContainsMatch(value)),
        _ => Some(HeaderMatchSpecifier::StringMatch(text(chance, values))),
    };
    HeaderMatcher {
        name: name.to_owned(),
        invert_match: chance.percent(25),
        treat_missing_header_as_empty: chance.percent(25),
        header_match_specifier: specifier,
    }
}

fn query(chance: &mut Chance) -> QueryParameterMatcher {
    QueryParameterMatcher {
        name: chance.one(&PARAMETERS).to_owned(),
        query_parameter_match_specifier: match chance.below(4) {
            0 => None,
            1 => Some(QueryParameterMatchSpecifier::PresentMatch(chance.percent(60))),
            _ => Some(QueryParameterMatchSpecifier::StringMatch(text(chance, &VALUES))),
        },
    }
}

fn matcher(chance: &mut Chance) -> RouteMatch {
    let path = path(chance);
    let specifier = match chance.below(10) {
        0..=3 => PathSpecifier::Prefix(if path.is_empty() { "/".into() } else { path }),
        4 | 5 => PathSpecifier::Path(path),
        6 | 7 => {
            let path = path.trim_end_matches('/');
            PathSpecifier::PathSeparatedPrefix(if path.len() < 2 { "/shop".into() } else { path.into() })
        }
        _ => PathSpecifier::SafeRegex(expression(chance.one(&PATH_EXPRESSIONS))),
    };
    RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: chance.percent(25).then(|| BoolValue { value: chance.percent(20) }),
        headers: if chance.percent(45) { chance.some(2, header) } else { Vec::new() },
        query_parameters: if chance.percent(25) { chance.some(2, query) } else { Vec::new() },
        grpc: chance.percent(4).then_some(GrpcRouteMatchOptions {}),
        runtime_fraction: chance.percent(8).then(|| RuntimeFractionalPercent {
            default_value: Some(filters::share(chance)),
            runtime_key: String::new(),
        }),
        ..Default::default()
    }
}

pub fn route(chance: &mut Chance) -> Route {
    let action = match chance.below(10) {
        0 | 1 => Action::Redirect(redirect(chance)),
        2 => {
            let status = chance.one(&[200, 204, 403, 503, 599]);
            let body = if status == 204 { "" } else { chance.one(&["", "direct", "more than that"]) };
            respond(status, body)
        }
        _ => Action::Route(forward(chance)),
    };
    Route {
        name: chance.one(&["", "named"]).to_owned(),
        r#match: Some(matcher(chance)),
        action: Some(action),
        request_headers_to_add: additions(chance, 25, &REQUEST_NAMES),
        request_headers_to_remove: removals(chance, 15, &REQUEST_NAMES),
        response_headers_to_add: additions(chance, 25, &RESPONSE_NAMES),
        response_headers_to_remove: removals(chance, 15, &RESPONSE_NAMES),
        typed_per_filter_config: filters::configs(chance),
        ..Default::default()
    }
}

pub fn to(cluster: &str) -> Action {
    Action::Route(RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    })
}

pub fn respond(status: u32, body: &str) -> Action {
    let body = (!body.is_empty()).then(|| DataSource {
        specifier: Some(Specifier::InlineString(body.to_owned())),
        ..Default::default()
    });
    Action::DirectResponse(DirectResponseAction { status, body, ..Default::default() })
}

fn redirect(chance: &mut Chance) -> RedirectAction {
    let text = |chance: &mut Chance, texts: &[&str]| chance.one(texts).to_owned();
    RedirectAction {
        host_redirect: text(chance, &["", "", "other.test", "other.test:81"]),
        port_redirect: chance.one(&[0, 0, 80, 8443]),
        response_code: chance.one(&[0, 1, 2, 3, 4]),
        strip_query: chance.percent(25),
        scheme_rewrite_specifier: match chance.below(4) {
            0 => Some(SchemeRewriteSpecifier::HttpsRedirect(chance.percent(70))),
            1 => Some(SchemeRewriteSpecifier::SchemeRedirect(text(chance, &["https", "http", "ftp"]))),
            _ => None,
        },
        path_rewrite_specifier: match chance.below(7) {
            0 | 1 => Some(PathRewriteSpecifier::PathRedirect(text(
                chance,
                &["/new", "/new?own=1", "/", "/new#part"],
            ))),
            2 => Some(PathRewriteSpecifier::PrefixRewrite(text(chance, &["/", "/new", "/new/"]))),
            3 => Some(PathRewriteSpecifier::RegexRewrite(substitution(chance))),
            4 => Some(PathRewriteSpecifier::PathRewrite(text(chance, &["/whole", "/50%%"]))),
            _ => None,
        },
    }
}

fn cluster(chance: &mut Chance) -> String {
    format!("c{}", chance.below(CLUSTERS.into()))
}

fn weighted(chance: &mut Chance) -> WeightedCluster {
    let mut clusters = chance.some(3, |chance| ClusterWeight {
        name: cluster(chance),
        weight: Some(UInt32Value { value: chance.one(&[0, 1, 30, 100]) }),
        request_headers_to_add: additions(chance, 25, &REQUEST_NAMES),
        request_headers_to_remove: removals(chance, 15, &REQUEST_NAMES),
        response_headers_to_add: additions(chance, 25, &RESPONSE_NAMES),
        response_headers_to_remove: removals(chance, 15, &RESPONSE_NAMES),
        host_rewrite_specifier: chance.percent(15).then(|| {
            weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral("weighted.test".into())
        }),
        ..Default::default()
    });
    clusters.push(ClusterWeight {
        name: cluster(chance),
        weight: Some(UInt32Value { value: 7 }),
        ..Default::default()
    });
    WeightedCluster {
        clusters,
        random_value_specifier: Some(RandomValueSpecifier::HeaderName("x-random".into())),
        ..Default::default()
    }
}

fn forward(chance: &mut Chance) -> RouteAction {
    let mut action = RouteAction {
        cluster_specifier: Some(if chance.percent(35) {
            ClusterSpecifier::WeightedClusters(weighted(chance))
        } else {
            ClusterSpecifier::Cluster(cluster(chance))
        }),
        host_rewrite_specifier: match chance.below(12) {
            0 => Some(HostRewriteSpecifier::HostRewriteLiteral("literal.test:1".into())),
            1 => Some(HostRewriteSpecifier::AutoHostRewrite(BoolValue { value: true })),
            2 => Some(HostRewriteSpecifier::HostRewriteHeader(chance.one(&["x-a", "x-never"]).into())),
            3 => Some(HostRewriteSpecifier::HostRewritePathRegex(RegexMatchAndSubstitute {
                pattern: Some(expression("^/([a-z]*).*$")),
                substitution: r"\1.test".into(),
            })),
            4 => Some(HostRewriteSpecifier::HostRewrite("written%%.test".into())),
            _ => None,
        },
        append_x_forwarded_host: chance.percent(20),
        ..Default::default()
    };
    match chance.below(8) {
        0 | 1 => action.prefix_rewrite = chance.one(&["/", "/new", "/new/"]).to_owned(),
        2 => action.regex_rewrite = Some(substitution(chance)),
        3 => action.path_rewrite = chance.one(&["/whole", "/50%%"]).to_owned(),
        _ => {}
    }
    action
}
