//! Retries: which outcomes of an attempt call for another one, and after how long.
//!
//! Pure: whoever sends the request says how each attempt ended, and waits.

use std::time::Duration;

use http::{HeaderMap, HeaderName, StatusCode};
use slotmesh_xds::envoy::envoy::config::route::v3::{
    self as proto,
    retry_policy::{RetryBackOff, RetryHostPredicate},
};

use crate::{
    conditions::{HeaderCondition, header_list},
    draws::Draws,
    field::{FieldPath, InvalidField, duration, refuse_set},
    head::{HeaderLookup, RequestHead},
};

const DEFAULT_BASE: Duration = Duration::from_millis(25);
/// The longest pause is so many times the base, where nothing is said.
const DEFAULT_MOST: u32 = 10;
const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// When a request is sent again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    on: RetryOn,
    retries: u32,
    /// Time in which an attempt has to be answered. Nothing: only all attempts together are limited.
    pub per_try_timeout: Option<Duration>,
    /// Time without a byte in which an attempt is given up.
    pub per_try_idle_timeout: Option<Duration>,
    /// An endpoint that failed isn't chosen again, if in so many draws another is found.
    pub avoid_previous_endpoints: Option<u32>,
    status_codes: Box<[u16]>,
    response_headers: Box<[HeaderCondition]>,
    request_headers: Box<[HeaderCondition]>,
    base: Duration,
    most: Duration,
}

/// Conditions of `retry_on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RetryOn(u32);

impl RetryOn {
    const SERVER_ERROR: Self = Self(1);
    const GATEWAY_ERROR: Self = Self(1 << 1);
    const RESET: Self = Self(1 << 2);
    const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    const CONNECT_FAILURE: Self = Self(1 << 4);
    const RATE_LIMITED: Self = Self(1 << 5);
    const RETRIABLE_4XX: Self = Self(1 << 6);
    const REFUSED_STREAM: Self = Self(1 << 7);
    const STATUS_CODES: Self = Self(1 << 8);
    const HEADERS: Self = Self(1 << 9);
    const CANCELLED: Self = Self(1 << 10);
    const DEADLINE_EXCEEDED: Self = Self(1 << 11);
    const INTERNAL: Self = Self(1 << 12);
    const RESOURCE_EXHAUSTED: Self = Self(1 << 13);
    const UNAVAILABLE: Self = Self(1 << 14);

    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "5xx" => Self::SERVER_ERROR,
            "gateway-error" => Self::GATEWAY_ERROR,
            "reset" => Self::RESET,
            "reset-before-request" => Self::RESET_BEFORE_REQUEST,
            "connect-failure" => Self::CONNECT_FAILURE,
            "envoy-ratelimited" => Self::RATE_LIMITED,
            "retriable-4xx" => Self::RETRIABLE_4XX,
            "refused-stream" => Self::REFUSED_STREAM,
            "retriable-status-codes" => Self::STATUS_CODES,
            "retriable-headers" => Self::HEADERS,
            "cancelled" => Self::CANCELLED,
            "deadline-exceeded" => Self::DEADLINE_EXCEEDED,
            "internal" => Self::INTERNAL,
            "resource-exhausted" => Self::RESOURCE_EXHAUSTED,
            "unavailable" => Self::UNAVAILABLE,
            _ => return None,
        })
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum AttemptOutcome<'a> {
    /// The head of a response came.
    Response(StatusCode, &'a HeaderMap),
    /// No connection was made.
    ConnectFailure,
    /// The upstream refused the stream, and has not begun with it (`REFUSED_STREAM`, or beyond a GOAWAY).
    RefusedStream,
    /// The connection or the stream ended before a response came. True: before anything of the request was sent.
    Reset(bool),
    /// The attempt's time was over.
    PerTryTimeout,
    /// Nothing could be sent because of a limit of the cluster's.
    Overflow,
}

