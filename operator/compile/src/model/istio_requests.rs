//! The parts of a VirtualService's HTTP routes that take a request.

use serde_json::Value;
use slotmesh_crds as crds;
use slotmesh_xds::envoy::{
    envoy::{
        config::{
            core::v3::{DataSource, data_source},
            route::v3::{
                DirectResponseAction, HeaderMatcher, QueryParameterMatcher, RedirectAction, RetryPolicy,
                header_matcher::HeaderMatchSpecifier,
                query_parameter_matcher::QueryParameterMatchSpecifier,
                redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
                retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
                route_action::HostRewriteSpecifier,
                route_match::PathSpecifier,
            },
        },
        extensions::{
            filters::{
                common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
                http::{
                    cors::v3::CorsPolicy,
                    fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
                },
            },
            retry::host::previous_hosts::v3::PreviousHostsPredicate,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{BoolValue, UInt32Value},
};
use slotmesh_xds::{CORS_FILTER, FAULT_FILTER};

use super::{
    json_fields::{JsonFields, Readable, regex, unreadable},
    treatment::{
        ALL, HeaderEdits, MessageEdits, Mirrored, OwnAnswer, Precedence, RequestCondition, Treatment,
        duration, every_request, exact, fraction, header, pattern, regex_matcher, substitution, typed,
    },
    virtual_service::destination_of,
};
use crate::ObjectName;

/// On which a request is tried again where an object doesn't say. Istio names `retriable-status-codes`, too, and no codes.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
/// How often a host that was tried before is passed over.
const OTHER_HOSTS: i64 = 5;
/// Attempts beside the first where an object says nothing of retries.
const RETRIES: u32 = 2;
/// The most attempts beside the first.
const MOST_RETRIES: u32 = 100;

/// Reads what a match asks of a request; `None` where that is nothing.
pub(super) fn read_condition(at: &str, rest: &crds::Rest) -> Readable<Option<RequestCondition>> {
    let mut fields = JsonFields::of_rest(at, rest);
    let mut matches = every_request();
    if let Some((pattern, field)) = string_match(&mut fields, "uri")? {
        matches.path_specifier = Some(match pattern {
            MatchPattern::Exact(path) => PathSpecifier::Path(path),
            MatchPattern::Prefix(prefix) => PathSpecifier::Prefix(prefix),
            MatchPattern::SafeRegex(regex) if regex.regex == ".*" || regex.regex == "/.*" => {
                PathSpecifier::Prefix("/".to_owned())
            }
            MatchPattern::SafeRegex(regex) => PathSpecifier::SafeRegex(regex),
            _ => return unreadable(field, "it is neither exact, prefix nor regex"),
        });
    }
    if fields.flag("ignoreUriCase")? == Some(true)
        && !matches!(&matches.path_specifier, Some(PathSpecifier::Prefix(any)) if any == "/")
    {
        matches.case_sensitive = Some(BoolValue { value: false });
    }
    for (name, of) in [("scheme", ":scheme"), ("method", ":method"), ("authority", ":authority")] {
        if let Some((value, _)) = string_match(&mut fields, name)? {
            matches.headers.push(header(of, pattern(value)));
        }
    }
    for (list, inverted) in [("headers", false), ("withoutHeaders", true)] {
        let at = fields.path(list);
        for (name, wanted) in fields.pairs(list)? {
            let mut matcher = header_match(&format!("{at}.{name}"), name, wanted)?;
            matcher.invert_match = inverted;
            if inverted
                && !matches!(matcher.header_match_specifier, Some(HeaderMatchSpecifier::PresentMatch(_)))
            {
                // A request without the header hasn't the value either.
                matcher.treat_missing_header_as_empty = true;
            }
            matches.headers.push(matcher);
        }
    }
    let at = fields.path("queryParams");
    for (name, wanted) in fields.pairs("queryParams")? {
        let value = match any_string(&format!("{at}.{name}"), wanted)? {
            Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        };
        matches.query_parameters.push(QueryParameterMatcher {
            name: name.to_owned(),
            query_parameter_match_specifier: Some(value),
        });
    }
    // It only names statistics.
    fields.take("statPrefix");
    fields.end()?;
    Ok(RequestCondition::new(matches, Precedence::default()))
}

fn header_match(at: &str, name: &str, wanted: &Value) -> Readable<HeaderMatcher> {
    Ok(match any_string(at, wanted)? {
        Some(matcher) => header(name, matcher),
        None => HeaderMatcher {
            name: name.to_ascii_lowercase(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        },
    })
}

/// A StringMatch; `None` where it says nothing, so every value matches.
fn any_string(at: &str, wanted: &Value) -> Readable<Option<StringMatcher>> {
    let fields = match wanted {
        Value::Null => return Ok(None),
        wanted => JsonFields::of(at, wanted)?,
    };
    Ok(string_of(fields)?.map(pattern))
}

fn string_match(fields: &mut JsonFields<'_>, name: &str) -> Readable<Option<(MatchPattern, String)>> {
    let field = fields.path(name);
    let Some(wanted) = fields.object(name)? else { return Ok(None) };
    match string_of(wanted)? {
        Some(pattern) => Ok(Some((pattern, field))),
        None => unreadable(field, "it says neither exact, prefix nor regex"),
    }
}

fn string_of(mut fields: JsonFields<'_>) -> Readable<Option<MatchPattern>> {
    let (exact, prefix) = (fields.text("exact")?, fields.text("prefix")?);
    let field = fields.path("regex");
    let expression = fields.text("regex")?.map(|text| regex(field, text)).transpose()?;
    let at = fields.path("exact");
    fields.end()?;
    Ok(match (exact, prefix, expression) {
        (None, None, None) => None,
        (Some(text), None, None) => Some(MatchPattern::Exact(text.to_owned())),
        (None, Some(text), None) => Some(MatchPattern::Prefix(text.to_owned())),
        (None, None, Some(text)) => Some(MatchPattern::SafeRegex(regex_matcher(text))),
        _ => return unreadable(at, "only one of exact, prefix and regex can be given"),
    })
}

/// Reads what a route does with requests.
pub(super) fn read_treatment(at: &str, rest: &crds::Rest, key: &ObjectName) -> Readable<Treatment> {
    let mut fields = JsonFields::of_rest(at, rest);
    let mut treatment = Treatment::default();
    let action = &mut treatment.action;
    action.timeout = fields.time("timeout")?.map(duration);
    if let Some(retries) = fields.object("retries")? {
        action.retry_policy = Some(read_retries(retries)?);
    }
    if let Some(mut rewrite) = fields.object("rewrite")? {
        action.prefix_rewrite = rewrite.text("uri")?.unwrap_or_default().to_owned();
        let authority = rewrite.text("authority")?;
        action.host_rewrite_specifier =
            authority.map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.to_owned()));
        if let Some(mut by) = rewrite.object("uriRegexRewrite")? {
            let field = by.path("match");
            let expression = regex(field, by.text("match")?.unwrap_or_default())?;
            let with = by.text("rewrite")?.unwrap_or_default();
            action.regex_rewrite = Some(substitution(expression, with));
            let field = by.path("match");
            by.end()?;
            if !action.prefix_rewrite.is_empty() {
                return unreadable(field, "only one of uri and uriRegexRewrite can be given");
            }
        }
        rewrite.end()?;
    }
    if let Some(headers) = fields.object("headers")? {
        treatment.edits = read_edits(headers)?;
    }
    let host = |(name, _): &(String, String)| name == "host" || name == ":authority";
    if let Some(i) = treatment.edits.request.set.iter().position(host) {
        let (_, host) = treatment.edits.request.set.remove(i);
        let rewrite = &mut treatment.action.host_rewrite_specifier;
        rewrite.get_or_insert(HostRewriteSpecifier::HostRewriteLiteral(host));
    }
    treatment.mirrors = read_mirrors(&mut fields, key)?;
    if let Some(fault) = fields.object("fault")? {
        treatment.filters.insert(FAULT_FILTER, typed(&read_fault(fault)?));
    }
    if let Some(cors) = fields.object("corsPolicy")? {
        treatment.filters.insert(CORS_FILTER, typed(&read_cors(cors)?));
    }
    if let Some(redirect) = fields.object("redirect")? {
        treatment.answer = Some(OwnAnswer::Redirect(read_redirect(redirect)?));
    }
    if let Some(mut direct) = fields.object("directResponse")? {
        let field = direct.path("status");
        let Some(status) = direct.status("status")? else { return unreadable(field, "it is missing") };
        let body = direct.object("body")?.map(read_body).transpose()?;
        direct.end()?;
        if treatment.answer.is_some() {
            return unreadable(field, "a route either redirects or answers by itself");
        }
        let answer = DirectResponseAction { status, body: body.flatten(), ..Default::default() };
        treatment.answer = Some(OwnAnswer::Direct(answer));
    }
    fields.end()?;
    Ok(treatment)
}

fn read_body(mut body: JsonFields<'_>) -> Readable<Option<DataSource>> {
    let text = body.text("string")?.map(str::to_owned);
    body.end()?;
    Ok(text.map(|text| DataSource {
        specifier: Some(data_source::Specifier::InlineString(text)),
        ..Default::default()
    }))
}

/// The retries of a route that says nothing of them: as Istio has them. `elsewhere`: not at an endpoint again.
pub(crate) fn default_retries(elsewhere: bool) -> RetryPolicy {
    let predicate = elsewhere.then(not_the_same_host);
    RetryPolicy {
        retry_on: RETRY_ON.to_owned(),
        num_retries: Some(UInt32Value { value: RETRIES }),
        host_selection_retry_max_attempts: if elsewhere { OTHER_HOSTS } else { 0 },
        retry_host_predicate: predicate.into_iter().collect(),
        ..Default::default()
    }
}

fn not_the_same_host() -> RetryHostPredicate {
    RetryHostPredicate {
        name: PREVIOUS_HOSTS.to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(typed(&PreviousHostsPredicate {}))),
    }
}

