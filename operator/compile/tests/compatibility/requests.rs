//! Trials of the fields that take a request: they act where a proxy looks at requests, with values that can be.

use serde_json::{Value, json};

use crate::trial::{Before, Trial, with};

/// Trials with a proxy, and what is set before.
#[derive(Default)]
pub struct Requests {
    /// As [`Subject::before`](crate::trial::Subject::before).
    pub before: Vec<Before>,
    /// As [`Subject::trials`](crate::trial::Subject::trials).
    pub trials: Vec<Trial>,
}

impl Requests {
    /// Of VirtualServices.
    pub fn of_virtual_services() -> Self {
        const DELAY: &str = "spec.http[].fault.delay.fixedDelay";
        const ABORT: &str = "spec.http[].fault.abort.httpStatus";
        const MIRROR: &str = "spec.http[].mirror.host";
        const MIRRORS: &str = "spec.http[].mirrors[].destination.host";
        const ATTEMPTS: &str = "spec.http[].retries.attempts";
        let headers = || json!({"x-user": {"exact": "tester"}});
        Self {
            before: vec![
                (
                    "spec.http[].corsPolicy",
                    "spec.http[].corsPolicy.allowOrigins[].exact",
                    json!("https://example.com"),
                ),
                ("spec.http[].directResponse.body", "spec.http[].directResponse.status", json!(503)),
                ("spec.http[].fault.delay.e", DELAY, json!("1s")),
                ("spec.http[].fault.delay.p", DELAY, json!("1s")),
                ("spec.http[].fault.abort.p", ABORT, json!(503)),
                ("spec.http[].fault.abort.http2Error", ABORT, json!(503)),
                ("spec.http[].mirror.port", MIRROR, json!("ratings")),
                ("spec.http[].mirror.subset", MIRROR, json!("reviews")),
                ("spec.http[].mirrorPercent", MIRROR, json!("ratings")),
                ("spec.http[].mirror_percent", MIRROR, json!("ratings")),
                ("spec.http[].mirrors[].destination.port", MIRRORS, json!("ratings")),
                ("spec.http[].mirrors[].destination.subset", MIRRORS, json!("reviews")),
                ("spec.http[].mirrors[].percentage", MIRRORS, json!("ratings")),
                ("spec.http[].redirect", "spec.http[].redirect.authority", json!("example.com")),
                ("spec.http[].retries", ATTEMPTS, json!(2)),
                (
                    "spec.http[].rewrite.uriRegexRewrite.rewrite",
                    "spec.http[].rewrite.uriRegexRewrite.match",
                    json!("/a"),
                ),
            ],
            trials: vec![
                with("spec.http[].corsPolicy.allowOrigins[].exact", "https://example.org"),
                with("spec.http[].corsPolicy.allowOrigins[].prefix", "https://")
                    .where_is("spec.http[].corsPolicy.allowOrigins[].exact", Value::Null),
                with("spec.http[].corsPolicy.allowOrigins[].regex", "https://.*")
                    .where_is("spec.http[].corsPolicy.allowOrigins[].exact", Value::Null),
                with("spec.http[].corsPolicy.maxAge", "1h"),
                with("spec.http[].corsPolicy.unmatchedPreflights", "IGNORE"),
                with("spec.http[].directResponse.status", 503),
                with(ABORT, 503),
                with("spec.http[].fault.abort.grpcStatus", "UNAVAILABLE"),
                with("spec.http[].fault.abort.percentage.value", 50),
                with(DELAY, "1s"),
                with("spec.http[].fault.delay.percent", 50),
                with("spec.http[].fault.delay.percentage.value", 50),
                with("spec.http[].match[].headers", headers()),
                with("spec.http[].match[].ignoreUriCase", true)
                    .where_is("spec.http[].match[].uri.prefix", "/cart"),
                with("spec.http[].match[].queryParams", headers()),
                with("spec.http[].match[].withoutHeaders", headers()),
                with(MIRROR, "ratings"),
                with("spec.http[].mirror.port.number", 81),
                with("spec.http[].mirror.subset", "v1"),
                with("spec.http[].mirrorPercent", 50),
                with("spec.http[].mirrorPercentage.value", 50),
                with(MIRRORS, "ratings"),
                with("spec.http[].mirrors[].destination.port.number", 81),
                with("spec.http[].mirrors[].destination.subset", "v1"),
                with("spec.http[].mirrors[].percentage.value", 50),
                with("spec.http[].redirect.authority", "example.org"),
                with("spec.http[].redirect.port", 8080),
                with("spec.http[].redirect.redirectCode", 302),
                with("spec.http[].redirect.scheme", "https"),
                with("spec.http[].redirect.uri", "/elsewhere"),
                with("spec.http[].redirect.prefixRewrite", "/elsewhere"),
                with(ATTEMPTS, 3),
                with("spec.http[].retries.backoff", "25ms"),
                with("spec.http[].retries.perTryTimeout", "1s"),
                with("spec.http[].retries.retryIgnorePreviousHosts", false),
                with("spec.http[].retries.retryOn", "5xx"),
                with("spec.http[].rewrite.uri", "/elsewhere"),
                with("spec.http[].rewrite.uriRegexRewrite.match", "/a"),
                with("spec.http[].timeout", "3s"),
            ],
        }
    }