impl RetryPolicy {
    pub(crate) fn new(at: &FieldPath<'_>, policy: &proto::RetryPolicy) -> Result<Self, InvalidField> {
        let proto::RetryPolicy {
            retry_on,
            num_retries,
            per_try_timeout,
            per_try_idle_timeout,
            retry_priority,
            retry_host_predicate,
            retry_options_predicates,
            host_selection_retry_max_attempts,
            retriable_status_codes,
            retry_back_off,
            rate_limited_retry_back_off,
            retriable_headers,
            retriable_request_headers,
            refresh_cluster_on_retry,
        } = policy;
        refuse_set!(at,
            "no extensions": retry_priority, retry_options_predicates;
            "the pause is as long as for all": rate_limited_retry_back_off;
            "the cluster stays": refresh_cluster_on_retry;
        );
        let mut on = RetryOn::default();
        for word in retry_on.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let condition = RetryOn::parse(word);
            on.0 |=
                condition.ok_or_else(|| at.field("retry_on").wrong(format!("{word:?} is not supported")))?.0;
        }
        let mut avoid_previous_endpoints = None;
        for (i, RetryHostPredicate { name, config_type: _ }) in retry_host_predicate.iter().enumerate() {
            if name != PREVIOUS_HOSTS {
                let reason = format!("{name:?}: only {PREVIOUS_HOSTS}");
                return Err(at.element("retry_host_predicate", i).wrong(reason));
            }
            let attempts = u32::try_from(*host_selection_retry_max_attempts).map_err(|_| {
                at.field("host_selection_retry_max_attempts").wrong("not a number from 0 to 4294967295")
            })?;
            avoid_previous_endpoints = Some(attempts.max(1));
        }
        let status_codes = (0..)
            .zip(retriable_status_codes)
            .map(|(i, code)| {
                u16::try_from(*code).map_err(|_| {
                    at.element("retriable_status_codes", i).wrong(format!("{code} is not a status"))
                })
            })
            .collect::<Result<_, _>>()?;
        let response_headers = header_list(at, "retriable_headers", retriable_headers)?;
        if let Some(i) = response_headers.iter().position(|condition| condition.name().is_none()) {
            return Err(at.element("retriable_headers", i).wrong("a response has no such header"));
        }
        let (base, most) = pauses(&at.field("retry_back_off"), retry_back_off.as_ref())?;
        let limit = |name, limit| -> Result<_, InvalidField> {
            Ok(duration(&at.field(name), limit)?.filter(|limit: &Duration| !limit.is_zero()))
        };
        Ok(Self {
            on,
            retries: num_retries.as_ref().map_or(1, |retries| retries.value),
            per_try_timeout: limit("per_try_timeout", per_try_timeout.as_ref())?,
            per_try_idle_timeout: limit("per_try_idle_timeout", per_try_idle_timeout.as_ref())?,
            avoid_previous_endpoints,
            status_codes,
            response_headers,
            request_headers: header_list(at, "retriable_request_headers", retriable_request_headers)?,
            base,
            most,
        })
    }

    /// True where another attempt may end better.
    fn calls_for_another(&self, outcome: AttemptOutcome<'_>) -> bool {
        let on = self.on;
        let failed = on.has(RetryOn::SERVER_ERROR) || on.has(RetryOn::GATEWAY_ERROR);
        match outcome {
            AttemptOutcome::Response(status, headers) => {
                if headers.contains_key(&RATE_LIMITED) {
                    return on.has(RetryOn::RATE_LIMITED);
                }
                let grpc = headers.get(&GRPC_STATUS).map(|status| status.as_bytes());
                on.has(RetryOn::SERVER_ERROR) && status.is_server_error()
                    || on.has(RetryOn::GATEWAY_ERROR) && matches!(status.as_u16(), 502..=504)
                    || on.has(RetryOn::RETRIABLE_4XX) && status == StatusCode::CONFLICT
                    || on.has(RetryOn::STATUS_CODES) && self.status_codes.contains(&status.as_u16())
                    || on.has(RetryOn::HEADERS)
                        && self.response_headers.iter().any(|condition| {
                            condition
                                .name()
                                .is_some_and(|name| condition.test(HeaderLookup::values(headers, name)))
                        })
                    || on.has(RetryOn::CANCELLED) && grpc == Some(b"1")
                    || on.has(RetryOn::DEADLINE_EXCEEDED) && grpc == Some(b"4")
                    || on.has(RetryOn::RESOURCE_EXHAUSTED) && grpc == Some(b"8")
                    || on.has(RetryOn::INTERNAL) && grpc == Some(b"13")
                    || on.has(RetryOn::UNAVAILABLE) && grpc == Some(b"14")
            }
            AttemptOutcome::Overflow => false,
            AttemptOutcome::ConnectFailure => {
                failed
                    || on.has(RetryOn::RESET)
                    || on.has(RetryOn::CONNECT_FAILURE)
                    || on.has(RetryOn::RESET_BEFORE_REQUEST)
            }
            AttemptOutcome::RefusedStream => {
                failed || on.has(RetryOn::RESET) || on.has(RetryOn::REFUSED_STREAM)
            }
            AttemptOutcome::Reset(nothing_sent) => {
                failed || on.has(RetryOn::RESET) || nothing_sent && on.has(RetryOn::RESET_BEFORE_REQUEST)
            }
            AttemptOutcome::PerTryTimeout => failed || on.has(RetryOn::RESET),
        }
    }
}

