//! What broker and proxy may do.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};
use slotmesh_cluster::{Cluster, scenarios::Story};

use crate::{replaced::PROXIES, world::SYSTEM};

/// By its bit.
const CAP_SYS_ADMIN: u32 = 21;

pub fn least(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let proxies = cluster.pods(SYSTEM, PROXIES).await?;
        ensure!(!proxies.is_empty(), "there is no proxy");
        for pod in &proxies {
            let processes = cluster.processes(pod)?;
            let [one, other] = processes[..] else { bail!("broker and proxy are {processes:?}") };
            let (broker, proxy) = if uid(one)? == 0 { (one, other) } else { (other, one) };
            has(broker, 1 << CAP_SYS_ADMIN, 0).context("the broker")?;
            has(proxy, 0, 65_532).context("the proxy")?;
        }
        Ok(())
    })
}

fn field(process: u32, name: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name}"))?.trim().to_owned())
}

/// The effective user of a process.
fn uid(process: u32) -> Result<u32> {
    let all = field(process, "Uid")?;
    Ok(all.split_whitespace().nth(1).context("four users")?.parse()?)
}

fn has(process: u32, capabilities: u64, user: u32) -> Result<()> {
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let held = u64::from_str_radix(&field(process, set)?, 16)?;
        ensure!(held == capabilities, "{set} is {held:016x}, not {capabilities:016x}");
    }
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        ensure!(field(process, name)? == value, "{name} is {}, not {value}", field(process, name)?);
    }
    ensure!(uid(process)? == user, "it runs as {}", uid(process)?);
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    let root = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).context("a root")?;
    let options = root.split(' ').nth(5).unwrap_or_default();
    ensure!(options.split(',').any(|option| option == "ro"), "its root can be written: {options}");
    Ok(())
}
