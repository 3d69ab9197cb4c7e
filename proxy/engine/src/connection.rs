//! One connection of a client, from its first bytes to its end.
//!
//! Nothing is allocated for reading until the client has said something. Then its protocol is known, and with it the way
//! it is served: HTTP/2 by hyper, HTTP/1 by the path of our own (`plain`) and, from a request on that isn't ordinary, by
//! hyper, or TCP passed through. A connection of HTTP/1 that has been idle for a second is taken from whoever serves it,
//! and its task ends, until the client says something again (`resting`); then it begins with the path of our own.

use std::{
    cell::Cell,
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::Request;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    dial::DialOrigin,
    downstream::{ClientProtocol, Codec, HttpConfig, ListenerConfig, Way},
    exchange,
    inbound::{self, ClientState, ClientStream, FirstBytes},
    limits::Http1Path,
    plain,
    pool::{self, LocalTasks},
    series::SourceSeries,
    tunnel,
    worker::{ListenerState, Worker},
};

/// How long a client may take for its first bytes where no inspection says otherwise.
const FIRST_BYTES: Duration = Duration::from_secs(60);
/// Bytes that are kept for a client of HTTP/2 that it hasn't read yet.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that a client of HTTP/2 may reset before they are looked at.
const PENDING_RESETS: usize = 20;

/// A client's connection, as its requests see it.
pub(crate) struct ClientContext {
    pub worker: Rc<Worker>,
    pub listener: Rc<ListenerState>,
    pub origin: DialOrigin,
    pub peer: SocketAddr,
    pub state: Arc<ClientState>,
    /// Metrics of its requests.
    pub source: Rc<SourceSeries>,
    pub protocol: ClientProtocol,
    /// All chance in the next request, where it is drawn already: whoever decides it again decides the same.
    pub seed: Cell<Option<u64>>,
}

impl ClientContext {
    /// Notes that the connection has no buffers, or has them again.
    pub(crate) fn rest(&self, rests: bool) {
        self.state.rest(rests);
        let count = &self.worker.stats.connections_at_rest;
        if rests { count.one_more() } else { count.one_less() }
    }

    /// The settings of this connection's requests, as they are now.
    pub(crate) fn http(&self) -> Option<Arc<HttpConfig>> {
        match self.listener.config().way(Some(self.protocol))? {
            Way::Http(http) => Some(http.clone()),
            Way::Tcp(_) => None,
        }
    }
}

/// A connection of HTTP/1 between two of those who serve it.
pub(crate) struct Http1Connection {
    pub stream: TcpStream,
    /// Bytes that were read and not used.
    pub front: Vec<u8>,
}

/// The end of a time in which somebody has served a connection.
pub(crate) enum Served {
    /// It is over.
    Over,
    /// It is without a request.
    Idle(Http1Connection),
    /// Its next request isn't ordinary.
    Odd(Http1Connection),
}

/// Where a connection is when its task begins.
pub(crate) enum ConnectionStart {
    /// It was accepted.
    Accepted {
        listener: Rc<ListenerState>,
        origin: DialOrigin,
        stream: TcpStream,
        peer: SocketAddr,
        state: Arc<ClientState>,
    },
    /// It was at rest.
    Woken(Rc<ClientContext>, TcpStream),
}

/// Serves a connection until it ends or, of HTTP/1, is idle: then it is returned. Where `stop` is cancelled, requests in
/// flight are finished.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    start: ConnectionStart,
    stop: &CancellationToken,
) -> Option<(Rc<ClientContext>, TcpStream)> {
    let (context, mut connection) = match start {
        ConnectionStart::Accepted { listener, origin, stream, peer, state } => {
            Box::pin(begin(worker.clone(), listener, origin, stream, peer, state, stop)).await?
        }
        ConnectionStart::Woken(context, stream) => (context, Http1Connection { stream, front: Vec::new() }),
    };
    let own = worker.http1 == Http1Path::Own;
    let mut by_hyper = !own;
    loop {
        let served = match by_hyper {
            false => Box::pin(plain::serve(&context, connection, stop)).await,
            true => Box::pin(serve_http1(&context, connection, stop)).await,
        };
        connection = match served {
            Served::Over => return None,
            Served::Odd(connection) => {
                by_hyper = true;
                connection
            }
            Served::Idle(Http1Connection { stream, front }) if front.is_empty() && !stop.is_cancelled() => {
                return Some((context, stream));
            }
            Served::Idle(connection) => {
                by_hyper = !own;
                let at_rest = AtRest::new(&context);
                tokio::select! {
                    biased;
                    readable = connection.stream.readable() => readable.ok()?,
                    () = silent(stop, worker.limits.last_chance) => return None,
                }
                drop(at_rest);
                connection
            }
        };
    }
}

/// Ends when a connection without a request is to be left: a while after it is to stop, as a request may be on its way.
async fn silent(stop: &CancellationToken, last_chance: Duration) {
    stop.cancelled().await;
    Box::pin(sleep(last_chance)).await;
}

