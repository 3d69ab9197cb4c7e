//! Sockets in the network namespaces of pods: those that connections to endpoints are made with.
//!
//! A pod is an origin of the engine. Some sockets of each are at hand; where few are left more are asked for, and where
//! none is left, whoever connects waits.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use slotmesh_broker::{Key, SocketFamily, SocketStock};
use slotmesh_proxy::{Dial, DialOrigin, Dialing};
use tokio::{
    net::TcpSocket,
    sync::{Notify, oneshot},
};

use crate::broker::{Asker, Wish};

/// Sockets of pods, from the broker. Clones are handles of the same.
#[derive(Clone)]
pub struct PodSockets(Arc<Shared>);

pub(crate) struct Shared {
    wishes: Mutex<mpsc::Sender<Wish>>,
    state: Mutex<State>,
    /// Sockets have come, or a pod has gone.
    changed: Notify,
    is_connected: AtomicBool,
    waited: AtomicU64,
}

#[derive(Default)]
struct State {
    stock: SocketStock,
    keys: HashMap<DialOrigin, Key>,
    /// Of which sockets were asked for and haven't come.
    wanted: HashSet<(Key, SocketFamily)>,
}

impl PodSockets {
    /// Asks the broker behind this Unix socket, on a thread of its own, whenever it is there.
    ///
    /// # Errors
    /// Where a thread can't be started.
    pub fn new(broker: &Path) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            wishes: Mutex::new(sender),
            state: Mutex::default(),
            changed: Notify::new(),
            is_connected: AtomicBool::new(false),
            waited: AtomicU64::new(0),
        });
        let asker = Asker::new(broker, receiver, Arc::downgrade(&shared));
        thread::Builder::new().name("socket-broker".to_owned()).spawn(move || asker.run())?;
        Ok(Self(shared))
    }

    /// True while there is a connection to the broker.
    pub(crate) fn is_connected(&self) -> bool {
        self.0.is_connected.load(Relaxed)
    }

    /// How many connections had to wait for a socket.
    pub(crate) fn waited(&self) -> u64 {
        self.0.waited.load(Relaxed)
    }

    /// The listener of a pod and its port; why there is none.
    pub(crate) async fn listener(&self, key: &Key) -> Result<(TcpListener, u16), String> {
        let (reply, answer) = oneshot::channel();
        self.0.wish(Wish::Listener(key.clone(), reply));
        answer.await.unwrap_or_else(|_| Err("nobody asks the socket broker any more".to_owned()))
    }

    /// From now on sockets of this pod are at hand for an origin.
    pub(crate) fn add(&self, origin: DialOrigin, key: &Key) {
        let mut state = self.0.lock();
        state.keys.insert(origin, key.clone());
        self.0.fill(&mut state, key, SocketFamily::V4);
    }

    /// Closes the sockets of a pod that are at hand; none is made any more.
    pub(crate) fn remove(&self, origin: DialOrigin) {
        let mut state = self.0.lock();
        if let Some(key) = state.keys.remove(&origin) {
            state.stock.forget(&key);
            state.wanted.retain(|(of, _)| *of != key);
        }
        drop(state);
        self.0.changed.notify_waiters();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wish(&self, wish: Wish) {
        // The thread ends after this, so there is somebody.
        drop(self.wishes.lock().unwrap_or_else(PoisonError::into_inner).send(wish));
    }

    /// Asks for sockets where few are left.
    fn fill(&self, state: &mut State, key: &Key, family: SocketFamily) {
        if state.stock.is_low(key, family) && state.wanted.insert((key.clone(), family)) {
            self.wish(Wish::Sockets(key.clone(), family));
        }
    }

    /// True where sockets were asked for, and the pod is still there.
    pub(crate) fn wants(&self, key: &Key, family: SocketFamily) -> bool {
        self.lock().wanted.contains(&(key.clone(), family))
    }

    /// Sockets have come.
    pub(crate) fn put(&self, key: &Key, family: SocketFamily, sockets: Vec<OwnedFd>) {
        let mut state = self.lock();
        // Of a pod that has gone meanwhile they would be kept for ever.
        if state.wanted.remove(&(key.clone(), family)) {
            state.stock.put(key, family, sockets);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Relaxed);
    }

    /// A socket that is at hand; `None` where it has to be waited for.
    fn take(&self, origin: DialOrigin, family: SocketFamily) -> io::Result<Option<OwnedFd>> {
        let mut state = self.lock();
        let Some(key) = state.keys.get(&origin).cloned() else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the pod has gone"));
        };
        let socket = state.stock.take(&key, family);
        self.fill(&mut state, &key, family);
        Ok(socket)
    }

    async fn socket(&self, origin: DialOrigin, family: SocketFamily) -> io::Result<OwnedFd> {
        let mut waits = false;
        loop {
            let changed = self.changed.notified();
            if let Some(socket) = self.take(origin, family)? {
                return Ok(socket);
            }
            if !std::mem::replace(&mut waits, true) {
                self.waited.fetch_add(1, Relaxed);
            }
            changed.await;
        }
    }
}

impl Dial for PodSockets {
    fn dial(&self, origin: DialOrigin, endpoint: SocketAddr) -> Dialing<'_> {
        let family = if endpoint.is_ipv4() { SocketFamily::V4 } else { SocketFamily::V6 };
        Box::pin(async move {
            let socket = self.0.socket(origin, family).await?;
            // It isn't connected, whatever the type says.
            let socket = TcpSocket::from_std_stream(TcpStream::from(socket));
            let stream = socket.connect(endpoint).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}
