//! A route configuration and requests: bytes -> table -> decisions.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use prost::Message as _;
use slotmesh_routing::{
    AttemptOutcome, EscapedSlashes, NormalizedPath, PathNormalization, RequestAction, RequestHead,
    RetryState, RouteTable,
};
use slotmesh_xds::envoy::envoy::config::route::v3::RouteConfiguration;

use crate::Frames;

/// The code of a frame that is a route configuration. Others are requests: a line with method, host and path, then a
/// line for each header.
pub const TABLE: u8 = 0x80;

/// Headers of a request that are read.
const MOST_HEADERS: usize = 100;

/// Frames of route configurations and requests: each request is decided by the table before it, twice alike, and what
/// is decided can be sent.
pub fn routing(data: &[u8]) {
    let mut table = None;
    for (code, content) in Frames::new(data) {
        if code & TABLE != 0 {
            if let Ok(config) = RouteConfiguration::decode(content) {
                let (read, errors) = RouteTable::new(&config);
                for error in &errors {
                    assert!(!error.reason.is_empty() && !error.field.starts_with('.'), "{error}");
                }
                table = Some(read);
            }
        } else if let Some(table) = &table {
            decide(table, code, &String::from_utf8_lossy(content));
        }
    }
}

fn decide(table: &RouteTable, code: u8, text: &str) -> Option<()> {
    let mut lines = text.lines();
    let mut words = lines.next()?.split(' ');
    let (method, authority, target) = (words.next()?, words.next()?, words.next()?);
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(':')).take(MOST_HEADERS) {
        headers.append(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
    }
    let normalization = PathNormalization {
        resolve: code & 1 != 0,
        merge_slashes: code & 2 != 0,
        escaped_slashes: [
            EscapedSlashes::Keep,
            EscapedSlashes::Reject,
            EscapedSlashes::Unescape,
            EscapedSlashes::Redirect,
        ][usize::from(code >> 2 & 3)],
    };
    let NormalizedPath::Path(path) = normalization.apply(target) else { return None };
    if normalization.resolve && path.starts_with('/') {
        let bare = path.split('?').next().unwrap_or_default();
        assert!(!bare.split('/').any(|segment| matches!(segment, "." | "..")), "{target:?} -> {path:?}");
    }
    let head = RequestHead {
        method: &method,
        scheme: "http",
        authority,
        path: &path,
        headers: &headers,
        source: Some([127, 0, 0, 1].into()),
    };
    let draw = || u64::from(code).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let decision = table.decide(&head, &mut { draw });
    assert_eq!(format!("{decision:?}"), format!("{:?}", table.decide(&head, &mut { draw })));
    let mut response = headers.clone();
    decision.response_headers.apply(&mut response);
    match decision.action {
        RequestAction::Respond(local) => assert!(local.status.as_u16() >= 200),
        RequestAction::Redirect { status, location } => {
            assert!(status.is_redirection() && location.contains("://"), "{location:?}");
        }
        RequestAction::Forward(forwarding) => {
            assert!(!forwarding.cluster.is_empty());
            let mut sent = headers.clone();
            forwarding.request_headers.apply(&mut sent);
            if let Some(policy) = &forwarding.rule.retry
                && let Some(mut state) = RetryState::new(policy, &head)
            {
                let mut attempts = 0;
                while attempts < 20
                    && state.next(policy, AttemptOutcome::ConnectFailure, &mut { draw }).is_some()
                {
                    attempts += 1;
                }
            }
        }
    }
    Some(())
}
