//! What became of each connect: the client writes it, one line each, and the tests read it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};

/// What happened to one connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// When it began, in microseconds after the client's start.
    pub at: u64,
    /// How long connect() took, in microseconds.
    pub took: u64,
    /// Where to.
    pub to: SocketAddr,
    /// 0, or the number of the error of connect(), or else of reading the answer.
    pub errno: i32,
    /// Which backend answered.
    pub backend: Option<u16>,
    /// What getpeername said after a successful connect.
    pub peer: Option<SocketAddr>,
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, took, to, errno, backend, peer } = self;
        write!(f, "{at} {took} {to} {errno} ")?;
        match backend {
            Some(id) => write!(f, "{id} ")?,
            None => f.write_str("- ")?,
        }
        match peer {
            Some(peer) => write!(f, "{peer}"),
            None => f.write_str("-"),
        }
    }
}

impl FromStr for Connect {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let fields: Vec<_> = line.split(' ').collect();
        let [at, took, to, errno, backend, peer] = fields[..] else {
            anyhow::bail!("{line:?} has {} fields", fields.len());
        };
        let known = |field| Some(field).filter(|field| *field != "-");
        Ok(Self {
            at: at.parse()?,
            took: took.parse()?,
            to: to.parse()?,
            errno: errno.parse()?,
            backend: known(backend).map(str::parse).transpose()?,
            peer: known(peer).map(str::parse).transpose()?,
        })
    }
}

/// All connects of a client, in the order in which they began.
#[derive(Clone, Debug)]
pub struct Log {
    /// When the client began, by [`now`].
    pub start: u64,
    /// The connects.
    pub connects: Vec<Connect>,
}

/// What the first line of a client's output begins with; then comes its start, by [`now`].
pub const START: &str = "start ";

impl Log {
    /// Reads a client's output.
    ///
    /// # Errors
    /// When it isn't one.
    pub fn parse(output: &str) -> Result<Self> {
        let mut lines = output.lines();
        let start = lines.next().and_then(|line| line.strip_prefix(START));
        let start = start.context("a client's log begins with its start")?.parse()?;
        let mut connects = lines.map(str::parse).collect::<Result<Vec<Connect>>>()?;
        connects.sort_by_key(|connect| connect.at);
        Ok(Self { start, connects })
    }

    /// How many connects there were.
    pub fn len(&self) -> usize {
        self.connects.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.connects.is_empty()
    }

    /// Fails when a connect failed or there are fewer than `least`.
    ///
    /// # Errors
    /// With the first failures and when they were.
    pub fn expect_all(&self, least: usize) -> Result<()> {
        let failed: Vec<_> = self.connects.iter().filter(|c| c.errno != 0 || c.backend.is_none()).collect();
        let shown: Vec<_> = failed.iter().take(20).map(ToString::to_string).collect();
        ensure!(
            failed.is_empty(),
            "{} of {} connects failed; the first (microseconds, took, to, errno, backend, peer):\n{}",
            failed.len(),
            self.len(),
            shown.join("\n")
        );
        ensure!(self.len() >= least, "{} connects are fewer than {least}", self.len());
        Ok(())
    }

    /// Fails unless every connect failed with this error.
    ///
    /// # Errors
    /// With the first connect that didn't.
    pub fn expect_errno(&self, errno: nix::errno::Errno) -> Result<()> {
        let other = self.connects.iter().find(|c| c.errno != errno as i32);
        ensure!(other.is_none(), "not {errno}: {}", other.map(ToString::to_string).unwrap_or_default());
        ensure!(!self.is_empty(), "no connect was made");
        Ok(())
    }

    /// How many connects each backend got.
    pub fn by_backend(&self) -> BTreeMap<u16, u64> {
        let mut counts = BTreeMap::new();
        for id in self.connects.iter().filter_map(|c| c.backend) {
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    /// The connects to one address that began in this span, by [`now`].
    pub fn during(&self, from: u64, to: u64) -> Self {
        let inside = |c: &&Connect| (from..to).contains(&(self.start + c.at));
        Self { start: self.start, connects: self.connects.iter().filter(inside).cloned().collect() }
    }

    /// The connects to one address.
    pub fn to(&self, to: SocketAddr) -> Self {
        let connects = self.connects.iter().filter(|c| c.to == to).cloned().collect();
        Self { start: self.start, connects }
    }
}

/// The monotonic clock in microseconds: the same in all processes.
///
/// # Panics
/// On a kernel without it.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    let micros = time.tv_sec() * 1_000_000 + time.tv_nsec() / 1_000;
    u64::try_from(micros).expect("it began with the machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        for line in ["7 20 10.0.0.1:80 0 17 10.0.0.1:80", "7 9 [fd00::1]:80 111 - -"] {
            assert_eq!(line.parse::<Connect>().unwrap().to_string(), line);
        }
    }

    #[test]
    fn a_failed_connect_is_shown_with_time_and_error() {
        let log = Log::parse("start 5\n9 1 10.0.0.1:80 0 1 -\n7 20 10.0.0.1:80 111 - -\n").unwrap();
        assert!(log.expect_all(1).unwrap_err().to_string().contains("7 20 10.0.0.1:80 111 - -"));
        assert_eq!(log.connects[0].at, 7);
        assert_eq!(log.during(14, 15).len(), 1);
    }
}
