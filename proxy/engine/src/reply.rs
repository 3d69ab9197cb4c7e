//! Responses that the proxy makes itself. Callers of gRPC get a status of gRPC instead, so that their libraries
//! understand it.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};

use crate::body::ResponseBody;

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// A response made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// The gRPC status, where it isn't the one that follows from the HTTP status.
    pub grpc_status: Option<u32>,
    pub location: Option<String>,
    /// The connection ends with it.
    pub close: bool,
}

impl Reply {
    pub(crate) fn new(status: StatusCode, text: &'static str) -> Self {
        let body = Bytes::from_static(text.as_bytes());
        Self { status, body, grpc_status: None, location: None, close: false }
    }

    /// Ends the connection, too: what follows on it can't be trusted.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    pub(crate) fn grpc(mut self, status: u32) -> Self {
        self.grpc_status = Some(status);
        self
    }

    /// The response, for a caller of gRPC or another one.
    pub(crate) fn into_response(self, is_grpc: bool) -> Response<ResponseBody> {
        let Self { status, body, grpc_status, location, close } = self;
        let mut response = Response::new(ResponseBody::Full(None));
        let headers = response.headers_mut();
        if close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if is_grpc {
            let code = grpc_status.unwrap_or_else(|| grpc_code(status));
            headers.insert(CONTENT_TYPE, GRPC);
            headers.insert(&GRPC_STATUS, HeaderValue::from(code));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&body))
                && !body.is_empty()
            {
                headers.insert(&GRPC_MESSAGE, message);
            }
            return response;
        }
        if let Some(location) = location
            && let Ok(location) = HeaderValue::from_str(&location)
        {
            headers.insert(LOCATION, location);
        }
        if !body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if status != StatusCode::NO_CONTENT {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        *response.status_mut() = status;
        *response.body_mut() = ResponseBody::Full(Some(body).filter(|body| !body.is_empty()));
        response
    }
}

/// True for a request of gRPC, by its content type.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let rest = value.as_bytes().strip_prefix(b"application/grpc");
        rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// The class of codes of HTTP to which the status of gRPC in these fields belongs, if there is one: 2 for success, 4 for
/// faults of the caller, 5 for others.
pub(crate) fn grpc_class(headers: &HeaderMap) -> Option<usize> {
    Some(match headers.get(&GRPC_STATUS)?.as_bytes() {
        b"0" => 2,
        // Cancelled, invalid argument, not found, already exists, permission denied, exhausted, failed precondition,
        // aborted, out of range, unauthenticated.
        b"1" | b"3" | b"5" | b"6" | b"7" | b"8" | b"9" | b"10" | b"11" | b"16" => 4,
        _ => 5,
    })
}

/// The status of gRPC for an HTTP status, as gRPC's own mapping has it.
const fn grpc_code(status: StatusCode) -> u32 {
    match status.as_u16() {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// A message as gRPC writes it into a header.
fn percent_encoded(message: &[u8]) -> String {
    let mut text = String::with_capacity(message.len());
    for byte in message {
        match byte {
            b'%' | 0..0x20 | 0x7f.. => text.push_str(&format!("%{byte:02X}")),
            _ => text.push(char::from(*byte)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_of_grpc_get_a_status_of_theirs() {
        let response = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "100 %").into_response(true);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "100 %25");
        let response = Reply::new(StatusCode::GATEWAY_TIMEOUT, "late").grpc(4).into_response(true);
        assert_eq!(response.headers()["grpc-status"], "4");
    }

    #[test]
    fn a_status_of_grpc_has_a_class() {
        for (status, class) in [("0", 2), ("5", 4), ("14", 5), ("2", 5), ("x", 5)] {
            let headers = HeaderMap::from_iter([(GRPC_STATUS.clone(), HeaderValue::from_static(status))]);
            assert_eq!(grpc_class(&headers), Some(class), "{status}");
        }
        assert_eq!(grpc_class(&HeaderMap::new()), None);
    }

    #[test]
    fn others_get_text() {
        let response = Reply::new(StatusCode::NOT_FOUND, "").into_response(false);
        assert_eq!((response.status(), response.headers().len()), (StatusCode::NOT_FOUND, 1));
        let response = Reply::new(StatusCode::BAD_REQUEST, "no").closing().into_response(false);
        assert_eq!(response.headers()["connection"], "close");
        assert_eq!(response.headers()["content-length"], "2");
    }

    #[test]
    fn requests_of_grpc_are_known() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
