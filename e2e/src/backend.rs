//! TCP servers that say who they are: two bytes, then the end of the stream; and UDP servers that answer each
//! datagram so.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
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

/// One server of UDP.
#[derive(Debug)]
struct UdpBackend {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpBackend {
    /// `answer` is given each datagram.
    fn start(at: SocketAddr, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Result<Self> {
        /// How often it looks whether it has ended.
        const LOOK: Duration = Duration::from_millis(20);
        const LONGEST: usize = 2048;
        let socket = UdpSocket::bind(at).with_context(|| format!("bind {at} of UDP"))?;
        socket.set_read_timeout(Some(LOOK))?;
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        let thread = thread::Builder::new().name(format!("udp {at}")).spawn(move || {
            let mut datagram = [0; LONGEST];
            while !until.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                    drop(socket.send_to(&answer(&datagram[..length]), from));
                }
            }
        })?;
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for UdpBackend {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Listeners in the calling thread's network namespace, by address.
#[derive(Debug, Default)]
pub struct Backends {
    tcp: BTreeMap<SocketAddr, Backend>,
    udp: BTreeMap<SocketAddr, UdpBackend>,
}

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
        self.tcp.insert(at, Backend::start(at, move |_| id)?);
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
        self.tcp.insert(at, Backend::start(at, id)?);
        Ok(())
    }

    /// Starts a server of UDP which says that it is `id`.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn open_udp(&mut self, at: &str, id: u16) -> Result<()> {
        self.answer_udp(at, move |_| id.to_be_bytes().to_vec())
    }

    /// Starts a server of UDP which answers each datagram so.
    ///
    /// # Errors
    /// When the address can't be bound.
    pub fn answer_udp(&mut self, at: &str, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Result<()> {
        let at: SocketAddr = at.parse().with_context(|| format!("{at} is not an address with port"))?;
        self.udp.insert(at, UdpBackend::start(at, answer)?);
        Ok(())
    }

    /// Closes a server of UDP.
    ///
    /// # Errors
    /// When there is none at this address.
    pub fn close_udp(&mut self, at: &str) -> Result<()> {
        let at: SocketAddr = at.parse().with_context(|| format!("{at} is not an address with port"))?;
        self.udp.remove(&at).map(drop).with_context(|| format!("no server of UDP is at {at}"))
    }

    /// Closes a listener: from now on its address refuses.
    ///
    /// # Errors
    /// When there is none at this address.
    pub fn close(&mut self, at: &str) -> Result<()> {
        let at: SocketAddr = at.parse().with_context(|| format!("{at} is not an address with port"))?;
        self.tcp.remove(&at).map(drop).with_context(|| format!("no backend listens at {at}"))
    }
}
