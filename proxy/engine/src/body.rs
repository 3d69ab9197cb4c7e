//! Bodies on their way through.
//!
//! A request's body can be kept while it is sent, up to a bound, so that it can be sent once more ([`ReplayBody`]). A
//! response's body holds what its request holds (turn, connection, counts) until it ends ([`ResponseBody`]), and ends
//! with an error when its time is over, so that the client notices.

use std::{
    cell::RefCell,
    collections::VecDeque,
    error::Error,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{exchange::FOREVER, forward::Limit, series::RequestRecord};

/// Any fault of a body.
pub(crate) type BodyError = Box<dyn Error + Send + Sync>;

/// The time in which a body had to move, or to end, is over.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the time for it is over")]
pub(crate) struct BodyTimeout;

/// The body of a request that is sent upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Streamed(StreamedBody),
    Replay(ReplayBody),
    /// All of it is here.
    Kept(VecDeque<Bytes>),
}

/// A body that is passed through as it comes; it tells when it has ended.
#[derive(Debug)]
pub(crate) struct StreamedBody {
    pub incoming: Incoming,
    pub progress: Rc<Progress>,
}

/// Progress of a request's body.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    ended: std::cell::Cell<bool>,
    /// When something of it came last.
    moved: std::cell::Cell<Option<Instant>>,
    changed: tokio::sync::Notify,
}

impl Progress {
    pub(crate) fn ended_already() -> Rc<Self> {
        let progress = Self::default();
        progress.ended.set(true);
        Rc::new(progress)
    }

    fn moved(&self) {
        self.moved.set(Some(Instant::now()));
    }

