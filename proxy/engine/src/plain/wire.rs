//! Buffers that belong to the thread, and one timer a connection: waiting costs next to nothing.

use std::{
    cell::RefCell,
    future::Future as _,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// Bytes of a buffer.
pub(crate) const BUFFER: usize = 64 << 10;
/// Buffers that a worker keeps for the next that needs one; further ones are given back.
const KEPT: usize = 16;

/// The buffers of a worker that nobody has. The one that was used last is given out first: it is in the cache.
#[derive(Debug, Default)]
pub(crate) struct ReadBuffers(RefCell<Vec<Box<[u8]>>>);

impl ReadBuffers {
    fn take(&self) -> Box<[u8]> {
        let kept = self.0.borrow_mut().pop();
        kept.unwrap_or_else(|| vec![0; BUFFER].into())
    }

    fn put(&self, buffer: Box<[u8]>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() < KEPT {
            kept.push(buffer);
        }
    }

    /// Gives back all buffers but one.
    pub(crate) fn tidy(&self) {
        self.0.borrow_mut().truncate(1);
    }
}

/// Bytes that were read from a connection and aren't used yet, and the buffer for the next ones. It has a buffer only
/// while there are bytes.
#[derive(Debug)]
pub(crate) struct Received {
    buffers: Rc<ReadBuffers>,
    buffer: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.release();
    }
}

impl Received {
    pub(crate) fn new(buffers: &Rc<ReadBuffers>, front: &[u8]) -> Self {
        let mut received = Self { buffers: buffers.clone(), buffer: None, start: 0, end: 0 };
        let front = &front[..front.len().min(BUFFER)];
        if !front.is_empty() {
            let mut buffer = buffers.take();
            buffer[..front.len()].copy_from_slice(front);
            received.buffer = Some(buffer);
            received.end = front.len();
        }
        received
    }

    fn release(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.buffers.put(buffer);
        }
        (self.start, self.end) = (0, 0);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| &buffer[self.start..self.end])
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Leaves the first bytes.
    pub(crate) fn consume(&mut self, some: usize) {
        self.start += some;
        if self.start >= self.end {
            self.release();
        }
    }

    /// True where no further byte fits behind those that there are.
    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == BUFFER
    }

    /// Reads behind the bytes that there are; 0 at the connection's end.
    pub(crate) fn poll_read(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| self.buffers.take());
        if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut buffer[self.end..]);
        let polled = Pin::new(stream).poll_read(context, &mut room);
        let some = room.filled().len();
        self.end += some;
        self.buffer = Some(buffer);
        if self.end == 0 {
            self.release();
        }
        polled.map_ok(|()| some)
    }
}

/// Parts of a message that are sent together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'p> {
    parts: [&'p [u8]; 3],
    pub sent: usize,
}

impl<'p> Outgoing<'p> {
    pub(crate) const fn new(parts: [&'p [u8]; 3]) -> Self {
        Self { parts, sent: 0 }
    }

    /// Sends until all is sent, or the connection takes no more for now.
    pub(crate) fn poll_send(
        &mut self,
        stream: &mut TcpStream,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut skip = self.sent;
            let mut slices = [io::IoSlice::new(&[]); 3];
            let mut count = 0;
            for part in self.parts {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices[count] = io::IoSlice::new(&part[skipped..]);
                    count += 1;
                }
            }
            let stream = Pin::new(&mut *stream);
            let sent = match &slices[..count] {
                [] => return Poll::Ready(Ok(())),
                [only] => stream.poll_write(context, only),
                several => stream.poll_write_vectored(context, several),
            };
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                some => self.sent += some,
            }
        }
    }
}

/// A timer that is set again and again. It is moved to earlier moments only: one that ends too early is set once more,
/// which happens once a second at most, as an idle connection waits for a second.
#[derive(Debug, Default)]
pub(crate) struct DeadlineTimer {
    sleep: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl DeadlineTimer {
    /// Ready when the moment has come; never where there is none.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, until: Option<Instant>) -> Poll<()> {
        let Some(until) = until else { return Poll::Pending };
        let (armed, sleep) = self.sleep.get_or_insert_with(|| (until, Box::pin(sleep_until(until))));
        if until < *armed {
            *armed = until;
            sleep.as_mut().reset(until);
        }
        while sleep.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            *armed = until;
            sleep.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// State of a connection from which nothing is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quiet {
    Silent,
    /// It has said something that nobody has read yet.
    Spoke,
    Gone,
}

/// Looks if a connection has said something, without reading it.
pub(crate) fn peek(stream: &TcpStream) -> Quiet {
    let peeked = stream.try_io(Interest::READABLE, || {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        socket2::SockRef::from(stream).peek(&mut byte)
    });
    match peeked {
        Ok(0) => Quiet::Gone,
        Ok(_) => Quiet::Spoke,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Quiet::Silent,
        Err(_) => Quiet::Gone,
    }
}

/// Looks at a connection, and has the task woken that asks when it says something while it is silent.
pub(crate) fn poll_quiet(stream: &TcpStream, context: &mut Context<'_>) -> Quiet {
    while let Poll::Ready(ready) = stream.poll_read_ready(context) {
        match ready.map_or(Quiet::Gone, |()| peek(stream)) {
            Quiet::Silent => {}
            found => return found,
        }
    }
    Quiet::Silent
}
