//! HTTP/1.1 as it mostly is, without hyper: a request that is here whole, sent on with one write and answered with another.
//!
//! ```text
//!  client: one read -> head read in place -> decided -> written to the endpoint -> its head read -> head and body written
//!                  \-> not ordinary: hyper gets the connection and what was read of it
//! ```
//!
//! A connection costs two reads and two writes a request, and one timer that is seldom set. Buffers belong to the thread:
//! a connection has one only while it has bytes.
//!
//! | what | where |
//! | --- | --- |
//! | `head`, `chunks` | pure: what bytes say |
//! | `plan` | a request: decided as everywhere, and as it is sent |
//! | this | a client's connection |
//! | `relay`, `bodies` | its request at an endpoint, the head of the response, and its body |
//! | `wire`, `date` | buffers, timers; the date |
//!
//! Invariant: nothing of a request that isn't ordinary has had any effect here when hyper gets it, and it is decided there
//! by the chance that was drawn here.

mod bodies;
pub(crate) mod chunks;
pub(crate) mod date;
pub(crate) mod head;
pub(crate) mod plan;
mod relay;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use slotmesh_routing::RequestAction;
use tokio::{net::TcpStream, time::Instant};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use self::{
    plan::RequestPlan,
    relay::Forwarded,
    wire::{DeadlineTimer, Outgoing, Quiet, Received},
};
use crate::{
    body::ResponseBody,
    connection::{ClientContext, Http1Connection, Served},
    counts::ClusterStats,
    exchange::{self, FOREVER, InFlight, ResponseChanges, Share},
    inbound,
    reply::Reply,
    series::RequestRecord,
};

/// Time after which an idle connection gives up what it has.
const REST: Duration = Duration::from_secs(1);
/// Room for a head that is kept between two requests.
const USUAL_HEAD: usize = 4 << 10;

/// A client's connection.
struct PlainClient<'c> {
    context: &'c Rc<ClientContext>,
    stream: TcpStream,
    received: Received,
    timer: DeadlineTimer,
    /// The request that is written to the endpoint, and the head that is written to the client.
    out: Vec<u8>,
    response_head: Vec<u8>,
    /// The client has sent something behind the request that is under way.
    spoke: bool,
}

/// All that a request holds until its response is over: given back, and counted, before the last bytes go to the client.
struct Held {
    record: RequestRecord,
    _share: Share,
}

/// Reasons for which a connection ends with a response.
struct Closing<'s> {
    /// The client wants it to.
    asked: bool,
    stop: &'s CancellationToken,
}

impl Closing<'_> {
    fn now(&self) -> bool {
        self.asked || self.stop.is_cancelled()
    }
}

/// Next step after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterRequest {
    /// The next one.
    Next,
    /// hyper: it isn't ordinary, and nothing of it has been done.
    Odd,
    /// The end of the connection, once the client has read the answer.
    Close,
    /// The end of the connection, now.
    Cut,
}

/// Next event of a connection without a request.
enum Awaited {
    Bytes,
    Rest,
    End,
}

/// Serves ordinary requests until the connection is over or idle, or one isn't ordinary.
pub(crate) async fn serve(
    context: &Rc<ClientContext>,
    connection: Http1Connection,
    stop: &CancellationToken,
) -> Served {
    let Http1Connection { stream, front } = connection;
    if front.len() > wire::BUFFER {
        return Served::Odd(Http1Connection { stream, front });
    }
    let received = Received::new(&context.worker.buffers, &front);
    drop(front);
    let timer = DeadlineTimer::default();
    let (out, response_head) = (Vec::new(), Vec::new());
    let mut client = PlainClient { context, stream, received, timer, out, response_head, spoke: false };
    let mut stopped = pin!(stop.cancelled());
    loop {
        if client.received.is_empty() {
            match client.wait(stop, stopped.as_mut()).await {
                Awaited::Bytes => {}
                Awaited::Rest => return Served::Idle(client.into_connection()),
                Awaited::End => return Served::Over,
            }
        }
        match client.request(stop).await {
            AfterRequest::Next => {}
            AfterRequest::Odd => return Served::Odd(client.into_connection()),
            AfterRequest::Close => {
                let stream = client.stream;
                inbound::close(stream).await;
                return Served::Over;
            }
            AfterRequest::Cut => return Served::Over,
        }
    }
}

