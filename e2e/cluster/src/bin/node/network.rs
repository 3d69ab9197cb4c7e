//! The network of a node and of its pods.
//!
//! ```text
//!  bridge of the nodes --veth--> eth0 of the node -- routing, kube-proxy --veth--> eth0 of a pod
//! ```
//!
//! There is no bridge of the pods: an answer of a pod on the same node would pass it without being routed, and
//! so keep the address that kube-proxy has to translate back.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use slotmesh_cluster::{
    node::{self, Config, pod_networks},
    wait::SOON,
};

/// Output of `ip` with these arguments.
fn asked(arguments: &str) -> Result<String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().context("run ip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {}", said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip(arguments: &str) -> Result<()> {
    asked(arguments).map(drop)
}

/// Waits until packets to a pod's IPv6 address go there: the kernel makes the local route of an address in the
/// background.
fn arrives(netns: &str, address: Ipv6Addr) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while asked(&format!("-n {netns} -6 route show table local {address}"))?.is_empty() {
        ensure!(Instant::now() < deadline, "{address} has no local route in {netns}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Joins the network namespace of a process to the bridge of the nodes. Called in the bridge's namespace.
pub fn join(config: &Config, pid: u32) -> Result<()> {
    let Config { name, bridge, .. } = config;
    // That of a node which was switched off goes with its namespace, for which the kernel takes its time.
    drop(ip(&format!("link delete node-{name}")));
    ip(&format!("link add node-{name} type veth peer name eth0 netns {pid}"))?;
    ip(&format!("link set node-{name} master {bridge} up"))
}

/// Brings up the node's own interfaces, and its routes to the other nodes' pods.
pub fn start(config: &Config) -> Result<()> {
    let Config { address, address6, gateway, gateway6, .. } = config;
    // Also wanted by kube-proxy: what comes from a bridge passes its rules.
    for (setting, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/all/forwarding", "1"),
    ] {
        let file = format!("/proc/sys/net/{setting}");
        fs::write(&file, value).with_context(|| file.clone())?;
    }
    ip("link set lo up")?;
    ip(&format!("addr add {address}/24 dev eth0"))?;
    // Nobody else has the address: it needn't be asked for.
    ip(&format!("addr add {address6}/64 dev eth0 nodad"))?;
    ip("link set eth0 up")?;
    ip(&format!("route add default via {gateway}"))?;
    ip(&format!("route add default via {gateway6}"))?;
    for (other, other6, number) in &config.others {
        let [network, network6] = pod_networks(*number);
        ip(&format!("route add {network} via {other}"))?;
        ip(&format!("route add {network6} via {other6}"))?;
    }
    Ok(())
}

/// A pod's network namespace, under its name in /run/netns as container runtimes keep them.
#[derive(Debug)]
pub struct PodNetwork {
    name: String,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
}

impl PodNetwork {
    /// Makes one. `host` numbers the pods of a node.
    pub fn new(config: &Config, uid: &str, host: u8) -> Result<Self> {
        let (address, address6) =
            (node::pod_address(config.number, host), node::pod_address6(config.number, host));
        let this = Self { name: format!("pod-{uid}"), address, address6 };
        let name = &this.name;
        let (gateway, gateway6) = (config.pod_gateway(), config.pod_gateway6());
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add pod{host} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add {gateway}/32 dev pod{host}"))?;
        ip(&format!("addr add {gateway6}/128 dev pod{host} nodad"))?;
        ip(&format!("link set pod{host} up"))?;
        ip(&format!("route add {address}/32 dev pod{host}"))?;
        ip(&format!("route add {address6}/128 dev pod{host}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {address}/32 dev eth0"))?;
        ip(&format!("-n {name} addr add {address6}/128 dev eth0 nodad"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add {gateway} dev eth0 scope link"))?;
        ip(&format!("-n {name} route add default via {gateway}"))?;
        ip(&format!("-n {name} route add {gateway6} dev eth0"))?;
        ip(&format!("-n {name} route add default via {gateway6} dev eth0"))?;
        arrives(name, address6)?;
        Ok(this)
    }

    /// Where the namespace is.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        if let Err(error) = ip(&format!("netns delete {}", self.name)) {
            eprintln!("{error:?}");
        }
    }
}
