//! Bytes that are passed through as they come: TCP, and what follows an upgrade.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    dial::DialOrigin,
    downstream::TcpConfig,
    inbound::ClientStream,
    worker::{ClusterState, Worker},
};

/// Buffer of each direction.
const BUFFER: usize = 16 << 10;
/// Endpoints that are tried.
const ATTEMPTS: usize = 3;

/// Passes a connection through to an endpoint of its cluster, until both sides have closed.
pub(crate) async fn to_cluster(
    worker: &Worker,
    origin: DialOrigin,
    client: ClientStream,
    config: &TcpConfig,
) {
    let Some(cluster) = worker.cluster(&config.cluster) else {
        return tracing::debug!(cluster = %config.cluster, "there is no such cluster");
    };
    let mut tried = Vec::new();
    for _ in 0..ATTEMPTS {
        let Some(endpoint) = cluster.pick(worker, origin, None, &tried) else { return };
        tried.push(endpoint);
        cluster.stats.connects.one_more();
        match timeout(cluster.config.connect_timeout, worker.dial.dial(origin, endpoint)).await {
            Ok(Ok(server)) => {
                let active = Active::new(&cluster);
                let passed = pass(client, server, config.idle_timeout).await;
                drop(active);
                if let Err(error) = passed {
                    tracing::debug!(%error, %endpoint, "a connection that was passed through has ended");
                }
                return;
            }
            Ok(Err(error)) => tracing::debug!(%error, %endpoint, "no connection"),
            Err(_elapsed) => tracing::debug!(%endpoint, "no connection in time"),
        }
        cluster.stats.connect_failures.one_more();
    }
}

/// Counts as a request in flight of its cluster.
pub(crate) struct Active(Rc<ClusterState>);

impl Active {
    pub(crate) fn new(cluster: &Rc<ClusterState>) -> Self {
        cluster.config.counters.requests.fetch_add(1, Relaxed);
        cluster.stats.active.one_more();
        Self(cluster.clone())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.config.counters.requests.fetch_sub(1, Relaxed);
        self.0.stats.active.one_less();
    }
}

/// Passes bytes in both directions until both have ended, or nothing has moved for the idle time.
pub(crate) async fn pass(
    one: impl AsyncRead + AsyncWrite + Unpin,
    other: impl AsyncRead + AsyncWrite + Unpin,
    idle: Option<Duration>,
) -> io::Result<()> {
    let last = Rc::new(Cell::new(Instant::now()));
    let mut one = Watched { stream: one, last: last.clone() };
    let mut other = Watched { stream: other, last: last.clone() };
    let copied = copy_bidirectional_with_sizes(&mut one, &mut other, BUFFER, BUFFER);
    let Some(idle) = idle else { return copied.await.map(drop) };
    let silence = async {
        loop {
            let until = last.get() + idle;
            if Instant::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    };
    tokio::select! {
        copied = copied => copied.map(drop),
        () = silence => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A stream that notes when something has moved.
struct Watched<S> {
    stream: S,
    last: Rc<Cell<Instant>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.last.set(Instant::now());
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if written.is_ready() {
            self.last.set(Instant::now());
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
