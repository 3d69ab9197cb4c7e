//! A control plane and its nodes, on one machine.
//!
//! ```text
//!   network of the nodes (no way out)
//!   +----------------------------------------------------------------+
//!   | control plane, test        172.30.0.1, fd00:172:30::1          |
//!   |    |                                                           |
//!   |  nodes0 (bridge) --+------------------+------------------+     |
//!   |                 node a             node b             node c   |
//!   |            pods 10.244.1.0/24  10.244.2.0/24      10.244.3.0/24|
//!   |           fd00:10:244:1::/64  fd00:10:244:2::/64  …:3::/64     |
//!   +----------------------------------------------------------------+
//! ```
//!
//! Pods are bound by the scheduler, run by the nodes (`slotmesh-node`), reach each other by their addresses and
//! Services by kube-proxy, and names by CoreDNS.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::json;

use crate::{
    cgroups::Cgroups,
    control_plane::{ControlPlane, KUBELET_CLIENT, Spec},
    fabric,
    images::{Images, Start},
    node::{self, POD_LOGS},
    process::{Keeper, Process, tail},
    programs::Program,
    wait,
};

/// Prefix of the cgroups of all clusters; then comes the number of the process.
const PREFIX: &str = "slotmesh-cluster-";
/// The nodes' names.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
/// The name server's Service address, and what else makes it.
const DNS: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);
const COREDNS: &str = include_str!("../manifests/coredns.yaml");

/// Controllers of a cluster with nodes, beside those of any control plane.
const NODE_CONTROLLERS: [&str; 3] =
    ["endpoints-controller", "endpointslice-mirroring-controller", "replicationcontroller-controller"];

/// A running cluster. It ends when this is dropped.
pub struct Cluster {
    // Dropped in this order: nodes first, then what they live in and on.
    nodes: Vec<RunningNode>,
    keeper: Keeper,
    _cgroups: Cgroups,
    images: Images,
    control_plane: ControlPlane,
}

/// A node that runs, or was stopped.
struct RunningNode {
    config: node::Config,
    file: PathBuf,
    process: Option<Process>,
}

impl Cluster {
    /// Starts a control plane and nodes, and waits until all are ready. The calling thread must have entered
    /// a network for it ([`fabric::enter`]).
    ///
    /// # Errors
    /// When a program is missing or ends (with what it said), or something isn't ready in time.
    pub async fn start(count: u8) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure!(usize::from(count) <= NAMES.len(), "at most {} nodes have names", NAMES.len());
        let name = format!("{PREFIX}{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let cgroups = Cgroups::new(PREFIX, &name)?;
        let mut spec = Spec { address: Some(fabric::ADDRESS), scheduler: true, ..Spec::default() };
        spec.controllers.extend(NODE_CONTROLLERS);
        let control_plane = ControlPlane::start_with(spec).await?;
        let images = Images::in_folder(&control_plane.dir().join("images"))?;
        // One folder has all that nodes start.
        let programs =
            Program::KubeletServer.path()?.parent().context("a program is in a folder")?.to_owned();
        let proxy_kubeconfig = control_plane.write_kubeconfig("proxy", "system:kube-proxy", None)?;
        let numbers: Vec<u8> = (1..=count).collect();
        let mut nodes = Vec::new();
        for (number, name) in numbers.iter().copied().zip(NAMES) {
            let kubeconfig = control_plane.write_kubeconfig(
                &format!("node-{name}"),
                &format!("system:node:{name}"),
                Some("system:nodes"),
            )?;
            let addresses = [fabric::node_address(number).into(), fabric::node_address6(number).into()];
            let server = control_plane.authority().server(&format!("kubelet-{name}"), &[name], &addresses)?;
            let dir = control_plane.dir().join("nodes").join(name);
            fs::create_dir_all(&dir)?;
            let others = numbers.iter().copied().filter(|other| *other != number);
            let config = node::Config {
                name: name.to_owned(),
                number,
                address: fabric::node_address(number),
                address6: fabric::node_address6(number),
                gateway: fabric::ADDRESS,
                gateway6: fabric::ADDRESS6,
                others: others
                    .map(|other| (fabric::node_address(other), fabric::node_address6(other), other))
                    .collect(),
                bridge: fabric::BRIDGE.to_owned(),
                images: images.dir().to_owned(),
                programs: programs.clone(),
                kubeconfig,
                proxy_kubeconfig: proxy_kubeconfig.clone(),
                certificate: server.certificate,
                key: server.key,
                authority: control_plane.authority().certificate(),
                client: KUBELET_CLIENT.to_owned(),
                cgroup: cgroups.node(name),
                memory: cgroups.node_memory(name)?,
                api: std::net::Ipv4Addr::new(10, 96, 0, 1),
                dns: DNS,
                dir,
            };
            let file = config.dir.join("config.json");
            fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
            nodes.push(RunningNode { config, file, process: None });
        }
        let mut this = Self { nodes, keeper: Keeper::new()?, _cgroups: cgroups, images, control_plane };
        this.bring_up().await.with_context(|| this.logs())?;
        Ok(this)
    }

