//! Direct responses: those that a rule gives by itself.

use http::StatusCode;
use slotmesh_xds::envoy::envoy::config::{core::v3::data_source::Specifier, route::v3::DirectResponseAction};

use crate::field::{FieldPath, InvalidField, refuse_set};

/// A response that is the same for each request.
#[derive(Clone, Debug)]
pub(crate) struct DirectResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Box<[u8]>,
}

impl DirectResponse {
    pub(crate) fn new(
        at: &FieldPath<'_>,
        action: &DirectResponseAction,
        most: u32,
    ) -> Result<Self, InvalidField> {
        let DirectResponseAction { status, body, body_format } = action;
        refuse_set!(at, "nothing is filled in": body_format;);
        let status = match *status {
            status @ 200..600 => StatusCode::from_u16(status as u16).expect("200 to 599 are valid"),
            other => return Err(at.field("status").wrong(format!("{other} isn't from 200 to 599"))),
        };
        let at = at.field("body");
        let bytes = match body.as_ref().and_then(|body| body.specifier.as_ref()) {
            None => &[][..],
            Some(Specifier::InlineBytes(bytes)) => bytes,
            Some(Specifier::InlineString(text)) => text.as_bytes(),
            Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
                return Err(at.wrong("only inline_bytes and inline_string"));
            }
        };
        if bytes.len() > most as usize {
            return Err(at.wrong(format!("{} bytes; at most {most}", bytes.len())));
        }
        Ok(Self { status, body: bytes.into() })
    }
}