impl PlainClient<'_> {
    fn into_connection(self) -> Http1Connection {
        let front = self.received.bytes().to_vec();
        Http1Connection { stream: self.stream, front }
    }

    /// Waits for bytes of the next request.
    async fn wait(
        &mut self,
        stop: &CancellationToken,
        mut stopped: Pin<&mut WaitForCancellationFuture<'_>>,
    ) -> Awaited {
        self.spoke = false;
        let until = Instant::now() + REST;
        poll_fn(|context| {
            match self.received.poll_read(&mut self.stream, context) {
                Poll::Ready(Ok(1..)) => return Poll::Ready(Awaited::Bytes),
                Poll::Ready(_) => return Poll::Ready(Awaited::End),
                Poll::Pending => {}
            }
            if stop.is_cancelled()
                || stopped.as_mut().poll(context).is_ready()
                || self.timer.poll(context, Some(until)).is_ready()
            {
                return Poll::Ready(Awaited::Rest);
            }
            Poll::Pending
        })
        .await
    }

    /// Serves the request that the received bytes begin with.
    async fn request(&mut self, stop: &CancellationToken) -> AfterRequest {
        let context = self.context;
        let worker = &context.worker;
        let Some(http) = context.http() else { return AfterRequest::Odd };
        let Ok(table) = exchange::routes(context, &http) else { return AfterRequest::Odd };
        let began = Instant::now();
        // Whoever hides a request behind another one is hyper's: none is ambiguous here.
        context.state.begin_request();
        let in_flight = InFlight::new(&context.state);
        let key = (context.origin, context.peer.ip().to_canonical());
        let permit = match worker.admission.try_enter(key) {
            Some(permit) => Some(permit),
            None => Box::pin(worker.admission.enter(key)).await.ok(),
        };
        let mut out = std::mem::take(&mut self.out);
        let seed = worker.draw();
        let planned = permit.and_then(|permit| {
            plan::plan(context, &http, &table, self.received.bytes(), seed, &mut out)
                .map(|plan| (permit, plan))
        });
        let Some((permit, plan)) = planned else {
            context.state.unbegin_request();
            context.seed.set(Some(seed));
            return AfterRequest::Odd;
        };
        let RequestPlan { route, delay, action, cluster, response, consumed, to_head, repeatable, close } =
            plan;
        self.received.consume(consumed);
        let record = RequestRecord::since(context.clone(), false, began);
        let mut held = Held { record, _share: Share::new(in_flight, permit) };
        held.record.decided(route, cluster.as_ref().map_or(&http.service, |cluster| &cluster.service));
        if let Some(delay) = delay
            && !self.pause(delay.min(FOREVER)).await
        {
            return AfterRequest::Cut;
        }
        let closing = Closing { asked: close, stop };
        let after = match (action, cluster) {
            (RequestAction::Forward(forwarding), Some(cluster)) => {
                let request =
                    Forwarded { http: &http, forwarding: &forwarding, cluster, began, to_head, repeatable };
                self.forward(request, response, held, &mut out, &closing).await
            }
            (RequestAction::Forward(forwarding), None) => {
                let status = forwarding.rule.cluster_not_found;
                let reply = Reply::new(status, "the cluster isn't known");
                self.answer(reply, None, None, (to_head, closing.now()), held, &mut out).await
            }
            (local, _) => {
                let (reply, _) = exchange::local_reply(local)
                    .unwrap_or_else(|| (Reply::new(StatusCode::INTERNAL_SERVER_ERROR, ""), false));
                self.answer(reply, Some(response), None, (to_head, closing.now()), held, &mut out).await
            }
        };
        out.clear();
        out.shrink_to(USUAL_HEAD);
        self.out = out;
        after
    }

    /// Waits so long; false where the client has gone meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        let until = Some(Instant::now() + time);
        poll_fn(|context| {
            if self.is_gone(context) {
                return Poll::Ready(false);
            }
            self.timer.poll(context, until).map(|()| true)
        })
        .await
    }

    /// True where the client has closed; else the task is woken when it does.
    fn is_gone(&mut self, context: &mut Context<'_>) -> bool {
        if self.spoke {
            return false;
        }
        let quiet = wire::poll_quiet(&self.stream, context);
        self.spoke = quiet == Quiet::Spoke;
        quiet == Quiet::Gone
    }

    /// Answers with what was made here. `stats`: the counts of the cluster that was asked.
    async fn answer(
        &mut self,
        reply: Reply,
        changes: Option<ResponseChanges<'_>>,
        stats: Option<&ClusterStats>,
        (to_head, close): (bool, bool),
        mut held: Held,
        out: &mut Vec<u8>,
    ) -> AfterRequest {
        let close = close || reply.close;
        let mut response = reply.into_response(false);
        if let Some(changes) = changes {
            changes.apply(response.headers_mut());
        }
        stats.unwrap_or(&self.context.worker.local_stats).response(response.status().as_u16());
        held.record.status(response.status());
        drop(held);
        out.clear();
        write_status(out, response.status(), response.status().canonical_reason().unwrap_or_default());
        write_map(out, response.headers());
        self.end_head(out, response.headers().contains_key(http::header::DATE), close);
        if let ResponseBody::Full(Some(body)) = response.body()
            && !to_head
        {
            out.extend_from_slice(body);
        }
        match self.send(Outgoing::new([out, &[], &[]]), None).await {
            true if close => AfterRequest::Close,
            true => AfterRequest::Next,
            false => AfterRequest::Cut,
        }
    }

    /// Appends what a response's head has besides, and its end.
    fn end_head(&self, out: &mut Vec<u8>, has_date: bool, close: bool) {
        if !has_date {
            self.context.worker.date.write(out);
        }
        if close {
            head::write_field(out, b"connection", b"close");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Sends to the client; false where it has gone, or the time for it is over.
    async fn send(&mut self, mut outgoing: Outgoing<'_>, until: Option<Instant>) -> bool {
        poll_fn(|context| {
            let before = outgoing.sent;
            let sent = outgoing.poll_send(&mut self.stream, context);
            if outgoing.sent > before {
                self.context.state.note_blocked(false);
            }
            match sent {
                Poll::Ready(sent) => {
                    self.context.state.note_blocked(false);
                    Poll::Ready(sent.is_ok())
                }
                Poll::Pending => {
                    self.context.state.note_blocked(true);
                    self.timer.poll(context, until).map(|()| false)
                }
            }
        })
        .await
    }
}

/// Appends a status line.
fn write_status(out: &mut Vec<u8>, status: StatusCode, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends the fields of a map but those that are about the connection.
fn write_map(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers.iter().filter(|(name, _)| *name != http::header::CONNECTION) {
        head::write_field(out, name.as_str().as_bytes(), value.as_bytes());
    }
}
