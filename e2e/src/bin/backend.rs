//! A server for pods: answers each connection with the last two bytes of the address that it was made to, which
//! tell the pod. It ends by SIGTERM, also where it is the first process of its pod.

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use slotmesh_e2e::Backends;

/// Answers each connection with who it is.
#[derive(Debug, Parser)]
struct Args {
    /// Where it listens, on all addresses
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

fn main() -> Result<()> {
    let Args { port } = Args::parse();
    // Before there is another thread: all inherit it.
    let ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    ends.thread_block().context("block signals")?;
    let mut backends = Backends::new();
    backends.open_all_v4(port)?;
    ends.wait().context("wait for a signal")?;
    Ok(())
}
