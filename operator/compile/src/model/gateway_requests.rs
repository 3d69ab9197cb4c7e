//! The parts of HTTPRoutes and GRPCRoutes that take a request.

use slotmesh_crds::{Rest, gateway as crds};
use slotmesh_xds::CORS_FILTER;
use slotmesh_xds::envoy::{
    envoy::{
        config::route::v3::{
            QueryParameterMatcher, RedirectAction, RetryPolicy,
            query_parameter_matcher::QueryParameterMatchSpecifier,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            retry_policy::RetryBackOff,
            route_action::HostRewriteSpecifier,
            route_match::PathSpecifier,
        },
        extensions::filters::http::cors::v3::CorsPolicy,
        r#type::matcher::v3::{RegexMatchAndSubstitute, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{BoolValue, UInt32Value},
};

use super::{
    Destination,
    gateway::backend_of,
    json_fields::{JsonFields, Readable, regex, unreadable},
    treatment::{
        ALL, HeaderEdits, MessageEdits, Mirrored, OwnAnswer, Precedence, RequestCondition, Treatment,
        duration, every_request, exact, header, literally, pattern, quoted, regex_matcher, substitution,
        typed,
    },
};
use crate::{Kind, ObjectName};

/// Asked for by `retry` of an HTTPRoute when no status is named: what says that nobody has seen the request.
const RETRY_ON: &str = "connect-failure,refused-stream";
/// The most attempts beside the first.
const MOST_RETRIES: u32 = 100;

/// Reads what a match asks of a request; `None` where that is nothing.
pub(super) fn read_condition(
    kind: Kind,
    at: &str,
    wanted: &crds::HttpRouteMatch,
) -> Readable<Option<RequestCondition>> {
    let mut fields = JsonFields::of_rest(at, &wanted.rest);
    let mut matches = every_request();
    let mut precedence = Precedence { length: 1, ..Precedence::default() };
    if kind == Kind::GrpcRoute {
        if wanted.path.is_some() {
            return unreadable(format!("{at}.path"), "a GRPCRoute has none; name service and method");
        }
        if let Some(method) = fields.object("method")? {
            (matches.path_specifier, precedence) = grpc_method(method)?;
        }
    } else {
        if let Some(path) = &wanted.path {
            (matches.path_specifier, precedence) = path_match(&format!("{at}.path"), path)?;
        }
        if let Some(method) = fields.text("method")? {
            matches.headers.push(header(":method", exact(method)));
            precedence.method = 1;
        }
    }
    for (name, value) in named_matches(&mut fields, "headers", true)? {
        matches.headers.push(header(&name, value));
        precedence.headers += 1;
    }
    if kind != Kind::GrpcRoute {
        for (name, value) in named_matches(&mut fields, "queryParams", false)? {
            matches.query_parameters.push(QueryParameterMatcher {
                name,
                query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(value)),
            });
            precedence.query += 1;
        }
    }
    fields.end()?;
    Ok(RequestCondition::new(matches, precedence))
}

fn path_match(at: &str, path: &crds::PathMatch) -> Readable<(Option<PathSpecifier>, Precedence)> {
    let value = path.value.as_deref().unwrap_or("/");
    let field = format!("{at}.value");
    let kind = path.kind.as_deref().unwrap_or("PathPrefix");
    if kind != "RegularExpression" && !value.starts_with('/') {
        return unreadable(field, format!("{value:?} doesn't begin with a slash"));
    }
    let length = value.chars().count();
    let of = |path| Precedence { path, length, ..Precedence::default() };
    Ok(match kind {
        "Exact" => (Some(PathSpecifier::Path(value.to_owned())), of(2)),
        "RegularExpression" => (Some(PathSpecifier::SafeRegex(regex_matcher(regex(field, value)?))), of(1)),
        "PathPrefix" => match value.trim_end_matches('/') {
            "" => (Some(PathSpecifier::Prefix("/".to_owned())), of(0)),
            prefix => (
                Some(PathSpecifier::PathSeparatedPrefix(prefix.to_owned())),
                Precedence { length: prefix.chars().count(), ..of(0) },
            ),
        },
        other => return unreadable(format!("{at}.type"), format!("{other:?} isn't known")),
    })
}

