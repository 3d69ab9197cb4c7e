//! What the scenarios share: slotmesh as the chart installs it, and a namespace that takes part.
//!
//! ```text
//!   node a: near, out (opted out), stranger (of a namespace that takes no part)
//!   node b: far                                        --> Service web --> web-v1, web-v2 on all nodes
//! ```

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, cluster::is_ready, exec::Exec, images::Start, scenarios::Story, wait};
use slotmesh_e2e::{
    Client, ClientSpec, Log,
    manifests::{destination_rule, virtual_service},
    metrics::Scrape,
    names::binary,
};

use crate::{crds, readme};

#[path = "../shared/chart.rs"]
mod chart;

pub use chart::SYSTEM;

/// The namespace that takes part, and one that doesn't.
pub const LOAD: &str = "load";
const PLAIN: &str = "plain";
pub const NODES: [&str; 3] = ["a", "b", "c"];
const AGENTS: &str = "app.kubernetes.io/name=slotmesh,app.kubernetes.io/component=agent";
pub const OPERATORS: &str = "app.kubernetes.io/name=slotmesh,app.kubernetes.io/component=operator";

/// Makes the images that the chart names and installs it, as README.md says; then the load's namespace.
pub fn prepare(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        chart::make_images(cluster)?;
        let programs = ["backend", "client", "holder"];
        let files: Vec<_> = programs
            .iter()
            .map(|name| Ok((binary("slotmesh-e2e", name)?, format!("/{name}"))))
            .collect::<Result<_>>()?;
        let files: Vec<_> = files.iter().map(|(file, to)| (file.as_path(), to.as_str())).collect();
        let start = Start { entrypoint: vec!["/backend".into()], ..Start::default() };
        cluster.images().make("e2e.test/load:1", &files, &start)?;
        // What the examples need of the image that they name.
        let busybox = Path::new("/bin/busybox");
        let programs = ["sh", "echo", "httpd", "mkdir", "nc", "printf", "sleep", "tail"]
            .map(|name| format!("/bin/{name}"));
        let files: Vec<_> = programs.iter().map(|to| (busybox, to.as_str())).collect();
        cluster.images().make("busybox:1.37", &files, &Start::default())?;
        cluster.apply(&crds::gateway_api())?;
        let said = readme::commands()?[0].run(cluster)?;
        ensure!(said.contains(&format!("helm test slotmesh --namespace {SYSTEM}\n")), "helm says {said}");
        set_load(cluster).await
    })
}

async fn set_load(cluster: &Cluster) -> Result<()> {
    let list = |items: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    cluster.apply(&list(&[
        namespace(LOAD, json!({"slotmesh.dev/mesh": "enabled"})),
        namespace(PLAIN, json!({})),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": LOAD},
               "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        web("v1"),
        web("v2"),
        client("near", LOAD, "a", json!({})),
        client("far", LOAD, "b", json!({})),
        client("out", LOAD, "a", json!({"slotmesh.dev/mesh": "disabled"})),
        client("stranger", PLAIN, "a", json!({})),
    ]))?;
    for version in ["v1", "v2"] {
        cluster.rolled_out(LOAD, &format!("web-{version}")).await?;
    }
    for (namespace, name) in [(LOAD, "near"), (LOAD, "far"), (LOAD, "out"), (PLAIN, "stranger")] {
        cluster.ready(namespace, name).await?;
    }
    Ok(())
}

/// Two pods of a version.
fn web(version: &str) -> Value {
    let labels = json!({"app": "web", "version": version});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("web-{version}"), "namespace": LOAD},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{
                "name": "main", "image": "e2e.test/load:1",
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }]},
        }},
    })
}

/// A pod that waits to be told what to connect to.
pub fn client(name: &str, namespace: &str, node: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "e2e.test/load:1"}]},
    })
}

/// The agents' pods that are ready; one a node when all is well.
pub async fn agents(cluster: &Cluster) -> Result<Vec<Pod>> {
    Ok(cluster.pods(SYSTEM, AGENTS).await?.into_iter().filter(is_ready).collect())
}

/// The operator's pods that are ready.
pub async fn operators(cluster: &Cluster) -> Result<Vec<Pod>> {
    Ok(cluster.pods(SYSTEM, OPERATORS).await?.into_iter().filter(is_ready).collect())
}

/// Waits until there are agents on all nodes and two operators, all ready.
pub async fn all_ready(cluster: &Cluster) -> Result<()> {
    wait::until_true("all agents and operators to be ready", async || {
        let agents = cluster.pods(SYSTEM, AGENTS).await?;
        let operators = cluster.pods(SYSTEM, OPERATORS).await?;
        let ready = |pods: &[Pod]| pods.iter().all(is_ready);
        Ok(agents.len() == NODES.len() && ready(&agents) && operators.len() == 2 && ready(&operators))
    })
    .await
}

/// The pod of a node among these.
pub fn on_node<'p>(pods: &'p [Pod], node: &str) -> Result<&'p Pod> {
    let is_there = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node);
    pods.iter().find(is_there).with_context(|| format!("none of {} pods is on node {node}", pods.len()))
}

pub fn address(pod: &Pod) -> Result<&str> {
    pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("the pod has no address")
}

/// A file of a pod's volume, as this machine sees it.
pub fn volume_file(cluster: &Cluster, pod: &Pod, file: &str) -> Result<PathBuf> {
    let uid = pod.uid().context("a pod has a uid")?;
    let path = Path::new("/var/lib/kubelet/pods").join(uid).join("volumes").join(file);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).context("it has a node")?;
    Ok(cluster.node_config(node)?.inside(&path))
}

