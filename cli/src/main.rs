//! The `slotmesh` command line.

mod admin;
mod agent;
mod check;
mod cluster;
mod compile;
mod domain;
mod drain;
mod embedded;
mod flags;
mod listen;
mod operator;
mod process;
mod proxy;
mod reports;
mod slots;
mod up;

use clap::{Parser, Subcommand};

/// Routes TCP connections in the Linux kernel, when they are made, by Services, routes and policies.
///
/// On one machine without Kubernetes begin with `slotmesh up`; in a cluster the chart runs `operator` and `agent`.
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
    /// Run the operator of a cluster: compile its objects and serve them to the agents of its nodes
    Operator(operator::OperatorCommand),
    /// Run the agent of a cluster's node: route the connections of its enrolled pods in the kernel
    Agent(agent::AgentCommand),
    /// Say whether operator and agents of the cluster are in sync (within the cluster; what `helm test` runs)
    Check(check::Check),
    /// Let the agents of all nodes take the data path away, and wait until they have (before an uninstall)
    Drain(drain::Drain),
    /// Serve HTTP by a file that a stock Envoy would take: a look at the proxy, without a cluster and without rights
    Proxy(proxy::Proxy),
    /// Print the slot table of a running agent
    Slots(slots::Slots),
}

fn main() -> anyhow::Result<()> {
    let Cli { command } = Cli::parse();
    match command {
        Command::Up(up) => up.run(),
        Command::Operator(operator) => operator.run(),
        Command::Agent(agent) => agent.run(),
        Command::Check(check) => check.run(),
        Command::Drain(drain) => drain.run(),
        Command::Proxy(proxy) => proxy.run(),
        Command::Slots(slots) => slots.run(),
    }
}