/// The path of a method of gRPC is `/SERVICE/METHOD`.
fn grpc_method(mut fields: JsonFields<'_>) -> Readable<(Option<PathSpecifier>, Precedence)> {
    let is_regex = match fields.text("type")? {
        None | Some("Exact") => false,
        Some("RegularExpression") => true,
        Some(other) => return unreadable(fields.path("type"), format!("{other:?} isn't known")),
    };
    let mut of = |name: &str| -> Readable<Option<&str>> {
        let field = fields.path(name);
        let text = fields.text(name)?.filter(|text| !text.is_empty());
        if let Some(text) = text {
            regex(&field, text)?;
            if !is_regex && text.contains('/') {
                return unreadable(field, format!("{text:?} contains a slash"));
            }
        }
        Ok(text)
    };
    let (service, method) = (of("service")?, of("method")?);
    fields.end()?;
    let count = |text: Option<&str>| text.map_or(0, |text| text.chars().count());
    let precedence = Precedence {
        path: 2 - u8::from(is_regex),
        length: count(service),
        method: count(method),
        ..Precedence::default()
    };
    let path = match (service, method) {
        (None, None) => {
            let precedence = Precedence { length: 1, ..Precedence::default() };
            return Ok((every_request().path_specifier, precedence));
        }
        (Some(service), Some(method)) if !is_regex => PathSpecifier::Path(format!("/{service}/{method}")),
        (Some(service), None) if !is_regex => PathSpecifier::Prefix(format!("/{service}/")),
        (service, method) => {
            let part = |part: Option<&str>| match part {
                None => "[^/]+".to_owned(),
                Some(part) if is_regex => format!("(?:{part})"),
                Some(part) => quoted(part),
            };
            PathSpecifier::SafeRegex(regex_matcher(format!("/{}/{}", part(service), part(method))))
        }
    };
    Ok((Some(path), precedence))
}

/// The matches of headers or query parameters; of several of one name only the first counts.
fn named_matches(
    fields: &mut JsonFields<'_>,
    list: &str,
    ignores_case: bool,
) -> Readable<Vec<(String, StringMatcher)>> {
    let mut all: Vec<(String, StringMatcher)> = Vec::new();
    for mut one in fields.objects(list)? {
        let field = one.path("name");
        let Some(name) = one.text("name")?.filter(|name| !name.is_empty()) else {
            return unreadable(field, "it is missing");
        };
        let name = if ignores_case { name.to_ascii_lowercase() } else { name.to_owned() };
        let at = one.path("value");
        let value = one.text("value")?.unwrap_or_default();
        let matcher = match one.text("type")? {
            None | Some("Exact") => exact(value),
            Some("RegularExpression") => pattern(MatchPattern::SafeRegex(regex_matcher(regex(at, value)?))),
            Some(other) => return unreadable(one.path("type"), format!("{other:?} isn't known")),
        };
        one.end()?;
        if !all.iter().any(|(known, _)| *known == name) {
            all.push((name, matcher));
        }
    }
    Ok(all)
}

/// Reads what a rule does with requests. `prefix` is what its matches by prefix ask for, where they are all alike.
pub(super) fn read_treatment(
    at: &str,
    rest: &Rest,
    prefix: Option<&str>,
    key: &ObjectName,
) -> Readable<Treatment> {
    let mut fields = JsonFields::of_rest(at, rest);
    let mut treatment = Treatment::default();
    for filter in fields.objects("filters")? {
        read_filter(filter, prefix, key, &mut treatment)?;
    }
    let (mut request, mut backend) = (None, None);
    if let Some(mut timeouts) = fields.object("timeouts")? {
        request = timeouts.time("request")?;
        backend = timeouts.time("backendRequest")?;
        timeouts.end()?;
    }
    let set = |time: Option<u64>| time.filter(|time| *time > 0);
    if let Some(retry) = fields.object("retry")? {
        treatment.action.retry_policy = read_retry(retry)?;
    }
    treatment.action.timeout = match &mut treatment.action.retry_policy {
        Some(policy) => {
            policy.per_try_timeout = set(backend).map(duration);
            request.map(duration)
        }
        // One attempt ends when either time is over.
        None => set(backend).into_iter().chain(set(request)).min().or(request).or(backend).map(duration),
    };
    fields.end()?;
    Ok(treatment)
}

/// `None` where nothing is to be tried again.
fn read_retry(mut fields: JsonFields<'_>) -> Readable<Option<RetryPolicy>> {
    let mut codes = Vec::new();
    for (at, code) in fields.list("codes")? {
        match code
            .as_u64()
            .and_then(|code| u32::try_from(code).ok())
            .filter(|code| (400..=599).contains(code))
        {
            Some(code) => codes.push(code),
            None => return unreadable(at, format!("{code} is no status from 400 to 599")),
        }
    }
    let field = fields.path("attempts");
    let attempts = fields.number("attempts")?.unwrap_or(1);
    let backoff = fields.time("backoff")?;
    fields.end()?;
    if attempts > MOST_RETRIES {
        return unreadable(field, format!("at most {MOST_RETRIES}"));
    }
    let statuses = if codes.is_empty() { "" } else { ",retriable-status-codes" };
    Ok((attempts > 0).then(|| RetryPolicy {
        retry_on: format!("{RETRY_ON}{statuses}"),
        num_retries: Some(UInt32Value { value: attempts }),
        retriable_status_codes: codes,
        retry_back_off: backoff.filter(|time| *time > 0).map(|time| RetryBackOff {
            base_interval: Some(duration(time)),
            max_interval: Some(duration(time.saturating_mul(10))),
        }),
        ..Default::default()
    }))
}

