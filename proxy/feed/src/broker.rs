//! The connection to the socket broker: a thread that asks it and waits for its answers, as nobody else may wait.
//!
//! What is asked for a listener while the broker is away is answered with that at once. Sockets are asked for until they
//! come, or until nobody wants them.

use std::{
    collections::VecDeque,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{
        Weak,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use slotmesh_broker::{AskError, Counterpart, Key, SocketFamily, SocketStock};
use tokio::sync::oneshot;

use crate::pods::Shared;

/// The pauses between attempts to connect, and before sockets are asked for again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A wish that the thread fulfils.
pub(crate) enum Wish {
    /// The listener of a namespace and its port.
    Listener(Key, oneshot::Sender<Result<(TcpListener, u16), String>>),
    /// Sockets for the stock.
    Sockets(Key, SocketFamily),
}

/// Asks the broker for what is wished, for as long as somebody wishes.
pub(crate) struct Asker {
    path: PathBuf,
    wishes: Receiver<Wish>,
    shared: Weak<Shared>,
    broker: Option<Counterpart>,
    /// Sockets that are still wanted, in vain so far.
    open: VecDeque<(Key, SocketFamily)>,
    pause: Duration,
    /// When the broker is asked again.
    again: Instant,
}

impl Asker {
    pub(crate) fn new(path: &Path, wishes: Receiver<Wish>, shared: Weak<Shared>) -> Self {
        let path = path.to_owned();
        let open = VecDeque::new();
        Self { path, wishes, shared, broker: None, open, pause: FIRST_PAUSE, again: Instant::now() }
    }

    pub(crate) fn run(mut self) {
        self.connect();
        loop {
            let wish = if self.open.is_empty() && self.broker.is_some() {
                self.wishes.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                self.wishes.recv_timeout(self.again.saturating_duration_since(Instant::now()))
            };
            match wish {
                Ok(Wish::Listener(key, reply)) => {
                    // Whoever asked may have given up.
                    drop(reply.send(self.ask(|broker| broker.listener(&key))));
                }
                Ok(Wish::Sockets(key, family)) => self.sockets(key, family),
                Err(RecvTimeoutError::Timeout) => self.retry(),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn retry(&mut self) {
        self.connect();
        for (key, family) in std::mem::take(&mut self.open) {
            self.sockets(key, family);
        }
        self.again = Instant::now() + self.pause;
    }

    fn sockets(&mut self, key: Key, family: SocketFamily) {
        let Some(shared) = self.shared.upgrade() else { return };
        if !shared.wants(&key, family) {
            return;
        }
        match self.ask(|broker| broker.sockets(&key, family, SocketStock::BATCH)) {
            Ok(sockets) => shared.put(&key, family, sockets),
            Err(why) => {
                tracing::warn!(%key, why, "no sockets; asking again");
                self.open.push_back((key, family));
                self.again = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    fn connect(&mut self) {
        if self.broker.is_some() {
            return;
        }
        match Counterpart::connect(&self.path) {
            Ok(broker) => {
                tracing::info!(socket = %self.path.display(), "connected to the socket broker");
                self.broker = Some(broker);
                self.pause = FIRST_PAUSE;
            }
            Err(error) => {
                tracing::debug!(socket = %self.path.display(), %error, "no socket broker");
                self.again = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
        self.tell();
    }

    /// Asks once, and once more where the broker that was there is another one now.
    fn ask<T>(&mut self, ask: impl Fn(&Counterpart) -> Result<T, AskError>) -> Result<T, String> {
        for _ in 0..2 {
            self.connect();
            let Some(broker) = &self.broker else { break };
            match ask(broker) {
                Ok(answer) => {
                    self.pause = FIRST_PAUSE;
                    return Ok(answer);
                }
                Err(AskError::Failed(why)) => return Err(why),
                Err(error) => {
                    tracing::warn!(%error, "the socket broker is left");
                    self.broker = None;
                    self.tell();
                }
            }
        }
        Err(format!("the socket broker at {} can't be reached", self.path.display()))
    }

    fn tell(&self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.connected(self.broker.is_some());
        }
    }
}
