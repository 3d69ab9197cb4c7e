//! The decision about a request.

use std::borrow::Cow;

use http::StatusCode;

use crate::{edits::HeaderEdits, forward::Forwarding};

/// A decision about a request.
#[derive(Clone, Debug)]
pub struct RequestDecision<'t> {
    /// Name of the rule, if it has one.
    pub route: Option<&'t str>,
    /// Action to take.
    pub action: RequestAction<'t>,
    /// Changes of the response's headers, whoever makes the response.
    pub response_headers: HeaderEdits<'t>,
}

/// An action on a request.
#[derive(Clone, Debug)]
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
    /// The status.
    pub status: StatusCode,
    /// The body, of plain text; often empty.
    pub body: Cow<'t, [u8]>,
}

impl RequestDecision<'_> {
    /// A response without a body, by no rule.
    pub(crate) fn local(status: StatusCode) -> Self {
        Self {
            route: None,
            action: RequestAction::Respond(LocalResponse { status, body: Cow::Borrowed(&[]) }),
            response_headers: HeaderEdits::default(),
        }
    }
}