fn read_filter(
    mut filter: JsonFields<'_>,
    prefix: Option<&str>,
    key: &ObjectName,
    treatment: &mut Treatment,
) -> Readable<()> {
    let field = filter.path("type");
    let Some(kind) = filter.text("type")? else { return unreadable(field, "it is missing") };
    let name = match kind {
        "RequestHeaderModifier" => "requestHeaderModifier",
        "ResponseHeaderModifier" => "responseHeaderModifier",
        "RequestRedirect" => "requestRedirect",
        "URLRewrite" => "urlRewrite",
        "RequestMirror" => "requestMirror",
        "CORS" => "cors",
        other => return unreadable(field, format!("filter {other} isn't supported")),
    };
    let at = filter.path(name);
    let Some(of) = filter.object(name)? else { return unreadable(at, "it is missing") };
    filter.end()?;
    match kind {
        "RequestHeaderModifier" => treatment.edits.request.extend(header_edits(of)?),
        "ResponseHeaderModifier" => treatment.edits.response.extend(header_edits(of)?),
        "RequestRedirect" => treatment.answer = Some(OwnAnswer::Redirect(redirect(of, prefix)?)),
        "URLRewrite" => rewrite(of, prefix, treatment)?,
        "RequestMirror" => treatment.mirrors.push(mirror(of, key)?),
        _ => {
            treatment.filters.insert(CORS_FILTER, typed(&cors(of)?));
        }
    }
    Ok(())
}

/// Reads the filters of a backend, of which those that change headers act.
pub(super) fn read_backend_edits(at: &str, rest: &Rest) -> Readable<MessageEdits> {
    let mut fields = JsonFields::of_rest(at, rest);
    let mut edits = MessageEdits::default();
    for mut filter in fields.objects("filters")? {
        let field = filter.path("type");
        let (name, to) = match filter.text("type")? {
            Some("RequestHeaderModifier") => ("requestHeaderModifier", &mut edits.request),
            Some("ResponseHeaderModifier") => ("responseHeaderModifier", &mut edits.response),
            other => {
                let other = other.unwrap_or_default();
                return unreadable(field, format!("filter {other} of a backend isn't supported"));
            }
        };
        let at = filter.path(name);
        let Some(of) = filter.object(name)? else { return unreadable(at, "it is missing") };
        filter.end()?;
        to.extend(header_edits(of)?);
    }
    fields.end()?;
    Ok(edits)
}

fn header_edits(mut fields: JsonFields<'_>) -> Readable<HeaderEdits> {
    let mut of = |list: &str| -> Readable<Vec<(String, String)>> {
        let mut all = Vec::new();
        for mut one in fields.objects(list)? {
            let field = one.path("name");
            let (name, value) = (one.text("name")?, one.text("value")?);
            one.end()?;
            let Some(name) = name else { return unreadable(field, "it is missing") };
            all.push((name.to_ascii_lowercase(), value.unwrap_or_default().to_owned()));
        }
        Ok(all)
    };
    let (set, add) = (of("set")?, of("add")?);
    let remove = fields.texts("remove")?.into_iter().map(str::to_ascii_lowercase).collect();
    fields.end()?;
    Ok(HeaderEdits { set, add, remove })
}

/// A path instead of a request's.
enum NewPath {
    Full(String),
    /// Of the part that the rule's prefix matches.
    Prefix(RegexMatchAndSubstitute),
}

fn new_path(fields: &mut JsonFields<'_>, prefix: Option<&str>) -> Readable<Option<NewPath>> {
    let Some(mut path) = fields.object("path")? else { return Ok(None) };
    let field = path.path("type");
    let kind = path.text("type")?;
    let full = path.text("replaceFullPath")?;
    let part = path.text("replacePrefixMatch")?;
    path.end()?;
    Ok(Some(match (kind, full, part) {
        (Some("ReplaceFullPath"), Some(full), None) => NewPath::Full(full.to_owned()),
        (Some("ReplacePrefixMatch"), None, Some(with)) => {
            let Some(prefix) = prefix else {
                return unreadable(field, "only in a rule all of whose matches are for the same path prefix");
            };
            NewPath::Prefix(prefix_substitution(prefix, with))
        }
        _ => return unreadable(field, "it isn't ReplaceFullPath or ReplacePrefixMatch with a value"),
    }))
}

