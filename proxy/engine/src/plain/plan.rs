//! A request of a client: read, decided, and as it is sent to an endpoint. Nothing here waits, and nothing is changed but
//! what is given.

use std::{rc::Rc, time::Duration};

use http::{HeaderValue, Method, header::TRANSFER_ENCODING};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use slotmesh_routing::{Forwarding, HeaderChanges as _, HostRewrite, RequestAction, RouteTable};

use super::{
    chunks::ChunkFollower,
    head::{self, BodyLength, OrdinaryRequest, RawFields},
};
use crate::{
    connection::ClientContext,
    downstream::HttpConfig,
    exchange::{self, AskedHead, DecidedRequest, ResponseChanges},
    forward::{self, ATTEMPT_COUNT},
    worker::ClusterState,
};

/// Plan for a request.
pub(super) struct RequestPlan<'t> {
    /// Name of the rule, if it has one.
    pub route: Option<&'t str>,
    /// Time to wait before the action.
    pub delay: Option<Duration>,
    pub action: RequestAction<'t>,
    /// The cluster that it goes to, if it is known.
    pub cluster: Option<Rc<ClusterState>>,
    pub response: ResponseChanges<'t>,
    /// Bytes of the request.
    pub consumed: usize,
    /// It is `HEAD`.
    pub to_head: bool,
    /// It may be sent twice, if nobody has answered the first.
    pub repeatable: bool,
    /// The client wants the connection to end with it.
    pub close: bool,
}

/// Reads and decides the request that bytes begin with, and writes what is sent to an endpoint to `out`. Nothing where it
/// isn't whole or isn't ordinary, or its rule asks for more than this path does.
pub(super) fn plan<'t>(
    context: &ClientContext,
    http: &HttpConfig,
    table: &'t RouteTable,
    bytes: &[u8],
    seed: u64,
    out: &mut Vec<u8>,
) -> Option<RequestPlan<'t>> {
    let limits = &context.worker.limits;
    let request = head::request(bytes, http.headers.unwrap_or(limits.headers))?;
    let OrdinaryRequest { method, target, host, mut fields, length, head, close } = request;
    if head > http.head_bytes.unwrap_or(limits.head_bytes) {
        return None;
    }
    let body = &bytes[head..];
    let consumed = head + whole_body(body, length)?;
    let path = exchange::path(http, target).ok()?;
    let asked =
        AskedHead { method: &method, authority: host, path: &path, fields: &mut fields, is_upgrade: false };
    let mut random = SmallRng::seed_from_u64(seed);
    let decided = exchange::decide(context, http, table, asked, &mut || random.next_u64());
    if let (RequestAction::Forward(forwarding), Some(cluster)) = (&decided.action, &decided.cluster) {
        let plain = forwarding.mirrors.is_empty()
            && forwarding.rule.retry.is_none()
            && !forward::target(context, cluster, forwarding).http2;
        if !plain {
            return None;
        }
        out.clear();
        write_head(out, &method, &path, host, fields, forwarding, length)?;
        match length {
            BodyLength::Chunked => {
                let mut chunks = ChunkFollower::new();
                chunks.follow(body, |range| out.extend_from_slice(&body[range])).ok()?;
            }
            _ => out.extend_from_slice(&bytes[head..consumed]),
        }
    }
    let DecidedRequest { route, delay, action, cluster, response } = decided;
    let (to_head, repeatable) = (method == Method::HEAD, method.is_idempotent());
    Some(RequestPlan { route, delay, action, cluster, response, consumed, to_head, repeatable, close })
}

/// Bytes of a body that bytes begin with; `None` where it isn't whole.
pub(crate) fn whole_body(bytes: &[u8], length: BodyLength) -> Option<usize> {
    match length {
        BodyLength::None | BodyLength::UntilClose => Some(0),
        BodyLength::Sized(length) => usize::try_from(length).ok().filter(|length| *length <= bytes.len()),
        BodyLength::Chunked => {
            let mut chunks = ChunkFollower::new();
            let followed = chunks.follow(bytes, |_| ()).ok()?;
            chunks.is_over().then_some(followed)
        }
    }
}

/// Writes the head that an endpoint gets; `None` where host or path can't be sent as they stand.
fn write_head(
    out: &mut Vec<u8>,
    method: &Method,
    path: &str,
    authority: &str,
    mut fields: RawFields<'_>,
    forwarding: &Forwarding<'_>,
    length: BodyLength,
) -> Option<()> {
    forwarding.request_headers.apply(&mut fields);
    if forwarding.rule.attempt_count_to_upstream {
        fields.set(ATTEMPT_COUNT.clone(), HeaderValue::from(1));
    }
    if length == BodyLength::Chunked {
        fields.add(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let path = forwarding.path.as_deref().unwrap_or(path);
    let host = match &forwarding.host {
        Some(HostRewrite::To(host)) if **host != *authority => Some(&**host),
        // Endpoints have addresses and no names here.
        Some(HostRewrite::To(_) | HostRewrite::Endpoint) | None => None,
    };
    if !path.starts_with('/') || !head::is_plain_target(path) || !host.is_none_or(head::is_plain_host) {
        return None;
    }
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = host {
        fields.leave_host();
        head::write_field(out, b"host", host.as_bytes());
    }
    fields.write(out);
    out.extend_from_slice(b"\r\n");
    Some(())
}
