//! The network of a node and of its pods.
//!
//! ```text
//!  bridge of the nodes --veth--> eth0 of the node -- routing, kube-proxy --veth--> eth0 of a pod
//! ```
//!
//! There is no bridge of the pods: an answer of a pod on the same node would pass it without being routed, and
//! so keep the address that kube-proxy has to translate back.

use std::{fs, net::Ipv4Addr, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use slotmesh_cluster::node::{Config, pod_network};

fn run(program: &str, arguments: &str) -> Result<()> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("run {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {}", said.trim());
    Ok(())
}

fn ip(arguments: &str) -> Result<()> {
    run("ip", arguments)
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
    let Config { address, gateway, .. } = config;
    // Also wanted by kube-proxy: what comes from a bridge passes its rules.
    for (setting, value) in
        [("ip_forward", "1"), ("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0")]
    {
        let file = format!("/proc/sys/net/ipv4/{setting}");
        fs::write(&file, value).with_context(|| file.clone())?;
    }
    ip("link set lo up")?;
    ip(&format!("addr add {address}/24 dev eth0"))?;
    ip("link set eth0 up")?;
    ip(&format!("route add default via {gateway}"))?;
    for (other, number) in &config.others {
        ip(&format!("route add {} via {other}", pod_network(*number)))?;
    }
    Ok(())
}

/// A pod's network namespace, under its name in /run/netns as container runtimes keep them.
#[derive(Debug)]
pub struct PodNetwork {
    name: String,
    /// The pod's address.
    pub address: Ipv4Addr,
}

impl PodNetwork {
    /// Makes one. `host` numbers the pods of a node.
    pub fn new(config: &Config, uid: &str, host: u8) -> Result<Self> {
        let address = slotmesh_cluster::node::pod_address(config.number, host);
        let this = Self { name: format!("pod-{uid}"), address };
        let name = &this.name;
        let gateway = config.pod_gateway();
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add pod{host} type veth peer name eth0 netns {name}"))?;
        ip(&format!("addr add {gateway}/32 dev pod{host}"))?;
        ip(&format!("link set pod{host} up"))?;
        ip(&format!("route add {address}/32 dev pod{host}"))?;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} addr add {address}/32 dev eth0"))?;
        ip(&format!("-n {name} link set eth0 up"))?;
        ip(&format!("-n {name} route add {gateway} dev eth0 scope link"))?;
        ip(&format!("-n {name} route add default via {gateway}"))?;
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