/// A policy that says nothing where nothing is to be tried again.
fn read_retries(mut fields: JsonFields<'_>) -> Readable<RetryPolicy> {
    let field = fields.path("attempts");
    let attempts = fields.number("attempts")?.unwrap_or(0);
    let per_try_timeout = fields.time("perTryTimeout")?.map(duration);
    let wanted = fields.text("retryOn")?.filter(|wanted| !wanted.is_empty()).unwrap_or(RETRY_ON);
    let ignores_previous = fields.flag("retryIgnorePreviousHosts")?.unwrap_or(true);
    let backoff = fields.time("backoff")?;
    // All localities are tried anyway.
    fields.flag("retryRemoteLocalities")?;
    fields.end()?;
    if attempts == 0 {
        return Ok(RetryPolicy::default());
    }
    if attempts > MOST_RETRIES {
        return unreadable(field, format!("at most {MOST_RETRIES}"));
    }
    let (codes, mut conditions): (Vec<&str>, Vec<&str>) =
        wanted.split(',').map(str::trim).partition(|on| on.parse::<u32>().is_ok());
    let retriable_status_codes: Vec<u32> = codes.iter().filter_map(|code| code.parse().ok()).collect();
    if !retriable_status_codes.is_empty() && !conditions.contains(&"retriable-status-codes") {
        conditions.push("retriable-status-codes");
    }
    Ok(RetryPolicy {
        retry_on: conditions.join(","),
        num_retries: Some(UInt32Value { value: attempts }),
        per_try_timeout,
        retriable_status_codes,
        retry_host_predicate: ignores_previous.then(not_the_same_host).into_iter().collect(),
        host_selection_retry_max_attempts: if ignores_previous { OTHER_HOSTS } else { 0 },
        retry_back_off: backoff.filter(|time| *time > 0).map(|time| RetryBackOff {
            base_interval: Some(duration(time)),
            max_interval: Some(duration(time.saturating_mul(10))),
        }),
        ..Default::default()
    })
}