    /// Of DestinationRules, which may have a policy at each of these: with the field that its port stands in.
    pub fn of_destination_rules(policies: &[(&'static str, &'static str)]) -> Self {
        let mut requests = Self::default();
        for (at, port) in policies {
            if !port.is_empty() {
                requests.before.push((at, port, json!(80)));
            }
            let hash = format!("{at}.loadBalancer.consistentHash");
            let cookie = format!("{hash}.httpCookie.name");
            requests.trials.push(with(cookie.as_str(), "user"));
            for (field, value) in [("ttl", "1h"), ("path", "/"), ("attributes[].name", "SameSite")] {
                let field = format!("{hash}.httpCookie.{field}");
                requests.trials.push(with(field, value).where_is(cookie.as_str(), "user"));
            }
            let attribute = format!("{hash}.httpCookie.attributes[]");
            requests.trials.push(
                with(format!("{attribute}.value"), "Lax")
                    .where_is(cookie.as_str(), "user")
                    .where_is(format!("{attribute}.name"), "SameSite"),
            );
            requests.trials.push(with(format!("{hash}.httpHeaderName"), "x-user"));
            requests.trials.push(with(format!("{hash}.httpQueryParameterName"), "user"));
        }
        requests
    }

    /// Of HTTPRoutes and GRPCRoutes.
    pub fn of_routes(port: u16) -> Self {
        let mut requests = Self::default();
        for (of, path, name) in FILTERS {
            requests.before.push((of, path, json!(name)));
        }
        for at in ["spec.rules[].filters[]", "spec.rules[].backendRefs[].filters[]"] {
            for message in ["request", "response"] {
                for list in ["add", "set"] {
                    let list = format!("{at}.{message}HeaderModifier.{list}[]");
                    requests.trials.push(
                        with(format!("{list}.value"), "other").where_is(format!("{list}.name"), "x-user"),
                    );
                }
            }
            let redirect = format!("{at}.requestRedirect");
            let path = |of: &str| format!("{at}.{of}.path.type");
            requests.trials.push(with(format!("{redirect}.statusCode"), 301));
            requests.trials.push(with(format!("{redirect}.port"), 8080));
            for of in ["requestRedirect", "urlRewrite"] {
                let full = format!("{at}.{of}.path.replaceFullPath");
                let prefix = format!("{at}.{of}.path.replacePrefixMatch");
                requests.trials.push(
                    with(full.as_str(), "/a")
                        .where_is(path(of), "ReplaceFullPath")
                        .where_is(full.as_str(), "/b"),
                );
                requests.trials.push(
                    with(prefix.as_str(), "/a")
                        .where_is(path(of), "ReplacePrefixMatch")
                        .where_is(prefix.as_str(), "/b"),
                );
                requests.trials.push(
                    with(path(of), "ReplaceFullPath")
                        .where_is(full, "/a")
                        .where_is(path(of), "ReplacePrefixMatch"),
                );
            }
            let mirror = format!("{at}.requestMirror.backendRef");
            for (field, value, other) in [
                ("name", json!("ratings"), json!("reviews")),
                ("port", json!(port), json!(port + 1)),
                ("namespace", json!("other"), Value::Null),
                ("group", json!(""), json!("example.com")),
                ("kind", json!("Service"), json!("Bucket")),
            ] {
                let trial = with(format!("{mirror}.{field}"), value)
                    .where_is(format!("{mirror}.name"), "reviews")
                    .where_is(format!("{mirror}.port"), port);
                requests.trials.push(trial.where_is(format!("{mirror}.{field}"), other));
            }
            let of_mirror = |field: &str, value: Value| {
                with(format!("{at}.requestMirror.{field}"), value)
                    .where_is(format!("{mirror}.name"), "ratings")
                    .where_is(format!("{mirror}.port"), port)
            };
            requests.trials.push(of_mirror("percent", json!(50)));
            requests.trials.push(of_mirror("fraction.numerator", json!(50)));
            requests.trials.push(
                of_mirror("fraction.denominator", json!(200))
                    .where_is(format!("{at}.requestMirror.fraction.numerator"), 50),
            );
        }
        let of_match = |list: &str, field: &str, value: &str| {
            let at = format!("spec.rules[].matches[].{list}[]");
            with(format!("{at}.{field}"), value)
                .where_is(format!("{at}.name"), "x-user")
                .where_is(format!("{at}.value"), "tester")
                .where_is(format!("{at}.type"), "Exact")
        };
        for list in ["headers", "queryParams"] {
            requests.trials.push(of_match(list, "name", "x-other"));
            requests.trials.push(of_match(list, "value", "other"));
            requests.trials.push(of_match(list, "type", "RegularExpression"));
        }
        requests.trials.extend([
            with("spec.rules[].matches[].path.type", "Exact")
                .where_is("spec.rules[].matches[].path.value", "/cart"),
            with("spec.rules[].matches[].path.value", "/cart"),
            with("spec.rules[].matches[].method.type", "RegularExpression")
                .where_is("spec.rules[].matches[].method.method", "Get"),
            with("spec.rules[].retry.codes[]", 503),
            with("spec.rules[].retry.attempts", 3),
            with("spec.rules[].retry.backoff", "25ms").where_is("spec.rules[].retry.attempts", 3),
            with("spec.rules[].timeouts.request", "3s"),
            with("spec.rules[].timeouts.backendRequest", "3s"),
        ]);
        requests
    }
}

