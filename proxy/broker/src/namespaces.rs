//! Network namespaces: where they are, and sockets in them.
//!
//! Invariant: the calling thread is in another namespace only while it makes sockets there: a thread keeps the one alive
//! that it is in.

use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fstat, open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use slotmesh_kernel::netns_cookie;
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
    /// The one in the folder whose sockets have this cookie (`SO_NETNS_COOKIE`).
    Cookie(u64),
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
            Self::Cookie(cookie) => *cookie != 0,
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
    /// None in the folder has this cookie.
    #[error("no network namespace in {folder} has the cookie {cookie}")]
    Nowhere {
        /// The folder.
        folder: PathBuf,
        /// The cookie.
        cookie: u64,
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
    /// Enters the namespace and makes its listener, unless `kept` is one of it already.
    pub(crate) fn at(
        place: &NamespaceAt,
        kept: Option<OwnedFd>,
        names: &mut Names,
        home: &Home,
    ) -> Result<Self, EnterError> {
        let (namespace, path) = match place {
            NamespaceAt::Name(name) => names.open(OsStr::new(name))?,
            // A process' namespace is a link by itself, which is followed.
            NamespaceAt::Process(pid) => open_at(format!("/proc/{pid}/ns/net").into(), OFlags::empty())?,
            NamespaceAt::Cookie(cookie) => names.find(*cookie, home)?,
        };
        let away = home.leave_for(&namespace, &path)?;
        let (listener, port) = match kept.and_then(adopt) {
            Some(adopted) => adopted,
            None => listen()?,
        };
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

/// Opens a namespace.
fn open_at(path: PathBuf, flags: OFlags) -> Result<(OwnedFd, PathBuf), EnterError> {
    match open(&path, OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty()) {
        Ok(namespace) => Ok((namespace, path)),
        Err(source) => Err(EnterError::Namespace { path, source: source.into() }),
    }
}

/// The folder in which namespaces have names, and what is known of those.
#[derive(Debug)]
pub(crate) struct Names {
    folder: PathBuf,
    /// By name: inode and cookie, as each was found last.
    cookies: HashMap<OsString, (u64, u64)>,
}

impl Names {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, cookies: HashMap::new() }
    }

    /// Opens the namespace of this name, which may not be a link to something else.
    fn open(&self, name: &OsStr) -> Result<(OwnedFd, PathBuf), EnterError> {
        open_at(self.folder.join(name), OFlags::NOFOLLOW)
    }

    /// Finds the namespace of this cookie. Those that are new are entered to ask for theirs.
    fn find(&mut self, cookie: u64, home: &Home) -> Result<(OwnedFd, PathBuf), EnterError> {
        let failed = |source| EnterError::Namespace { path: self.folder.clone(), source };
        let names: HashSet<OsString> = std::fs::read_dir(&self.folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(failed)?;
        self.cookies.retain(|name, _| names.contains(name));
        for name in names {
            // One that is going, or is none.
            let Ok((namespace, path)) = self.open(&name) else { continue };
            let Ok(inode) = fstat(&namespace).map(|found| found.st_ino) else { continue };
            let known = self.cookies.get(&name).filter(|known| known.0 == inode).map(|known| known.1);
            let found = match known {
                Some(found) => found,
                None => {
                    let Ok(found) = cookie_of(&namespace, &path, home) else { continue };
                    self.cookies.insert(name, (inode, found));
                    found
                }
            };
            // The inode may be another namespace's by now.
            if found == cookie && (known.is_none() || cookie_of(&namespace, &path, home)? == cookie) {
                return Ok((namespace, path));
            }
        }
        Err(EnterError::Nowhere { folder: self.folder.clone(), cookie })
    }
}

fn cookie_of(namespace: &OwnedFd, path: &Path, home: &Home) -> Result<u64, EnterError> {
    let _away = home.leave_for(namespace, path)?;
    let socket = tcp(Domain::IPV4).map_err(socket_error("make a socket"))?;
    netns_cookie(socket.as_fd()).map_err(socket_error("ask for the cookie"))
}

fn enter(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn tcp(domain: Domain) -> io::Result<Socket> {
    Socket::new(domain, Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))
}

/// A listener that an earlier broker made in this thread's namespace, and its port; `None` where it is something else.
fn adopt(kept: OwnedFd) -> Option<(Socket, u16)> {
    let is_of_here = || -> io::Result<bool> {
        Ok(netns_cookie(kept.as_fd())? == netns_cookie(tcp(Domain::IPV4)?.as_fd())?)
    };
    if !is_of_here().unwrap_or(false) {
        return None;
    }
    let socket = Socket::from(kept);
    let is_on_loopback = socket.device().is_ok_and(|device| device.as_deref() == Some(LOOPBACK));
    let is_listening = socket.is_listener().unwrap_or(false);
    let port = socket.local_addr().ok()?.as_socket_ipv4()?.port();
    (is_on_loopback && is_listening && port != 0).then_some((socket, port))
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
