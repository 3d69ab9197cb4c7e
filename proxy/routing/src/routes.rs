//! A route configuration, ready to decide requests.
//!
//! Invariant: a rule that isn't in force still takes its requests, and answers them 500: none of them is decided by a
//! rule that stands behind it. Where it isn't plain which requests are its, it takes too many rather than too few.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderValue, StatusCode};
use slotmesh_xds::envoy::envoy::config::route::v3::RouteConfiguration;

use crate::{
    conditions::Conditions,
    cors::CorsOutcome,
    decision::{LocalResponse, RequestAction, RequestDecision},
    domains::DomainIndex,
    draws::Draws,
    edits::{HeaderEdit, HeaderEdits},
    field::InvalidField,
    filters::Filters,
    forward::{ForwardRule, Forwarding, WeightedBackend},
    head::{HeaderLookup, RequestHead},
    paths::{PathCondition, PathIndex},
    read,
    respond::DirectResponse,
    rewrite::RedirectRule,
};

/// A route configuration.
#[derive(Debug)]
pub struct RouteTable {
    pub(crate) domains: DomainIndex,
    pub(crate) hosts: Vec<HostRules>,
    pub(crate) level: Level,
    pub(crate) specific_last: bool,
    /// `;` and what follows it in a segment doesn't count.
    pub(crate) ignore_parameters: bool,
}

/// Settings that a route, a virtual host and the whole configuration have alike.
#[derive(Debug, Default)]
pub(crate) struct Level {
    pub(crate) request: HeaderEdit,
    pub(crate) response: HeaderEdit,
    /// Something here isn't in force.
    pub(crate) invalid: bool,
}

/// The rules of a virtual host.
#[derive(Debug)]
pub(crate) struct HostRules {
    pub(crate) level: Level,
    pub(crate) rules: Vec<Rule>,
    pub(crate) index: PathIndex,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: Box<str>,
    pub(crate) path: PathCondition,
    pub(crate) conditions: Conditions,
    pub(crate) level: Level,
    pub(crate) filters: Filters,
    pub(crate) outcome: Outcome,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    /// The rule isn't in force.
    Invalid,
    Forward(Arc<ForwardRule>),
    Redirect(Box<RedirectRule>),
    Respond(DirectResponse),
}

impl RouteTable {
    /// Reads a route configuration. The fields of which it says that they are wrong take down their rule, or the virtual
    /// host or the whole where they aren't a rule's.
    pub fn new(config: &RouteConfiguration) -> (Self, Vec<InvalidField>) {
        read::table(config)
    }

    /// Decides a request.
    pub fn decide<'t, H: HeaderLookup>(
        &'t self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> RequestDecision<'t> {
        let local = |status| RequestDecision::local(status, head.is_grpc());
        let Some(host) = self.domains.find(head.authority) else { return local(StatusCode::NOT_FOUND) };
        let host = &self.hosts[host as usize];
        if self.level.invalid || host.level.invalid {
            return local(StatusCode::INTERNAL_SERVER_ERROR);
        }
        let Some(rule) = self.rule(host, head, draws) else { return local(StatusCode::NOT_FOUND) };
        let route = Some(&*rule.name).filter(|name| !name.is_empty());
        if let Outcome::Invalid = rule.outcome {
            return RequestDecision { route, ..local(StatusCode::INTERNAL_SERVER_ERROR) };
        }
        let mut mark = Vec::new();
        // As in Envoy: the others' responses are nobody else's data.
        if let (Outcome::Forward(_), Some(cors)) = (&rule.outcome, &rule.filters.cors) {
            match cors.decide(head, draws) {
                CorsOutcome::None => {}
                CorsOutcome::Mark(headers) => mark = headers,
                CorsOutcome::Preflight(headers) => {
                    let mut decision =
                        RequestDecision { route, ..RequestDecision::local(StatusCode::OK, false) };
                    decision.response_headers.set(headers);
                    return decision;
                }
            }
        }
        // Before the faults, whose responses a backend changes too.
        let backend = match &rule.outcome {
            Outcome::Forward(forward) => Some(forward.choose(head, draws)),
            _ => None,
        };
        let (delay, answer) = match &rule.filters.fault {
            Some(fault) => fault.inject(head, draws),
            None => (None, None),
        };
        let (action, mut response_headers) = match answer {
            Some(response) => {
                // As in Envoy: an abort in place of what is no upstream's response is nobody's to change.
                let edits = match backend {
                    Some(backend) => self.response_edits(host, rule, backend.response()),
                    None => HeaderEdits::default(),
                };
                (RequestAction::Respond(response), edits)
            }
            None => self.act(host, rule, backend, head, draws),
        };
        response_headers.set(mark);
        RequestDecision { route, delay, action, response_headers }
    }

