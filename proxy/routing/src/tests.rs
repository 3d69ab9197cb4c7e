//! Both indexes against plain models that look at everything.

use proptest::{collection::vec, prelude::*, sample::select};
use slotmesh_xds::envoy::{
    envoy::{
        config::route::v3::{HeaderMatcher, RouteMatch, route_match::PathSpecifier},
        r#type::matcher::v3::RegexMatcher,
    },
    google::protobuf::BoolValue,
};

use crate::{
    conditions::Conditions,
    domains::DomainIndex,
    field::FieldPath,
    head::RequestHead,
    paths::{PathCondition, PathIndex},
};

const SEGMENTS: [&str; 7] = ["", "a", "b", "ab", "A", "abc", "a.b"];

fn path() -> impl Strategy<Value = String> {
    (vec(select(&SEGMENTS[..]), 0..4), any::<bool>()).prop_map(|(segments, slash)| {
        let path: String = segments.iter().map(|segment| format!("/{segment}")).collect();
        if slash || path.is_empty() { path + "/" } else { path }
    })
}

fn specifier() -> impl Strategy<Value = PathSpecifier> {
    prop_oneof![
        path().prop_map(PathSpecifier::Path),
        // Cut anywhere: a prefix needn't end where a segment does.
        (path(), 0..4_usize).prop_map(|(path, cut)| {
            PathSpecifier::Prefix(path[..path.len().saturating_sub(cut)].to_owned())
        }),
        path()
            .prop_map(|path| path.trim_end_matches('/').to_owned())
            .prop_filter("a prefix of segments has one", |path| path.len() > 1)
            .prop_map(PathSpecifier::PathSeparatedPrefix),
        select(&["/a.*", "/(a|b)/?", "(?i)/ab.*"][..]).prop_map(|regex| PathSpecifier::SafeRegex(
            RegexMatcher { regex: regex.into(), ..Default::default() }
        )),
    ]
}

/// A match: every sixth ignores the case, every third asks for a header.
fn matcher() -> impl Strategy<Value = RouteMatch> {
    (specifier(), 0..6, 0..3).prop_map(|(specifier, case, header)| RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: Some(BoolValue { value: case != 0 }),
        headers: (header == 0)
            .then(|| HeaderMatcher { name: "x-a".into(), ..Default::default() })
            .into_iter()
            .collect(),
        ..Default::default()
    })
}

proptest! {
    #[test]
    fn the_index_finds_the_rule_that_comes_first(
        matchers in vec(matcher(), 0..24),
        paths in vec((path(), any::<bool>()), 1..24),
    ) {
        let rules: Vec<(PathCondition, Conditions)> = matchers
            .iter()
            .map(|matcher| {
                let (path, fault) = PathCondition::new(&FieldPath::ROOT, matcher);
                fault.unwrap();
                let (conditions, fault) = Conditions::new(&FieldPath::ROOT, matcher);
                fault.unwrap();
                (path, conditions)
            })
            .collect();
        let index = PathIndex::new(rules.iter().map(|(path, _)| path));
        for (path, with_header) in paths {
            let mut headers = http::HeaderMap::new();
            if with_header {
                headers.insert("x-a", http::HeaderValue::from_static("1"));
            }
            let head = RequestHead {
                method: &http::Method::GET,
                scheme: "http",
                authority: "web",
                path: &path,
                headers: &headers,
                source: None,
            };
            let holds = |conditions: &Conditions| conditions.hold(&head, &mut || 0);
            let found = index.first(&path, |number, compare| {
                let (condition, conditions) = &rules[number as usize];
                (!compare || condition.matches(&path)) && holds(conditions)
            });
            let linear = rules.iter().position(|(path_condition, conditions)| {
                path_condition.matches(&path) && holds(conditions)
            });
            prop_assert_eq!(found.map(|number| number as usize), linear, "{}", path);
        }
    }

    #[test]
    fn the_domain_that_is_found_is_the_most_specific_one(
        domains in vec("(\\*|[ab]{0,2}\\*|\\*[ab.]{1,3}|[ab.]{1,4})", 1..12),
        names in vec("[ab.]{0,5}", 1..12),
    ) {
        let mut index = DomainIndex::default();
        let mut kept: Vec<(u32, String)> = Vec::new();
        for (number, domain) in (0..).zip(domains) {
            let again = kept.iter().any(|(_, other)| *other == domain);
            prop_assert_eq!(index.insert(&domain, number).is_none(), again);
            if !again {
                kept.push((number, domain));
            }
        }
        for name in names {
            // Rank of a domain for this name, if it is one of its.
            let rank = |domain: &str| {
                if domain == "*" {
                    return Some((0, 0));
                }
                if let Some(suffix) = domain.strip_prefix('*') {
                    return (name.ends_with(suffix) && suffix.len() < name.len()).then_some((2, suffix.len()));
                }
                if let Some(prefix) = domain.strip_suffix('*') {
                    return (name.starts_with(prefix) && prefix.len() < name.len()).then_some((1, prefix.len()));
                }
                (domain == name).then_some((3, 0))
            };
            let best = kept.iter().filter_map(|(number, domain)| Some((rank(domain)?, *number))).max();
            prop_assert_eq!(index.find(&name), best.map(|(_, number)| number), "{} of {:?}", name, kept);
        }
    }
}
