//! A request at an endpoint, and its response on the way to the client.
//!
//! All of the request is written already, so it can be sent again: where nothing of it was sent, or where its connection
//! had been idle, the server closed it without a word and the method is idempotent.

use std::{
    future::{Future as _, poll_fn},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, DATE, TRANSFER_ENCODING},
};
use slotmesh_routing::{Forwarding, HeaderChanges as _};
use tokio::time::Instant;

use super::{
    AfterRequest, Closing, Held, PlainClient, USUAL_HEAD,
    bodies::Passed,
    head::{self, BodyLength, MOST_LINES, ResponseHead},
    wire::{Outgoing, Received},
    write_status,
};
use crate::{
    attempt::{AttemptFault, Busy, Target},
    downstream::HttpConfig,
    exchange::{FOREVER, ResponseChanges},
    forward::{self, UNSENT},
    pool::{PlainConnection, Pool, USUAL_HEADERS},
    reply::Reply,
    worker::ClusterState,
};

/// A request that is sent on.
pub(super) struct Forwarded<'f> {
    pub http: &'f Arc<HttpConfig>,
    pub forwarding: &'f Forwarding<'f>,
    pub cluster: Rc<ClusterState>,
    pub began: Instant,
    pub to_head: bool,
    pub repeatable: bool,
}

/// The times of a response.
#[derive(Clone, Copy)]
pub(super) struct ResponseTimes {
    /// When all of it has to be over.
    pub limit: Option<Instant>,
    /// When its head has to be there.
    head: Option<Instant>,
    /// How long nothing may move.
    pub idle: Option<Duration>,
}

/// Reasons for which there is no response.
enum NoResponse {
    Fault(AttemptFault),
    /// An answer that is made here instead.
    Instead(Reply),
    /// Nothing has moved for too long.
    Silent,
    ClientGone,
}

/// A response whose head is written, and where the rest of it comes from.
pub(super) struct Answering {
    /// There until it is given back.
    pub connection: Option<PlainConnection>,
    pub pool: Rc<Pool>,
    pub received: Received,
    status: StatusCode,
    pub length: BodyLength,
    /// The connection can be used again when the body is over.
    pub reusable: bool,
    /// The client has been told that its connection ends.
    close: bool,
    _busy: Busy,
}

/// The head of a response, as far as it has come.
enum HeadProgress {
    Partial,
    /// One that only tells that the request is under way, of so many bytes.
    Interim(usize),
    /// One of so many bytes, which is written.
    Whole(usize, HeadWritten),
}

/// The head of a response that is written.
struct HeadWritten {
    status: StatusCode,
    length: BodyLength,
    reusable: bool,
    close: bool,
}

/// All of a request while it is asked for a response.
struct Asking<'a, 'f> {
    request: &'a Forwarded<'f>,
    target: &'a Target,
    times: ResponseTimes,
    /// The request as the endpoint gets it.
    sent: &'a [u8],
    closing: &'a Closing<'a>,
}

impl ResponseTimes {
    fn new(request: &Forwarded<'_>) -> Self {
        let Forwarded { http, forwarding, began, .. } = request;
        let after = |time: Option<Duration>| time.map(|time| *began + time.min(FOREVER));
        let idle = forwarding.rule.idle_timeout.or(http.stream_idle).filter(|idle| !idle.is_zero());
        let stream = after(forwarding.stream_limit.filter(|limit| !limit.is_zero()));
        let limit = earlier(after(forwarding.timeout), stream);
        let head = earlier(limit, after(forward::silence_before(idle, forwarding.timeout)));
        Self { limit, head, idle }
    }

    /// The end of a request whose head is late.
    fn too_late(self) -> NoResponse {
        match self.limit {
            Some(limit) if self.head == Some(limit) => NoResponse::Fault(AttemptFault::Timeout),
            _ => NoResponse::Silent,
        }
    }
}

pub(super) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

