//! The other end: who asks the broker.

use std::{
    collections::HashMap,
    net::TcpListener,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        socketpair,
        sockopt::{Timeout, set_socket_timeout},
    },
};

use crate::{
    Answered, BadMessage, BrokerAsk, Key, NamespaceAt, SocketFamily,
    transfer::{Packet, receive, send},
};

/// The time that a broker has for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the broker gives nothing.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It can't be reached, or has gone.
    #[error("the socket broker: {0}")]
    Broker(#[from] std::io::Error),
    /// Its answer isn't of the protocol.
    #[error("the socket broker's answer: {0}")]
    Bad(#[from] BadMessage),
    /// Its answer is to something else, or lacks its sockets.
    #[error("the socket broker answers something else than was asked")]
    Other,
    /// It can't do it; why.
    #[error("the socket broker: {0}")]
    Failed(String),
}

impl From<Errno> for AskError {
    fn from(error: Errno) -> Self {
        Self::Broker(error.into())
    }
}

/// A connection to the broker. Each method asks and waits for the answer.
#[derive(Debug)]
pub struct Counterpart(OwnedFd);

impl Counterpart {
    /// Both ends of a connection: this, and the one to [serve](crate::Broker::serve).
    ///
    /// # Errors
    /// Where no sockets can be made.
    pub fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let (one, other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), other))
    }

    /// Connects to the broker's Unix socket. Whoever asks through this waits for no more than ten seconds.
    ///
    /// # Errors
    /// Where it isn't there, or may not be used.
    pub fn connect(path: &Path) -> std::io::Result<Self> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for what in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, what, Some(PATIENCE))?;
        }
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Tells whether the broker is still at the other end.
    pub fn is_open(&self) -> bool {
        let mut events = [PollFd::new(&self.0, PollFlags::RDHUP)];
        poll(&mut events, Some(&Timespec::default())).is_ok_and(|ready| ready == 0)
    }

    fn ask(&self, ask: &BrokerAsk) -> Result<(Answered, Vec<OwnedFd>), AskError> {
        self.ask_with(ask, &[])
    }

    fn ask_with(
        &self,
        ask: &BrokerAsk,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(Answered, Vec<OwnedFd>), AskError> {
        send(&self.0, &ask.encode(), sockets, SendFlags::empty())?;
        let packet = loop {
            match receive(&self.0, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        let Some(Packet { bytes, sockets }) = packet else { return Err(Errno::PIPE.into()) };
        let answer = Answered::decode(&bytes)?;
        if answer.sockets() != sockets.len() {
            return Err(AskError::Other);
        }
        match answer {
            Answered::Failed(why) => Err(AskError::Failed(why)),
            answer => Ok((answer, sockets)),
        }
    }

    /// Enrols a namespace: its listener, which tells whose it is, and the port. `kept` is the listener that a broker before
    /// this one gave: it stays, with the connections that wait in it. One of another namespace isn't taken.
    ///
    /// # Errors
    /// Where the namespace can't be had.
    pub fn enrol(
        &self,
        key: &Key,
        place: &NamespaceAt,
        kept: Option<BorrowedFd<'_>>,
    ) -> Result<(OwnedFd, u16), AskError> {
        let ask = BrokerAsk::Enrol { key: key.clone(), place: place.clone() };
        Self::listening(self.ask_with(&ask, kept.as_slice())?)
    }

    /// Gives a namespace up.
    ///
    /// # Errors
    /// Where the broker has gone.
    pub fn release(&self, key: &Key) -> Result<(), AskError> {
        self.released(&BrokerAsk::Release(key.clone()))
    }

    /// Says that this steward begins: of what others have enrolled it knows nothing yet.
    ///
    /// # Errors
    /// Where the broker has gone.
    pub fn review(&self) -> Result<(), AskError> {
        self.released(&BrokerAsk::Review)
    }

    /// Gives up what no steward has enrolled since the last one began.
    ///
    /// # Errors
    /// Where the broker has gone.
    pub fn sweep(&self) -> Result<(), AskError> {
        self.released(&BrokerAsk::Sweep)
    }

    fn released(&self, ask: &BrokerAsk) -> Result<(), AskError> {
        match self.ask(ask)? {
            (Answered::Released, _) => Ok(()),
            _ => Err(AskError::Other),
        }
    }

    /// The listener of a namespace, and its port.
    ///
    /// # Errors
    /// Where the namespace isn't enrolled.
    pub fn listener(&self, key: &Key) -> Result<(TcpListener, u16), AskError> {
        Self::listening(self.ask(&BrokerAsk::Listener(key.clone()))?)
            .map(|(socket, port)| (socket.into(), port))
    }

    fn listening((answer, mut sockets): (Answered, Vec<OwnedFd>)) -> Result<(OwnedFd, u16), AskError> {
        let Answered::Listening { port } = answer else { return Err(AskError::Other) };
        Ok((sockets.pop().ok_or(AskError::Other)?, port))
    }

    /// So many sockets of a namespace that aren't connected, 1 to 32.
    ///
    /// # Errors
    /// Where the namespace isn't enrolled, or no socket can be made.
    pub fn sockets(&self, key: &Key, family: SocketFamily, count: u8) -> Result<Vec<OwnedFd>, AskError> {
        let (answer, sockets) = self.ask(&BrokerAsk::Sockets { key: key.clone(), family, count })?;
        if answer == Answered::Sockets(count) { Ok(sockets) } else { Err(AskError::Other) }
    }
}

/// Sockets that are at hand, so that nobody who connects waits for the broker.
#[derive(Debug, Default)]
pub struct SocketStock {
    idle: HashMap<(Key, SocketFamily), Vec<OwnedFd>>,
}

impl SocketStock {
    /// How many sockets are fetched at once.
    pub const BATCH: u8 = 16;

    /// A socket of a namespace that is at hand.
    pub fn take(&mut self, key: &Key, family: SocketFamily) -> Option<OwnedFd> {
        self.idle.get_mut(&(key.clone(), family))?.pop()
    }

    /// True where fewer than half a batch are at hand.
    pub fn is_low(&self, key: &Key, family: SocketFamily) -> bool {
        let idle = self.idle.get(&(key.clone(), family)).map_or(0, Vec::len);
        idle < usize::from(Self::BATCH / 2)
    }

    /// Puts sockets of a namespace in that were fetched from the broker.
    pub fn put(&mut self, key: &Key, family: SocketFamily, sockets: Vec<OwnedFd>) {
        self.idle.entry((key.clone(), family)).or_default().extend(sockets);
    }

    /// Closes the sockets of a namespace, which they would keep alive.
    pub fn forget(&mut self, key: &Key) {
        self.idle.retain(|(of, _), _| of != key);
    }
}
