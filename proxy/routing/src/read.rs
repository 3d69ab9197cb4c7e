//! From the messages of a route configuration to its rules.
//!
//! Invariant: each message is taken apart whole, so each field of it is read, refused, or named here as one that decides
//! nothing.

use std::sync::Arc;

use slotmesh_xds::envoy::{
    envoy::config::{
        core::v3::HeaderValueOption,
        route::v3::{
            Route, RouteConfiguration, VirtualHost, route::Action, virtual_host::TlsRequirementType,
        },
    },
    google::protobuf::{UInt32Value, UInt64Value},
};

use crate::{
    conditions::Conditions,
    domains::DomainIndex,
    edits::HeaderEdit,
    field::{FieldPath, InvalidField, refuse_set},
    filters::Filters,
    forward::{ForwardDefaults, ForwardRule},
    mirror::MirrorTarget,
    paths::{PathCondition, PathIndex},
    respond::DirectResponse,
    retry::RetryPolicy,
    rewrite::RedirectRule,
    routes::{HostRules, Level, Outcome, RouteTable, Rule},
};

/// The most bytes of a direct response, where the configuration doesn't say.
const DIRECT_RESPONSE: u32 = 4096;

/// Settings of a level for those below it that don't say otherwise.
#[derive(Clone, Default)]
struct Defaults {
    most_direct_response: u32,
    filters: Filters,
    forward: ForwardDefaults,
}

/// A table, and the fields that aren't in force.
pub(crate) fn table(config: &RouteConfiguration) -> (RouteTable, Vec<InvalidField>) {
    let at = &FieldPath::ROOT;
    let mut errors = Vec::new();
    let (level, defaults) = or_invalid(configuration(at, config), &mut errors);
    let mut domains = DomainIndex::new(config.ignore_port_in_host_matching);
    let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
    for (number, host) in (0..).zip(&config.virtual_hosts) {
        let at = at.element("virtual_hosts", hosts.len());
        if host.domains.is_empty() {
            errors.push(at.field("domains").wrong("there is none"));
        }
        for (i, domain) in host.domains.iter().enumerate() {
            let at = at.element("domains", i);
            if domain.is_empty() {
                errors.push(at.wrong("it is empty"));
            } else if domains.insert(domain, number).is_none() {
                errors.push(at.wrong(format!("{domain:?} stands twice")));
            }
        }
        let (level, defaults) = or_invalid(virtual_host(&at, host, &defaults), &mut errors);
        let rules: Vec<Rule> = (0..)
            .zip(&host.routes)
            .map(|(i, route)| rule(&at.element("routes", i), route, &defaults, &mut errors))
            .collect();
        let index = PathIndex::new(rules.iter().map(|rule| &rule.path));
        hosts.push(HostRules { level, rules, index });
    }
    let table = RouteTable {
        domains,
        hosts,
        level,
        specific_last: config.most_specific_header_mutations_wins,
        ignore_parameters: config.ignore_path_parameters_in_path_matching,
    };
    (table, errors)
}

fn or_invalid(
    read: Result<(Level, Defaults), InvalidField>,
    errors: &mut Vec<InvalidField>,
) -> (Level, Defaults) {
    read.unwrap_or_else(|error| {
        errors.push(error);
        (Level { invalid: true, ..Level::default() }, Defaults::default())
    })
}

/// The settings of the whole configuration.
fn configuration(at: &FieldPath<'_>, config: &RouteConfiguration) -> Result<(Level, Defaults), InvalidField> {
    let RouteConfiguration {
        vhds,
        route_specifiers,
        request_mirror_policies,
        internal_only_headers,
        vhost_header,
        typed_per_filter_config,
        validate_clusters,
        max_direct_response_body_size_bytes,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        // Read by the caller.
        virtual_hosts: _,
        most_specific_header_mutations_wins: _,
        ignore_port_in_host_matching: _,
        ignore_path_parameters_in_path_matching: _,
        // Names, and what decides nothing; a rule that uses a plugin is refused.
        name: _,
        metadata: _,
        cluster_specifier_plugins: _,
    } = config;
    refuse_set!(at,
        "only virtual_hosts": vhds, route_specifiers;
        "nobody is inside or outside": internal_only_headers;
        "the host of the request counts": vhost_header;
    );
    if validate_clusters.as_ref().is_some_and(|validate| validate.value) {
        return Err(at.field("validate_clusters").wrong("clusters may come after the routes"));
    }
    let level = level(
        at,
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    )?;
    let defaults = Defaults {
        most_direct_response: max_direct_response_body_size_bytes
            .as_ref()
            .map_or(DIRECT_RESPONSE, |most| most.value),
        filters: Filters::new(at, typed_per_filter_config, &Filters::default())?,
        forward: ForwardDefaults {
            mirrors: MirrorTarget::list(at, request_mirror_policies)?.into(),
            ..ForwardDefaults::default()
        },
    };
    Ok((level, defaults))
}

