//! Conditions of a rule beside its path: headers, query parameters, gRPC, a share of the requests.
//!
//! Invariant: conditions that can't be read are left out, so what they belong to takes more requests than it should and
//! never fewer; [`crate::routes`] answers all of them 500.

use std::{borrow::Cow, iter};

use http::HeaderName;
use slotmesh_xds::envoy::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier as Specifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};

use crate::{
    draws::{Draws, Portion},
    field::{FieldPath, InvalidField, refuse_set},
    head::{HeaderLookup, RequestHead},
    text::{Pattern, TextMatcher},
};

/// A header, or what stands for one in HTTP/2.
#[derive(Clone, Debug)]
pub(crate) enum HeaderKey {
    Method,
    Path,
    Authority,
    Scheme,
    Name(HeaderName),
}

impl HeaderKey {
    pub(crate) fn new(at: &FieldPath<'_>, name: &str) -> Result<Self, InvalidField> {
        Ok(match name {
            ":method" => Self::Method,
            ":path" => Self::Path,
            ":authority" => Self::Authority,
            ":scheme" => Self::Scheme,
            name if name.starts_with(':') => {
                return Err(at.wrong(format!("{name:?}: only :method, :path, :authority and :scheme")));
            }
            name if name.eq_ignore_ascii_case("host") => Self::Authority,
            name => Self::Name(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| at.wrong(format!("{name:?} is not the name of a header")))?,
            ),
        })
    }

    /// Value of the header; of several, all with a comma between two.
    pub(crate) fn value<'h, H: HeaderLookup>(
        &'h self,
        head: &'h RequestHead<'_, H>,
    ) -> Option<Cow<'h, [u8]>> {
        let text = match self {
            Self::Method => head.method.as_str(),
            Self::Path => head.path,
            Self::Authority => head.authority,
            Self::Scheme => head.scheme,
            Self::Name(name) => return head.headers.joined(name),
        };
        Some(Cow::Borrowed(text.as_bytes()))
    }
}

/// A condition on the value of a header.
#[derive(Clone, Debug)]
enum ValueCondition {
    Present(bool),
    Range { start: i64, end: i64 },
    Text(TextMatcher),
}

/// A condition on a header.
#[derive(Clone, Debug)]
pub(crate) struct HeaderCondition {
    key: HeaderKey,
    value: ValueCondition,
    invert: bool,
    /// A header that isn't there counts as an empty one.
    missing_is_empty: bool,
}

impl HeaderCondition {
    pub(crate) fn new(at: &FieldPath<'_>, matcher: &HeaderMatcher) -> Result<Self, InvalidField> {
        let HeaderMatcher { name, invert_match, treat_missing_header_as_empty, header_match_specifier } =
            matcher;
        let key = HeaderKey::new(&at.field("name"), name)?;
        let bytes = |text: &str| text.as_bytes().into();
        let some = |field, text: &str| match text {
            "" => Err(at.field(field).wrong("it is empty")),
            text => Ok(bytes(text)),
        };
        #[expect(deprecated, reason = "Istio's older versions send them, and Envoy takes them")]
        let value = match header_match_specifier {
            None => ValueCondition::Present(true),
            Some(Specifier::PresentMatch(present)) => ValueCondition::Present(*present),
            Some(Specifier::RangeMatch(range)) => {
                ValueCondition::Range { start: range.start, end: range.end }
            }
            Some(Specifier::ExactMatch(text)) => {
                ValueCondition::Text(TextMatcher::Exact(some("exact_match", text)?))
            }
            Some(Specifier::PrefixMatch(text)) => {
                ValueCondition::Text(TextMatcher::Prefix(some("prefix_match", text)?))
            }
            Some(Specifier::SuffixMatch(text)) => {
                ValueCondition::Text(TextMatcher::Suffix(some("suffix_match", text)?))
            }
            Some(Specifier::ContainsMatch(text)) => {
                ValueCondition::Text(TextMatcher::Contains(some("contains_match", text)?))
            }
            Some(Specifier::SafeRegexMatch(regex)) => ValueCondition::Text(TextMatcher::Regex(Box::new(
                Pattern::new(&at.field("safe_regex_match"), regex)?,
            ))),
            Some(Specifier::StringMatch(text)) => {
                ValueCondition::Text(TextMatcher::new(&at.field("string_match"), text)?)
            }
        };
        Ok(Self { key, value, invert: *invert_match, missing_is_empty: *treat_missing_header_as_empty })
    }

    pub(crate) fn holds<H: HeaderLookup>(&self, head: &RequestHead<'_, H>) -> bool {
        let text = match &self.key {
            HeaderKey::Method => head.method.as_str(),
            HeaderKey::Path => head.path,
            HeaderKey::Authority => head.authority,
            HeaderKey::Scheme => head.scheme,
            HeaderKey::Name(name) => return self.test(head.headers.values(name)),
        };
        self.test(iter::once(text.as_bytes()))
    }

    /// Name of the header; nothing where it is what stands for one.
    pub(crate) fn name(&self) -> Option<&HeaderName> {
        match &self.key {
            HeaderKey::Name(name) => Some(name),
            _ => None,
        }
    }