    /// The action of a rule, and what it changes in the response. `backend`: of a rule that forwards.
    fn act<'t, H: HeaderLookup>(
        &'t self,
        host: &'t HostRules,
        rule: &'t Rule,
        backend: Option<&'t WeightedBackend>,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> (RequestAction<'t>, HeaderEdits<'t>) {
        match (&rule.outcome, backend) {
            (Outcome::Forward(forward), Some(backend)) => {
                let mut response_headers = self.response_edits(host, rule, backend.response());
                let levels = [
                    backend.request(),
                    Some(&rule.level.request),
                    Some(&host.level.request),
                    Some(&self.level.request),
                ];
                let mut request_headers = HeaderEdits::new(levels, self.specific_last);
                let (new_host, told) = forward.host(backend, head, &request_headers);
                request_headers.join(told);
                let (hash, cookies) = forward.hash(head, draws);
                response_headers.add(cookies.into_iter().map(|cookie| (http::header::SET_COOKIE, cookie)));
                let forwarding = Forwarding {
                    rule: forward,
                    cluster: &backend.cluster,
                    path: forward.path.as_ref().and_then(|rewrite| rewrite.apply(&rule.path, head)),
                    host: new_host,
                    request_headers,
                    timeout: forward.timeout(head),
                    stream_limit: forward.stream_limit(head),
                    mirrors: forward.mirrors(draws),
                    hash,
                };
                (RequestAction::Forward(forwarding), response_headers)
            }
            (Outcome::Redirect(redirect), _) => {
                let location = redirect.location(&rule.path, head);
                let mut response_headers = self.response_edits(host, rule, None);
                if !head.is_grpc() {
                    return (RequestAction::Redirect { status: redirect.status, location }, response_headers);
                }
                let location = HeaderValue::try_from(location).ok();
                response_headers.set(location.map(|location| (http::header::LOCATION, location)));
                let response = LocalResponse::new(redirect.status, &[], None, true);
                (RequestAction::Respond(response), response_headers)
            }
            (Outcome::Respond(response), _) => {
                let response = LocalResponse::new(response.status, &response.body, None, head.is_grpc());
                (RequestAction::Respond(response), self.response_edits(host, rule, None))
            }
            (Outcome::Invalid | Outcome::Forward(_), _) => {
                let response =
                    LocalResponse::new(StatusCode::INTERNAL_SERVER_ERROR, &[], None, head.is_grpc());
                (RequestAction::Respond(response), HeaderEdits::default())
            }
        }
    }

    fn response_edits<'t>(
        &'t self,
        host: &'t HostRules,
        rule: &'t Rule,
        backend: Option<&'t HeaderEdit>,
    ) -> HeaderEdits<'t> {
        let levels =
            [backend, Some(&rule.level.response), Some(&host.level.response), Some(&self.level.response)];
        HeaderEdits::new(levels, self.specific_last)
    }

    /// The first rule that matches.
    fn rule<'t, H: HeaderLookup>(
        &self,
        host: &'t HostRules,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> Option<&'t Rule> {
        let mut path = Cow::Borrowed(head.bare_path());
        if self.ignore_parameters && path.contains(';') {
            path = Cow::Owned(without_parameters(&path));
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
