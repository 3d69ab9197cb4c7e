//! A real Envoy as the oracle: it gets the route configurations that the table gets, and the same requests, and every
//! answer is compared with the decision: cluster, path, host and headers that the upstream saw, status, `Location`,
//! body and headers that the caller saw.
//!
//! ```text
//!  generate -- RouteConfiguration --> Envoy      --> echo server: which cluster, and the head that it saw
//!           \- requests ------------^
//!            \----------------------> RouteTable --> decision        both are compared
//! ```
//!
//! Routes and requests come from a seed, always the same one; `SLOTMESH_ORACLE_SEED` and `SLOTMESH_ORACLE_HOSTS` make
//! other and more of them.

mod echo;
mod envoy;
mod exchange;
mod generate;
mod predict;

use std::{env, process::Command, sync::Mutex, thread};

use nix::sched::{CloneFlags, unshare};
use slotmesh_routing::RouteTable;
use slotmesh_xds::envoy::envoy::config::route::v3::RouteConfiguration;

use exchange::{Client, Sent};
use generate::Chance;

/// Clusters, each a port of the echo server's.
const CLUSTERS: u16 = 6;
const FIRST_CLUSTER: u16 = 20_000;
const FIRST_LISTENER: u16 = 10_000;
const HOSTS: u64 = 120;
const REQUESTS_PER_HOST: usize = 24;
/// Differences after which it isn't looked for more.
const ENOUGH: usize = 12;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

/// Gives the calling thread, and all that it starts, a network of their own with nothing but loopback.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own takes root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip starts");
    assert!(up.success(), "ip link set lo up: {up}");
}

/// A listener's configuration and the requests that are sent to it.
struct Trial {
    name: &'static str,
    config: RouteConfiguration,
    options: envoy::Options,
    requests: Vec<Sent>,
}

#[test]
fn envoy_answers_alike() {
    own_network();
    let mut chance = Chance::new(number("SLOTMESH_ORACLE_SEED", 1));
    let hosts = number("SLOTMESH_ORACLE_HOSTS", HOSTS);
    let trials = generate::trials(&mut chance, hosts, REQUESTS_PER_HOST);
    echo::serve(FIRST_CLUSTER, CLUSTERS);
    let _envoy = envoy::start(&trials);
    let differences = Mutex::new(Vec::new());
    let mut compared = 0;
    for (port, trial) in (FIRST_LISTENER..).zip(&trials) {
        let (table, errors) = RouteTable::new(&trial.config);
        assert_eq!(errors, [], "{}", trial.name);
        compared += trial.requests.len();
        thread::scope(|scope| {
            for half in trial.requests.chunks(trial.requests.len().div_ceil(2)) {
                scope.spawn(|| compare(port, trial, &table, half, &differences));
            }
        });
    }
    let differences = differences.into_inner().unwrap();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    println!("{compared} requests were answered alike");
    assert!(compared >= 2_000, "{compared} requests are few");
}

fn compare(
    port: u16,
    trial: &Trial,
    table: &RouteTable,
    requests: &[Sent],
    differences: &Mutex<Vec<String>>,
) {
    let mut client = Client::new(port);
    for request in requests {
        if differences.lock().unwrap().len() >= ENOUGH {
            return;
        }
        let answered = client.exchange(request);
        let predicted = predict::predict(table, request, &trial.options);
        if answered != predicted {
            let host = trial.config.virtual_hosts.iter().find(|host| host.domains.contains(&request.host));
            differences.lock().unwrap().push(format!(
                "{}: {request:?}\n  Envoy: {answered:?}\n  ours:  {predicted:?}\n  by {}",
                trial.name,
                brief(&host)
            ));
        }
    }
}

/// A message without the fields that aren't set.
fn brief(message: &impl std::fmt::Debug) -> String {
    let unset = ["None,", ": [],", ": false,", ": {},", ": 0,", ": \"\","];
    let bytes = |line: &str| line.trim_end_matches(',').bytes().all(|byte| byte.is_ascii_digit());
    let text = format!("{message:#?}");
    let lines = text.lines().filter(|line| !unset.iter().any(|end| line.ends_with(end)));
    lines.map(str::trim).filter(|line| !bytes(line)).collect::<Vec<_>>().join(" ")
}
