//! Network namespaces: where they are, and sockets in them.
//!
//! Invariant: the calling thread is in another namespace only while it makes sockets there: a thread keeps the one alive
//! that it is in.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::SocketFamily;

/// Connections that may wait for the proxy, in each namespace.
const BACKLOG: i32 = 4_096;
const LOOPBACK: &[u8] = b"lo";

/// Where a network namespace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceAt {
    /// A file of this name in the folder of namespaces.
    Name(String),
    /// That of the process of this id.
    Process(u32),
}

impl NamespaceAt {
    /// Tells whether there may be such a place: a name stays in the folder.
    pub(crate) fn can_be(&self) -> bool {
        match self {
            Self::Name(name) => {
                !name.is_empty()
                    && name.len() <= 255
                    && !name.contains(['/', '\0'])
                    && name != "."
                    && name != ".."
            }
            Self::Process(pid) => *pid != 0,
        }
    }

    fn path(&self, folder: &Path) -> PathBuf {
        match self {
            Self::Name(name) => folder.join(name),
            Self::Process(pid) => format!("/proc/{pid}/ns/net").into(),
        }
    }
}

/// Why a namespace can't be had.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// It can't be opened or entered.
    #[error("{path}: {source}")]
    Namespace {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No socket can be made in it.
    #[error("{what}: {source}")]
    Socket {
        /// The step that failed.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn socket_error(what: &'static str) -> impl Fn(io::Error) -> EnterError {
    move |source| EnterError::Socket { what, source }
}

/// The network namespace to which the thread goes back.
#[derive(Debug)]
pub(crate) struct Home(OwnedFd);

impl Home {
    /// The one in which this thread is.
    pub(crate) fn of_this_thread() -> io::Result<Self> {
        Ok(Self(open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// Enters a namespace, until what is returned is dropped.
    fn leave_for(&self, namespace: &OwnedFd, path: &Path) -> Result<Away<'_>, EnterError> {
        enter(namespace).map_err(|source| EnterError::Namespace { path: path.to_owned(), source })?;
        Ok(Away(self))
    }
}

/// The thread is in another namespace.
struct Away<'h>(&'h Home);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if let Err(error) = enter(&self.0.0) {
            tracing::error!(%error, "the thread can't go back to its network namespace");
        }
    }
}

/// A pod's network namespace, with the listener in it.
#[derive(Debug)]
pub(crate) struct Enrolled {
    namespace: OwnedFd,
    path: PathBuf,
    listener: Socket,
    pub(crate) port: u16,
}

impl Enrolled {
    /// Enters the namespace and makes its listener.
    pub(crate) fn at(place: &NamespaceAt, folder: &Path, home: &Home) -> Result<Self, EnterError> {
        let path = place.path(folder);
        let failed =
            |source: rustix::io::Errno| EnterError::Namespace { path: path.clone(), source: source.into() };
        // A process' namespace is a link by itself, which is followed; a name in the folder may not be another one.
        let follow = if matches!(place, NamespaceAt::Name(_)) { OFlags::NOFOLLOW } else { OFlags::empty() };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | follow;
        let namespace = open(&path, flags, Mode::empty()).map_err(failed)?;
        let away = home.leave_for(&namespace, &path)?;
        let (listener, port) = listen()?;
        drop(away);
        Ok(Self { namespace, path, listener, port })
    }

    /// The listener once more.
    pub(crate) fn listener(&self) -> Result<OwnedFd, EnterError> {
        self.listener.try_clone().map(OwnedFd::from).map_err(socket_error("duplicate the listener"))
    }

    /// Sockets in the namespace that aren't connected.
    pub(crate) fn sockets(
        &self,
        family: SocketFamily,
        count: u8,
        home: &Home,
    ) -> Result<Vec<OwnedFd>, EnterError> {
        let _away = home.leave_for(&self.namespace, &self.path)?;
        let domain = match family {
            SocketFamily::V4 => Domain::IPV4,
            SocketFamily::V6 => Domain::IPV6,
        };
        let one = |_| tcp(domain).map(OwnedFd::from).map_err(socket_error("make a socket"));
        (0..count).map(one).collect()
    }
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))
}

/// A listener at each address of the loopback interface, in this thread's namespace, and its port. Whoever comes by
/// another interface is refused.
fn listen() -> Result<(Socket, u16), EnterError> {
    let socket = tcp(Domain::IPV4).map_err(socket_error("make a listener"))?;
    socket.bind_device(Some(LOOPBACK)).map_err(socket_error("bind the listener to lo"))?;
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    socket.bind(&any.into()).map_err(socket_error("bind the listener"))?;
    socket.listen(BACKLOG).map_err(socket_error("listen"))?;
    let address = socket.local_addr().map_err(socket_error("ask for the listener's port"))?;
    Ok((socket, address.as_socket_ipv4().map_or(0, |address| address.port())))
}