/// The first and the longest pause.
fn pauses(at: &FieldPath<'_>, back_off: Option<&RetryBackOff>) -> Result<(Duration, Duration), InvalidField> {
    let Some(RetryBackOff { base_interval, max_interval }) = back_off else {
        return Ok((DEFAULT_BASE, DEFAULT_BASE * DEFAULT_MOST));
    };
    let at_base = at.field("base_interval");
    let base = duration(&at_base, base_interval.as_ref())?.filter(|base| !base.is_zero());
    let base = base.ok_or_else(|| at_base.wrong("there is none, or it is zero"))?;
    // As in Envoy, which counts in these.
    let base = base.max(Duration::from_millis(1));
    let at_most = at.field("max_interval");
    match duration(&at_most, max_interval.as_ref())? {
        None => Ok((base, base.saturating_mul(DEFAULT_MOST))),
        Some(most) if most >= base => Ok((base, most)),
        Some(_) => Err(at_most.wrong("it is below base_interval")),
    }
}

/// Retries of one request.
#[derive(Clone, Debug)]
pub struct RetryState {
    left: u32,
    pause: Duration,
}

impl RetryState {
    /// Of a request that is sent for the first time. Nothing where it is never sent again.
    pub fn new<H: HeaderLookup>(policy: &RetryPolicy, head: &RequestHead<'_, H>) -> Option<Self> {
        let asked = policy.request_headers.is_empty()
            || policy.request_headers.iter().any(|condition| condition.holds(head));
        (policy.retries > 0 && policy.on != RetryOn::default() && asked)
            .then_some(Self { left: policy.retries, pause: policy.base })
    }

    /// Pause after which the request is sent again; nothing where it isn't. Whether it can be (its body is still there,
    /// and nothing of a response has been sent on) is the caller's matter.
    pub fn next(
        &mut self,
        policy: &RetryPolicy,
        outcome: AttemptOutcome<'_>,
        draws: &mut impl Draws,
    ) -> Option<Duration> {
        if self.left == 0 || !policy.calls_for_another(outcome) {
            return None;
        }
        self.left -= 1;
        let most = u64::try_from(self.pause.as_nanos()).unwrap_or(u64::MAX);
        self.pause = self.pause.saturating_mul(2).min(policy.most);
        Some(Duration::from_nanos(draws.below(most)))
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method};
    use slotmesh_xds::envoy::google::protobuf::{self, UInt32Value};

    use super::*;

    fn policy(retry_on: &str, retries: u32) -> proto::RetryPolicy {
        proto::RetryPolicy {
            retry_on: retry_on.into(),
            num_retries: Some(UInt32Value { value: retries }),
            ..Default::default()
        }
    }

    fn state(policy: &RetryPolicy, headers: &HeaderMap) -> Option<RetryState> {
        let head = RequestHead {
            method: &Method::GET,
            scheme: "http",
            authority: "web",
            path: "/",
            headers,
            source: None,
        };
        RetryState::new(policy, &head)
    }

