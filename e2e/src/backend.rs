//! TCP servers that say who they are: two bytes, then the end of the stream.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// One listener.
#[derive(Debug)]
struct Backend {
    listener: Socket,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(at: SocketAddr, id: impl Fn(IpAddr) -> u16 + Send + 'static) -> Result<Self> {
        const BACKLOG: i32 = 4096;
        let listener = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_address(true)?;
        if at.is_ipv6() {
            listener.set_only_v6(true)?;
        }
        listener.bind(&at.into()).with_context(|| format!("bind {at}"))?;
        listener.listen(BACKLOG)?;
        let accepting: TcpListener = listener.try_clone()?.into();
        let thread = thread::Builder::new().name(format!("backend {at}")).spawn(move || {
            // Closing shuts the listener down, and accept fails.
            while let Ok((stream, _)) = accepting.accept() {
                drop(answer(&stream, &id));
            }
        })?;
        Ok(Self { listener, thread: Some(thread) })
    }
}

fn answer(mut stream: &TcpStream, id: &impl Fn(IpAddr) -> u16) -> std::io::Result<()> {
    let here = stream.local_addr()?.ip();
    stream.write_all(&id(here).to_be_bytes())
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.listener.shutdown(Shutdown::Both));
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Listeners in the calling thread's network namespace, by address.
#[derive(Debug, Default)]
pub struct Backends(BTreeMap<SocketAddr, Backend>);

impl Backends {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a listener which says that it is `id`.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn open(&mut self, at: &str, id: u16) -> Result<()> {
        let at: SocketAddr = at.parse().with_context(|| format!("{at} is not an address with port"))?;
        self.0.insert(at, Backend::start(at, move |_| id)?);
        Ok(())
    }

    /// Starts one listener for all addresses that says the last two bytes of the address which was
    /// connected to: many endpoints at the price of one.
    ///
    /// # Errors
    /// When the port can't be bound.
    pub fn open_all_v4(&mut self, port: u16) -> Result<()> {
        let at = SocketAddr::from(([0, 0, 0, 0], port));
        let id = |ip| match ip {
            IpAddr::V4(ip) => u16::from_be_bytes([ip.octets()[2], ip.octets()[3]]),
            IpAddr::V6(_) => 0,
        };
        self.0.insert(at, Backend::start(at, id)?);
        Ok(())
    }

    /// Closes a listener: from now on its address refuses.
    ///
    /// # Errors
    /// When there is none at this address.
    pub fn close(&mut self, at: &str) -> Result<()> {
        let at: SocketAddr = at.parse().with_context(|| format!("{at} is not an address with port"))?;
        self.0.remove(&at).map(drop).with_context(|| format!("no backend listens at {at}"))
    }
}
