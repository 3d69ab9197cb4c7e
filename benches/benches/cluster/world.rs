//! A control plane with the chart installed, the product's operator and agent as processes, and one node.
//!
//! The operator acts as its service account, with the rights that the chart gives it. The controllers that
//! would make and judge pods don't run: pods are objects only, but for one on the agent's node, whose cgroup
//! is made as the kubelet would.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::{Api, Client};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use slotmesh_agent::{Datapath, Pins};
use slotmesh_cluster::{
    ControlPlane, Spec,
    cgroups::Cgroups,
    ports,
    process::{Keeper, Process, tail},
    programs::Program,
    wait,
};
use slotmesh_e2e::{
    metrics::Scrape,
    names::{PinRoot, binary},
};
use slotmesh_kernel::Host;

use crate::load::{self, NAMESPACE};

/// Where slotmesh is installed.
pub const SYSTEM: &str = "slotmesh-system";
/// As what agents run, and what their tokens are for.
pub const AGENT: &str = "slotmesh-agent";
pub const AUDIENCE: &str = "slotmesh-operator";
/// The operator's name in its certificate.
pub const SERVER: &str = "slotmesh-operator.slotmesh-system.svc";
/// The agent's node.
const NODE: &str = "n1";
/// What the names of cgroups begin with; then comes the number of the process.
const PREFIX: &str = "slotmesh-bench-";

/// See the module's comment.
pub struct World {
    // Dropped in this order: processes first, then what they use.
    kube_proxy: Option<Process>,
    agent: Option<Process>,
    operator: Option<Process>,
    pins: PinRoot,
    cgroups: Cgroups,
    pod: PathBuf,
    keeper: Keeper,
    plane: ControlPlane,
    pub client: Client,
    /// The addresses of the Services.
    pub vips: Vec<SocketAddr>,
    /// That of the probed Service.
    pub probe: SocketAddr,
    /// How many endpoints were moved.
    moves: AtomicUsize,
    kubeconfig: PathBuf,
    ads: u16,
    operator_admin: u16,
    agent_admin: u16,
}

