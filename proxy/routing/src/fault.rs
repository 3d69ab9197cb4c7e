//! Faults that are injected: a delay, and a response instead of the upstream's.

use std::time::Duration;

use http::{HeaderName, StatusCode};
use slotmesh_xds::envoy::envoy::{
    extensions::filters::{
        common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier},
        http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType},
    },
    r#type::v3::FractionalPercent,
};

use crate::{
    conditions::{HeaderCondition, header_list},
    decision::LocalResponse,
    draws::{Draws, Portion},
    field::{FieldPath, InvalidField, duration, refuse_set},
    head::{HeaderLookup, RequestHead},
};

static DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
static DELAY_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
static ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
static ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
static ABORT_SHARE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");

const BODY: &str = "fault filter abort";

/// Faults of a rule.
#[derive(Debug)]
pub(crate) struct FaultRule {
    headers: Box<[HeaderCondition]>,
    delay: Option<(Portion, Delay)>,
    abort: Option<(Portion, Abort)>,
    body: Box<str>,
}

#[derive(Debug)]
enum Delay {
    Fixed(Duration),
    /// As long as the request says.
    Header,
}

#[derive(Debug)]
enum Abort {
    Http(StatusCode),
    /// Callers that don't speak gRPC see a 200.
    Grpc(u32),
    /// With the status that the request says.
    Header,
}

impl FaultRule {
    pub(crate) fn new(at: &FieldPath<'_>, fault: &HttpFault) -> Result<Self, InvalidField> {
        let HttpFault {
            delay,
            abort,
            upstream_cluster,
            headers,
            downstream_nodes,
            max_active_faults,
            response_rate_limit,
            delay_percent_runtime,
            abort_percent_runtime,
            delay_duration_runtime,
            abort_http_status_runtime,
            max_active_faults_runtime,
            response_rate_limit_percent_runtime,
            abort_grpc_status_runtime,
            // About statistics and logs.
            disable_downstream_cluster_stats: _,
            filter_metadata: _,
        } = fault;
        refuse_set!(at,
            "use a rule for it": upstream_cluster;
            "nobody says which node it is": downstream_nodes;
            "faults are not counted": max_active_faults;
            "responses are sent as fast as they come": response_rate_limit;
            "there are no runtime settings": delay_percent_runtime, abort_percent_runtime, delay_duration_runtime,
                abort_http_status_runtime, max_active_faults_runtime, response_rate_limit_percent_runtime,
                abort_grpc_status_runtime;
        );
        let (abort, body) = match abort {
            None => (None, BODY),
            Some(abort) => {
                let body = match abort.response_body.as_str() {
                    "" => BODY,
                    body => body,
                };
                (Some(Abort::new(&at.field("abort"), abort)?), body)
            }
        };
        Ok(Self {
            headers: header_list(at, "headers", headers)?,
            delay: match delay {
                None => None,
                Some(delay) => Some(Delay::new(&at.field("delay"), delay)?),
            },
            abort,
            body: body.into(),
        })
    }

    /// Delay of this request, and the response that it gets instead of the upstream's.
    pub(crate) fn inject<H: HeaderLookup>(
        &self,
        head: &RequestHead<'_, H>,
        draws: &mut impl Draws,
    ) -> (Option<Duration>, Option<LocalResponse<'_>>) {
        if !self.headers.iter().all(|condition| condition.holds(head)) {
            return (None, None);
        }
        let delay = self.delay.as_ref().and_then(|(portion, delay)| {
            let (length, portion) = match delay {
                Delay::Fixed(length) => (*length, *portion),
                Delay::Header => {
                    (Duration::from_millis(number(head, &DELAY)?), portion_of(head, &DELAY_SHARE, *portion))
                }
            };
            (!length.is_zero() && portion.hit(draws)).then_some(length)
        });
        let abort = self.abort.as_ref().and_then(|(portion, abort)| {
            let (status, grpc, portion) = match abort {
                Abort::Http(status) => (*status, None, *portion),
                Abort::Grpc(grpc) => (StatusCode::OK, Some(*grpc), *portion),
                Abort::Header => {
                    let http = number(head, &ABORT).filter(|status| (200..600).contains(status));
                    let (status, grpc) = match http {
                        Some(status) => (StatusCode::from_u16(status as u16).ok()?, None),
                        None => {
                            let grpc = u32::try_from(number(head, &ABORT_GRPC)?).ok()?;
                            (StatusCode::OK, Some(grpc))
                        }
                    };
                    (status, grpc, portion_of(head, &ABORT_SHARE, *portion))
                }
            };
            portion.hit(draws).then(|| LocalResponse::new(status, self.body.as_bytes(), grpc, head.is_grpc()))
        });
        (delay, abort)
    }
}

/// Number in the first header of that name.
fn number<H: HeaderLookup>(head: &RequestHead<'_, H>, name: &HeaderName) -> Option<u64> {
    std::str::from_utf8(head.headers.values(name).next()?).ok()?.parse().ok()
}

/// A share that the request may lower.
fn portion_of<H: HeaderLookup>(head: &RequestHead<'_, H>, name: &HeaderName, most: Portion) -> Portion {
    match number(head, name).and_then(|numerator| u32::try_from(numerator).ok()) {
        Some(numerator) => Portion { numerator: numerator.min(most.numerator), ..most },
        None => most,
    }
}

fn portion(at: &FieldPath<'_>, percentage: Option<&FractionalPercent>) -> Result<Portion, InvalidField> {
    match percentage {
        Some(percentage) => Portion::new(&at.field("percentage"), percentage),
        None => Ok(Portion { numerator: 0, denominator: 100 }),
    }
}

impl Delay {
    fn new(at: &FieldPath<'_>, delay: &FaultDelay) -> Result<(Portion, Self), InvalidField> {
        let FaultDelay { percentage, fault_delay_secifier } = delay;
        let kind = match fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(fixed)) => {
                let at = at.field("fixed_delay");
                let fixed = duration(&at, Some(fixed))?.filter(|fixed| !fixed.is_zero());
                Self::Fixed(fixed.ok_or_else(|| at.wrong("it is zero"))?)
            }
            Some(FaultDelaySecifier::HeaderDelay(_)) => Self::Header,
            None => return Err(at.wrong("there is no fixed_delay and no header_delay")),
        };
        Ok((portion(at, percentage.as_ref())?, kind))
    }
}

impl Abort {
    fn new(at: &FieldPath<'_>, abort: &FaultAbort) -> Result<(Portion, Self), InvalidField> {
        let FaultAbort { percentage, response_body: _, error_type } = abort;
        let kind = match error_type {
            Some(ErrorType::HttpStatus(status @ 200..600)) => {
                Self::Http(StatusCode::from_u16(*status as u16).expect("200 to 599 are valid"))
            }
            Some(ErrorType::HttpStatus(other)) => {
                return Err(at.field("http_status").wrong(format!("{other} isn't from 200 to 599")));
            }
            Some(ErrorType::GrpcStatus(grpc)) => Self::Grpc(*grpc),
            Some(ErrorType::HeaderAbort(_)) => Self::Header,
            None => return Err(at.wrong("there is no status")),
        };
        Ok((portion(at, percentage.as_ref())?, kind))
    }
}
