//! A route configuration, ready to decide requests.
//!
//! Invariant: a rule that isn't in force still takes its requests, and answers them 500: none of them is decided by a
//! rule that stands behind it. Where it isn't plain which requests are its, it takes too many rather than too few.

use std::sync::Arc;

use http::StatusCode;
use slotmesh_xds::envoy::envoy::config::route::v3::{
    Route, RouteConfiguration, VirtualHost, route::Action, virtual_host::TlsRequirementType,
};

use crate::{
    conditions::Conditions,
    decision::{LocalResponse, RequestAction, RequestDecision},
    domains::DomainIndex,
    draws::Draws,
    edits::{HeaderEdit, HeaderEdits},
    field::{FieldPath, InvalidField, refuse_set},
    forward::{ForwardRule, Forwarding},
    head::{HeaderLookup, RequestHead},
    paths::{PathCondition, PathIndex},
    respond::DirectResponse,
    rewrite::RedirectRule,
};

/// The most bytes of a direct response, where the configuration doesn't say.
const DIRECT_RESPONSE: u32 = 4096;

/// A route configuration.
#[derive(Debug)]
pub struct RouteTable {
    domains: DomainIndex,
    hosts: Vec<HostRules>,
    level: Level,
    specific_last: bool,
    /// `;` and what follows it in a segment doesn't count.
    ignore_parameters: bool,
}

/// Settings that a route, a virtual host and the whole configuration have alike.
#[derive(Debug, Default)]
struct Level {
    request: HeaderEdit,
    response: HeaderEdit,
    /// Something here isn't in force.
    invalid: bool,
}

/// The rules of a virtual host.
#[derive(Debug)]
struct HostRules {
    level: Level,
    rules: Vec<Rule>,
    index: PathIndex,
}

#[derive(Debug)]
struct Rule {
    name: Box<str>,
    path: PathCondition,
    conditions: Conditions,
    level: Level,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// The rule isn't in force.
    Invalid,
    Forward(Arc<ForwardRule>),
    Redirect(Box<RedirectRule>),
    Respond(DirectResponse),
}

/// Settings of the whole configuration that its parts need.
struct Settings {
    most_direct_response: u32,
}

impl RouteTable {
    /// Reads a route configuration. The fields of which it says that they are wrong take down their rule, or the virtual
    /// host or the whole where they aren't a rule's.
    pub fn new(config: &RouteConfiguration) -> (Self, Vec<InvalidField>) {
        let at = &FieldPath::ROOT;
        let mut errors = Vec::new();
        let level = Level::new(
            at,
            (&config.request_headers_to_add, &config.request_headers_to_remove),
            (&config.response_headers_to_add, &config.response_headers_to_remove),
        )
        .and_then(|level| whole(at, config).map(|()| level))
        .unwrap_or_else(|error| Level::invalid(&mut errors, error));
        let settings = Settings {
            most_direct_response: config
                .max_direct_response_body_size_bytes
                .as_ref()
                .map_or(DIRECT_RESPONSE, |most| most.value),
        };
        let mut domains = DomainIndex::new(config.ignore_port_in_host_matching);
        let mut hosts = Vec::with_capacity(config.virtual_hosts.len());
        for (number, host) in (0..).zip(&config.virtual_hosts) {
            let at = at.element("virtual_hosts", number as usize);
            if host.domains.is_empty() {
                errors.push(at.field("domains").wrong("there is none"));
            }
            for (i, domain) in host.domains.iter().enumerate() {
                let at = at.element("domains", i);
                if domain.is_empty() {
                    errors.push(at.wrong("it is empty"));
                } else if domains.insert(domain, number).is_none() {
                    errors.push(at.wrong(format!("a virtual host before has {domain:?}")));
                }
            }
            hosts.push(HostRules::new(&at, host, &settings, &mut errors));
        }
        let table = Self {
            domains,
            hosts,
            level,
            specific_last: config.most_specific_header_mutations_wins,
            ignore_parameters: config.ignore_path_parameters_in_path_matching,
        };
        (table, errors)
    }