/// Reads the changes of headers of a route or of one of its destinations.
pub(super) fn read_edits(mut fields: JsonFields<'_>) -> Readable<MessageEdits> {
    let read = |fields: Option<JsonFields<'_>>| -> Readable<HeaderEdits> {
        let Some(mut fields) = fields else { return Ok(HeaderEdits::default()) };
        let mut of = |list: &str| -> Readable<Vec<(String, String)>> {
            let at = fields.path(list);
            let pair = |(name, value): (&str, &Value)| match value {
                Value::String(text) => Ok((name.to_ascii_lowercase(), text.clone())),
                _ => unreadable(format!("{at}.{name}"), "it is no text"),
            };
            fields.pairs(list)?.into_iter().map(pair).collect()
        };
        let (set, add) = (of("set")?, of("add")?);
        let remove = fields.texts("remove")?.into_iter().map(str::to_ascii_lowercase).collect();
        fields.end()?;
        Ok(HeaderEdits { set, add, remove })
    };
    let request = read(fields.object("request")?)?;
    let response = read(fields.object("response")?)?;
    fields.end()?;
    Ok(MessageEdits { request, response })
}

fn read_mirrors(fields: &mut JsonFields<'_>, key: &ObjectName) -> Readable<Vec<Mirrored>> {
    let mut mirrors = Vec::new();
    let percentage = value_percent(fields, "mirrorPercentage")?;
    let of_all = |percent: u32| percent.saturating_mul(10_000);
    let whole = fields.number("mirrorPercent")?.map(of_all);
    if let Some(destination) = fields.take("mirror") {
        let field = fields.path("mirror");
        let destination = destination_of(&field, destination, key)?;
        mirrors.push(Mirrored { field, destination, share: percentage.or(whole).unwrap_or(ALL).min(ALL) });
    }
    for mut mirror in fields.objects("mirrors")? {
        let field = mirror.path("destination");
        let Some(destination) = mirror.take("destination") else {
            return unreadable(field, "it is missing");
        };
        let destination = destination_of(&field, destination, key)?;
        let share = value_percent(&mut mirror, "percentage")?.unwrap_or(ALL);
        mirror.end()?;
        mirrors.push(Mirrored { field, destination, share });
    }
    Ok(mirrors)
}

