//! Holds connections: opens, asks and closes them as its input says, one line of answer for each.
//!
//! ```text
//! open ADDRESS    connects and holds the socket    0, or the number of the error
//! peers           asks all sockets                 what getpeername says of each, oldest first
//! close           closes the oldest                0
//! ```
//!
//! It makes no socket before it is asked to, so whoever started it can move it to a cgroup first. Its
//! sockets go with it, when its input ends.

use std::{
    collections::VecDeque,
    io::{self, BufRead as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// No connect takes longer on one machine.
const TIMEOUT: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    let mut held = VecDeque::new();
    for line in io::stdin().lock().lines() {
        let answer = answer(&line?, &mut held)?;
        writeln!(io::stdout(), "{answer}")?;
    }
    Ok(())
}

fn answer(line: &str, held: &mut VecDeque<TcpStream>) -> io::Result<String> {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("open", address) => {
            let to: SocketAddr = address.parse().map_err(io::Error::other)?;
            let connected = TcpStream::connect_timeout(&to, TIMEOUT).map(|socket| held.push_back(socket));
            Ok(connected.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0).to_string())
        }
        ("peers", "") => {
            let peers = held.iter().map(|socket| Ok(socket.peer_addr()?.to_string()));
            Ok(peers.collect::<io::Result<Vec<_>>>()?.join(" "))
        }
        ("close", "") => {
            held.pop_front().ok_or_else(|| io::Error::other("no socket is held"))?;
            Ok("0".to_owned())
        }
        _ => Err(io::Error::other(format!("{line:?} is no command"))),
    }
}