    /// Decides a request.
    pub fn decide<'t, H: HeaderLookup>(
        &'t self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> RequestDecision<'t> {
        let Some(host) = self.domains.find(head.authority) else {
            return RequestDecision::local(StatusCode::NOT_FOUND);
        };
        let host = &self.hosts[host as usize];
        if self.level.invalid || host.level.invalid {
            return RequestDecision::local(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let Some(rule) = self.rule(host, head, draws) else {
            return RequestDecision::local(StatusCode::NOT_FOUND);
        };
        let name = Some(&*rule.name).filter(|name| !name.is_empty());
        let edits = |backend, of: fn(&Level) -> &HeaderEdit| {
            let levels = [backend, Some(of(&rule.level)), Some(of(&host.level)), Some(of(&self.level))];
            HeaderEdits::new(levels, self.specific_last)
        };
        let mut response_headers = edits(None, |level| &level.response);
        let action = match &rule.outcome {
            Outcome::Invalid => {
                return RequestDecision {
                    route: name,
                    ..RequestDecision::local(StatusCode::INTERNAL_SERVER_ERROR)
                };
            }
            Outcome::Respond(response) => RequestAction::Respond(LocalResponse {
                status: response.status,
                body: (&response.body[..]).into(),
            }),
            Outcome::Redirect(redirect) => RequestAction::Redirect {
                status: redirect.status,
                location: redirect.location(&rule.path, head),
            },
            Outcome::Forward(forward) => {
                let backend = forward.choose(head, draws);
                response_headers = edits(backend.response(), |level| &level.response);
                RequestAction::Forward(Forwarding {
                    rule: forward,
                    cluster: &backend.cluster,
                    path: forward.path.as_ref().and_then(|rewrite| rewrite.apply(&rule.path, head)),
                    host: forward.host(backend, head),
                    request_headers: edits(backend.request(), |level| &level.request),
                    stream_limit: forward.stream_limit(head),
                })
            }
        };
        RequestDecision { route: name, action, response_headers }
    }

    fn rule<'t, H: HeaderLookup>(
        &self,
        host: &'t HostRules,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> Option<&'t Rule> {
        let mut path = std::borrow::Cow::Borrowed(head.bare_path());
        if self.ignore_parameters && path.contains(';') {
            path = std::borrow::Cow::Owned(without_parameters(&path));
        }
        let number = host.index.first(&path, |number, compare| {
            let rule = &host.rules[number as usize];
            (!compare || rule.path.matches(&path)) && rule.conditions.hold(head, draws)
        })?;
        Some(&host.rules[number as usize])
    }
}

/// A path without the parameters of its segments.
fn without_parameters(path: &str) -> String {
    let mut segments = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
    let mut result = segments.next().unwrap_or_default().to_owned();
    for segment in segments {
        result.push('/');
        result.push_str(segment);
    }
    result
}

/// The settings that are the whole configuration's alone.
fn whole(at: &FieldPath<'_>, config: &RouteConfiguration) -> Result<(), InvalidField> {
    let RouteConfiguration {
        vhds,
        route_specifiers,
        request_mirror_policies,
        internal_only_headers,
        vhost_header,
        typed_per_filter_config,
        validate_clusters,
        // Read by the caller.
        virtual_hosts: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        most_specific_header_mutations_wins: _,
        max_direct_response_body_size_bytes: _,
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
        "not yet": request_mirror_policies, typed_per_filter_config;
    );
    if validate_clusters.as_ref().is_some_and(|validate| validate.value) {
        return Err(at.field("validate_clusters").wrong("clusters may come after the routes"));
    }
    Ok(())
}

impl Level {
    fn new(
        at: &FieldPath<'_>,
        (add_request, remove_request): HeaderFields<'_>,
        (add_response, remove_response): HeaderFields<'_>,
    ) -> Result<Self, InvalidField> {
        Ok(Self {
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

    fn invalid(errors: &mut Vec<InvalidField>, error: InvalidField) -> Self {
        errors.push(error);
        Self { invalid: true, ..Self::default() }
    }
}

type HeaderFields<'a> = (&'a [slotmesh_xds::envoy::envoy::config::core::v3::HeaderValueOption], &'a [String]);

impl HostRules {
    fn new(
        at: &FieldPath<'_>,
        host: &VirtualHost,
        settings: &Settings,
        errors: &mut Vec<InvalidField>,
    ) -> Self {
        let level = Level::new(
            at,
            (&host.request_headers_to_add, &host.request_headers_to_remove),
            (&host.response_headers_to_add, &host.response_headers_to_remove),
        )
        .and_then(|level| virtual_host(at, host).map(|()| level))
        .unwrap_or_else(|error| Level::invalid(errors, error));
        let rules: Vec<Rule> = (0..)
            .zip(&host.routes)
            .map(|(i, route)| Rule::new(&at.element("routes", i), route, settings, errors))
            .collect();
        let index = PathIndex::new(rules.iter().map(|rule| &rule.path));
        Self { level, rules, index }
    }
}

/// The settings that are a virtual host's alone.
fn virtual_host(at: &FieldPath<'_>, host: &VirtualHost) -> Result<(), InvalidField> {
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
        // Read by the caller.
        domains: _,
        routes: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
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
        "not yet": typed_per_filter_config, include_request_attempt_count, include_attempt_count_in_response,
            retry_policy, include_is_timeout_retry_header, per_request_buffer_limit_bytes,
            request_body_buffer_limit, request_mirror_policies;
    );
    if *require_tls != i32::from(TlsRequirementType::None) {
        return Err(at.field("require_tls").wrong("there is no TLS; use a redirect"));
    }
    Ok(())
}

impl Rule {
    fn new(at: &FieldPath<'_>, route: &Route, settings: &Settings, errors: &mut Vec<InvalidField>) -> Self {
        let at_match = at.field("match");
        let absent = Default::default();
        let matcher = route.r#match.as_ref().unwrap_or(&absent);
        let (path, path_fault) = PathCondition::new(&at_match, matcher);
        let (conditions, fault) = Conditions::new(&at_match, matcher);
        let read = path_fault.and(fault).and_then(|()| {
            let level = Level::new(
                at,
                (&route.request_headers_to_add, &route.request_headers_to_remove),
                (&route.response_headers_to_add, &route.response_headers_to_remove),
            )?;
            Ok((level, outcome(at, route, settings)?))
        });
        let (level, outcome) = read.unwrap_or_else(|error| (Level::invalid(errors, error), Outcome::Invalid));
        Self { name: route.name.as_str().into(), path, conditions, level, outcome }
    }
}

fn outcome(at: &FieldPath<'_>, route: &Route, settings: &Settings) -> Result<Outcome, InvalidField> {
    #[expect(deprecated, reason = "a field that is set is refused, deprecated or not")]
    let Route {
        typed_per_filter_config,
        tracing,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        route_specifiers,
        action,
        // Read by the caller.
        r#match: _,
        request_headers_to_add: _,
        request_headers_to_remove: _,
        response_headers_to_add: _,
        response_headers_to_remove: _,
        // Names, and what decides nothing.
        name: _,
        metadata: _,
        decorator: _,
        stat_prefix: _,
    } = route;
    refuse_set!(at,
        "nothing is traced": tracing;
        "only an action": route_specifiers;
        "not yet": typed_per_filter_config, per_request_buffer_limit_bytes, request_body_buffer_limit;
    );
    Ok(match action {
        Some(Action::Route(action)) => {
            Outcome::Forward(Arc::new(ForwardRule::new(&at.field("route"), action)?))
        }
        Some(Action::Redirect(action)) => {
            Outcome::Redirect(Box::new(RedirectRule::new(&at.field("redirect"), action)?))
        }
        Some(Action::DirectResponse(action)) => Outcome::Respond(DirectResponse::new(
            &at.field("direct_response"),
            action,
            settings.most_direct_response,
        )?),
        Some(Action::FilterAction(_)) => return Err(at.field("filter_action").wrong("no extensions")),
        Some(Action::NonForwardingAction(_)) => {
            return Err(at.field("non_forwarding_action").wrong("it says nothing of what to do"));
        }
        None => return Err(at.wrong("there is no action")),
    })
}
