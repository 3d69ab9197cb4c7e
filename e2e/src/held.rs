//! Connections that are held while something happens around them.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;

use crate::{Cgroup, names};

/// A process that holds connections. It is killed, and they are closed, when this is dropped.
#[derive(Debug)]
pub struct Held {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    /// Where its sockets were connected to, oldest first.
    to: VecDeque<SocketAddr>,
}

impl Held {
    /// A process in this cgroup that holds nothing yet.
    ///
    /// # Errors
    /// When it can't be started or moved.
    pub fn new(cgroup: &Cgroup) -> Result<Self> {
        let held = Self::start_by(&mut Command::new(names::binary("slotmesh-e2e", "holder")?))?;
        cgroup.add(held.child.id())?;
        Ok(held)
    }

    /// A process that this command starts, wherever that is.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_by(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a holder")?;
        let stdin = child.stdin.take().context("its input is piped")?;
        let stdout = BufReader::new(child.stdout.take().context("its output is piped")?);
        Ok(Self { child, stdin, stdout, to: VecDeque::new() })
    }

    /// One connection more.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn open(&mut self, to: SocketAddr) -> Result<()> {
        let errno = self.ask(&format!("open {to}"))?;
        ensure!(errno == "0", "connect to {to}: {}", Errno::from_raw(errno.parse()?));
        self.to.push_back(to);
        Ok(())
    }

    /// Tries to make one more, and isn't allowed to.
    ///
    /// # Errors
    /// When it is made, or fails with another error.
    pub fn expect_refused(&mut self, to: SocketAddr) -> Result<()> {
        let errno: i32 = self.ask(&format!("open {to}"))?.parse()?;
        ensure!(errno == Errno::ECONNREFUSED as i32, "connect to {to}: {}", Errno::from_raw(errno));
        Ok(())
    }

    /// Closes the oldest.
    ///
    /// # Errors
    /// When there is none.
    pub fn close(&mut self) -> Result<()> {
        self.to.pop_front().context("no connection is held")?;
        self.ask("close").map(drop)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.to.len() as u64
    }

    /// Fails unless getpeername says of each what was connected to.
    ///
    /// # Errors
    /// With what it says.
    pub fn expect_peers(&mut self) -> Result<()> {
        let peers = self.ask("peers")?;
        let expected: Vec<_> = self.to.iter().map(ToString::to_string).collect();
        ensure!(peers == expected.join(" "), "getpeername says {peers}, connected to {expected:?}");
        Ok(())
    }

    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.stdin, "{line}").context("ask a holder")?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer)?;
        ensure!(answer.ends_with('\n'), "the holder ended, asked to {line}");
        answer.truncate(answer.len() - 1);
        Ok(answer)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both do nothing where it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
