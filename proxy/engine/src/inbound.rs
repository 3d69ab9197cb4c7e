//! A client's connection: its bytes, counted and followed, and its state, by which slow ones are found.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use crate::{downstream::ClientProtocol, framing::Framing};

/// First bytes of HTTP/2 with prior knowledge.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A request that its client takes back within this time was none; so many, and more than half of all of the connection,
/// end it. As in Envoy.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(1);
const MOST_TAKEN_BACK: u64 = 500;
/// Time after which an idle connection gives its buffers back.
const REST: Duration = Duration::from_secs(1);
/// Bytes of a request's first line that are looked at to tell its protocol.
const FIRST_LINE: usize = 4_096;

/// State of a connection, shared with whoever looks for slow ones. All of it is of one worker; it is `Send` because
/// upgraded connections have to be.
#[derive(Debug)]
pub(crate) struct ClientState {
    born: Instant,
    /// Milliseconds from `born`, and 1, since when a head has begun and isn't complete; 0 for none.
    head_since: AtomicU64,
    /// The same, since when the client takes nothing of what is written.
    blocked_since: AtomicU64,
    /// The same, since when there is no request.
    idle_since: AtomicU64,
    /// Requests in flight.
    requests: AtomicU64,
    /// It isn't HTTP/1 any more, or never was.
    opaque: AtomicBool,
    /// Numbers of requests with two lengths, lowest first.
    ambiguous: Mutex<Vec<u64>>,
    /// Requests that have come to the service.
    served: AtomicU64,
    /// Requests that the client has taken back at once.
    taken_back: AtomicU64,
    /// Numbers of requests whose heads have come, where the last one has come whole; else the largest number.
    complete: AtomicU64,
    /// It is without buffers.
    at_rest: AtomicBool,
    /// It is to end.
    ended: AtomicBool,
    kill: Notify,
    rest: Notify,
}

impl ClientState {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            head_since: AtomicU64::new(0),
            blocked_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(1),
            requests: AtomicU64::new(0),
            opaque: AtomicBool::new(false),
            ambiguous: Mutex::default(),
            served: AtomicU64::new(0),
            taken_back: AtomicU64::new(0),
            complete: AtomicU64::new(u64::MAX),
            at_rest: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            kill: Notify::new(),
            rest: Notify::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn since(&self, moment: &AtomicU64) -> Option<Duration> {
        match moment.load(Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(self.now().saturating_sub(since))),
        }
    }

    /// Bytes are no requests from now on.
    pub(crate) fn make_opaque(&self) {
        self.opaque.store(true, Relaxed);
        self.head_since.store(0, Relaxed);
    }

    /// Counts a request that begins, and tells if it has two lengths.
    pub(crate) fn begin_request(&self) -> bool {
        self.requests.fetch_add(1, Relaxed);
        self.idle_since.store(0, Relaxed);
        let number = self.served.fetch_add(1, Relaxed);
        let mut ambiguous = self.ambiguous.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ambiguous.retain(|of| *of >= number);
        ambiguous.first() == Some(&number)
    }

    /// Begins no request after all: somebody else does it.
    pub(crate) fn unbegin_request(&self) {
        self.served.fetch_sub(1, Relaxed);
    }

    /// Notes if the client takes what is written.
    pub(crate) fn note_blocked(&self, blocked: bool) {
        if !blocked {
            self.blocked_since.store(0, Relaxed);
        } else if self.blocked_since.load(Relaxed) == 0 {
            self.blocked_since.store(self.now(), Relaxed);
        }
    }

    pub(crate) fn end_request(&self) {
        if self.requests.fetch_sub(1, Relaxed) == 1 {
            self.idle_since.store(self.now(), Relaxed);
        }
    }

    /// Ends the connection where the client has kept it waiting for too long: for a head, for what is written, or for a
    /// request.
    pub(crate) fn end_if_slow(&self, head: Duration, blocked: Option<Duration>, idle: Option<Duration>) {
        let over =
            |moment: &AtomicU64, limit: Duration| self.since(moment).is_some_and(|since| since >= limit);
        if over(&self.head_since, head)
            || blocked.is_some_and(|blocked| over(&self.blocked_since, blocked))
            || idle.is_some_and(|idle| over(&self.idle_since, idle))
        {
            self.end();
        } else if !self.at_rest.load(Relaxed) && over(&self.idle_since, REST) && self.may_rest() {
            self.rest.notify_one();
        }
    }

    /// Waits until the connection is to give its buffers back, if it may.
    pub(crate) async fn told_to_rest(&self) {
        self.rest.notified().await;
    }

    /// True where nothing of a request or response is under way.
    pub(crate) fn may_rest(&self) -> bool {
        self.requests.load(Relaxed) == 0
            && self.blocked_since.load(Relaxed) == 0
            && !self.opaque.load(Relaxed)
            && self.complete.load(Relaxed) == self.served.load(Relaxed)
    }

    /// Notes that the connection has no buffers, or has them again.
    pub(crate) fn rest(&self, rests: bool) {
        self.at_rest.store(rests, Relaxed);
    }

    /// Counts a request that the client has taken back so long after it began. A client that does so again and again is
    /// left: each costs it nothing, and us a request to an endpoint.
    pub(crate) fn take_back(&self, age: Duration) {
        if age >= TAKEN_BACK_WITHIN {
            return;
        }
        let taken_back = self.taken_back.fetch_add(1, Relaxed) + 1;
        if taken_back >= MOST_TAKEN_BACK && taken_back > self.served.load(Relaxed) / 2 {
            self.end();
        }
    }

    /// Ends the connection, whatever it does.
    pub(crate) fn end(&self) {
        self.ended.store(true, Relaxed);
        self.kill.notify_one();
    }

    /// True where the connection is to end.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Waits until the connection is to end.
    pub(crate) async fn ended(&self) {
        self.kill.notified().await;
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct ClientStream {
    /// There until it is dropped.
    stream: Option<TcpStream>,
    /// Who gets the socket when the protocol is done with it.
    after: Option<oneshot::Sender<TcpStream>>,
    /// Bytes that were read before it was known who is to have them.
    front: Vec<u8>,
    given: usize,
    state: Arc<ClientState>,
    framing: Option<Box<Framing>>,
}

/// Outcome of a look at the first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FirstBytes {
    Protocol(ClientProtocol),
    Unknown,
    /// The client has closed before it said anything.
    Closed,
}

