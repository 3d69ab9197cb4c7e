//! Connections to one endpoint for one origin, on one worker.
//!
//! HTTP/1: connections that are idle, the one that was used last on top. A connection is given out with its request and
//! comes back when the response is over; so each is in one place. HTTP/2: all connections stay here, and a request takes
//! a stream of the first that has one left; further ones are made up to a bound, and where all streams are taken requests
//! share the least busy.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    pin::{Pin, pin},
    rc::{Rc, Weak},
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::Notify,
    task::spawn_local,
    time::{Instant, sleep, timeout},
};

use crate::{
    body::RequestBody,
    dial::Dialing,
    limits::ProxyLimits,
    plain::wire::{self, Quiet},
    upstream::{ClusterConfig, ClusterCounters},
};

/// Tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalTasks;

impl<F> hyper::rt::Executor<F> for LocalTasks
where
    F: Future + 'static,
{
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

/// Headers of a message for which hyper has room without asking for memory.
pub(crate) const USUAL_HEADERS: usize = 100;
/// Streams that are used of a connection, whatever more the server would take.
const MOST_STREAMS: usize = 100;
/// Streams of a connection whose server hasn't told how many it takes: a number that none tells.
const UNTOLD: usize = 1_000_003;
/// The longest pause between two looks if it has.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Connections to an endpoint for an origin.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// Idle ones, the one that was used last at the end.
    http1: RefCell<Vec<Idle>>,
    /// The same, of the path of our own.
    plain: RefCell<Vec<PlainConnection>>,
    http2: RefCell<Vec<Shared>>,
    /// Connections of HTTP/2 that are being made.
    dialing: Cell<usize>,
    dialed: Notify,
    /// Requests in flight.
    pub(crate) requests: Cell<u32>,
    /// Connections that are open or being made.
    pub(crate) connections: Cell<u32>,
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<RequestBody>,
    since: Instant,
    served: u32,
}

/// A connection of HTTP/1 that the path of our own reads and writes itself.
#[derive(Debug)]
pub(crate) struct PlainConnection {
    pub stream: TcpStream,
    /// Requests that it has served.
    pub served: u32,
    since: Instant,
    open: OpenConnection,
}

#[derive(Clone, Debug)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    /// Streams that are open.
    streams: Rc<Cell<usize>>,
    /// Streams that the server takes.
    most: Rc<Cell<usize>>,
    served: Rc<Cell<u32>>,
    since: Rc<Cell<Instant>>,
}

/// No connection could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectFault {
    #[error("not within the connect timeout")]
    Timeout,
    #[error("the cluster has as many connections as it may have")]
    TooMany,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] hyper::Error),
}

/// A connection for one request.
#[derive(Debug)]
pub(crate) enum Connection {
    Http1 { sender: http1::SendRequest<RequestBody>, served: u32 },
    Http2 { shared: http2::SendRequest<RequestBody>, stream: Stream },
}

/// A stream that counts on its connection until it is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    streams: Rc<Cell<usize>>,
    since: Rc<Cell<Instant>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        self.since.set(Instant::now());
    }
}

/// Counts a connection of a pool and its cluster until it ends.
#[derive(Debug)]
struct OpenConnection {
    /// Which has connections itself.
    pool: Weak<Pool>,
    counters: Arc<ClusterCounters>,
}

impl OpenConnection {
    fn new(pool: &Rc<Pool>, cluster: &ClusterConfig) -> Result<Self, ConnectFault> {
        let before = cluster.counters.connections.fetch_add(1, Relaxed);
        pool.connections.set(pool.connections.get() + 1);
        let open = Self { pool: Rc::downgrade(pool), counters: cluster.counters.clone() };
        if cluster.connections.is_some_and(|most| before >= most) {
            return Err(ConnectFault::TooMany);
        }
        Ok(open)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.connections.set(pool.connections.get() - 1);
        }
        self.counters.connections.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    /// True where it has served a request before, so that the server may have closed it meanwhile.
    pub(crate) const fn is_reused(&self) -> bool {
        match self {
            Self::Http1 { served, .. } => *served > 0,
            Self::Http2 { .. } => true,
        }
    }

    /// Sends a request. The response's body is to be read before the connection is given back.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::Http1 { sender, served } => {
                *served += 1;
                sender.try_send_request(request).await
            }
            Self::Http2 { shared, .. } => shared.try_send_request(request).await,
        }
    }
}