/// Serves a connection until it ends or, of HTTP/1, its protocol is known.
async fn begin(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    origin: DialOrigin,
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<ClientState>,
    stop: &CancellationToken,
) -> Option<(Rc<ClientContext>, Http1Connection)> {
    let config = listener.config();
    let (mut stream, socket) = ClientStream::new(stream, Vec::new(), state.clone());
    let looked = tokio::select! {
        biased;
        looked = look(&config, &mut stream) => looked,
        () = silent(stop, worker.limits.last_chance) => return None,
    };
    let protocol = looked?;
    match config.way(protocol) {
        None => tracing::debug!(%peer, ?protocol, "no filter chain is for this protocol"),
        Some(Way::Tcp(tcp)) => {
            state.make_opaque();
            state.begin_request();
            worker.stats.tcp.one_more();
            tunnel::to_cluster(&worker, origin, stream, tcp).await;
        }
        Some(Way::Http(http)) => {
            let Some(protocol) = protocol.filter(|protocol| fits(http.codec, *protocol)) else {
                tracing::debug!(%peer, "neither HTTP/1 nor HTTP/2, or not the one that is served here");
                return None;
            };
            let (source, http) = (worker.source(origin), http.clone());
            let seed = Cell::new(None);
            let context =
                Rc::new(ClientContext { worker, listener, origin, peer, state, source, protocol, seed });
            if protocol == ClientProtocol::Http2 {
                context.state.make_opaque();
                Box::pin(serve_http2(http, context, stream, stop)).await;
                close(socket).await;
            } else {
                let (stream, front) = stream.into_parts()?;
                return Some((context, Http1Connection { stream, front }));
            }
        }
    }
    None
}

/// Closes a connection that is over. One that was upgraded isn't.
async fn close(mut socket: oneshot::Receiver<TcpStream>) {
    if let Ok(socket) = socket.try_recv() {
        inbound::close(socket).await;
    }
}

/// A connection without a request, and without buffers.
struct AtRest<'c>(&'c ClientContext);

impl<'c> AtRest<'c> {
    fn new(context: &'c ClientContext) -> Self {
        context.rest(true);
        Self(context)
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.0.rest(false);
    }
}

fn fits(codec: Codec, protocol: ClientProtocol) -> bool {
    match codec {
        Codec::Auto => true,
        Codec::Http1 => protocol != ClientProtocol::Http2,
        Codec::Http2 => protocol == ClientProtocol::Http2,
    }
}

/// The protocol of the first bytes, `Some(None)` where it is unknown; `None` where the connection is over.
async fn look(config: &ListenerConfig, stream: &mut ClientStream) -> Option<Option<ClientProtocol>> {
    // TCP alone needs no look, and its server may speak first.
    let tcp_alone = |way: &Way| matches!(way, Way::Tcp(_));
    if config.inspection.is_none() && config.way(None).is_some_and(tcp_alone) {
        return Some(None);
    }
    let (limit, go_on) = match config.inspection {
        Some(inspection) => (inspection.timeout, inspection.go_on),
        None => (Some(FIRST_BYTES), false),
    };
    let read = async {
        stream.readable().await?;
        stream.first_bytes().await
    };
    let read = match limit {
        Some(limit) => timeout(limit, read).await,
        None => Ok(read.await),
    };
    match read {
        Ok(Ok(FirstBytes::Protocol(protocol))) => Some(Some(protocol)),
        // Without an inspection the parser says what is wrong with it.
        Ok(Ok(FirstBytes::Unknown)) if config.inspection.is_none() => Some(Some(ClientProtocol::Http11)),
        Ok(Ok(FirstBytes::Unknown)) => Some(None),
        Err(_elapsed) if go_on => Some(None),
        Err(_elapsed) => None,
        Ok(Ok(FirstBytes::Closed) | Err(_)) => None,
    }
}

/// Next step of a connection that isn't over.
enum Next {
    Stop,
    Rest,
}

/// Serves HTTP/1 by hyper until the connection is over or idle.
async fn serve_http1(
    context: &Rc<ClientContext>,
    connection: Http1Connection,
    stop: &CancellationToken,
) -> Served {
    let Http1Connection { stream, front } = connection;
    let (mut stream, socket) = ClientStream::new(stream, front, context.state.clone());
    stream.follow_requests();
    let Some(http) = context.http() else { return Served::Over };
    let (limits, peer, state) = (context.worker.limits, context.peer, context.state.clone());
    let of_requests = context.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let context = of_requests.clone();
        async move { Ok::<_, Infallible>(exchange::handle(context, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(None);
    builder.max_buf_size(http.head_bytes.unwrap_or(limits.head_bytes).max(8 << 10));
    let headers = http.headers.unwrap_or(limits.headers);
    if headers != pool::USUAL_HEADERS {
        builder.max_headers(headers);
    }
    let mut connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let ended = loop {
        let next = tokio::select! {
            biased;
            ended = &mut connection => break ended,
            () = stop.cancelled() => Next::Stop,
            () = state.told_to_rest() => Next::Rest,
        };
        match next {
            Next::Stop if !state.may_rest() => {
                Pin::new(&mut connection).graceful_shutdown();
                break (&mut connection).await;
            }
            // All that was to be written is: the connection has been polled before.
            Next::Stop | Next::Rest if state.may_rest() => {
                let Some(parts) = connection.into_parts() else { return Served::Over };
                let mut stream = parts.io.into_inner();
                stream.give_back(&parts.read_buf);
                return match stream.into_parts() {
                    Some((stream, front)) => Served::Idle(Http1Connection { stream, front }),
                    None => Served::Over,
                };
            }
            Next::Stop | Next::Rest => {}
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a client's connection ended");
    }
    drop(connection);
    close(socket).await;
    Served::Over
}

async fn serve_http2(
    http: Arc<HttpConfig>,
    context: Rc<ClientContext>,
    stream: ClientStream,
    stop: &CancellationToken,
) {
    let limits = context.worker.limits;
    let peer = context.peer;
    let service = service_fn(move |request: Request<Incoming>| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(exchange::handle(context, request).await) }
    });
    let head_bytes = http.head_bytes.unwrap_or(limits.head_bytes);
    let connection = http2::Builder::new(LocalTasks)
        .timer(TokioTimer::new())
        .max_concurrent_streams(http.streams.unwrap_or(limits.streams))
        .max_header_list_size(u32::try_from(head_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a client's connection ended");
    }
}
