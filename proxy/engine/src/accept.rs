//! Connections that come in, and whoever they are from.
//!
//! ```text
//!  socket of a listener --accept--> its listener
//!  socket of an origin  --accept--> the listener of the address that the connection was made to
//! ```
//!
//! A socket of an origin, which is a pod, listens at all addresses of `127/8` in the pod's network namespace. Each address
//! stands for routes; a connection to one whose listener isn't known yet waits for it.
//!
//! Invariant: when an origin is removed nothing of it is accepted any more, and nothing of it is left after the grace
//! period: neither connections of clients nor those to endpoints.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::{self, Arc},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::ClientKey,
    connection::{self, ConnectionStart},
    dial::DialOrigin,
    downstream::Way,
    inbound::ClientState,
    resting::RestingConnection,
    turns::InTurn,
    worker::{ListenerState, Open, Worker},
};

/// The pause when the kernel has no connection for us, though there is one.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a socket of an origin is accepted from once there is another: so long connections come that were made to it.
const OLD_SOCKET: Duration = Duration::from_secs(10);

/// An origin on a worker.
pub(crate) struct OriginState {
    pub id: DialOrigin,
    /// Cancelled when its socket isn't accepted from any more.
    accepting: RefCell<CancellationToken>,
    /// By listener: cancelled when connections finish what they do, then end.
    stops: RefCell<HashMap<Arc<str>, CancellationToken>>,
    connections: RefCell<Vec<(Weak<ListenerState>, sync::Weak<ClientState>)>>,
    open: Cell<usize>,
}

/// A connection's place among those that there may be.
pub(crate) struct ConnectionPlace {
    _open: Open,
    _of: OpenOf,
}

/// Counts a connection of an origin.
struct OpenOf(Rc<OriginState>);

impl OpenOf {
    fn new(origin: &Rc<OriginState>) -> Self {
        origin.open.set(origin.open.get() + 1);
        Self(origin.clone())
    }
}

impl Drop for OpenOf {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl OriginState {
    pub(crate) fn new(id: DialOrigin) -> Rc<Self> {
        Rc::new(Self {
            id,
            accepting: RefCell::default(),
            stops: RefCell::default(),
            connections: RefCell::default(),
            open: Cell::new(0),
        })
    }

    /// Cancelled with the listener, and when the origin goes.
    fn stop(&self, listener: &ListenerState) -> CancellationToken {
        let name = listener.config().name.clone();
        let mut stops = self.stops.borrow_mut();
        let stop = stops.entry(name).or_insert_with(|| listener.drain.child_token());
        if stop.is_cancelled() {
            // A listener of this name has gone, and this is another one.
            *stop = listener.drain.child_token();
        }
        stop.clone()
    }

    /// Accepts nothing from the socket that it has, from now on or a while later.
    fn leave_socket(&self, next: CancellationToken, later: bool) {
        let before = self.accepting.replace(next);
        if !later {
            return before.cancel();
        }
        spawn_local(async move {
            tokio::select! {
                () = sleep(OLD_SOCKET) => before.cancel(),
                () = before.cancelled() => {}
            }
        });
    }

    /// Its connections finish what they do.
    pub(crate) fn stop_all(&self) {
        self.leave_socket(CancellationToken::new(), false);
        self.stops.borrow().values().for_each(CancellationToken::cancel);
    }

    /// Its connections are over.
    fn end_all(&self) {
        for (_, client) in self.connections.borrow().iter() {
            if let Some(client) = client.upgrade() {
                client.end();
            }
        }
    }

    /// Ends clients that are too slow, and forgets those that have gone.
    pub(crate) fn sweep(&self, head: Duration) {
        self.connections.borrow_mut().retain(|(listener, client)| {
            let Some(client) = client.upgrade() else { return false };
            let Some(listener) = listener.upgrade() else { return true };
            let config = listener.config();
            let mut ways = config.ways.iter().map(|(_, way)| way).chain(config.default.as_ref());
            let http = ways.find_map(|way| match way {
                Way::Http(http) => Some(http),
                Way::Tcp(_) => None,
            });
            if let Some(http) = http {
                client.end_if_slow(head, http.stream_idle, http.connection_idle);
            }
            true
        });
        self.stops.borrow_mut().retain(|_, stop| !stop.is_cancelled());
    }
}

impl Worker {
    /// Accepts connections for a listener.
    pub(crate) fn accept_for_listener(
        self: &Rc<Self>,
        name: &str,
        origin: DialOrigin,
        socket: std::net::TcpListener,
    ) {
        let Some(listener) = self.listener(name) else {
            tracing::warn!(listener = name, "a socket for a listener that isn't there");
            return;
        };
        let origin = self.origin(origin);
        let stop = origin.stop(&listener);
        self.accept_all(socket, stop, move |worker, stream, peer| {
            worker.admit(&listener, &origin, stream, peer);
        });
    }

    /// Accepts connections for the listeners of the addresses that they come to. The socket that the origin had before
    /// is left a while later.
    pub(crate) fn accept_for_origin(self: &Rc<Self>, origin: DialOrigin, socket: std::net::TcpListener) {
        let origin = self.origin(origin);
        let stop = self.drain.child_token();
        origin.leave_socket(stop.clone(), true);
        self.accept_all(socket, stop, move |worker, stream, peer| {
            let Ok(at) = stream.local_addr() else { return };
            let at = at.ip().to_canonical();
            match worker.listener_at(at) {
                Some(listener) => worker.admit(&listener, &origin, stream, peer),
                None => worker.wait_for_listener(at, &origin, stream, peer),
            }
        });
    }