impl Pool {
    /// A connection of HTTP/1: an idle one, else `None`.
    pub(crate) fn idle(&self, idle_timeout: Duration) -> Option<Connection> {
        let mut idle = self.http1.borrow_mut();
        let mut place = idle.len();
        while place > 0 {
            place -= 1;
            let one = &idle[place];
            if one.sender.is_closed() || one.since.elapsed() >= idle_timeout {
                idle.remove(place);
            } else if one.sender.is_ready() {
                let Idle { sender, served, .. } = idle.remove(place);
                return Some(Connection::Http1 { sender, served });
            }
        }
        None
    }

    /// Makes a connection of HTTP/1.
    pub(crate) async fn connect(
        self: &Rc<Self>,
        dialing: Dialing<'_>,
        cluster: &ClusterConfig,
        limits: &ProxyLimits,
    ) -> Result<Connection, ConnectFault> {
        self.connect_plain(dialing, cluster).await?.into_hyper(limits).await
    }

    /// Makes a connection of HTTP/1 for the path of our own.
    pub(crate) async fn connect_plain(
        self: &Rc<Self>,
        dialing: Dialing<'_>,
        cluster: &ClusterConfig,
    ) -> Result<PlainConnection, ConnectFault> {
        let open = OpenConnection::new(self, cluster)?;
        let stream = dialed(dialing, cluster.connect_timeout).await?;
        Ok(PlainConnection { stream, served: 0, since: Instant::now(), open })
    }

    /// A connection for the path of our own: an idle one that is silent, else `None`.
    pub(crate) fn idle_plain(&self, idle_timeout: Duration) -> Option<PlainConnection> {
        let mut idle = self.plain.borrow_mut();
        while let Some(one) = idle.pop() {
            if one.since.elapsed() < idle_timeout && one.is_silent() {
                return Some(one);
            }
        }
        None
    }

    /// Takes a connection of the path of our own back whose response is over.
    pub(crate) fn give_back_plain(&self, mut one: PlainConnection, limits: &ProxyLimits, most_requests: u32) {
        if most_requests > 0 && one.served >= most_requests {
            return;
        }
        one.since = Instant::now();
        let mut idle = self.plain.borrow_mut();
        if idle.len() >= limits.idle_upstream {
            // The one that waits longest is the likeliest to be closed by the server.
            idle.remove(0);
        }
        idle.push(one);
    }

    /// Takes a connection of HTTP/1 back whose response is over.
    pub(crate) fn give_back(&self, connection: Connection, limits: &ProxyLimits, most_requests: u32) {
        let Connection::Http1 { sender, served } = connection else { return };
        if sender.is_closed() || (most_requests > 0 && served >= most_requests) {
            return;
        }
        let mut idle = self.http1.borrow_mut();
        if idle.len() >= limits.idle_upstream {
            // The one that waits longest is the likeliest to be closed by the server.
            idle.remove(0);
        }
        idle.push(Idle { sender, since: Instant::now(), served });
    }

