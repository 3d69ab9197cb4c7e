//! What the agent's process may do.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use slotmesh_cluster::{Cluster, scenarios::Story};

use crate::world::{NODES, agents, all_ready, on_node};

/// By their bits.
const CAPABILITIES: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

pub fn least(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        let agents = agents(cluster).await?;
        for node in NODES {
            let pod = on_node(&agents, node)?;
            let processes = cluster.processes(pod)?;
            let [process] = processes[..] else {
                anyhow::bail!("the agent of node {node} has the processes {processes:?}")
            };
            expect_least(process).with_context(|| format!("the agent of node {node}"))?;
        }
        Ok(())
    })
}

fn expect_least(process: u32) -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).with_context(|| format!("no {name}"))
    };
    let expected = CAPABILITIES.iter().fold(0_u64, |set, (_, bit)| set | 1 << bit);
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let held = u64::from_str_radix(field(set)?, 16)?;
        ensure!(held == expected, "{set} is {held:016x}, not {expected:016x} ({CAPABILITIES:?})");
    }
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        ensure!(field(name)? == value, "{name} is {}, not {value}", field(name)?);
    }
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    let mounted = |at: &str| -> Result<Vec<&str>> {
        let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(at));
        Ok(line.with_context(|| format!("nothing is mounted at {at}"))?.split(' ').collect())
    };
    for at in ["/", "/sys/fs/cgroup"] {
        let options = mounted(at)?[5];
        ensure!(options.split(',').any(|option| option == "ro"), "{at} can be written: {options}");
    }
    let own = fs::read_link("/proc/self/ns/net")?;
    ensure!(fs::read_link(format!("/proc/{process}/ns/net"))? != own, "it is in the host's network");
    Ok(())
}
