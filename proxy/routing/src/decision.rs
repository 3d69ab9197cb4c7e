//! The decision about a request.

use std::{borrow::Cow, time::Duration};

use http::StatusCode;

use crate::{edits::HeaderEdits, forward::Forwarding};

/// A decision about a request.
#[derive(Clone, Debug)]
pub struct RequestDecision<'t> {
    /// Name of the rule, if it has one.
    pub route: Option<&'t str>,
    /// Time to wait before the action.
    pub delay: Option<Duration>,
    /// Action to take.
    pub action: RequestAction<'t>,
    /// Changes of the response's headers, whoever makes the response.
    pub response_headers: HeaderEdits<'t>,
}

/// An action on a request.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "most requests are forwarded: a box would be an allocation each"
)]
pub enum RequestAction<'t> {
    /// It is sent on.
    Forward(Forwarding<'t>),
    /// The caller is sent elsewhere.
    Redirect {
        /// The status.
        status: StatusCode,
        /// Value of the `Location` header.
        location: String,
    },
    /// It is answered here.
    Respond(LocalResponse<'t>),
}

/// A response that no upstream makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalResponse<'t> {
    /// The status, for callers of HTTP.
    pub status: StatusCode,
    /// The status of gRPC, where the request is one: the response is then of status 200, has this in `grpc-status` and
    /// the body in `grpc-message`.
    pub grpc_status: Option<u32>,
    /// The body, of plain text; often empty.
    pub body: Cow<'t, [u8]>,
}

impl<'t> LocalResponse<'t> {
    /// A response to a request, which may be one of gRPC. `grpc`: the status of gRPC, where it doesn't follow from the
    /// other one.
    pub fn new(status: StatusCode, body: &'t [u8], grpc: Option<u32>, is_grpc: bool) -> Self {
        let grpc_status = is_grpc.then(|| grpc.unwrap_or_else(|| grpc_of_status(status)));
        Self { status, grpc_status, body: Cow::Borrowed(body) }
    }
}

impl RequestDecision<'_> {
    /// A response without a body, by no rule.
    pub(crate) fn local(status: StatusCode, is_grpc: bool) -> Self {
        Self {
            route: None,
            delay: None,
            action: RequestAction::Respond(LocalResponse::new(status, &[], None, is_grpc)),
            response_headers: HeaderEdits::default(),
        }
    }
}

/// Status of gRPC that a status of HTTP becomes.
fn grpc_of_status(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
