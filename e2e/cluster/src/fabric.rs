//! The network that joins the nodes: a network namespace of its own, with a bridge and no way out.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::Uid,
};

/// The bridge of the nodes.
pub const BRIDGE: &str = "nodes0";
/// The address of this side, where the API server listens.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// The IPv6 address of this side.
pub const ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 1);

/// The address of a node.
pub fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + number)
}

/// The IPv6 address of a node.
pub fn node_address6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x10 + u16::from(number))
}

/// Moves the calling thread, and the threads and processes that it starts, to a network of their own.
///
/// # Errors
/// When this isn't root or the kernel refuses.
pub fn enter() -> Result<()> {
    ensure!(Uid::effective().is_root(), "this needs root: it creates namespaces and cgroups");
    unshare(CloneFlags::CLONE_NEWNET).context("create a network namespace (unshare)")?;
    ip("link set lo up")?;
    ip(&format!("link add {BRIDGE} type bridge"))?;
    ip(&format!("addr add {ADDRESS}/24 dev {BRIDGE}"))?;
    ip(&format!("addr add {ADDRESS6}/64 dev {BRIDGE} nodad"))?;
    ip(&format!("link set {BRIDGE} up"))?;
    // What a node sends to nowhere is answered (unreachable), not lost.
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        .and_then(|()| fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1"))
        .context("switch forwarding on")
}

/// Runs `ip` with these arguments, in this thread's namespace.
///
/// # Errors
/// When it fails.
pub fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .context("run ip (Debian package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {}", said.trim());
    Ok(())
}