    fn accept_all(
        self: &Rc<Self>,
        socket: std::net::TcpListener,
        stop: CancellationToken,
        accepted: impl Fn(&Rc<Self>, TcpStream, SocketAddr) + 'static,
    ) {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "a socket can't be used"),
        };
        let worker = self.clone();
        spawn_local(async move {
            loop {
                let next = tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    next = socket.accept() => next,
                };
                match next {
                    Ok((stream, peer)) => accepted(&worker, stream, peer),
                    Err(error) => {
                        // A connection that was gone before it was accepted isn't ours.
                        if error.kind() != ErrorKind::ConnectionAborted {
                            tracing::warn!(%error, "no connection can be accepted");
                            sleep(PAUSE).await;
                        }
                    }
                }
            }
        });
    }

    /// Keeps a connection until there is a listener for its address.
    fn wait_for_listener(
        self: &Rc<Self>,
        at: IpAddr,
        origin: &Rc<OriginState>,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        let Some(open) = self.room(origin) else { return };
        let (worker, origin) = (self.clone(), origin.clone());
        let given_up = origin.accepting.borrow().clone();
        spawn_local(async move {
            let found = async {
                loop {
                    let changed = worker.listeners_changed.notified();
                    if let Some(listener) = worker.listener_at(at) {
                        return listener;
                    }
                    changed.await;
                }
            };
            let found = tokio::select! {
                found = timeout(worker.limits.listener_wait, found) => found.ok(),
                () = given_up.cancelled() => None,
            };
            drop(open);
            match found {
                Some(listener) => worker.admit(&listener, &origin, stream, peer),
                None => {
                    worker.stats.connections_unrouted.one_more();
                    tracing::debug!(%at, %peer, "no listener is for this address");
                }
            }
        });
    }

    /// A place for a connection; `None` where there is none.
    fn room(self: &Rc<Self>, origin: &Rc<OriginState>) -> Option<ConnectionPlace> {
        let limits = &self.limits;
        if self.is_full() || origin.open.get() >= limits.connections_per_origin {
            self.stats.connections_shed.one_more();
            return None;
        }
        Some(ConnectionPlace { _open: self.hold_open(), _of: OpenOf::new(origin) })
    }

    fn admit(
        self: &Rc<Self>,
        listener: &Rc<ListenerState>,
        origin: &Rc<OriginState>,
        stream: TcpStream,
        peer: SocketAddr,
    ) {
        self.stats.connections.one_more();
        let Some(place) = self.room(origin) else { return };
        // Small answers go out at once.
        drop(stream.set_nodelay(true));
        let state = ClientState::new();
        origin.connections.borrow_mut().push((Rc::downgrade(listener), Arc::downgrade(&state)));
        let stop = origin.stop(listener);
        let key = (origin.id, peer.ip().to_canonical());
        let (listener, origin, of) = (listener.clone(), origin.id, state.clone());
        self.run_connection(
            ConnectionStart::Accepted { listener, origin, stream, peer, state: of },
            key,
            state,
            stop,
            place,
        );
    }

    /// Serves a connection in a task of its own, until it ends or rests.
    fn run_connection(
        self: &Rc<Self>,
        start: ConnectionStart,
        key: ClientKey,
        state: Arc<ClientState>,
        stop: CancellationToken,
        place: ConnectionPlace,
    ) {
        let worker = self.clone();
        let whole = async move {
            let rests = tokio::select! {
                rests = connection::serve(&worker, start, &stop) => rests,
                () = state.ended() => {
                    tracing::debug!(client = %key.1, "a client's connection is cut off");
                    None
                }
            };
            let Some((context, stream)) = rests else { return };
            let resting = stream
                .into_std()
                .and_then(|stream| worker.resting.add(RestingConnection { stream, context, stop, place }));
            if let Err(error) = resting {
                tracing::warn!(%error, "an idle connection is closed");
            }
        };
        spawn_local(InTurn::new(Box::pin(whole), self.turns.of(key)));
    }

    /// Serves a connection that was at rest.
    pub(crate) fn wake(self: &Rc<Self>, connection: RestingConnection) {
        let RestingConnection { stream, context, stop, place } = connection;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::warn!(%error, "an idle connection is closed"),
        };
        let key = (context.origin, context.peer.ip().to_canonical());
        let state = context.state.clone();
        self.run_connection(ConnectionStart::Woken(context, stream), key, state, stop, place);
    }

    /// Ends connections at rest that are to end, and wakes those that are to stop.
    pub(crate) fn sweep_resting(self: &Rc<Self>) {
        let meant = |of: &RestingConnection| of.stop.is_cancelled() || of.context.state.is_ended();
        for connection in self.resting.take_all(meant) {
            if !connection.context.state.is_ended() {
                self.wake(connection);
            }
        }
    }

    /// An origin has gone: its connections to endpoints that are idle end now, those of its clients when they have
    /// finished what they do, and whatever is left after the grace period.
    pub(crate) fn remove_origin(self: &Rc<Self>, id: DialOrigin) {
        let Some(origin) = self.take_origin(id) else { return };
        origin.stop_all();
        self.sweep_resting();
        self.close_pools(id);
        let worker = self.clone();
        spawn_local(async move {
            let over = async {
                while origin.open.get() > 0 {
                    sleep(PAUSE).await;
                }
            };
            if timeout(worker.limits.origin_grace, over).await.is_err() {
                tracing::debug!(
                    left = origin.open.get(),
                    "connections of an origin that has gone are cut off"
                );
            }
            // Upgraded ones count elsewhere.
            origin.end_all();
            worker.sweep_resting();
            worker.close_pools(id);
        });
    }
}
