//! Client processes.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdin, Command, Stdio},
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{Cgroup, Log, names};

/// How many connects a load makes at least.
pub const LEAST: usize = 20_000;

/// What a client does. The default is one connect.
#[derive(Clone, Debug)]
pub struct ClientSpec {
    to: Vec<SocketAddr>,
    count: u64,
    least: u64,
    threads: usize,
    gap: u64,
    limit: u64,
    udp: Option<Ask>,
}

/// How a client asks by UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Ask {
    /// A socket for each question, which names the destination with the datagram.
    Each,
    /// One socket for all questions of a thread, whatever their destinations.
    All,
    /// A connected socket for each question.
    Connected,
}

/// Seconds after which a client ends, where nothing else is said.
const LIMIT: u64 = 60;

impl ClientSpec {
    /// Connects to `to`; an IPv4-mapped address by an IPv6 socket.
    pub fn to(to: SocketAddr) -> Self {
        Self { to: vec![to], count: 1, least: 0, threads: 1, gap: 0, limit: LIMIT, udp: None }
    }

    /// Connects there as well, in turn.
    #[must_use]
    pub fn and(mut self, to: SocketAddr) -> Self {
        self.to.push(to);
        self
    }

    /// Asks by UDP instead.
    #[must_use]
    pub fn udp(mut self, ask: Ask) -> Self {
        self.udp = Some(ask);
        self
    }

    /// At least that many connects, when it is stopped before.
    #[must_use]
    pub fn least(mut self, least: u64) -> Self {
        self.least = least;
        self
    }

    /// That many connects.
    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.count = count;
        self
    }

    /// By that many threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Each thread waits that many microseconds between two connects.
    #[must_use]
    pub fn gap(mut self, micros: u64) -> Self {
        self.gap = micros;
        self
    }

    /// It ends after that many seconds, if nothing ends it before.
    #[must_use]
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = seconds;
        self
    }

    /// A load that goes on until it is stopped, and then until it has made [`LEAST`] connects: some
    /// thousand connects a second, to these in turn.
    ///
    /// # Panics
    /// When there is no address.
    pub fn load(to: &[SocketAddr]) -> Self {
        const GAP: u64 = 100;
        assert!(!to.is_empty(), "a load goes somewhere");
        Self {
            to: to.to_vec(),
            count: u64::MAX,
            least: LEAST as u64,
            threads: 2,
            gap: GAP,
            limit: LIMIT,
            udp: None,
        }
    }

    /// Starts a client process in this cgroup (or outside all) and lets it go.
    ///
    /// # Errors
    /// When it can't be started or moved.
    pub fn start(&self, cgroup: Option<&Cgroup>) -> Result<Client> {
        let client =
            Client::start(Command::new(names::binary("slotmesh-e2e", "client")?).args(self.arguments()))?;
        if let Some(cgroup) = cgroup {
            cgroup.add(client.child.id())?;
        }
        client.go()
    }

    /// Starts a client by a command that takes its arguments ([`ClientSpec::arguments`]), wherever that runs it,
    /// and lets it go.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_by(command: &mut Command) -> Result<Client> {
        Client::start(command)?.go()
    }

    /// What the client program is told.
    pub fn arguments(&self) -> Vec<String> {
        let Self { to, count, least, threads, gap, limit, udp } = self;
        let mut all: Vec<String> = to.iter().map(ToString::to_string).collect();
        for (flag, value) in [
            ("--count", count),
            ("--least", least),
            ("--threads", &(*threads as u64)),
            ("--gap", gap),
            ("--limit", limit),
        ] {
            all.extend([flag.to_owned(), value.to_string()]);
        }
        if let Some(value) = udp.as_ref().and_then(clap::ValueEnum::to_possible_value) {
            all.extend(["--udp".to_owned(), value.get_name().to_owned()]);
        }
        all
    }

    /// Starts a client in this cgroup and waits for its end.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn run(&self, cgroup: Option<&Cgroup>) -> Result<Log> {
        self.start(cgroup)?.finish()
    }
}

/// A client process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Client {
    child: Child,
    stdin: Option<ChildStdin>,
    reader: Option<JoinHandle<std::io::Result<String>>>,
}

impl Client {
    /// Starts one, which waits to be let go.
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            // Ctrl-C is for whoever started it, who then ends it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start a client")?;
        let mut stdout = child.stdout.take().context("its output is piped")?;
        let reader = thread::spawn(move || {
            let mut output = String::new();
            stdout.read_to_string(&mut output).map(|_| output)
        });
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, reader: Some(reader) })
    }

    fn go(mut self) -> Result<Self> {
        self.stdin.as_mut().context("its input is piped")?.write_all(b"go\n").context("let a client go")?;
        Ok(self)
    }

    /// Waits until all its connects are made (the client has a time limit of its own).
    ///
    /// # Errors
    /// When it failed.
    pub fn finish(mut self) -> Result<Log> {
        let reader = self.reader.take().context("it is read once")?;
        let output = reader.join().map_err(|_| anyhow!("the reader of a client panicked"))??;
        let status = self.child.wait()?;
        ensure!(status.success(), "the client ended with {status}");
        Log::parse(&output)
    }

    /// Ends it, now or when it has made the least number of connects that it is to make.
    ///
    /// # Errors
    /// When it failed.
    pub fn stop(mut self) -> Result<Log> {
        self.stdin = None;
        self.finish()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is still connecting.
    ///
    /// # Errors
    /// When its state can't be read.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both do nothing where it has ended.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
