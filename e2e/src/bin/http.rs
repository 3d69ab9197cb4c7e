//! HTTP/1.1 for pods: a server that says what it was sent, and a client that asks.
//!
//! The client writes one line an answer (see `slotmesh_e2e::http`). Where it is told to, it makes no socket before it has read
//! a line from its standard input, so that whoever started it can move it to a cgroup first.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use slotmesh_e2e::{HttpBackend, HttpClient};

/// A server and a client of HTTP/1.1.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    does: Does,
}

#[derive(Debug, Subcommand)]
enum Does {
    /// Answers each request with what it was, until SIGTERM
    Serve {
        /// Where it listens, on all addresses
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// How it calls itself; the address that is connected to, where nothing is said
        #[arg(long, env = "NAME")]
        name: Option<String>,
    },
    /// Asks for each target, on one connection as long as it lasts
    Ask {
        /// Where
        to: SocketAddr,
        /// Paths with queries, in turn
        #[arg(required = true)]
        targets: Vec<String>,
        /// The method
        #[arg(long, default_value = "GET")]
        method: String,
        /// The host that is asked for
        #[arg(long, default_value = "web")]
        host: String,
        /// A header, such as `end-user: tester`; may be repeated
        #[arg(long = "header")]
        headers: Vec<String>,
        /// How often each target is asked for
        #[arg(long, default_value_t = 1)]
        times: u64,
        /// Begins when it has read a line from its input
        #[arg(long)]
        held: bool,
        /// Goes on until its input ends
        #[arg(long)]
        on: bool,
        /// Milliseconds that it waits between two requests
        #[arg(long, default_value_t = 0)]
        gap: u64,
        /// Seconds after which it ends
        #[arg(long, default_value_t = 300)]
        limit: u64,
    },
}

fn main() -> Result<()> {
    match Args::parse().does {
        Does::Serve { port, name } => serve(port, name),
        Does::Ask { to, targets, method, host, headers, times, held, on, gap, limit } => {
            let mut all = vec![("host".to_owned(), host)];
            for header in headers {
                let (name, value) =
                    header.split_once(':').with_context(|| format!("{header:?} is no header"))?;
                all.push((name.to_owned(), value.trim().to_owned()));
            }
            if held {
                io::stdin().read_line(&mut String::new())?;
            }
            let ended = Arc::new(AtomicBool::new(!on));
            if on {
                let ended = ended.clone();
                thread::spawn(move || {
                    drop(io::stdin().read_to_end(&mut Vec::new()));
                    ended.store(true, Ordering::Relaxed);
                });
            }
            let (began, mut client) = (Instant::now(), HttpClient::new(to));
            let mut out = io::stdout().lock();
            let mut turn = 0;
            while (turn < times || !ended.load(Ordering::Relaxed)) && began.elapsed().as_secs() < limit {
                for target in &targets {
                    writeln!(out, "{}", client.ask(&method, target, &all).line())?;
                    thread::sleep(Duration::from_millis(gap));
                }
                turn += 1;
            }
            eprintln!("{} connections", client.connections);
            Ok(())
        }
    }
}

fn serve(port: u16, name: Option<String>) -> Result<()> {
    // Before there is another thread: all inherit it.
    let ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    ends.thread_block().context("block signals")?;
    let name = move |at: IpAddr| name.clone().unwrap_or_else(|| at.to_string());
    let _server = HttpBackend::start(SocketAddr::from(([0, 0, 0, 0], port)), name)?;
    ends.wait().context("wait for a signal")?;
    Ok(())
}
