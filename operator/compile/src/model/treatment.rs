//! Parts of a route that take a request: what a request must look like, and what is done with it.
//!
//! They are kept as the messages of Envoy that they become, without clusters: which these are depends on who connects.

use std::{cmp::Reverse, collections::BTreeMap};

use prost::Name;
use slotmesh_xds::envoy::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction},
            route::v3::{
                DirectResponseAction, HeaderMatcher, RedirectAction, RetryPolicy, RouteAction, RouteMatch,
                header_matcher::HeaderMatchSpecifier, route_match::PathSpecifier,
            },
        },
        r#type::{
            matcher::v3::{
                RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
            },
            v3::{FractionalPercent, fractional_percent::DenominatorType},
        },
    },
    google::protobuf::{Any, Duration},
};

use super::Destination;

/// A condition that a request must meet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RequestCondition {
    pub(crate) matches: RouteMatch,
    pub(crate) precedence: Precedence,
}

/// Which of two conditions of Gateway API goes before: the first of these that differs, the greater first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    /// 2 for an exact path, 1 for a regular expression, 0 for a prefix.
    pub(crate) path: u8,
    /// Characters of the path, or of the service of gRPC.
    pub(crate) length: usize,
    /// 1 with a method; of gRPC its characters.
    pub(crate) method: usize,
    pub(crate) headers: usize,
    pub(crate) query: usize,
}

impl RequestCondition {
    /// The condition of these matches; `None` where every request meets it.
    pub(crate) fn new(matches: RouteMatch, precedence: Precedence) -> Option<Self> {
        (matches != every_request()).then_some(Self { matches, precedence })
    }

    /// The order among rules of Gateway API.
    pub(crate) fn order(condition: Option<&Self>) -> Reverse<Precedence> {
        let of_all = Precedence { length: 1, ..Precedence::default() };
        Reverse(condition.map_or(of_all, |condition| condition.precedence))
    }

    /// Both conditions; `None` where no path can meet both, as far as that can be told.
    pub(crate) fn and(&self, other: &Self) -> Option<Self> {
        let (mine, others) = (&self.matches, &other.matches);
        let path = match (&mine.path_specifier, &others.path_specifier) {
            (mine, others) if mine == others => mine.clone(),
            (mine, Some(PathSpecifier::Prefix(any))) if any == "/" => mine.clone(),
            (Some(PathSpecifier::Prefix(prefix)), others) => match others {
                Some(PathSpecifier::Prefix(path) | PathSpecifier::Path(path)) if path.starts_with(prefix) => {
                    others.clone()
                }
                Some(PathSpecifier::SafeRegex(_)) if prefix == "/" => others.clone(),
                _ => return None,
            },
            _ => return None,
        };
        let mut matches = mine.clone();
        matches.path_specifier = path;
        matches.headers.extend(others.headers.iter().cloned());
        matches.query_parameters.extend(others.query_parameters.iter().cloned());
        matches.case_sensitive = others.case_sensitive.or(mine.case_sensitive);
        Some(Self { matches, precedence: self.precedence })
    }
}

/// The match of every request.
pub(crate) fn every_request() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// Changes of the headers of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderEdits {
    pub(crate) set: Vec<(String, String)>,
    pub(crate) add: Vec<(String, String)>,
    pub(crate) remove: Vec<String>,
}

impl HeaderEdits {
    /// Further changes of the same message.
    pub(crate) fn extend(&mut self, further: Self) {
        let Self { set, add, remove } = further;
        self.set.extend(set);
        self.add.extend(add);
        self.remove.extend(remove);
    }

    /// Those that put something there.
    pub(crate) fn values(&self) -> Vec<HeaderValueOption> {
        let option = |action: HeaderAppendAction| {
            // A percent sign begins one of Envoy's variables.
            move |(key, value): &(String, String)| HeaderValueOption {
                header: Some(HeaderValue {
                    key: key.clone(),
                    value: value.replace('%', "%%"),
                    ..Default::default()
                }),
                append_action: action.into(),
                keep_empty_value: true,
                ..Default::default()
            }
        };
        let set = self.set.iter().map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
        set.chain(self.add.iter().map(option(HeaderAppendAction::AppendIfExistsOrAdd))).collect()
    }
}

/// Changes of a request and of its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MessageEdits {
    pub(crate) request: HeaderEdits,
    pub(crate) response: HeaderEdits,
}

/// An answer that no backend gives.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OwnAnswer {
    Redirect(RedirectAction),
    Direct(DirectResponseAction),
}

/// A further destination of requests, whose responses nobody sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirrored {
    /// The field of the destination.
    pub(crate) field: String,
    pub(crate) destination: Destination,
    /// Millionths of the requests.
    pub(crate) share: u32,
}

/// All that is done with the requests of a route, beside sending them on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Treatment {
    /// Given instead of sending them anywhere.
    pub(crate) answer: Option<OwnAnswer>,
    /// Rewrites, timeouts and retries; no cluster. A policy of retries that says nothing turns those off that there would
    /// be without one.
    pub(crate) action: RouteAction,
    pub(crate) edits: MessageEdits,
    pub(crate) mirrors: Vec<Mirrored>,
    /// Configurations of HTTP filters, by the name of the filter.
    pub(crate) filters: BTreeMap<&'static str, Any>,
}

impl Treatment {
    /// Tells whether nothing is done with them.
    pub(crate) fn is_none(&self) -> bool {
        let no_retries = RouteAction { retry_policy: Some(RetryPolicy::default()), ..Default::default() };
        *self == Self::default() || *self == Self { action: no_retries, ..Self::default() }
    }

