//! One connection of a client, from its first bytes to its end.
//!
//! Nothing is allocated for reading until the client has said something. Then its protocol is known, and with it the way
//! it is served: HTTP/1 or HTTP/2 by hyper, or TCP passed through. A connection of HTTP/1 that has been idle for a second
//! is taken from hyper, whose buffers go, until the client says something again.

use std::{
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
}

impl ClientContext {
    /// The settings of this connection's requests, as they are now.
    pub(crate) fn http(&self) -> Option<Arc<HttpConfig>> {
        match self.listener.config().way(Some(self.protocol))? {
            Way::Http(http) => Some(http.clone()),
            Way::Tcp(_) => None,
        }
    }
}

/// A connection of HTTP/1 that is idle.
struct IdleConnection {
    context: Rc<ClientContext>,
    stream: ClientStream,
    socket: oneshot::Receiver<TcpStream>,
}

/// Serves a connection until it ends. Where `stop` is cancelled, requests in flight are finished.
///
/// What isn't needed while a connection is idle is in boxes, which are gone then.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    origin: DialOrigin,
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<ClientState>,
    stop: CancellationToken,
) {
    let begun = begin(worker, listener, origin, stream, peer, state, &stop);
    let Some(mut idle) = Box::pin(begun).await else { return };
    let last_chance = idle.context.worker.limits.last_chance;
    loop {
        let at_rest = AtRest::new(&idle.context);
        tokio::select! {
            biased;
            readable = idle.stream.readable() => if readable.is_err() { return },
            () = silent(&stop, last_chance) => return,
        }
        drop(at_rest);
        idle = match Box::pin(serve_http1(idle, &stop)).await {
            Some(idle) => idle,
            None => return,
        };
    }
}

/// Ends when a connection without a request is to be left: a while after it is to stop, as a request may be on its way.
async fn silent(stop: &CancellationToken, last_chance: Duration) {
    stop.cancelled().await;
    Box::pin(sleep(last_chance)).await;
}

/// Serves a connection until it ends or, of HTTP/1, is idle.
async fn begin(
    worker: Rc<Worker>,
    listener: Rc<ListenerState>,
    origin: DialOrigin,
    stream: TcpStream,
    peer: SocketAddr,
    state: Arc<ClientState>,
    stop: &CancellationToken,
) -> Option<IdleConnection> {
    let config = listener.config();
    let (mut stream, socket) = ClientStream::new(stream, state.clone());
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
            let context = Rc::new(ClientContext { worker, listener, origin, peer, state, source, protocol });
            if protocol == ClientProtocol::Http2 {
                context.state.make_opaque();
                Box::pin(serve_http2(http, context, stream, stop)).await;
                close(socket).await;
            } else {
                stream.follow_requests();
                return Box::pin(serve_http1(IdleConnection { context, stream, socket }, stop)).await;
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
        context.state.rest(true);
        context.worker.stats.connections_at_rest.one_more();
        Self(context)
    }
}

impl Drop for AtRest<'_> {
    fn drop(&mut self) {
        self.0.state.rest(false);
        self.0.worker.stats.connections_at_rest.one_less();
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

/// Serves HTTP/1 until the connection is over, or idle: then it is returned.
async fn serve_http1(connection: IdleConnection, stop: &CancellationToken) -> Option<IdleConnection> {
    let IdleConnection { context, stream, socket } = connection;
    let http = context.http()?;
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
                let parts = connection.into_parts()?;
                let mut stream = parts.io.into_inner();
                stream.give_back(&parts.read_buf);
                return Some(IdleConnection { context, stream, socket });
            }
            Next::Stop | Next::Rest => {}
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a client's connection ended");
    }
    drop(connection);
    close(socket).await;
    None
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