    async fn bring_up(&mut self) -> Result<()> {
        let client = self.client().await?;
        let objects: Api<Node> = Api::all(client.clone());
        for node in &self.nodes {
            let config = &node.config;
            let networks = node::pod_networks(config.number);
            let labels = json!({
                "kubernetes.io/hostname": config.name,
                "kubernetes.io/os": "linux",
                // Each is a zone of its own.
                "topology.kubernetes.io/region": "here",
                "topology.kubernetes.io/zone": format!("zone-{}", config.name),
                "kubernetes.io/arch": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            });
            let object = json!({
                "metadata": {"name": config.name, "labels": labels},
                "spec": {"podCIDR": networks[0], "podCIDRs": networks},
            });
            objects.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
            fabric::ip(&format!("route add {} via {}", networks[0], config.address))?;
            fabric::ip(&format!("route add {} via {}", networks[1], config.address6))?;
        }
        let names: Vec<String> = self.nodes.iter().map(|node| node.config.name.clone()).collect();
        for name in &names {
            self.start_node(name)?;
        }
        let coredns = Program::CoreDns.path()?;
        let start = Start { entrypoint: vec!["/coredns".to_owned()], ..Start::default() };
        self.images.make("cluster.test/coredns", &[(&coredns, "/coredns")], &start)?;
        self.apply(COREDNS)?;
        for name in &names {
            self.node_is_ready(name).await?;
        }
        self.rolled_out("kube-system", "coredns").await
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The control plane, to stop and start what it is made of.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// The images that the nodes have.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// A client of the administrator.
    ///
    /// # Errors
    /// When its certificate can't be read.
    pub async fn client(&self) -> Result<Client> {
        self.control_plane.client().await
    }

    /// Runs `kubectl`: what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        succeed(self.control_plane.kubectl()?.args(args))
    }