/// The metrics of a component's pod.
pub fn scrape(pod: &Pod, port: u16) -> Result<Scrape> {
    let url = format!("http://{}:{port}/metrics", address(pod)?);
    let text = ureq::get(&url).call().with_context(|| url.clone())?.into_body().read_to_string()?;
    Ok(Scrape::parse(&text))
}

/// Waits until on each node exactly those pods are attached that take part.
pub async fn enrolled(cluster: &Cluster) -> Result<()> {
    let client = cluster.client().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mesh = ListParams::default().labels("slotmesh.dev/mesh=enabled");
    wait::until_true("the pods of the mesh to be attached", async || {
        let mut expected = [0; NODES.len()];
        for namespace in namespaces.list(&mesh).await? {
            for pod in cluster.pods(&namespace.name_any(), "slotmesh.dev/mesh!=disabled").await? {
                let at = NODES.iter().position(|node| on_node(std::slice::from_ref(&pod), node).is_ok());
                expected[at.context("a pod has a node")?] += 1;
            }
        }
        let agents = agents(cluster).await?;
        for (node, expected) in NODES.iter().zip(expected) {
            let Ok(agent) = on_node(&agents, node) else { return Ok(false) };
            // An agent that has just been replaced doesn't answer yet.
            let Ok(metrics) = scrape(agent, 15020) else { return Ok(false) };
            let is = |name, count: usize| metrics.get(name) as usize == count;
            if !is("slotmesh_agent_pods_named", expected) || !is("slotmesh_agent_pods_attached", expected) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// Istio's resources, and a route for `web` that leads to its versions by these weights.
pub fn route(cluster: &Cluster, v1: i64, v2: i64) -> Result<()> {
    cluster.apply(&crds::istio())?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/virtualservices.networking.istio.io",
        "--timeout=60s",
    ])?;
    cluster.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/destinationrules.networking.istio.io",
        "--timeout=60s",
    ])?;
    let rule = destination_rule("web").version("v1").version("v2").namespace(LOAD).build();
    let route = virtual_service("web").namespace(LOAD).http("web", &[("v1", v1), ("v2", v2)]).build();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": [rule, route]}).to_string())?;
    Ok(())
}

/// The load's Service and its clients.
pub struct World {
    pub vip: SocketAddr,
    /// By version: how its pods name themselves.
    pub v1: BTreeSet<u16>,
    pub v2: BTreeSet<u16>,
    pub near: Pod,
    pub far: Pod,
    pub out: Pod,
    pub stranger: Pod,
}

impl World {
    pub async fn look(cluster: &Cluster) -> Result<Self> {
        let ip =
            cluster.kubectl(&["get", "service", "web", "-n", LOAD, "-o", "jsonpath={.spec.clusterIP}"])?;
        let ids = async |version: &str| -> Result<BTreeSet<u16>> {
            let pods = cluster.pods(LOAD, &format!("app=web,version={version}")).await?;
            ensure!(pods.len() == 2, "{} pods of {version}", pods.len());
            pods.iter().map(|pod| id(address(pod)?)).collect()
        };
        Ok(Self {
            vip: SocketAddr::new(ip.trim().parse()?, 80),
            v1: ids("v1").await?,
            v2: ids("v2").await?,
            near: cluster.ready(LOAD, "near").await?,
            far: cluster.ready(LOAD, "far").await?,
            out: cluster.ready(LOAD, "out").await?,
            stranger: cluster.ready(PLAIN, "stranger").await?,
        })
    }

    /// Starts connecting from a pod.
    pub async fn start(&self, cluster: &Cluster, from: &Pod, spec: &ClientSpec) -> Result<Running> {
        let arguments = spec.arguments();
        let command: Vec<&str> =
            ["/client"].into_iter().chain(arguments.iter().map(String::as_str)).collect();
        let mut exec = cluster.exec_command(from, "main", &command).await?;
        let client = ClientSpec::start_by(&mut exec.command)?;
        Ok(Running { client, _exec: exec })
    }

    /// So many connects to the Service from a pod, none of which may fail.
    pub async fn connect(&self, cluster: &Cluster, from: &Pod, count: u64) -> Result<Log> {
        let spec = ClientSpec::to(self.vip).count(count).threads(2);
        let log = self.start(cluster, from, &spec).await?.client.finish()?;
        log.expect_all(count as usize)?;
        Ok(log)
    }

    /// Lets the route lead to one version, and waits until it does from both clients.
    pub async fn lead_to(&self, cluster: &Cluster, version: &BTreeSet<u16>) -> Result<()> {
        let (v1, v2) = if *version == self.v1 { (1, 0) } else { (0, 1) };
        route(cluster, v1, v2)?;
        for from in [&self.near, &self.far] {
            wait::until_true("connects to follow the route", async || {
                Ok(reached(&self.connect(cluster, from, 100).await?) == *version)
            })
            .await?;
        }
        Ok(())
    }
}

/// Who answered.
pub fn reached(log: &Log) -> BTreeSet<u16> {
    log.by_backend().into_keys().collect()
}

/// A client at work in a pod.
pub struct Running {
    pub client: Client,
    _exec: Exec,
}

/// What a backend with this address says: its last two bytes.
pub fn id(address: &str) -> Result<u16> {
    let address: Ipv4Addr = address.parse()?;
    let [_, _, node, host] = address.octets();
    Ok(u16::from_be_bytes([node, host]))
}