/// A share, of an object with a `value` in percent.
fn value_percent(fields: &mut JsonFields<'_>, name: &str) -> Readable<Option<u32>> {
    let Some(mut of) = fields.object(name)? else { return Ok(None) };
    let share = of.percent("value")?.unwrap_or(0);
    of.end()?;
    Ok(Some(share))
}

fn read_fault(mut fields: JsonFields<'_>) -> Readable<HttpFault> {
    let mut fault = HttpFault::default();
    if let Some(mut delay) = fields.object("delay")? {
        let share = value_percent(&mut delay, "percentage")?;
        let whole = delay.percent("percent")?;
        let field = delay.path("fixedDelay");
        let Some(time) = delay.time("fixedDelay")?.filter(|time| *time > 0) else {
            return unreadable(field, "it is missing");
        };
        delay.end()?;
        fault.delay = Some(FaultDelay {
            percentage: Some(fraction(share.or(whole).unwrap_or(ALL))),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(time))),
        });
    }
    if let Some(mut abort) = fields.object("abort")? {
        let share = value_percent(&mut abort, "percentage")?;
        let field = abort.path("httpStatus");
        let http = abort.status("httpStatus")?;
        let grpc = abort.text("grpcStatus")?.map(|name| grpc_status(&field, name)).transpose()?;
        abort.end()?;
        let error = match (http, grpc) {
            (Some(status), None) => ErrorType::HttpStatus(status),
            (None, Some(status)) => ErrorType::GrpcStatus(status),
            _ => return unreadable(field, "one of httpStatus and grpcStatus is needed"),
        };
        fault.abort = Some(FaultAbort {
            percentage: Some(fraction(share.unwrap_or(ALL))),
            error_type: Some(error),
            ..Default::default()
        });
    }
    fields.end()?;
    Ok(fault)
}