impl ClientStream {
    /// The connection, and its socket when the protocol is done with it.
    /// `front`: bytes that were read from it and not used.
    pub(crate) fn new(
        stream: TcpStream,
        front: Vec<u8>,
        state: Arc<ClientState>,
    ) -> (Self, oneshot::Receiver<TcpStream>) {
        let (after, socket) = oneshot::channel();
        let stream = Some(stream);
        (Self { stream, after: Some(after), front, given: 0, state, framing: None }, socket)
    }

    fn stream(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Waits until the client has said something, or has gone.
    pub(crate) async fn readable(&mut self) -> io::Result<()> {
        self.stream()?.readable().await
    }

    /// Reads until the protocol is known. What was read is kept for whoever reads next.
    pub(crate) async fn first_bytes(&mut self) -> io::Result<FirstBytes> {
        loop {
            if let Some(found) = protocol(&self.front) {
                return Ok(found);
            }
            let mut front = std::mem::take(&mut self.front);
            front.reserve(FIRST_LINE);
            let read = self.stream()?.read_buf(&mut front).await;
            self.front = front;
            if read? == 0 {
                let closed = self.front.is_empty();
                return Ok(if closed { FirstBytes::Closed } else { FirstBytes::Unknown });
            }
        }
    }

    /// Takes back bytes that were read and not used: they are read again.
    pub(crate) fn give_back(&mut self, unused: &[u8]) {
        self.front = [unused, &self.front[self.given..]].concat();
        self.given = 0;
    }

    /// The socket and the bytes that were read and not used.
    pub(crate) fn into_parts(mut self) -> Option<(TcpStream, Vec<u8>)> {
        let stream = self.stream.take()?;
        Some((stream, self.front.split_off(self.given)))
    }

    /// Follows the requests of HTTP/1 from here on.
    pub(crate) fn follow_requests(&mut self) {
        let mut framing = Framing::starting_at(self.state.served.load(Relaxed));
        follow(&mut framing, &self.state, &self.front);
        self.framing = Some(Box::new(framing));
    }
}

fn follow(framing: &mut Framing, state: &ClientState, bytes: &[u8]) {
    framing.follow(bytes, |head| {
        if head.ambiguous {
            state.ambiguous.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(head.number);
        }
    });
    state.complete.store(framing.complete().unwrap_or(u64::MAX), Relaxed);
    if !framing.within_head() {
        state.head_since.store(0, Relaxed);
    } else if state.head_since.load(Relaxed) == 0 {
        state.head_since.store(state.now(), Relaxed);
    }
}

/// The protocol that bytes show, once there are enough.
fn protocol(bytes: &[u8]) -> Option<FirstBytes> {
    if bytes.is_empty() {
        return None;
    }
    if PREFACE.starts_with(&bytes[..bytes.len().min(PREFACE.len())]) {
        let whole = bytes.len() >= PREFACE.len();
        return whole.then_some(FirstBytes::Protocol(ClientProtocol::Http2));
    }
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let bytes = &bytes[start..];
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let method = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let is_method = method > 0 && method <= 32 && line[..method].iter().all(u8::is_ascii_uppercase);
    if !is_method {
        return Some(FirstBytes::Unknown);
    }
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match end {
        None if bytes.len() < FIRST_LINE => None,
        // A long line is somebody's request; its version is the parser's matter.
        None => Some(FirstBytes::Protocol(ClientProtocol::Http11)),
        Some(_) if line.ends_with(b" HTTP/1.1") => Some(FirstBytes::Protocol(ClientProtocol::Http11)),
        Some(_) if line.ends_with(b" HTTP/1.0") => Some(FirstBytes::Protocol(ClientProtocol::Http10)),
        Some(_) => Some(FirstBytes::Unknown),
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given < this.front.len() {
            let some = (this.front.len() - this.given).min(buffer.remaining());
            buffer.put_slice(&this.front[this.given..this.given + some]);
            this.given += some;
            if this.given == this.front.len() {
                (this.front, this.given) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(this.stream()?.poll_read(context, buffer))?;
        if let Some(framing) = &mut this.framing
            && !this.state.opaque.load(Relaxed)
        {
            follow(framing, &this.state, &buffer.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if let (Some(stream), Some(after)) = (self.stream.take(), self.after.take()) {
            // Where nobody waits for it, it is closed.
            drop(after.send(stream));
        }
    }
}

/// Closes a connection so that its last answer arrives: where the client is still sending, closing at once would reset
/// the connection, and the client's kernel would throw away what it hasn't read.
pub(crate) async fn close(mut stream: TcpStream) {
    /// Time and bytes that the client has for noticing.
    const TIME: Duration = Duration::from_secs(1);
    const BYTES: usize = 256 << 10;
    let drained = async {
        stream.shutdown().await?;
        let mut buffer = [0; 4_096];
        let mut sum = 0;
        while sum < BYTES {
            match stream.read(&mut buffer).await? {
                0 => break,
                some => sum += some,
            }
        }
        Ok::<_, io::Error>(())
    };
    // It is closed either way.
    drop(timeout(TIME, drained).await);
}

impl ClientStream {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        self.state.note_blocked(written.is_pending());
        written
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream()?.poll_write_vectored(context, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        use ClientProtocol::{Http2, Http10, Http11};
        let known = |protocol| Some(FirstBytes::Protocol(protocol));
        let long = [b"GET /".as_slice(), &[b'a'; FIRST_LINE]].concat();
        for (bytes, expected) in [
            (b"".as_slice(), None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", None),
            (PREFACE, known(Http2)),
            (b"P", None),
            (b"GET / HT", None),
            (b"GET / HTTP/1.1\r\n", known(Http11)),
            (b"\r\nGET / HTTP/1.0\r\n", known(Http10)),
            (b"GET / SMTP\r\n", Some(FirstBytes::Unknown)),
            (b"\x16\x03\x01", Some(FirstBytes::Unknown)),
            (b"SSH-2.0-x\r\n", Some(FirstBytes::Unknown)),
            (&long, known(Http11)),
        ] {
            assert_eq!(protocol(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_connections_are_ended_and_others_are_not() {
        let is_killed = |state: &ClientState| {
            let mut killed = std::pin::pin!(state.ended());
            killed.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
        };
        let minute = Duration::from_secs(60);
        let state = ClientState::new();
        let mut framing = Framing::new();
        follow(&mut framing, &state, b"GET / HTTP/1.1\r\n");
        tokio::time::advance(Duration::from_secs(10)).await;
        state.end_if_slow(Duration::from_secs(11), None, None);
        assert!(!is_killed(&state));
        state.end_if_slow(Duration::from_secs(10), None, None);
        assert!(is_killed(&state));
        follow(&mut framing, &state, b"\r\n");
        assert!(!state.begin_request());
        tokio::time::advance(minute).await;
        state.end_if_slow(Duration::from_secs(10), Some(minute), Some(minute));
        assert!(!is_killed(&state), "a request is in flight");
        state.end_request();
        tokio::time::advance(minute).await;
        state.end_if_slow(Duration::from_secs(10), Some(minute), Some(minute));
        assert!(is_killed(&state), "it is idle");
    }
}
