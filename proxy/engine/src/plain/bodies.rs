//! Bodies of responses, from an endpoint to the client: as they come, to the end that the head said.
//!
//! Invariant: a connection goes back to its pool only when its response has ended there, with nothing behind it.

use std::{future::poll_fn, task::Poll};

use tokio::time::Instant;

use super::{
    PlainClient,
    chunks::ChunkFollower,
    head::BodyLength,
    relay::{Answering, ResponseTimes, earlier},
    wire::Outgoing,
};
use crate::{attempt::Target, exchange::FOREVER};

/// Next event of a response's body.
enum Moved {
    Bytes,
    /// The endpoint has closed.
    End,
    /// The endpoint's connection is broken, or took too long.
    Fault,
    ClientGone,
}

/// Outcome of a response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Whole,
    Fault,
    ClientGone,
}

/// All that is given back when the last bytes of a response are here.
struct Settling<'t, H> {
    target: &'t Target,
    held: Option<H>,
}

impl<H> Settling<'_, H> {
    /// Gives it back. `last`: received bytes that are the response's.
    fn settle(&mut self, answering: &mut Answering, last: usize) {
        drop(self.held.take());
        let nothing_behind = answering.received.bytes().len() == last;
        if let Some(connection) = answering.connection.take_if(|_| answering.reusable && nothing_behind) {
            let Target { worker, cluster, .. } = self.target;
            let most = cluster.config.requests_per_connection;
            answering.pool.give_back_plain(connection, &worker.limits, most);
        }
    }
}

impl PlainClient<'_> {
    /// Sends a response to the client. `held` is given back, and the connection to the endpoint where it can be used again,
    /// before the last bytes are sent.
    pub(super) async fn pass<H>(
        &mut self,
        mut answering: Answering,
        target: &Target,
        times: ResponseTimes,
        head: &mut Vec<u8>,
        held: H,
    ) -> Passed {
        let mut settling = Settling { target, held: Some(held) };
        match answering.length {
            BodyLength::None => {
                settling.settle(&mut answering, 0);
                self.send_until(Outgoing::new([head, &[], &[]]), times).await
            }
            BodyLength::Sized(length) => {
                self.pass_sized(&mut answering, length, times, head, &mut settling).await
            }
            BodyLength::Chunked => self.pass_chunks(&mut answering, times, head, &mut settling).await,
            BodyLength::UntilClose => self.pass_rest(&mut answering, times, head, &mut settling).await,
        }
    }

    async fn send_until(&mut self, outgoing: Outgoing<'_>, times: ResponseTimes) -> Passed {
        if self.send(outgoing, times.limit).await { Passed::Whole } else { Passed::ClientGone }
    }

    async fn pass_sized(
        &mut self,
        answering: &mut Answering,
        length: u64,
        times: ResponseTimes,
        head: &[u8],
        settling: &mut Settling<'_, impl Sized>,
    ) -> Passed {
        let mut left = length;
        let mut head = head;
        loop {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(answering.received.bytes().len());
            if some as u64 == left {
                settling.settle(answering, some);
            }
            let bytes = answering.received.bytes();
            let sent = self.send_until(Outgoing::new([head, &bytes[..some], &[]]), times).await;
            if sent != Passed::Whole {
                return sent;
            }
            head = &[];
            left -= some as u64;
            answering.received.consume(some);
            if left == 0 {
                return Passed::Whole;
            }
            match self.moved(answering, times).await {
                Moved::Bytes => {}
                Moved::End | Moved::Fault => return Passed::Fault,
                Moved::ClientGone => return Passed::ClientGone,
            }
        }
    }

    async fn pass_chunks(
        &mut self,
        answering: &mut Answering,
        times: ResponseTimes,
        head: &[u8],
        settling: &mut Settling<'_, impl Sized>,
    ) -> Passed {
        let mut chunks = ChunkFollower::new();
        let mut head = head;
        let mut gathered = Vec::new();
        loop {
            let bytes = answering.received.bytes();
            // One range, unless something is left out.
            let mut first = None;
            gathered.clear();
            let followed = chunks.follow(bytes, |range| match &first {
                None => first = Some(range),
                Some(before) => {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&bytes[before.clone()]);
                    }
                    gathered.extend_from_slice(&bytes[range]);
                }
            });
            let Ok(followed) = followed else { return Passed::Fault };
            if chunks.is_over() {
                settling.settle(answering, followed);
            }
            let bytes = answering.received.bytes();
            let passed = match gathered.as_slice() {
                [] => first.map_or(&[][..], |range| &bytes[range]),
                gathered => gathered,
            };
            let sent = self.send_until(Outgoing::new([head, passed, &[]]), times).await;
            if sent != Passed::Whole {
                return sent;
            }
            head = &[];
            answering.received.consume(followed);
            if chunks.is_over() {
                return Passed::Whole;
            }
            match self.moved(answering, times).await {
                Moved::Bytes => {}
                Moved::End | Moved::Fault => return Passed::Fault,
                Moved::ClientGone => return Passed::ClientGone,
            }
        }
    }

    /// Passes a body that ends with its connection, in chunks.
    async fn pass_rest(
        &mut self,
        answering: &mut Answering,
        times: ResponseTimes,
        head: &mut Vec<u8>,
        settling: &mut Settling<'_, impl Sized>,
    ) -> Passed {
        loop {
            let bytes = answering.received.bytes();
            let mut end: &[u8] = b"";
            if !bytes.is_empty() {
                head.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
                end = b"\r\n";
            }
            let sent = self.send_until(Outgoing::new([head, bytes, end]), times).await;
            if sent != Passed::Whole {
                return sent;
            }
            head.clear();
            answering.received.consume(answering.received.bytes().len());
            match self.moved(answering, times).await {
                Moved::Bytes => {}
                Moved::End => {
                    settling.settle(answering, 0);
                    return self.send_until(Outgoing::new([b"0\r\n\r\n", &[], &[]]), times).await;
                }
                Moved::Fault => return Passed::Fault,
                Moved::ClientGone => return Passed::ClientGone,
            }
        }
    }

    /// Waits for more of a response.
    async fn moved(&mut self, answering: &mut Answering, times: ResponseTimes) -> Moved {
        let Some(connection) = &mut answering.connection else { return Moved::Fault };
        // Set where it is waited for: what is there already costs no look at the clock.
        let mut until = None;
        poll_fn(|context| {
            match answering.received.poll_read(&mut connection.stream, context) {
                Poll::Ready(Ok(1..)) => return Poll::Ready(Moved::Bytes),
                Poll::Ready(Ok(0)) => return Poll::Ready(Moved::End),
                Poll::Ready(Err(_)) => return Poll::Ready(Moved::Fault),
                Poll::Pending => {}
            }
            if self.is_gone(context) {
                return Poll::Ready(Moved::ClientGone);
            }
            let until = *until.get_or_insert_with(|| {
                earlier(times.limit, times.idle.map(|idle| Instant::now() + idle.min(FOREVER)))
            });
            self.timer.poll(context, until).map(|()| Moved::Fault)
        })
        .await
    }
}