    /// True where a header with these values is what is asked for: one of them is enough.
    pub(crate) fn test<'v>(&self, mut values: impl Iterator<Item = &'v [u8]>) -> bool {
        let first = values.next().or(self.missing_is_empty.then_some(&[][..]));
        let found = match (&self.value, first) {
            (ValueCondition::Present(present), first) => first.is_some() == *present,
            // Neither holds nor doesn't.
            (_, None) => return false,
            (_, Some(first)) => self.value.matches(first) || values.any(|value| self.value.matches(value)),
        };
        found != self.invert
    }
}

impl ValueCondition {
    /// True where a value of a header that is there is what is asked for.
    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::Range { start, end } => std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.parse::<i64>().ok())
                .is_some_and(|value| (*start..*end).contains(&value)),
            Self::Text(matcher) => matcher.matches(value),
        }
    }
}

/// A condition on a query parameter.
#[derive(Clone, Debug)]
struct QueryCondition {
    name: Box<str>,
    value: QueryValue,
}

#[derive(Clone, Debug)]
enum QueryValue {
    Present(bool),
    Text(TextMatcher),
}

impl QueryCondition {
    fn new(at: &FieldPath<'_>, matcher: &QueryParameterMatcher) -> Result<Self, InvalidField> {
        let QueryParameterMatcher { name, query_parameter_match_specifier } = matcher;
        if name.is_empty() {
            return Err(at.field("name").wrong("it is empty"));
        }
        let value = match query_parameter_match_specifier {
            None => QueryValue::Present(true),
            Some(QueryParameterMatchSpecifier::PresentMatch(present)) => QueryValue::Present(*present),
            Some(QueryParameterMatchSpecifier::StringMatch(text)) => {
                QueryValue::Text(TextMatcher::new(&at.field("string_match"), text)?)
            }
        };
        Ok(Self { name: name.as_str().into(), value })
    }

    fn holds<H: HeaderLookup>(&self, head: &RequestHead<'_, H>) -> bool {
        let found = head.query_parameter(&self.name);
        match &self.value {
            QueryValue::Present(present) => found.is_some() == *present,
            QueryValue::Text(matcher) => found.is_some_and(|value| matcher.matches(value.as_bytes())),
        }
    }
}

/// All that must hold beside the path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions {
    headers: Box<[HeaderCondition]>,
    queries: Box<[QueryCondition]>,
    share: Option<Portion>,
    grpc: bool,
    /// `CONNECT` requests only.
    connect: bool,
}

impl Conditions {
    /// The conditions that can be read, and the first fault of the others.
    pub(crate) fn new(at: &FieldPath<'_>, matcher: &RouteMatch) -> (Self, Result<(), InvalidField>) {
        let RouteMatch {
            runtime_fraction,
            headers,
            query_parameters,
            cookies,
            grpc,
            tls_context,
            dynamic_metadata,
            filter_state,
            path_specifier,
            // Of the path.
            case_sensitive: _,
        } = matcher;
        let mut fault = Ok(());
        let mut note = |error| {
            if fault.is_ok() {
                fault = Err(error);
            }
        };
        let headers = (0..).zip(headers);
        let headers = headers.filter_map(|(i, matcher)| {
            HeaderCondition::new(&at.element("headers", i), matcher).map_err(&mut note).ok()
        });
        let headers = headers.collect();
        let queries = (0..).zip(query_parameters).filter_map(|(i, matcher)| {
            QueryCondition::new(&at.element("query_parameters", i), matcher).map_err(&mut note).ok()
        });
        let queries = queries.collect();
        let share = Portion::runtime(&at.field("runtime_fraction"), runtime_fraction.as_ref());
        let share = share.map_err(&mut note).unwrap_or_default();
        let unsupported = || {
            refuse_set!(at,
                "use a condition on the header": cookies;
                "there is no TLS": tls_context;
                "nothing sets it": dynamic_metadata, filter_state;
            );
            Ok(())
        };
        if let Err(error) = unsupported() {
            note(error);
        }
        let connect = matches!(path_specifier, Some(PathSpecifier::ConnectMatcher(_)));
        (Self { headers, queries, share, grpc: grpc.is_some(), connect }, fault)
    }

    pub(crate) fn hold<H: HeaderLookup>(&self, head: &RequestHead<'_, H>, draws: &mut impl Draws) -> bool {
        self.headers.iter().all(|condition| condition.holds(head))
            && self.queries.iter().all(|condition| condition.holds(head))
            && (!self.grpc || head.is_grpc())
            && (!self.connect || *head.method == http::Method::CONNECT)
            && self.share.is_none_or(|share| share.hit(draws))
    }
}

/// Conditions on headers that stand in a list: all must hold.
pub(crate) fn header_list(
    at: &FieldPath<'_>,
    name: &str,
    matchers: &[HeaderMatcher],
) -> Result<Box<[HeaderCondition]>, InvalidField> {
    (0..).zip(matchers).map(|(i, matcher)| HeaderCondition::new(&at.element(name, i), matcher)).collect()
}
