//! Connects, or asks by UDP, and logs what became of each connect or question.
//!
//! It makes no socket before it has read a line from its standard input, so that whoever started it
//! can move it to a cgroup first. It ends when all connects are made, when its input ends, or after
//! its time limit; then it writes its log (see `slotmesh_e2e::connect`).

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use slotmesh_e2e::{
    Ask,
    connect::{Connect, START, now},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Connects again and again, and logs every connect.
#[derive(Clone, Debug, Parser)]
struct Args {
    /// Where to, in turn; an IPv4-mapped address such as [::ffff:10.0.0.1]:80 by an IPv6 socket
    #[arg(required = true)]
    to: Vec<SocketAddr>,
    /// How many connects
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How many connects, at least, when its input ends before
    #[arg(long, default_value_t = 0)]
    least: u64,
    /// How many threads make them
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Microseconds that each thread waits between two connects
    #[arg(long, default_value_t = 0)]
    gap: u64,
    /// Seconds after which it ends
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Asks by UDP instead of connecting by TCP
    #[arg(long)]
    udp: Option<Ask>,
}

/// No connect and no answer takes longer on one machine.
const TIMEOUT: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    let Args { to, count, least, threads, gap, limit, udp } = Args::parse();
    io::stdin().read_line(&mut String::new())?;
    let (start, began) = (now(), Instant::now());
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let work = || {
        let (mut log, mut kept) = (Vec::new(), Vec::new());
        let goes_on = || !stop.load(Ordering::Relaxed) || next.load(Ordering::Relaxed) < least;
        while goes_on() && began.elapsed().as_secs() < limit {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= count {
                break;
            }
            log.push(connect(to[turn as usize % to.len()], began, udp, &mut kept));
            if gap > 0 {
                thread::sleep(Duration::from_micros(gap));
            }
        }
        log
    };
    let logs: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // Reading blocks until the input ends; when the work is done first, exiting ends that.
        let watcher = thread::Builder::new().spawn_scoped(scope, || {
            while !readable() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
            // The end of the input, or a further line: both mean stop.
            stop.store(true, Ordering::Relaxed);
        });
        let logs = workers.into_iter().map(|worker| worker.join().unwrap_or_default()).collect();
        stop.store(true, Ordering::Relaxed);
        drop(watcher);
        logs
    });
    let mut out = io::BufWriter::new(io::stdout().lock());
    writeln!(out, "{START}{start}")?;
    for connect in logs.iter().flatten() {
        writeln!(out, "{connect}")?;
    }
    out.flush()
}

/// Whether there is something to read (or the end) on the standard input; waits a moment for it.
fn readable() -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let stdin = io::stdin();
    let mut polled = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    // An error is found by the read that follows.
    poll(&mut polled, PollTimeout::from(20_u8)).map_or(true, |ready| ready > 0)
}

/// `kept` are the sockets that further questions are asked by, at most one of a family.
fn connect(to: SocketAddr, began: Instant, udp: Option<Ask>, kept: &mut Vec<UdpSocket>) -> Connect {
    let start = Instant::now();
    let mut connect = Connect { at: micros(start - began), took: 0, to, errno: 0, backend: None, peer: None };
    let outcome = match udp {
        None => exchange(&mut connect, start),
        Some(ask) => question(&mut connect, start, ask, kept),
    };
    if let Err(error) = outcome {
        connect.errno = error.raw_os_error().unwrap_or(-1);
    }
    connect
}

fn exchange(connect: &mut Connect, start: Instant) -> io::Result<()> {
    let mut socket = Socket::new(Domain::for_address(connect.to), Type::STREAM, Some(Protocol::TCP))?;
    // Close by reset: 20,000 connections in TIME_WAIT would use up the ports.
    socket.set_linger(Some(Duration::ZERO))?;
    // Also bounds a blocking connect.
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let connected = socket.connect(&SockAddr::from(connect.to));
    connect.took = micros(start.elapsed());
    connected?;
    connect.peer = socket.peer_addr()?.as_socket();
    let mut id = [0; 2];
    socket.read_exact(&mut id)?;
    connect.backend = Some(u16::from_be_bytes(id));
    Ok(())
}

/// What getpeername is of a connect, is of a question the address that answered.
fn question(connect: &mut Connect, start: Instant, ask: Ask, kept: &mut Vec<UdpSocket>) -> io::Result<()> {
    let any = |to: SocketAddr| -> SocketAddr {
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() }
    };
    let family =
        |socket: &UdpSocket| socket.local_addr().is_ok_and(|at| at.is_ipv4() == connect.to.is_ipv4());
    let socket = match kept.iter().position(family) {
        Some(i) => kept.swap_remove(i),
        None => UdpSocket::bind(any(connect.to))?,
    };
    socket.set_read_timeout(Some(TIMEOUT))?;
    let asked = match ask {
        Ask::Connected => {
            socket.connect(connect.to)?;
            connect.peer = Some(socket.peer_addr()?);
            socket.send(b"who")
        }
        Ask::Each | Ask::All => socket.send_to(b"who", connect.to),
    };
    connect.took = micros(start.elapsed());
    asked?;
    let mut id = [0; 2];
    let (_, from) = socket.recv_from(&mut id)?;
    connect.backend = Some(u16::from_be_bytes(id));
    if connect.peer.is_none() || from != connect.to {
        connect.peer = Some(from);
    }
    if ask == Ask::All {
        kept.push(socket);
    }
    Ok(())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