    fn end(&self) {
        if !self.ended.replace(true) {
            self.changed.notify_waiters();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// When something of it came last.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.moved.get()
    }

    /// Waits until the whole body has come.
    pub(crate) async fn end_of_request(&self) {
        while !self.ended.get() {
            self.changed.notified().await;
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Streamed(body) => {
                let frame = ready!(Pin::new(&mut body.incoming).poll_frame(context));
                body.progress.moved();
                if !matches!(frame, Some(Ok(_))) || body.incoming.is_end_stream() {
                    body.progress.end();
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Self::Replay(body) => body.poll_next(context),
            Self::Kept(all) => Poll::Ready(all.pop_front().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streamed(body) => body.incoming.is_end_stream(),
            Self::Replay(body) => body.is_end(),
            Self::Kept(all) => all.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streamed(body) => body.incoming.size_hint(),
            Self::Replay(body) => body.hint,
            Self::Kept(all) => SizeHint::with_exact(all.iter().map(|bytes| bytes.len() as u64).sum()),
        }
    }
}

/// A body that is kept while it is read. One reader at a time goes on where the kept part ends; a new reader begins at
/// the front.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    shared: Rc<RefCell<Shared>>,
    hint: SizeHint,
}

#[derive(Debug)]
struct Shared {
    incoming: Option<Incoming>,
    kept: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    size: usize,
    most: usize,
    /// It was larger than the bound, so it isn't kept.
    overflown: bool,
    failed: bool,
    /// Counts the readers: only the last one reads on.
    reader: u64,
    progress: Rc<Progress>,
}

/// A reader of a [`Replay`].
#[derive(Debug)]
pub(crate) struct ReplayBody {
    shared: Rc<RefCell<Shared>>,
    hint: SizeHint,
    number: u64,
    next: usize,
    gave_trailers: bool,
}

impl Replay {
    /// Keeps up to `most` bytes.
    pub(crate) fn new(incoming: Incoming, most: usize, progress: Rc<Progress>) -> Self {
        let hint = incoming.size_hint();
        let shared = Shared {
            incoming: Some(incoming),
            kept: Vec::new(),
            trailers: None,
            size: 0,
            most,
            overflown: false,
            failed: false,
            reader: 0,
            progress,
        };
        Self { shared: Rc::new(RefCell::new(shared)), hint }
    }

    /// True while the front is there for another reader.
    pub(crate) fn is_kept(&self) -> bool {
        let shared = self.shared.borrow();
        !shared.overflown && !shared.failed
    }

    /// A reader from the front; `None` where the front isn't kept any more.
    pub(crate) fn reader(&self) -> Option<ReplayBody> {
        if !self.is_kept() {
            return None;
        }
        let mut shared = self.shared.borrow_mut();
        shared.reader += 1;
        Some(ReplayBody {
            shared: self.shared.clone(),
            hint: self.hint,
            number: shared.reader,
            next: 0,
            gave_trailers: false,
        })
    }

    /// The whole body, if all of it has come and is kept.
    pub(crate) fn whole(&self) -> Option<Vec<Bytes>> {
        let shared = self.shared.borrow();
        let whole = shared.incoming.is_none() && !shared.overflown && !shared.failed;
        whole.then(|| shared.kept.clone())
    }
}

impl ReplayBody {
    fn is_end(&self) -> bool {
        let shared = self.shared.borrow();
        let at_end = self.next >= shared.kept.len() && (self.gave_trailers || shared.trailers.is_none());
        at_end && shared.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if shared.reader != self.number {
            return Poll::Ready(Some(Err("another attempt reads this body".into())));
        }
        if let Some(bytes) = shared.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if let Some(incoming) = &mut shared.incoming {
            let frame = ready!(Pin::new(&mut *incoming).poll_frame(context));
            shared.progress.moved();
            let ends = incoming.is_end_stream();
            match frame {
                None => {
                    shared.incoming = None;
                    shared.progress.end();
                }
                Some(Err(error)) => {
                    shared.failed = true;
                    shared.progress.end();
                    return Poll::Ready(Some(Err(error.into())));
                }
                Some(Ok(frame)) => {
                    if ends {
                        shared.incoming = None;
                        shared.progress.end();
                    }
                    match frame.into_data() {
                        Ok(data) => {
                            shared.keep(&data, &mut self.next);
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Err(frame) => shared.trailers = frame.into_trailers().ok(),
                    }
                }
            }
        }
        if !self.gave_trailers
            && let Some(trailers) = &shared.trailers
        {
            self.gave_trailers = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        if shared.incoming.is_some() {
            // Trailers end a body.
            shared.incoming = None;
            shared.progress.end();
        }
        Poll::Ready(None)
    }
}

impl Shared {
    fn keep(&mut self, data: &Bytes, next: &mut usize) {
        self.size += data.len();
        if self.overflown {
            return;
        }
        if self.size > self.most {
            self.overflown = true;
            self.kept = Vec::new();
            *next = 0;
        } else {
            self.kept.push(data.clone());
            *next = self.kept.len();
        }
    }
}

/// The body of a response to a client.
pub(crate) enum ResponseBody {
    /// Made here.
    Full(Option<Bytes>),
    /// From upstream.
    Upstream(Box<UpstreamBody>),
}

/// Something that learns how a response ended.
pub(crate) trait ResponseEnd {
    /// The whole response has been passed on. It isn't called where the client or the upstream has gone before.
    fn complete(&mut self);
    /// The upstream's part ended with a fault.
    fn failed(&mut self);
}

/// A response's body from upstream.
pub(crate) struct UpstreamBody {
    incoming: Incoming,
    /// Ends when the whole response has to be over.
    limit: Limit,
    /// How long nothing may move.
    idle: Option<Duration>,
    /// Ends when nothing has moved for so long; there since nothing came for the first time.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Something has come since.
    moved: bool,
    end: Option<Box<dyn ResponseEnd>>,
    record: Option<RequestRecord>,
}

impl UpstreamBody {
    pub(crate) fn wrap(
        incoming: Incoming,
        limit: Limit,
        idle: Option<Duration>,
        mut end: Box<dyn ResponseEnd>,
    ) -> ResponseBody {
        if incoming.is_end_stream() {
            end.complete();
            return ResponseBody::Full(None);
        }
        ResponseBody::Upstream(Box::new(Self {
            incoming,
            limit,
            idle,
            waiting: None,
            moved: false,
            end: Some(end),
            record: None,
        }))
    }

    /// Notes that all of it has come, with these trailers.
    fn complete(&mut self, trailers: Option<&HeaderMap>) {
        if let Some(mut end) = self.end.take() {
            end.complete();
        }
        if let (Some(mut record), Some(trailers)) = (self.record.take(), trailers) {
            record.ended(trailers);
        }
    }

    /// Polled when nothing is there: true once nothing has come for too long.
    fn waits_too_long(&mut self, context: &mut Context<'_>) -> bool {
        let Some(idle) = self.idle else { return false };
        let until = || Instant::now() + idle.min(FOREVER);
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(until())));
        if std::mem::take(&mut self.moved) {
            waiting.as_mut().reset(until());
        }
        waiting.as_mut().poll(context).is_ready()
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(mut end) = self.end.take() {
            end.failed();
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl ResponseBody {
    /// The request counts as answered when all of this is passed on.
    pub(crate) fn record(&mut self, record: RequestRecord) {
        match self {
            Self::Full(_) => drop(record),
            Self::Upstream(body) => body.record = Some(record),
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = match self.get_mut() {
            Self::Full(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => body,
        };
        if body.limit.as_mut().poll(context).is_ready() {
            return body.fail(Box::new(BodyTimeout));
        }
        match Pin::new(&mut body.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                if body.incoming.is_end_stream() || frame.is_trailers() {
                    body.complete(frame.trailers_ref());
                }
                body.moved = true;
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => body.fail(error.into()),
            Poll::Ready(None) => {
                body.complete(None);
                Poll::Ready(None)
            }
            Poll::Pending if body.waits_too_long(context) => body.fail(Box::new(BodyTimeout)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Upstream(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Upstream(body) => body.incoming.size_hint(),
        }
    }
}
