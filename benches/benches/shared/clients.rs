//! Processes that connect and close when told to, so that several ways to a listener are measured in turn.
//!
//! The benchmark starts itself again: its `main` hands `child-connect BATCH ROUNDS TARGET` to [`child`].

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use slotmesh_bench::{Samples, time};
use socket2::{Domain, SockRef, Socket, Type};

const ROUNDS: usize = 100;
const BATCH: usize = 200;

/// A target, and the cgroup of whoever connects to it.
pub type Target<'c> = (SocketAddr, Option<&'c Path>);

/// Connects and closes: so many clients of each target at the same time.
pub fn compare_connects<const N: usize>(
    clients: usize,
    targets: [Target<'_>; N],
) -> anyhow::Result<[Samples; N]> {
    compare(&["child-connect", &BATCH.to_string()], clients, targets)
}

/// The medians of the rounds of processes that are started with these arguments, the number of rounds and a target: so
/// many of each target at the same time.
pub fn compare<const N: usize>(
    child: &[&str],
    clients: usize,
    targets: [Target<'_>; N],
) -> anyhow::Result<[Samples; N]> {
    let start = |(at, cgroup): Target<'_>| {
        let side = || {
            let side = Side::run(&[child, &[&ROUNDS.to_string(), &at.to_string()]].concat())?;
            if let Some(cgroup) = cgroup {
                fs::write(cgroup.join("cgroup.procs"), side.pid().to_string())?;
            }
            Ok(side)
        };
        (0..clients).map(|_| side()).collect::<anyhow::Result<Vec<_>>>()
    };
    let mut sides = targets.into_iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
    let mut times = [const { Vec::new() }; N];
    for round in 0..ROUNDS {
        for i in 0..N {
            // Who goes first alternates.
            let i = if round % 2 == 0 { i } else { N - 1 - i };
            sides[i].iter_mut().try_for_each(Side::order)?;
            for side in &mut sides[i] {
                times[i].push(side.answer()?);
            }
        }
    }
    sides.into_iter().flatten().try_for_each(Side::end)?;
    Ok(times.map(Samples::new))
}

/// A process that does something when told to.
pub struct Side {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Side {
    /// Starts this benchmark again with these arguments.
    pub fn run(args: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take().context("piped")?;
        let answers = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, orders, answers })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it make a batch.
    pub fn order(&mut self) -> anyhow::Result<()> {
        Ok(self.orders.write_all(b"go\n")?)
    }

    /// Waits until the batch is made: its median.
    pub fn answer(&mut self) -> anyhow::Result<Duration> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(Duration::from_nanos(line.trim().parse().with_context(|| format!("the client said {line:?}"))?))
    }

    pub fn end(self) -> anyhow::Result<()> {
        let Self { mut child, orders, answers } = self;
        drop((orders, answers));
        ensure!(child.wait()?.success(), "the client failed");
        Ok(())
    }
}

/// Connects and closes in batches, one when told to, and says the median of each.
pub fn child(batch: usize, rounds: usize, target: SocketAddr) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    for _ in 0..rounds {
        let mut order = String::new();
        if stdin.read_line(&mut order)? == 0 {
            return Ok(());
        }
        let mut times = Vec::with_capacity(batch);
        for _ in 0..batch {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
            let (result, took) = time(|| socket.connect(&target.into()));
            result.with_context(|| format!("connect to {target}"))?;
            // Wait until the listener has taken and closed it, so that its backlog never fills; reset
            // on close, so that no sockets pile up in TIME_WAIT.
            let mut stream = TcpStream::from(socket);
            ensure!(stream.read(&mut [0])? == 0, "the listener only closes");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            let ((), closing) = time(|| drop(stream));
            times.push(took + closing);
        }
        println!("{}", Samples::new(times).p50().as_nanos());
    }
    Ok(())
}
