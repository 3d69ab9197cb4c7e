//! Decision of one request, beside a plain scan of the rules from the first to the last: 1, 20 and 1,000 rules, of which
//! the last one takes the request. Needs nothing but a processor.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, Method};
use slotmesh_bench::{Samples, effort, show, verdict};
use slotmesh_routing::{RequestAction, RequestHead, RouteTable};
use slotmesh_xds::envoy::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};
use slotmesh_xds::envoy::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

const ROUNDS: usize = 200;
/// Decisions a round.
const BATCH: u32 = 2_000;

/// Sort of paths of all rules.
#[derive(Clone, Copy, Debug)]
enum Sort {
    Exact,
    Prefix,
    /// Prefix, and a header that all rules ask for.
    Header,
}

/// A rule of the plain scan.
struct Plain {
    sort: Sort,
    path: String,
    cluster: String,
}

fn path(number: usize) -> String {
    format!("/api/v1/service-{number:04}/items")
}

fn config(sort: Sort, count: usize) -> RouteConfiguration {
    let routes = (0..count).map(|number| Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(match sort {
                Sort::Exact => PathSpecifier::Path(path(number)),
                Sort::Prefix | Sort::Header => PathSpecifier::PathSeparatedPrefix(path(number)),
            }),
            headers: match sort {
                Sort::Header => vec![HeaderMatcher {
                    name: "end-user".into(),
                    header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(StringMatcher {
                        match_pattern: Some(MatchPattern::Exact("jason".into())),
                        ..Default::default()
                    })),
                    ..Default::default()
                }],
                Sort::Exact | Sort::Prefix => Vec::new(),
            },
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(format!("cluster-{number}"))),
            ..Default::default()
        })),
        ..Default::default()
    });
    RouteConfiguration {
        virtual_hosts: vec![VirtualHost {
            domains: vec!["web.shop.svc.cluster.local".into()],
            routes: routes.collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The first rule that matches, by looking at each.
fn scan<'p>(rules: &'p [Plain], head: &RequestHead<'_, HeaderMap>) -> Option<&'p str> {
    let path = head.path.split('?').next()?;
    rules
        .iter()
        .find(|rule| {
            let prefix = || {
                path.strip_prefix(rule.path.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            match rule.sort {
                Sort::Exact => path == rule.path,
                Sort::Prefix => prefix(),
                Sort::Header => prefix() && head.headers.get("end-user").is_some_and(|user| user == "jason"),
            }
        })
        .map(|rule| rule.cluster.as_str())
}

/// Time of one of so many calls.
fn each(mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    (0..BATCH).for_each(|_| call());
    start.elapsed() / BATCH
}

fn main() {
    let headers = HeaderMap::from_iter([
        (http::header::USER_AGENT, HeaderValue::from_static("bench")),
        (http::HeaderName::from_static("end-user"), HeaderValue::from_static("jason")),
    ]);
    println!("{:<7} {:>6} {:>10} {:>10} {:>7}", "rules", "count", "decide", "scan", "ratio");
    for sort in [Sort::Exact, Sort::Prefix, Sort::Header] {
        let mut one: Option<Samples> = None;
        for count in [1, 20, 1_000] {
            let (table, errors) = RouteTable::new(&config(sort, count));
            assert!(errors.is_empty(), "{errors:?}");
            let plain = |number| Plain { sort, path: path(number), cluster: format!("cluster-{number}") };
            let rules: Vec<Plain> = (0..count).map(plain).collect();
            let target = format!("{}?page=2", path(count - 1));
            let head = RequestHead {
                method: &Method::GET,
                scheme: "http",
                authority: "web.shop.svc.cluster.local",
                path: &target,
                headers: &headers,
                source: None,
            };
            let expected = format!("cluster-{}", count - 1);
            assert_eq!(scan(&rules, &head), Some(expected.as_str()));
            let decide = || match table.decide(black_box(&head), &mut || 0).action {
                RequestAction::Forward(forwarding) => assert_eq!(forwarding.cluster.len(), expected.len()),
                other => panic!("{other:?}"),
            };
            let (mut ours, mut plains) = (Vec::new(), Vec::new());
            for _ in 0..effort(ROUNDS) {
                ours.push(each(decide));
                plains.push(each(|| {
                    black_box(scan(black_box(&rules), black_box(&head)));
                }));
            }
            let (ours, plains) = (Samples::new(ours), Samples::new(plains));
            println!(
                "{:<7} {count:>6} {:>10} {:>10} {:>7.2}",
                format!("{sort:?}").to_lowercase(),
                show(ours.p50()),
                show(plains.p50()),
                ours.ratio(&plains)
            );
            match (count, &one) {
                (1_000, Some(one)) => {
                    let ratio = ours.ratio(one);
                    println!(
                        "  1,000 rules cost {ratio:.2} of one; {}",
                        verdict(ratio <= 1.5, "at most 1.5")
                    );
                }
                (1, _) => one = Some(ours),
                _ => {}
            }
        }
    }
}