impl PlainClient<'_> {
    /// Sends the request in `out` to an endpoint, and its response to the client.
    pub(super) async fn forward(
        &mut self,
        request: Forwarded<'_>,
        changes: ResponseChanges<'_>,
        mut held: Held,
        out: &mut Vec<u8>,
        closing: &Closing<'_>,
    ) -> AfterRequest {
        let stats = request.cluster.stats.clone();
        let times = ResponseTimes::new(&request);
        let target = forward::target(self.context, &request.cluster, request.forwarding);
        let active = forward::begin(&request.cluster);
        let mut answer = std::mem::take(&mut self.response_head);
        let asked = match &active {
            Err(reply) => Err(NoResponse::Instead(reply.clone())),
            Ok(_) => {
                let asking = Asking { request: &request, target: &target, times, sent: out, closing };
                self.ask(&asking, changes, &mut answer).await
            }
        };
        let answering = match asked {
            Ok(answering) => answering,
            Err(none) => {
                let reply = match none {
                    NoResponse::ClientGone => return AfterRequest::Cut,
                    NoResponse::Instead(reply) => reply,
                    NoResponse::Silent => {
                        stats.timeouts.one_more();
                        forward::silent_reply(StatusCode::GATEWAY_TIMEOUT)
                    }
                    NoResponse::Fault(fault) => {
                        if matches!(fault, AttemptFault::Timeout) {
                            stats.timeouts.one_more();
                        }
                        tracing::debug!(cluster = %request.cluster.config.name, ?fault, "a request was not answered");
                        fault.reply()
                    }
                };
                let manner = (request.to_head, closing.now());
                drop(active);
                return self.answer(reply, None, Some(&stats), manner, held, out).await;
            }
        };
        stats.response(answering.status.as_u16());
        held.record.status(answering.status);
        let close = answering.close;
        let passed = self.pass(answering, &target, times, &mut answer, (held, active)).await;
        answer.clear();
        answer.shrink_to(USUAL_HEAD);
        self.response_head = answer;
        match passed {
            Passed::Whole if close => AfterRequest::Close,
            Passed::Whole => AfterRequest::Next,
            Passed::Fault => {
                stats.resets.one_more();
                AfterRequest::Cut
            }
            Passed::ClientGone => AfterRequest::Cut,
        }
    }

    /// Sends the request until an endpoint answers; the head of its response is written to `answer`.
    async fn ask(
        &mut self,
        asking: &Asking<'_, '_>,
        changes: ResponseChanges<'_>,
        answer: &mut Vec<u8>,
    ) -> Result<Answering, NoResponse> {
        let mut changes = Some(changes);
        let (mut unsent, mut repeated) = (0, false);
        loop {
            let fresh = repeated || unsent > 0;
            match self.attempt(asking, fresh, &mut changes, answer).await {
                Err(NoResponse::Fault(AttemptFault::Broken { unsent: true, .. })) if unsent < UNSENT => {
                    unsent += 1;
                }
                Err(NoResponse::Fault(AttemptFault::Broken { reused: true, silent: true, .. }))
                    if !repeated && asking.request.repeatable =>
                {
                    repeated = true;
                }
                other => return other,
            }
        }
    }

    async fn attempt(
        &mut self,
        asking: &Asking<'_, '_>,
        fresh: bool,
        changes: &mut Option<ResponseChanges<'_>>,
        answer: &mut Vec<u8>,
    ) -> Result<Answering, NoResponse> {
        let Target { worker, origin, cluster, hash, .. } = asking.target;
        let endpoint = cluster.pick(worker, *origin, *hash, &[]);
        let endpoint = endpoint.ok_or(NoResponse::Fault(AttemptFault::NoEndpoint))?;
        let pool = cluster.pool(*origin, endpoint);
        let busy = Busy::new(&pool);
        let idle = if fresh { None } else { pool.idle_plain(cluster.config.idle_timeout) };
        let mut connection = match idle {
            Some(connection) => connection,
            None => Box::pin(self.connect(asking, &pool, endpoint)).await?,
        };
        let reused = connection.served > 0;
        connection.served += 1;
        let mut received = Received::new(&worker.buffers, &[]);
        let headed = self.exchange(asking, &mut connection, &mut received, reused, changes, answer).await;
        if let Err(NoResponse::Fault(AttemptFault::Broken { .. })) = &headed {
            cluster.stats.resets.one_more();
        }
        let HeadWritten { status, length, reusable, close } = headed?;
        let connection = Some(connection);
        Ok(Answering { connection, pool, received, status, length, reusable, close, _busy: busy })
    }

    async fn connect(
        &mut self,
        asking: &Asking<'_, '_>,
        pool: &Rc<Pool>,
        endpoint: SocketAddr,
    ) -> Result<PlainConnection, NoResponse> {
        let Asking { target, times, .. } = asking;
        let mut connecting = pin!(pool.connect_plain(target.dial(endpoint), &target.cluster.config));
        poll_fn(|context| {
            if let Poll::Ready(connected) = connecting.as_mut().poll(context) {
                let none = |fault| NoResponse::Fault(target.no_connection(endpoint, fault));
                return Poll::Ready(connected.map_err(none));
            }
            if self.is_gone(context) {
                return Poll::Ready(Err(NoResponse::ClientGone));
            }
            self.timer.poll(context, times.head).map(|()| Err(times.too_late()))
        })
        .await
    }

    /// Writes the request, and reads until the head of a response is there, which is written to `answer`.
    async fn exchange(
        &mut self,
        asking: &Asking<'_, '_>,
        connection: &mut PlainConnection,
        received: &mut Received,
        reused: bool,
        changes: &mut Option<ResponseChanges<'_>>,
        answer: &mut Vec<u8>,
    ) -> Result<HeadWritten, NoResponse> {
        let broken = |unsent, silent, unreadable| {
            NoResponse::Fault(AttemptFault::Broken { unsent, silent, unreadable, reused })
        };
        let mut outgoing = Outgoing::new([asking.sent, &[], &[]]);
        // All of it is sent, or no more of it can be.
        let (mut sent, mut cut) = (false, false);
        loop {
            let read = poll_fn(|context| {
                if !sent {
                    match outgoing.poll_send(&mut connection.stream, context) {
                        Poll::Ready(Ok(())) => sent = true,
                        Poll::Ready(Err(_)) if outgoing.sent == 0 => {
                            return Poll::Ready(Err(broken(true, true, false)));
                        }
                        // What the endpoint has said before it closed counts.
                        Poll::Ready(Err(_)) => (sent, cut) = (true, true),
                        Poll::Pending => {}
                    }
                }
                match received.poll_read(&mut connection.stream, context) {
                    Poll::Ready(Ok(1..)) => return Poll::Ready(Ok(())),
                    Poll::Ready(_) => return Poll::Ready(Err(broken(false, received.is_empty(), false))),
                    Poll::Pending => {}
                }
                if self.is_gone(context) {
                    return Poll::Ready(Err(NoResponse::ClientGone));
                }
                self.timer.poll(context, asking.times.head).map(|()| Err(asking.times.too_late()))
            });
            read.await?;
            loop {
                match self.write_head(received.bytes(), asking, changes, answer)? {
                    Some(HeadProgress::Partial) if received.is_full() => {
                        return Err(broken(false, false, true));
                    }
                    Some(HeadProgress::Partial) => break,
                    Some(HeadProgress::Interim(head)) => received.consume(head),
                    Some(HeadProgress::Whole(head, mut written)) => {
                        received.consume(head);
                        written.reusable &= sent && !cut;
                        return Ok(written);
                    }
                    None => return Err(broken(false, false, true)),
                }
            }
        }
    }

    /// Writes the head of a response to `answer`, if all of it has come; `None` where it can't be read.
    fn write_head(
        &self,
        bytes: &[u8],
        asking: &Asking<'_, '_>,
        changes: &mut Option<ResponseChanges<'_>>,
        answer: &mut Vec<u8>,
    ) -> Result<Option<HeadProgress>, NoResponse> {
        let most = self.context.worker.limits.headers.clamp(USUAL_HEADERS, MOST_LINES);
        let read = match head::response(bytes, asking.request.to_head, most) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(Some(HeadProgress::Partial)),
            Err(_) => return Ok(None),
        };
        let ResponseHead { status, reason, mut fields, length, head, reusable } = read;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let reply = Reply::new(StatusCode::BAD_GATEWAY, "an upgrade that nobody has asked for");
            return Err(NoResponse::Instead(reply));
        }
        if status.is_informational() {
            return Ok(Some(HeadProgress::Interim(head)));
        }
        // Attempts that nobody has asked for aren't counted.
        forward::prepare_response(&mut fields, asking.request.forwarding.rule, 1);
        if status == StatusCode::NO_CONTENT {
            fields.take_away(&CONTENT_LENGTH);
        }
        if matches!(length, BodyLength::Chunked | BodyLength::UntilClose) {
            fields.add(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if let Some(changes) = changes.take() {
            changes.apply(&mut fields);
        }
        answer.clear();
        write_status(answer, status, reason);
        fields.write(answer);
        let close = asking.closing.now();
        self.end_head(answer, fields.has(&DATE), close);
        Ok(Some(HeadProgress::Whole(head, HeadWritten { status, length, reusable, close })))
    }
}