/// Replaces a prefix that ends where a segment does: neither `//` nor a missing slash comes of it.
fn prefix_substitution(prefix: &str, with: &str) -> RegexMatchAndSubstitute {
    let (prefix, with) = (quoted(prefix.trim_end_matches('/')), literally(with.trim_end_matches('/')));
    match with.as_str() {
        // What is left has its slash, or gets one.
        "" => substitution(format!("^{prefix}/*"), "/"),
        with => substitution(format!("^{prefix}(/?)"), format!(r"{with}\1")),
    }
}

fn redirect(mut fields: JsonFields<'_>, prefix: Option<&str>) -> Readable<RedirectAction> {
    let field = fields.path("statusCode");
    let response_code = match fields.number("statusCode")? {
        Some(301) => RedirectResponseCode::MovedPermanently,
        None | Some(302) => RedirectResponseCode::Found,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        Some(other) => return unreadable(field, format!("{other} is no status of a redirect")),
    };
    let field = fields.path("port");
    let port_redirect = match fields.number("port")? {
        Some(port) if !(1..=65_535).contains(&port) => {
            return unreadable(field, format!("{port} is not a port; ports are 1 to 65535"));
        }
        port => port.unwrap_or(0),
    };
    let path = new_path(&mut fields, prefix)?.map(|path| match path {
        NewPath::Full(path) => PathRewriteSpecifier::PathRedirect(path),
        NewPath::Prefix(substitution) => PathRewriteSpecifier::RegexRewrite(substitution),
    });
    let scheme = fields.text("scheme")?;
    let redirect = RedirectAction {
        host_redirect: fields.text("hostname")?.unwrap_or_default().to_owned(),
        port_redirect,
        response_code: response_code.into(),
        scheme_rewrite_specifier: scheme
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_ascii_lowercase())),
        path_rewrite_specifier: path,
        ..Default::default()
    };
    fields.end()?;
    Ok(redirect)
}

fn rewrite(mut fields: JsonFields<'_>, prefix: Option<&str>, treatment: &mut Treatment) -> Readable<()> {
    let action = &mut treatment.action;
    if let Some(host) = fields.text("hostname")? {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
    }
    match new_path(&mut fields, prefix)? {
        None => {}
        Some(NewPath::Full(path)) => {
            action.regex_rewrite = Some(substitution("^.*$".to_owned(), literally(&path)));
        }
        Some(NewPath::Prefix(substitution)) => action.regex_rewrite = Some(substitution),
    }
    fields.end()
}

fn mirror(mut fields: JsonFields<'_>, key: &ObjectName) -> Readable<Mirrored> {
    let field = fields.path("backendRef");
    let Some(backend) = fields.take("backendRef") else { return unreadable(field, "it is missing") };
    let destination: Destination = backend_of(&field, backend, key)?;
    let mut share = fields.percent("percent")?;
    if let Some(mut of) = fields.object("fraction")? {
        let at = of.path("numerator");
        let (numerator, denominator) = (of.number("numerator")?, of.number("denominator")?.unwrap_or(100));
        of.end()?;
        share = match numerator {
            Some(numerator) if denominator > 0 && numerator <= denominator => {
                u32::try_from(u64::from(numerator) * u64::from(ALL) / u64::from(denominator)).ok()
            }
            _ => return unreadable(at, "it is no part of the denominator"),
        };
    }
    fields.end()?;
    Ok(Mirrored { field, destination, share: share.unwrap_or(ALL) })
}

fn cors(mut fields: JsonFields<'_>) -> Readable<CorsPolicy> {
    let origin = |origin: &str| match origin.contains('*') {
        false => exact(origin),
        true => {
            let parts: Vec<String> = origin.split('*').map(quoted).collect();
            pattern(MatchPattern::SafeRegex(regex_matcher(parts.join(".*"))))
        }
    };
    let credentials = fields.flag("allowCredentials")?;
    let policy = CorsPolicy {
        allow_origin_string_match: fields.texts("allowOrigins")?.into_iter().map(origin).collect(),
        allow_methods: fields.texts("allowMethods")?.join(","),
        allow_headers: fields.texts("allowHeaders")?.join(","),
        expose_headers: fields.texts("exposeHeaders")?.join(","),
        max_age: fields.number("maxAge")?.map(|seconds| seconds.to_string()).unwrap_or_default(),
        allow_credentials: credentials.map(|value| BoolValue { value }),
        ..Default::default()
    };
    fields.end()?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_by_whole_segments() {
        let of = |prefix, with| {
            let RegexMatchAndSubstitute { pattern, substitution } = prefix_substitution(prefix, with);
            (pattern.unwrap().regex, substitution)
        };
        assert_eq!(of("/a.b", "/x"), (r"^/a\.b(/?)".to_owned(), r"/x\1".to_owned()));
        assert_eq!(of("/a/", "/"), ("^/a/*".to_owned(), "/".to_owned()));
        assert_eq!(of("/", "/x/"), ("^(/?)".to_owned(), r"/x\1".to_owned()));
    }
}