/// The number of a status of gRPC, by its name.
fn grpc_status(field: &str, name: &str) -> Readable<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    match NAMES.iter().position(|known| *known == name).and_then(|number| u32::try_from(number).ok()) {
        Some(number) => Ok(number),
        None => unreadable(field, format!("{name:?} is no status of gRPC")),
    }
}

fn read_cors(mut fields: JsonFields<'_>) -> Readable<CorsPolicy> {
    let mut origins: Vec<StringMatcher> = fields
        .texts("allowOrigin")?
        .into_iter()
        .map(|origin| match origin {
            "*" => pattern(MatchPattern::SafeRegex(regex_matcher(".*".to_owned()))),
            origin => exact(origin),
        })
        .collect();
    for (at, origin) in fields.list("allowOrigins")? {
        match any_string(&at, origin)? {
            Some(matcher) => origins.push(matcher),
            None => return unreadable(at, "it says neither exact, prefix nor regex"),
        }
    }
    let policy = CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: fields.texts("allowMethods")?.join(","),
        allow_headers: fields.texts("allowHeaders")?.join(","),
        expose_headers: fields.texts("exposeHeaders")?.join(","),
        max_age: fields.time("maxAge")?.map(|time| (time / 1_000).to_string()).unwrap_or_default(),
        allow_credentials: fields.flag("allowCredentials")?.map(|value| BoolValue { value }),
        forward_not_matching_preflights: match fields.text("unmatchedPreflights")? {
            None | Some("UNSPECIFIED" | "FORWARD") => None,
            Some("IGNORE") => Some(BoolValue { value: false }),
            Some(other) => {
                return unreadable(fields.path("unmatchedPreflights"), format!("{other:?} isn't known"));
            }
        },
        ..Default::default()
    };
    fields.end()?;
    Ok(policy)
}

fn read_redirect(mut fields: JsonFields<'_>) -> Readable<RedirectAction> {
    let field = fields.path("redirectCode");
    let response_code = match fields.number("redirectCode")? {
        None | Some(0 | 301) => RedirectResponseCode::MovedPermanently,
        Some(302) => RedirectResponseCode::Found,
        Some(303) => RedirectResponseCode::SeeOther,
        Some(307) => RedirectResponseCode::TemporaryRedirect,
        Some(308) => RedirectResponseCode::PermanentRedirect,
        Some(other) => return unreadable(field, format!("{other} is no status of a redirect")),
    };
    let scheme = fields.text("scheme")?.filter(|scheme| !scheme.is_empty());
    let port = match fields.text("derivePort")? {
        None | Some("FROM_REQUEST_PORT") => fields.number("port")?.unwrap_or(0),
        Some("FROM_PROTOCOL_DEFAULT") => {
            if scheme == Some("https") {
                443
            } else {
                80
            }
        }
        Some(other) => return unreadable(fields.path("derivePort"), format!("{other:?} isn't known")),
    };
    let path = fields.text("uri")?.filter(|path| !path.is_empty());
    let field = fields.path("prefixRewrite");
    let prefix = fields.text("prefixRewrite")?.filter(|prefix| !prefix.is_empty());
    let path = match (path, prefix) {
        (Some(_), Some(_)) => return unreadable(field, "only one of uri and prefixRewrite can be given"),
        (Some(path), None) => Some(PathRewriteSpecifier::PathRedirect(path.to_owned())),
        (None, prefix) => prefix.map(|prefix| PathRewriteSpecifier::PrefixRewrite(prefix.to_owned())),
    };
    let redirect = RedirectAction {
        host_redirect: fields.text("authority")?.unwrap_or_default().to_owned(),
        port_redirect: port,
        response_code: response_code.into(),
        scheme_rewrite_specifier: scheme
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_owned())),
        path_rewrite_specifier: path,
        ..Default::default()
    };
    fields.end()?;
    Ok(redirect)
}
