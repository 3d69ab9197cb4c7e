//! The `slotmesh` command line.

mod admin;
mod agent;
mod ask;
mod broker;
mod bugreport;
mod callers;
mod changes;
mod check;
mod cluster;
mod compile;
mod completion;
mod domain;
mod drain;
mod embedded;
mod envoy_json;
mod explain;
mod flags;
mod get;
mod in_force;
mod lint;
mod listen;
mod manual;
mod mesh;
mod node_proxy;
mod operator;
mod origins;
mod own_proxy;
mod port_forward;
mod process;
mod progress;
mod proxies;
mod proxy;
mod render;
mod reports;
mod scraped;
mod served;
mod slots;
mod text_format;
mod top;
mod traffic_flags;
mod up;
mod version;

use std::{path::Path, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

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
    /// Run the proxy of a node: requests of its pods by their routes. Or serve a file that a stock Envoy would take
    Proxy(proxy::Proxy),
    /// Make sockets in the network namespaces of a node's pods, for its proxy: no byte of a connection comes here
    Broker(broker::BrokerCommand),
    /// Say what `slotmesh up` would say of manifests, without root and without a kernel (for editors and CI)
    Lint(lint::Lint),
    /// Say what a running operator, or `slotmesh up`, has to say of its objects
    Reports(reports::Reports),
    /// Say whether changes are in force on all nodes of the cluster, and if not, where, since when and what to do
    Status(mesh::MeshStatus),
    /// List what a node has in force, as the kernel's records hold it
    Get(get::Get),
    /// Say where the connections of a workload to an address go, and why, by the program in the kernel
    Explain(explain::Explain),
    /// List which workloads connect to a Service, and what becomes of their connections
    Callers(callers::CallersCommand),
    /// Say which objects were changed lately, what was compiled because of that, and when it came into force
    Changes(changes::Changes),
    /// Print the slot table of a running agent
    Slots(slots::Slots),
    /// Show slot tables, flush latency, the busiest clusters and failures, live
    Top(top::Top),
    /// Write all that somebody needs who looks for a fault into one archive, without secrets
    Bugreport(bugreport::Bugreport),
    /// Print the version of this program, and of the agent and the operator that it reaches
    Version(version::VersionCommand),
    /// Print a script by which a shell completes commands, flags and their values
    Completion(completion::Completion),
    /// Print the manual page of a command, or write those of all into a directory
    Man(manual::Manual),
}

/// The name by which kubectl finds the program: `kubectl slotmesh`.
const PLUGIN: &str = "kubectl-slotmesh";

/// Tells whether kubectl has started this.
fn is_plugin() -> bool {
    let name = std::env::args_os().next();
    let stem = name.as_deref().map(Path::new).and_then(Path::file_stem);
    stem.is_some_and(|stem| stem == PLUGIN)
}

fn main() -> anyhow::Result<ExitCode> {
    let mut command = Cli::command();
    if is_plugin() {
        command = command.bin_name("kubectl slotmesh");
    }
    let Cli { command } = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    match command {
        Command::Up(up) => up.run(),
        Command::Operator(operator) => operator.run(),
        Command::Agent(agent) => agent.run(),
        Command::Check(check) => check.run(),
        Command::Drain(drain) => drain.run(),
        Command::Proxy(proxy) => proxy.run(),
        Command::Broker(broker) => broker.run(),
        Command::Lint(lint) => return lint.run(),
        Command::Reports(reports) => reports.run(),
        Command::Status(status) => return status.run(),
        Command::Get(get) => return get.run(),
        Command::Explain(explain) => return explain.run(),
        Command::Callers(callers) => callers.run(),
        Command::Changes(changes) => changes.run(),
        Command::Slots(slots) => slots.run(),
        Command::Top(top) => top.run(),
        Command::Bugreport(bugreport) => bugreport.run(),
        Command::Version(version) => version.run(),
        Command::Completion(completion) => completion.run(),
        Command::Man(manual) => manual.run(),
    }?;
    Ok(ExitCode::SUCCESS)
}