/// Filters of Gateway API, of a rule and of a backend: by what their type is called.
const FILTERS: [(&str, &str, &str); 16] = [
    ("spec.rules[].filters[].cors", "spec.rules[].filters[].type", "CORS"),
    ("spec.rules[].filters[].extensionRef", "spec.rules[].filters[].type", "ExtensionRef"),
    ("spec.rules[].filters[].externalAuth", "spec.rules[].filters[].type", "ExternalAuth"),
    ("spec.rules[].filters[].requestHeaderModifier", "spec.rules[].filters[].type", "RequestHeaderModifier"),
    ("spec.rules[].filters[].requestMirror", "spec.rules[].filters[].type", "RequestMirror"),
    ("spec.rules[].filters[].requestRedirect", "spec.rules[].filters[].type", "RequestRedirect"),
    (
        "spec.rules[].filters[].responseHeaderModifier",
        "spec.rules[].filters[].type",
        "ResponseHeaderModifier",
    ),
    ("spec.rules[].filters[].urlRewrite", "spec.rules[].filters[].type", "URLRewrite"),
    ("spec.rules[].backendRefs[].filters[].cors", "spec.rules[].backendRefs[].filters[].type", "CORS"),
    (
        "spec.rules[].backendRefs[].filters[].extensionRef",
        "spec.rules[].backendRefs[].filters[].type",
        "ExtensionRef",
    ),
    (
        "spec.rules[].backendRefs[].filters[].externalAuth",
        "spec.rules[].backendRefs[].filters[].type",
        "ExternalAuth",
    ),
    (
        "spec.rules[].backendRefs[].filters[].requestHeaderModifier",
        "spec.rules[].backendRefs[].filters[].type",
        "RequestHeaderModifier",
    ),
    (
        "spec.rules[].backendRefs[].filters[].requestMirror",
        "spec.rules[].backendRefs[].filters[].type",
        "RequestMirror",
    ),
    (
        "spec.rules[].backendRefs[].filters[].requestRedirect",
        "spec.rules[].backendRefs[].filters[].type",
        "RequestRedirect",
    ),
    (
        "spec.rules[].backendRefs[].filters[].responseHeaderModifier",
        "spec.rules[].backendRefs[].filters[].type",
        "ResponseHeaderModifier",
    ),
    (
        "spec.rules[].backendRefs[].filters[].urlRewrite",
        "spec.rules[].backendRefs[].filters[].type",
        "URLRewrite",
    ),
];
