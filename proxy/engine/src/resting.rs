//! Idle connections of HTTP/1, each a line of a table: a socket, and whose it is. No task, no timer, no buffer, and no place
//! in the runtime; one descriptor tells the worker which of them have something to say.
//!
//! ```text
//!  a connection is idle for a second -> its task ends -> table, and the worker's own epoll
//!  bytes come, or its end -> epoll -> a task again
//! ```
//!
//! Invariant: a connection is in the table or has a task.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::AsRawFd as _,
    rc::Rc,
};

use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use crate::{accept::ConnectionPlace, connection::ClientContext};

/// Connections that are looked for at a time.
const EVENTS: usize = 256;

/// An idle connection.
pub(crate) struct RestingConnection {
    pub stream: std::net::TcpStream,
    pub context: Rc<ClientContext>,
    /// Cancelled when it finishes what it does, then ends.
    pub stop: CancellationToken,
    pub place: ConnectionPlace,
}

/// The idle connections of a worker.
#[derive(Default)]
pub(crate) struct Resting {
    table: RefCell<Vec<Option<RestingConnection>>>,
    /// Places of the table that nobody has.
    free: RefCell<Vec<usize>>,
    registry: RefCell<Option<Registry>>,
    count: Cell<usize>,
}

impl Resting {
    /// Puts a connection to rest.
    ///
    /// # Errors
    /// Where it can't be watched; then it is closed.
    pub(crate) fn add(&self, connection: RestingConnection) -> io::Result<()> {
        let registry = self.registry.borrow();
        let registry = registry.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut table = self.table.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            table.push(None);
            table.len() - 1
        });
        let descriptor = connection.stream.as_raw_fd();
        if let Err(error) = registry.register(&mut SourceFd(&descriptor), Token(place), Interest::READABLE) {
            self.free.borrow_mut().push(place);
            return Err(error);
        }
        connection.context.rest(true);
        table[place] = Some(connection);
        self.count.set(self.count.get() + 1);
        Ok(())
    }

    /// The connection at a place, which isn't watched any more.
    fn take(&self, place: usize) -> Option<RestingConnection> {
        let connection = self.table.borrow_mut().get_mut(place)?.take()?;
        self.free.borrow_mut().push(place);
        self.count.set(self.count.get() - 1);
        if let Some(registry) = &*self.registry.borrow() {
            // What can't be taken out goes with its descriptor.
            drop(registry.deregister(&mut SourceFd(&connection.stream.as_raw_fd())));
        }
        connection.context.rest(false);
        Some(connection)
    }

    /// Takes those out that are meant.
    pub(crate) fn take_all(&self, meant: impl Fn(&RestingConnection) -> bool) -> Vec<RestingConnection> {
        if self.count.get() == 0 {
            return Vec::new();
        }
        let places: Vec<usize> = {
            let table = self.table.borrow();
            let of = |(place, found): (usize, &Option<RestingConnection>)| {
                found.as_ref().is_some_and(&meant).then_some(place)
            };
            table.iter().enumerate().filter_map(of).collect()
        };
        places.into_iter().filter_map(|place| self.take(place)).collect()
    }

    /// Hands over connections that have something to say, for as long as the worker is there.
    pub(crate) async fn watch(&self, wake: impl Fn(RestingConnection)) -> io::Result<()> {
        let poll = Poll::new()?;
        *self.registry.borrow_mut() = Some(poll.registry().try_clone()?);
        #[expect(
            deprecated,
            reason = "it is safe: a Poll keeps its descriptor open and the same until it is dropped"
        )]
        let mut poll = AsyncFd::new(poll)?;
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let mut ready = poll.readable_mut().await?;
            ready.get_inner_mut().poll(&mut events, Some(std::time::Duration::ZERO))?;
            if events.is_empty() {
                ready.clear_ready();
            }
            for event in &events {
                if let Some(connection) = self.take(event.token().0) {
                    wake(connection);
                }
            }
        }
    }
}