    /// The treatment where a route is delegated by one that has this treatment: what the delegate says counts.
    pub(crate) fn delegated(&self, delegate: &Self) -> Self {
        let mut all = delegate.clone();
        if *self == Self::default() {
            return all;
        }
        let (outer, inner) = (&self.action, &mut all.action);
        inner.timeout = inner.timeout.or(outer.timeout);
        inner.retry_policy = inner.retry_policy.take().or_else(|| outer.retry_policy.clone());
        if inner.prefix_rewrite.is_empty() && inner.regex_rewrite.is_none() {
            inner.prefix_rewrite.clone_from(&outer.prefix_rewrite);
            inner.regex_rewrite.clone_from(&outer.regex_rewrite);
        }
        if inner.host_rewrite_specifier.is_none() {
            inner.host_rewrite_specifier.clone_from(&outer.host_rewrite_specifier);
        }
        let MessageEdits { request, response } = self.edits.clone();
        all.edits.request.extend(request);
        all.edits.response.extend(response);
        if all.mirrors.is_empty() {
            all.mirrors.clone_from(&self.mirrors);
        }
        for (name, config) in &self.filters {
            all.filters.entry(name).or_insert_with(|| config.clone());
        }
        all
    }
}

/// A message with its type.
pub(crate) fn typed<M: Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

pub(super) fn exact(text: &str) -> StringMatcher {
    pattern(MatchPattern::Exact(text.to_owned()))
}

pub(super) fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

pub(super) fn regex_matcher(regex: String) -> RegexMatcher {
    RegexMatcher { regex, ..Default::default() }
}

/// A substitution; `with` may name groups as `\1`.
pub(super) fn substitution(regex: String, with: impl Into<String>) -> RegexMatchAndSubstitute {
    RegexMatchAndSubstitute { pattern: Some(regex_matcher(regex)), substitution: with.into() }
}

/// Text as it stands in a substitution.
pub(super) fn literally(text: &str) -> String {
    text.replace('\\', r"\\")
}

/// Text as it stands in a regular expression.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The match of a header, or, with a colon in front, of a part of the request's first line.
pub(super) fn header(name: &str, value: StringMatcher) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_ascii_lowercase(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(value)),
        ..Default::default()
    }
}

/// Millionths.
pub(crate) fn fraction(millionths: u32) -> FractionalPercent {
    FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() }
}

/// The most that a [`fraction`] can be: everything.
pub(crate) const ALL: u32 = 1_000_000;

pub(crate) fn duration(milliseconds: u64) -> Duration {
    Duration {
        seconds: i64::try_from(milliseconds / 1_000).unwrap_or(i64::MAX),
        nanos: i32::try_from(milliseconds % 1_000).unwrap_or(0) * 1_000_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(path: PathSpecifier, header_name: &str) -> RequestCondition {
        let matches = RouteMatch {
            path_specifier: Some(path),
            headers: vec![header(header_name, exact("x"))],
            ..Default::default()
        };
        RequestCondition::new(matches, Precedence::default()).unwrap()
    }

    #[test]
    fn a_path_meets_both_conditions_or_there_is_none() {
        let prefix = |path: &str| PathSpecifier::Prefix(path.to_owned());
        let outer = by(prefix("/api"), "a");
        let both = outer.and(&by(prefix("/api/v1"), "b")).unwrap();
        assert_eq!(both.matches.path_specifier, Some(prefix("/api/v1")));
        assert_eq!(both.matches.headers.len(), 2);
        assert_eq!(outer.and(&by(prefix("/"), "b")).unwrap().matches.path_specifier, Some(prefix("/api")));
        assert_eq!(outer.and(&by(prefix("/other"), "b")), None);
        assert_eq!(by(PathSpecifier::Path("/a".to_owned()), "a").and(&by(prefix("/a/b"), "b")), None);
    }

    #[test]
    fn what_every_request_meets_is_no_condition() {
        assert_eq!(RequestCondition::new(every_request(), Precedence::default()), None);
    }

    #[test]
    fn the_delegate_counts_and_the_first_fills_in() {
        let treatment = |timeout, rewrite: &str| Treatment {
            action: RouteAction { timeout, prefix_rewrite: rewrite.to_owned(), ..Default::default() },
            ..Default::default()
        };
        let outer = treatment(Some(duration(1_500)), "/a");
        let all = outer.delegated(&treatment(None, "/b"));
        assert_eq!((all.action.timeout, all.action.prefix_rewrite.as_str()), (Some(duration(1_500)), "/b"));
        assert_eq!(outer.delegated(&Treatment::default()), outer);
    }

    #[test]
    fn no_retries_are_nothing_to_do_and_go_to_a_delegate() {
        let off = RouteAction { retry_policy: Some(RetryPolicy::default()), ..Default::default() };
        let off = Treatment { action: off, ..Default::default() };
        assert!(off.is_none() && Treatment::default().is_none());
        assert_eq!(off.delegated(&Treatment::default()), off);
        let twice = RetryPolicy { retry_on: "5xx".to_owned(), ..Default::default() };
        let twice = RouteAction { retry_policy: Some(twice), ..Default::default() };
        let twice = Treatment { action: twice, ..Default::default() };
        assert!(!twice.is_none());
        assert_eq!(off.delegated(&twice), twice);
    }

    #[test]
    fn text_is_quoted_and_percent_signs_stand_for_themselves() {
        assert_eq!(quoted("/a.b+c"), r"/a\.b\+c");
        assert_eq!(literally(r"\1"), r"\\1");
        let edits = HeaderEdits { set: vec![("x".into(), "100%".into())], ..Default::default() };
        assert_eq!(edits.values()[0].header.as_ref().unwrap().value, "100%%");
    }
}