    /// A connection of HTTP/2 with a stream for a request.
    pub(crate) async fn stream<'d>(
        self: &Rc<Self>,
        dial: impl Fn() -> Dialing<'d>,
        cluster: &ClusterConfig,
        limits: &ProxyLimits,
    ) -> Result<Connection, ConnectFault> {
        loop {
            if let Some(connection) = self.open_stream(limits, cluster.requests_per_connection) {
                return Ok(connection);
            }
            if self.dialing.get() == 0 {
                return self.connect_http2(dial(), cluster, limits).await;
            }
            // Those that wait share the connection that is being made, and make further ones when it is full.
            self.dialed.notified().await;
        }
    }

    /// A stream of a connection that there is, unless another connection is to be made first.
    pub(crate) fn open_stream(&self, limits: &ProxyLimits, most_requests: u32) -> Option<Connection> {
        let mut all = self.http2.borrow_mut();
        all.retain(|one| !one.sender.is_closed() && (most_requests == 0 || one.served.get() < most_requests));
        let least = all.iter().min_by_key(|one| one.streams.get())?;
        let free = all.iter().find(|one| one.streams.get() < one.most.get().clamp(1, MOST_STREAMS));
        let one = match free {
            Some(free) => free,
            None if all.len() >= limits.http2_connections => least,
            None => return None,
        };
        Some(one.open())
    }

    async fn connect_http2(
        self: &Rc<Self>,
        dialing: Dialing<'_>,
        cluster: &ClusterConfig,
        limits: &ProxyLimits,
    ) -> Result<Connection, ConnectFault> {
        let attempt = DialAttempt::new(self);
        let open = OpenConnection::new(self, cluster)?;
        let stream = dialed(dialing, cluster.connect_timeout).await?;
        let (sender, connection) = http2::Builder::new(LocalTasks)
            .timer(TokioTimer::new())
            .initial_max_send_streams(UNTOLD)
            .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await?;
        let shared = Shared {
            sender,
            streams: Rc::new(Cell::new(0)),
            most: Rc::new(Cell::new(MOST_STREAMS)),
            served: Rc::new(Cell::new(0)),
            since: Rc::new(Cell::new(Instant::now())),
        };
        let first = shared.open();
        let pool = self.clone();
        let mut connection = Box::pin(connection);
        let most = shared.most.clone();
        // Others may use it once the server has told how many streams it takes.
        let mut untold = Some((shared, attempt));
        let told = Cell::new(false);
        spawn_local(async move {
            let _open = open;
            let watched = std::future::poll_fn(|context: &mut Context<'_>| {
                let polled: Poll<_> = connection.as_mut().poll(context);
                let streams = connection.current_max_send_streams();
                if streams != UNTOLD {
                    most.set(streams);
                    if let Some((shared, attempt)) = untold.take() {
                        pool.http2.borrow_mut().push(shared);
                        told.set(true);
                        drop(attempt);
                    }
                }
                polled
            });
            let mut watched = pin!(watched);
            // Nobody wakes this task when the server tells.
            let mut pause = Duration::from_millis(1);
            let ended = loop {
                tokio::select! {
                    biased;
                    ended = watched.as_mut() => break ended,
                    () = sleep(pause), if !told.get() => pause = (pause * 2).min(LONGEST_PAUSE),
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP/2 connection to an endpoint ended");
            }
        });
        Ok(first)
    }

    /// Leaves a connection of HTTP/2 that takes no streams any more.
    pub(crate) fn leave(&self, connection: &Connection) {
        if let Connection::Http2 { stream, .. } = connection {
            self.http2.borrow_mut().retain(|one| !Rc::ptr_eq(&one.streams, &stream.streams));
        }
    }

    /// Closes what has been idle for this long.
    pub(crate) fn close_idle(&self, idle_timeout: Duration) {
        self.http1.borrow_mut().retain(|one| !one.sender.is_closed() && one.since.elapsed() < idle_timeout);
        self.plain.borrow_mut().retain(|one| one.since.elapsed() < idle_timeout && one.is_silent());
        self.http2.borrow_mut().retain(|one| {
            let is_idle = one.streams.get() == 0 && one.since.get().elapsed() >= idle_timeout;
            !one.sender.is_closed() && !is_idle
        });
    }

    /// Closes what is idle now, and gives no connection out again that is in use.
    pub(crate) fn close(&self) {
        self.http1.borrow_mut().clear();
        self.plain.borrow_mut().clear();
        self.http2.borrow_mut().clear();
    }
}

impl PlainConnection {
    /// True while the server has neither closed it nor said anything: what it says unasked is no response.
    fn is_silent(&self) -> bool {
        wire::poll_quiet(&self.stream, &mut Context::from_waker(Waker::noop())) == Quiet::Silent
    }

    /// Has hyper read and write it from now on.
    pub(crate) async fn into_hyper(self, limits: &ProxyLimits) -> Result<Connection, ConnectFault> {
        let Self { stream, served, open, .. } = self;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(limits.head_bytes.max(64 << 10));
        // As many as Envoy takes, or more.
        if limits.headers > USUAL_HEADERS {
            builder.max_headers(limits.headers);
        }
        let (sender, connection) = builder.handshake::<_, RequestBody>(TokioIo::new(stream)).await?;
        spawn_local(async move {
            let _open = open;
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an endpoint ended");
            }
        });
        Ok(Connection::Http1 { sender, served })
    }
}

impl Shared {
    fn open(&self) -> Connection {
        self.streams.set(self.streams.get() + 1);
        self.served.set(self.served.get().saturating_add(1));
        let stream = Stream { streams: self.streams.clone(), since: self.since.clone() };
        Connection::Http2 { shared: self.sender.clone(), stream }
    }
}

/// A connection that is being made; whoever waits for it looks again when this is dropped.
struct DialAttempt(Rc<Pool>);

impl DialAttempt {
    fn new(pool: &Rc<Pool>) -> Self {
        pool.dialing.set(pool.dialing.get() + 1);
        Self(pool.clone())
    }
}

impl Drop for DialAttempt {
    fn drop(&mut self) {
        self.0.dialing.set(self.0.dialing.get() - 1);
        self.0.dialed.notify_waiters();
    }
}

async fn dialed(dialing: Dialing<'_>, limit: Duration) -> Result<TcpStream, ConnectFault> {
    let dialing: Pin<Box<_>> = dialing;
    Ok(timeout(limit, dialing).await.map_err(|_| ConnectFault::Timeout)??)
}
