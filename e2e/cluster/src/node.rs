//! Configuration that a node is started with: shared by the harness and the program `slotmesh-node`.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The pods' networks of a cluster, of both families: a node has the /24 and the /64 of its number.
pub const PODS: &str = "10.244.0.0/16,fd00:10:244::/48";
/// Where a node finds the programs of the cluster.
pub const PROGRAMS: &str = "/opt/cluster";
/// Where a node finds the images.
pub const IMAGES: &str = "/opt/images";
/// Where a node keeps what its pods say: `NAMESPACE_POD_UID/CONTAINER/RESTARTS.log`.
pub const POD_LOGS: &str = "/var/log/pods";
/// Where a node tells the uid of each pod that it has: a file `NAMESPACE_POD`.
pub const POD_UIDS: &str = "/run/pods";
/// Where a container that takes input can be given some, in its bundle: a socket.
pub const STDIN: &str = "stdin.sock";

/// Where a node has the memory controller's first hierarchy, if the machine still uses it.
pub const MEMORY: &str = "/run/memory";

/// A node of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// Which node of the cluster it is, from 1 on: the third byte of its pods' addresses.
    pub number: u8,
    /// Its address in the network of the nodes, a /24.
    pub address: Ipv4Addr,
    /// Its IPv6 address there, a /64.
    pub address6: Ipv6Addr,
    /// The address of the machine that the nodes run on, in that network.
    pub gateway: Ipv4Addr,
    /// Its IPv6 address there.
    pub gateway6: Ipv6Addr,
    /// The addresses and numbers of the other nodes.
    pub others: Vec<(Ipv4Addr, Ipv6Addr, u8)>,
    /// The bridge that joins the nodes.
    pub bridge: String,
    /// Its folder: its root file system is `root` there.
    pub dir: PathBuf,
    /// The folder of images.
    pub images: PathBuf,
    /// The folder of the cluster's programs.
    pub programs: PathBuf,
    /// Its kubeconfig, with certificates within.
    pub kubeconfig: PathBuf,
    /// The same for its kube-proxy.
    pub proxy_kubeconfig: PathBuf,
    /// Certificate, in PEM, of its server for exec, logs and port-forward.
    pub certificate: PathBuf,
    /// The key of that.
    pub key: PathBuf,
    /// Certificate of who signed those that may ask that server.
    pub authority: PathBuf,
    /// The one user that may ask that server.
    pub client: String,
    /// Its cgroup of the v2 hierarchy, a folder.
    pub cgroup: PathBuf,
    /// Its cgroup of the memory controller, where that isn't in the v2 hierarchy.
    pub memory: Option<PathBuf>,
    /// The API server's Service address.
    pub api: Ipv4Addr,
    /// The name server's Service address.
    pub dns: Ipv4Addr,
}

impl Config {
    /// The root of its file system, seen from outside.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A path of its file system, seen from outside. (What it mounts there isn't seen.)
    pub fn inside(&self, path: &Path) -> PathBuf {
        self.root().join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The address that its pods reach it by.
    pub fn pod_gateway(&self) -> Ipv4Addr {
        pod_address(self.number, 1)
    }

    /// The IPv6 address that its pods reach it by.
    pub fn pod_gateway6(&self) -> Ipv6Addr {
        pod_address6(self.number, 1)
    }
}

/// Where a node keeps the bundle of a container.
pub fn bundle(id: &str) -> PathBuf {
    Path::new("/var/lib/containers").join(id)
}

/// A process beside a container's own, as its user and with no more rights, in the words of the OCI runtime
/// specification. `bundle` is the container's.
///
/// # Errors
/// When there is no such container.
pub fn beside(bundle: &Path, command: &[&str]) -> Result<Value> {
    let file = bundle.join("config.json");
    let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let mut config: Value = serde_json::from_slice(&text)?;
    let mut process = config["process"].take();
    process["args"] = json!(command);
    Ok(process)
}

/// The networks of a node's pods.
pub fn pod_networks(node: u8) -> [String; 2] {
    [format!("{}/24", pod_address(node, 0)), format!("{}/64", pod_address6(node, 0))]
}

/// An address of a node's pods.
pub fn pod_address(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, host)
}

/// An IPv6 address of a node's pods.
pub fn pod_address6(node: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into())
}