impl World {
    /// Starts a control plane with so many Services and their endpoints.
    pub async fn start(name: &str, services: usize) -> Result<Self> {
        eprintln!("the {name} cluster: {services} Services with {} endpoints each …", load::ENDPOINTS);
        let controllers = vec!["serviceaccount-controller", "clusterrole-aggregation-controller"];
        let plane = ControlPlane::start_with(Spec { controllers, ..Spec::default() }).await?;
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/slotmesh");
        let args = ["install", "slotmesh", "--namespace", SYSTEM, "--create-namespace"];
        succeed(plane.helm()?.args(args).arg(chart))?;
        let account = format!("system:serviceaccount:{SYSTEM}:slotmesh-operator");
        let kubeconfig = plane.write_kubeconfig("operator", &account, Some("system:serviceaccounts"))?;
        let client = plane.client().await?;
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"slotmesh.dev/mesh": "enabled"}},
        });
        load::create(&client, [("/api/v1/namespaces".to_owned(), namespace)]).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        wait::until_true("the namespace's service account", async || {
            Ok(accounts.get_opt("default").await?.is_some())
        })
        .await?;
        let names = (0..services).map(|i| format!("s{i}")).chain([load::PROBE.to_owned()]);
        let objects = load::create(&client, names.clone().map(|name| load::service(&name))).await?;
        let mut vips = objects.iter().map(load::vip).collect::<Result<Vec<_>>>()?;
        let probe = vips.pop().context("the last Service is the probed one")?;
        let endpoints = (0..services).map(|i| load::endpoints(i, 0)).chain([vec![load::probe_endpoint(1)]]);
        let slices = names.zip(endpoints).map(|(name, endpoints)| load::slice(&name, &endpoints));
        load::create(&client, slices).await?;

        let cgroups = Cgroups::new(PREFIX, &format!("{PREFIX}{}-{name}", std::process::id()))?;
        let mut this = Self {
            kube_proxy: None,
            agent: None,
            operator: None,
            pins: PinRoot::new(),
            pod: PathBuf::new(),
            cgroups,
            keeper: Keeper::new()?,
            plane,
            client,
            vips,
            probe,
            moves: AtomicUsize::new(0),
            kubeconfig,
            ads: ports::free()?,
            operator_admin: ports::free()?,
            agent_admin: ports::free()?,
        };
        let pods = this.enrol_nodes(&[NODE.to_owned()]).await?;
        let uid = pods[0]["metadata"]["uid"].as_str().context("a pod has a uid")?;
        this.pod = this.cgroups.node(NODE).join("kubepods").join(format!("pod{uid}"));
        fs::create_dir_all(&this.pod).with_context(|| this.pod.display().to_string())?;
        Ok(this)
    }

    /// Makes nodes, on each a pod that takes part, and the token of its agent; returns the pods.
    pub async fn enrol_nodes(&self, nodes: &[String]) -> Result<Vec<Value>> {
        load::create(&self.client, nodes.iter().map(|node| load::node(node))).await?;
        let pods = nodes.iter().map(|node| load::pod(NAMESPACE, &format!("on-{node}"), "default", node));
        let pods = load::create(&self.client, pods).await?;
        let agents = nodes.iter().map(|node| load::pod(SYSTEM, &format!("agent-{node}"), AGENT, node));
        let agents = load::create(&self.client, agents).await?;
        let tokens = agents.iter().map(|pod| load::token_of(pod, AGENT, AUDIENCE));
        for (node, answer) in nodes.iter().zip(load::create(&self.client, tokens).await?) {
            fs::write(self.token(node), answer["status"]["token"].as_str().context("a token")?)?;
        }
        Ok(pods)
    }

    /// The file of the token of a node's agent.
    pub fn token(&self, node: &str) -> PathBuf {
        self.plane.dir().join(format!("token-{node}"))
    }

    /// The file of the certificates that agents trust.
    pub fn ca(&self) -> PathBuf {
        self.plane.dir().join("operator-ca.crt")
    }

    /// Where the operator serves.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ads)
    }

    /// Starts the operator; says when.
    pub fn start_operator(&mut self) -> Result<Instant> {
        self.operator = None;
        let args = [
            "operator".to_owned(),
            format!("--listen=127.0.0.1:{}", self.ads),
            format!("--admin=127.0.0.1:{}", self.operator_admin),
            format!("--namespace={SYSTEM}"),
        ];
        let (program, log) = (binary("slotmesh", "slotmesh")?, self.log("operator"));
        let started = Instant::now();
        let env = [("KUBECONFIG", self.kubeconfig.as_os_str())];
        self.operator = Some(self.keeper.start_with(&program, &args, &env, &log)?);
        Ok(started)
    }

    /// Starts kube-proxy for this network namespace, with nftables. It runs until the cluster is dropped.
    pub fn start_kube_proxy(&mut self) -> Result<()> {
        let kubeconfig = self.plane.write_kubeconfig("proxy", "system:kube-proxy", None)?;
        let args = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={NODE}"),
            "--proxy-mode=nftables".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            // The machine's tables of connections are left as they are.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-min=0".to_owned(),
            "--conntrack-tcp-timeout-established=0s".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0s".to_owned(),
        ];
        let log = self.log("kube-proxy");
        self.kube_proxy = Some(self.keeper.start(&Program::Proxy.path()?, &args, &log)?);
        Ok(())
    }

    /// Ends the operator.
    pub fn stop_operator(&mut self) -> Result<()> {
        let operator = self.operator.take().context("the operator runs")?;
        operator.stop(Signal::SIGKILL, Duration::from_secs(20)).map(drop)
    }

    /// Waits until the operator is ready, and knows its certificates.
    pub async fn operator_is_ready(&self) -> Result<()> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        let bundle = wait::until("the operator's certificates", async || {
            let data = maps.get_opt("slotmesh-ca").await?.and_then(|map| map.data);
            Ok(data.and_then(|mut data| data.remove("ca.crt")))
        })
        .await?;
        fs::write(self.ca(), bundle)?;
        let admin = self.operator_admin;
        wait::until_true("the operator to be ready", async || Ok(get(admin, "readyz").is_ok())).await
    }

    /// Starts the agent and waits until it is ready: how long that took from its start.
    pub async fn start_agent(&mut self) -> Result<Duration> {
        self.operator_is_ready().await?;
        let path = |path: &Path| path.display().to_string();
        let args = [
            "agent".to_owned(),
            format!("--operator={}", self.url()),
            format!("--operator-name={SERVER}"),
            format!("--operator-ca={}", path(&self.ca())),
            format!("--operator-token={}", path(&self.token(NODE))),
            format!("--node={NODE}"),
            format!("--cgroup-root={}", path(&self.cgroups.node(NODE))),
            format!("--pin-root={}", path(self.pins.path())),
            format!("--admin=127.0.0.1:{}", self.agent_admin),
            // As the chart sets it.
            "--memory-budget=128Mi".to_owned(),
        ];
        let started = Instant::now();
        let agent = self.keeper.start(&binary("slotmesh", "slotmesh")?, &args, &self.log("agent"))?;
        self.agent = Some(agent);
        let admin = self.agent_admin;
        while get(admin, "readyz").is_err() {
            ensure!(started.elapsed() < wait::SOON, "the agent isn't ready after {:?}", wait::SOON);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(started.elapsed())
    }

    pub fn operator(&self) -> Result<u32> {
        Ok(self.operator.as_ref().context("the operator runs")?.pid())
    }

    pub fn agent(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("the agent runs")?.pid())
    }

    pub fn operator_metrics(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&get(self.operator_admin, "metrics")?))
    }

    pub fn agent_metrics(&self) -> Result<Scrape> {
        Ok(Scrape::parse(&get(self.agent_admin, "metrics")?))
    }

    /// The agent's maps, to be asked through the programs.
    pub fn kernel(&self) -> Result<Datapath> {
        Ok(Datapath::load(Pins::new(self.pins.path()), Host::probe()?, slotmesh_agent::memory::SOCKETS)?)
    }

    /// How many Services there are, but for the probed one.
    pub fn services(&self) -> usize {
        self.vips.len()
    }

    /// The next Service whose last endpoint is to be moved, and its endpoints then.
    pub fn next_move(&self) -> (usize, Vec<Ipv4Addr>) {
        let moves = self.moves.fetch_add(1, Ordering::Relaxed);
        // Each in its turn, but no neighbours: these would be found in caches.
        let service = moves * 7_919 % self.services();
        (service, load::endpoints(service, 1 + moves / self.services()))
    }

    /// The cgroup of the pod on the agent's node.
    pub fn pod(&self) -> &Path {
        &self.pod
    }

    fn log(&self, name: &str) -> PathBuf {
        self.plane.dir().join("logs").join(format!("{name}.log"))
    }

    /// The ends of the logs of operator, agent and kube-proxy.
    pub fn logs(&self) -> String {
        ["operator", "agent", "kube-proxy"].map(|name| tail(&self.log(name))).join("\n")
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let url = format!("http://127.0.0.1:{port}/{path}");
    Ok(ureq::get(&url).call().with_context(|| url.clone())?.into_body().read_to_string()?)
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