    /// Runs `helm`: what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn helm(&self, args: &[&str]) -> Result<String> {
        succeed(self.control_plane.helm()?.args(args))
    }

    /// `kubectl apply` of this text.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let mut file = tempfile::NamedTempFile::new_in(self.control_plane.dir())?;
        file.write_all(yaml.as_bytes())?;
        let path = file.path().to_str().context("a temporary file's name is text")?.to_owned();
        self.kubectl(&["apply", "-f", &path])
    }

    /// Waits until a Deployment's pods are all of its last version and available.
    ///
    /// # Errors
    /// When they aren't in time.
    pub async fn rolled_out(&self, namespace: &str, name: &str) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client().await?, namespace);
        wait::until_true(&format!("the deployment {namespace}/{name} to roll out"), async || {
            let Some(found) = api.get_opt(name).await? else { return Ok(false) };
            let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let generation = found.metadata.generation;
            let Some(status) = found.status else { return Ok(false) };
            let all = |count: Option<i32>| count.unwrap_or_default() == wanted;
            Ok(status.observed_generation == generation
                && [status.updated_replicas, status.available_replicas, status.replicas].into_iter().all(all))
        })
        .await
        .with_context(|| self.logs())
    }

    /// The pods with these labels, as a selector.
    ///
    /// # Errors
    /// When the API server doesn't answer.
    pub async fn pods(&self, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
        let api: Api<Pod> = Api::namespaced(self.client().await?, namespace);
        Ok(api.list(&ListParams::default().labels(selector)).await?.items)
    }

    /// Waits until a pod is ready: its object.
    ///
    /// # Errors
    /// When it isn't in time.
    pub async fn ready(&self, namespace: &str, name: &str) -> Result<Pod> {
        let api: Api<Pod> = Api::namespaced(self.client().await?, namespace);
        wait::until(&format!("the pod {namespace}/{name} to be ready"), async || {
            Ok(api.get_opt(name).await?.filter(is_ready))
        })
        .await
        .with_context(|| self.logs())
    }

    /// Begins a command that runs on a node, in all of its namespaces.
    ///
    /// # Errors
    /// When the node doesn't run.
    pub fn on_node(&self, name: &str) -> Result<Command> {
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &self.node_pid(name)?.to_string(), "--all"]);
        Ok(nsenter)
    }

    /// The first process of a node, whose namespaces are the node's.
    ///
    /// # Errors
    /// When the node doesn't run.
    pub fn node_pid(&self, name: &str) -> Result<u32> {
        let process =
            self.node(name)?.process.as_ref().with_context(|| format!("the node {name} is stopped"))?;
        let pid = process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        children.split(' ').next().unwrap_or_default().parse().context("the node has no inner process")
    }

    /// Configuration that a node was given.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn node_config(&self, name: &str) -> Result<&node::Config> {
        Ok(&self.node(name)?.config)
    }

    fn node(&self, name: &str) -> Result<&RunningNode> {
        self.nodes.iter().find(|node| node.config.name == name).with_context(|| format!("no node {name}"))
    }

    fn node_mut(&mut self, name: &str) -> Result<&mut RunningNode> {
        self.nodes.iter_mut().find(|node| node.config.name == name).with_context(|| format!("no node {name}"))
    }

    /// Starts a node that is stopped.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_node(&mut self, name: &str) -> Result<()> {
        let program = beside("slotmesh-node")?;
        let log = self.control_plane.dir().join("logs").join(format!("node-{name}.log"));
        let node = self.node(name)?;
        ensure!(node.process.is_none(), "the node {name} runs");
        let process = self.keeper.start(&program, &[node.file.display().to_string()], &log)?;
        self.node_mut(name)?.process = Some(process);
        Ok(())
    }

    /// Pulls a node's plug: all that runs there ends at once.
    ///
    /// # Errors
    /// When it is stopped already.
    pub fn stop_node(&mut self, name: &str) -> Result<()> {
        let process = self.node_mut(name)?.process.take();
        process.map(drop).with_context(|| format!("the node {name} is stopped"))
    }

    /// Waits until a node says that it is ready.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn node_is_ready(&mut self, name: &str) -> Result<()> {
        let api: Api<Node> = Api::all(self.client().await?);
        wait::until_true(&format!("the node {name} to be ready"), async || {
            if let Some(process) = &mut self.node_mut(name)?.process {
                process.expect_running()?;
            }
            let node = api.get(name).await?;
            let mut conditions =
                node.status.into_iter().flat_map(|status| status.conditions.unwrap_or_default());
            Ok(conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"))
        })
        .await
    }

    /// Output of a container of a pod, of all its starts.
    ///
    /// # Errors
    /// When it wrote nothing.
    pub fn container_log(&self, pod: &Pod, container: &str) -> Result<String> {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).context("it has no node")?;
        let of = format!(
            "{}_{}_{}",
            pod.namespace().unwrap_or_default(),
            pod.name_any(),
            pod.uid().unwrap_or_default()
        );
        let dir = self.node(node)?.config.inside(&Path::new(POD_LOGS).join(of).join(container));
        let mut files: Vec<_> = fs::read_dir(&dir)
            .with_context(|| dir.display().to_string())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        files.sort();
        let texts: Vec<_> = files.iter().map(fs::read_to_string).collect::<std::io::Result<_>>()?;
        Ok(texts.concat())
    }

    /// The ends of all logs.
    pub fn logs(&self) -> String {
        let mut all = vec![self.control_plane.logs()];
        for node in &self.nodes {
            let pods = node.config.inside(Path::new(POD_LOGS));
            let mut dirs = vec![pods, node.config.inside(Path::new("/var/log"))];
            while let Some(dir) = dirs.pop() {
                for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                    if entry.path().is_dir() {
                        dirs.push(entry.path());
                    } else {
                        all.push(tail(&entry.path()));
                    }
                }
            }
        }
        all.dedup();
        all.join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// True of a pod that says that it is ready, and isn't leaving.
pub fn is_ready(pod: &Pod) -> bool {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn succeed(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("run {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    ensure!(
        output.status.success(),
        "{} {}: {}",
        Path::new(command.get_program()).display(),
        args.join(" "),
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program of this crate, built with the same profile as the running one.
fn beside(name: &str) -> Result<PathBuf> {
    let me = env::current_exe().context("where is this executable?")?;
    let dir = me.parent().context("an executable has a folder")?;
    // Tests are one folder further down than programs.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build -p slotmesh-cluster`", path.display());
    Ok(path)
}
