//! The `slotmesh` command line.

mod embedded;
mod slots;
mod up;

use clap::{Parser, Subcommand};

/// Brings service-mesh configuration into the Linux kernel.
#[derive(Debug, Parser)]
#[command(name = "slotmesh", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run standalone: manifests in, connections of workloads on this node routed in the kernel
    Up(up::Up),
    /// Print the slot table of a running agent
    Slots(slots::Slots),
}

fn main() -> anyhow::Result<()> {
    let Cli { command } = Cli::parse();
    match command {
        Command::Up(up) => up.run(),
        Command::Slots(slots) => slots.run(),
    }
}
