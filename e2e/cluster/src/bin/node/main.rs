//! A node: what a machine of a cluster has, in namespaces of its own, and a player of the kubelet.
//!
//! ```text
//! outer: in the nodes' network, first in the node's cgroup   (this process)
//!   joins inner's network to the bridge; waits
//! inner: first process of a PID namespace of its own         (ends with outer, and all pods with it)
//!   own network, mounts (bpffs, cgroup v2, sysfs), host name
//!   kube-proxy; kubelet-server; pods by crun
//! ```
//!
//! What is real: the containers' isolation (crun: namespaces, capabilities, seccomp, read-only root), the
//! network, kube-proxy, the objects in the API, the streams of exec, logs and port-forward. What is played: image
//! pulls (a folder of images), resource limits but memory, eviction.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _, stdin},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use slotmesh_cluster::node::Config;

mod container;
mod environment;
mod kubelet;
mod network;
mod oci;
mod pod;
mod probe;
mod quantity;
mod root;
mod runtime;
mod seccomp;
mod status;
mod volumes;

/// The word that makes this the inner process.
const INNER: &str = "inner";

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let done = match (args.next(), args.next()) {
        (Some(config), None) => outer(config.as_ref()),
        (Some(config), Some(word)) if word == INNER => inner(config.as_ref()),
        _ => Err(anyhow::anyhow!("usage: slotmesh-node CONFIG")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read(config: &Path) -> Result<Config> {
    let text = fs::read(config).with_context(|| config.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| config.display().to_string())
}

fn outer(file: &Path) -> Result<()> {
    let config = read(file)?;
    // First the cgroup: its root, seen from within, is where a process is when it unshares.
    join_cgroup(&config.cgroup)?;
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP)
        .context("create PID and cgroup namespaces (needs root)")?;
    // Pods are the node's other cgroups; a cgroup that has children should have no processes.
    join_cgroup(&config.cgroup.join("system.slice/kubelet.service"))?;
    let mut inner = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(env::current_exe()?)
        .args([file.as_os_str(), INNER.as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the inner process by setpriv (Debian package util-linux)")?;
    let mut said = BufReader::new(inner.stdout.take().context("a pipe")?);
    let mut go = inner.stdin.take().context("a pipe")?;
    let mut line = String::new();
    said.read_line(&mut line)?;
    ensure!(line == "up\n", "the inner process said {line:?}");
    // What is started from here on is in the inner PID namespace, and sees its first process.
    network::join(&config, 1)?;
    writeln!(go, "go")?;
    drop(go);
    let status = inner.wait()?;
    ensure!(status.success(), "the inner process ended: {status}");
    Ok(())
}

fn inner(file: &Path) -> Result<()> {
    let config = read(file)?;
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .context("create namespaces")?;
    println!("up");
    let mut line = String::new();
    stdin().read_line(&mut line)?;
    ensure!(line == "go\n", "the outer process said {line:?}");
    nix::unistd::sethostname(&config.name)?;
    root::enter(&config)?;
    network::start(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(kubelet::run(config))
}

fn join_cgroup(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(dir.join("cgroup.procs"), std::process::id().to_string()))
        .with_context(|| format!("join the cgroup {}", dir.display()))
}