    fn read(policy: &proto::RetryPolicy) -> RetryPolicy {
        RetryPolicy::new(&FieldPath::ROOT, policy).unwrap()
    }

    #[test]
    fn outcomes_call_for_another_attempt_by_condition() {
        let none = HeaderMap::new();
        let grpc = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_static("14"))]);
        let limited = HeaderMap::from_iter([(RATE_LIMITED.clone(), HeaderValue::from_static("true"))]);
        let response =
            |status, headers| AttemptOutcome::Response(StatusCode::from_u16(status).unwrap(), headers);
        let mut codes = policy("retriable-status-codes", 1);
        codes.retriable_status_codes = vec![418];
        for (policy, outcome, again) in [
            (policy("5xx", 1), response(500, &none), true),
            (policy("5xx", 1), response(499, &none), false),
            (policy("5xx", 1), response(500, &limited), false),
            (policy("envoy-ratelimited", 1), response(200, &limited), true),
            (policy("gateway-error", 1), response(500, &none), false),
            (policy("gateway-error", 1), response(503, &none), true),
            (policy("retriable-4xx", 1), response(409, &none), true),
            (codes.clone(), response(418, &none), true),
            (codes, response(500, &none), false),
            (policy("unavailable", 1), response(200, &grpc), true),
            (policy("cancelled", 1), response(200, &grpc), false),
            (policy("connect-failure", 1), AttemptOutcome::ConnectFailure, true),
            (policy("connect-failure", 1), AttemptOutcome::Reset(false), false),
            (policy("reset-before-request", 1), AttemptOutcome::Reset(true), true),
            (policy("reset-before-request", 1), AttemptOutcome::Reset(false), false),
            (policy("reset", 1), AttemptOutcome::Reset(false), true),
            (policy("refused-stream", 1), AttemptOutcome::RefusedStream, true),
            (policy("gateway-error", 1), AttemptOutcome::PerTryTimeout, true),
            (policy("connect-failure", 1), AttemptOutcome::PerTryTimeout, false),
            (policy("5xx,reset,connect-failure", 1), AttemptOutcome::Overflow, false),
        ] {
            let read = read(&policy);
            let next = state(&read, &none).unwrap().next(&read, outcome, &mut || 0);
            assert_eq!(next.is_some(), again, "{:?} {outcome:?}", policy.retry_on);
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_attempts_end() {
        let mut policy = policy("5xx", 4);
        policy.retry_back_off = Some(RetryBackOff {
            base_interval: Some(protobuf::Duration { seconds: 0, nanos: 100_000_000 }),
            max_interval: Some(protobuf::Duration { seconds: 0, nanos: 300_000_000 }),
        });
        let policy = read(&policy);
        let mut state = state(&policy, &HeaderMap::new()).unwrap();
        let mut next = || {
            let outcome = AttemptOutcome::ConnectFailure;
            state.next(&policy, outcome, &mut || 1 << 63).map(|pause| pause.as_millis())
        };
        assert_eq!(
            [next(), next(), next(), next(), next()],
            [Some(50), Some(100), Some(150), Some(150), None]
        );
    }

    #[test]
    fn requests_that_do_not_ask_are_not_sent_again() {
        let mut policy = policy("5xx", 1);
        policy.retriable_request_headers =
            vec![proto::HeaderMatcher { name: "x-again".into(), ..Default::default() }];
        let policy = read(&policy);
        assert!(state(&policy, &HeaderMap::new()).is_none());
        let asks =
            HeaderMap::from_iter([(HeaderName::from_static("x-again"), HeaderValue::from_static("1"))]);
        assert!(state(&policy, &asks).is_some());
    }

    #[test]
    fn conditions_that_nobody_knows_are_refused_by_name() {
        let error = RetryPolicy::new(&FieldPath::ROOT, &policy("5xx,often", 1)).unwrap_err();
        assert_eq!((error.field.as_str(), error.reason.as_str()), ("retry_on", "\"often\" is not supported"));
    }
}