/// The settings of a virtual host.
fn virtual_host(
    at: &FieldPath<'_>,
    host: &VirtualHost,
    general: &Defaults,
) -> Result<(Level, Defaults), InvalidField> {
    #[expect(deprecated, reason = "a field that is set is refused, deprecated or not")]
    let VirtualHost {
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        request_mirror_policies,
        route_specifiers,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        // Read by the caller.
        domains: _,
        routes: _,
        // Names, and what decides nothing.
        name: _,
        metadata: _,
    } = host;
    refuse_set!(at,
        "only routes": matcher, route_specifiers;
        "there are no statistics for parts of a virtual host": virtual_clusters;
        "there are no rate limits": rate_limits;
        "use typed_per_filter_config": cors;
        "no extensions": retry_policy_typed_config;
        "a request is sent once at a time": hedge_policy;
    );
    if *require_tls != i32::from(TlsRequirementType::None) {
        return Err(at.field("require_tls").wrong("there is no TLS; use a redirect"));
    }
    let level = level(
        at,
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    )?;
    let retry = match retry_policy {
        Some(policy) => Some(Arc::new(RetryPolicy::new(&at.field("retry_policy"), policy)?)),
        None => None,
    };
    let mirrors = match &**request_mirror_policies {
        [] => general.forward.mirrors.clone(),
        policies => MirrorTarget::list(at, policies)?.into(),
    };
    let defaults = Defaults {
        most_direct_response: general.most_direct_response,
        filters: Filters::new(at, typed_per_filter_config, &general.filters)?,
        forward: ForwardDefaults {
            retry,
            mirrors,
            attempt_count_to_upstream: *include_request_attempt_count,
            attempt_count_to_caller: *include_attempt_count_in_response,
            timeout_retry_to_upstream: *include_is_timeout_retry_header,
            body_buffer: body_buffer(at, per_request_buffer_limit_bytes, request_body_buffer_limit)?,
        },
    };
    Ok((level, defaults))
}

/// The most bytes of a body that are kept.
fn body_buffer(
    at: &FieldPath<'_>,
    request: &Option<UInt32Value>,
    body: &Option<UInt64Value>,
) -> Result<Option<u64>, InvalidField> {
    match (request, body) {
        (None, None) => Ok(None),
        (Some(request), None) => Ok(Some(request.value.into())),
        (None, Some(body)) => Ok(Some(body.value)),
        (Some(_), Some(_)) => {
            Err(at.field("request_body_buffer_limit").wrong("per_request_buffer_limit_bytes is there too"))
        }
    }
}

type HeaderFields<'a> = (&'a [HeaderValueOption], &'a [String]);

fn level(
    at: &FieldPath<'_>,
    (add_request, remove_request): HeaderFields<'_>,
    (add_response, remove_response): HeaderFields<'_>,
) -> Result<Level, InvalidField> {
    Ok(Level {
        request: HeaderEdit::new(
            at,
            ("request_headers_to_add", add_request),
            ("request_headers_to_remove", remove_request),
        )?,
        response: HeaderEdit::new(
            at,
            ("response_headers_to_add", add_response),
            ("response_headers_to_remove", remove_response),
        )?,
        invalid: false,
    })
}

fn rule(at: &FieldPath<'_>, route: &Route, general: &Defaults, errors: &mut Vec<InvalidField>) -> Rule {
    let at_match = at.field("match");
    let absent = Default::default();
    let matcher = route.r#match.as_ref().unwrap_or(&absent);
    let (path, path_fault) = PathCondition::new(&at_match, matcher);
    let (conditions, fault) = Conditions::new(&at_match, matcher);
    let read = path_fault.and(fault).and_then(|()| action(at, route, general));
    let (level, filters, outcome) = read.unwrap_or_else(|error| {
        errors.push(error);
        (Level::default(), Filters::default(), Outcome::Invalid)
    });
    Rule { name: route.name.as_str().into(), path, conditions, level, filters, outcome }
}

/// All of a route but its match.
fn action(
    at: &FieldPath<'_>,
    route: &Route,
    general: &Defaults,
) -> Result<(Level, Filters, Outcome), InvalidField> {
    #[expect(deprecated, reason = "a field that is set is refused, deprecated or not")]
    let Route {
        typed_per_filter_config,
        tracing,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        route_specifiers,
        action,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        // Read by the caller.
        r#match: _,
        // Names, and what decides nothing.
        name: _,
        metadata: _,
        decorator: _,
        stat_prefix: _,
    } = route;
    refuse_set!(at,
        "nothing is traced": tracing;
        "only an action": route_specifiers;
    );
    let level = level(
        at,
        (request_headers_to_add, request_headers_to_remove),
        (response_headers_to_add, response_headers_to_remove),
    )?;
    let filters = Filters::new(at, typed_per_filter_config, &general.filters)?;
    let body_buffer = body_buffer(at, per_request_buffer_limit_bytes, request_body_buffer_limit)?;
    let outcome = match action {
        Some(Action::Route(action)) => Outcome::Forward(Arc::new(ForwardRule::new(
            &at.field("route"),
            action,
            body_buffer,
            &general.forward,
        )?)),
        Some(Action::Redirect(action)) => {
            Outcome::Redirect(Box::new(RedirectRule::new(&at.field("redirect"), action)?))
        }
        Some(Action::DirectResponse(action)) => Outcome::Respond(DirectResponse::new(
            &at.field("direct_response"),
            action,
            general.most_direct_response,
        )?),
        Some(Action::FilterAction(_)) => return Err(at.field("filter_action").wrong("no extensions")),
        Some(Action::NonForwardingAction(_)) => {
            return Err(at.field("non_forwarding_action").wrong("it says nothing of what to do"));
        }
        None => return Err(at.wrong("there is no action")),
    };
    Ok((level, filters, outcome))
}
