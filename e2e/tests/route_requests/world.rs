//! What the scenarios share: slotmesh with its proxy, and a shop whose requests are routed.
//!
//! ```text
//!   node a: near      node b: far      --> Service web --> web-v1, web-v2
//! ```

use std::{
    io::Read as _,
    process::{Child, Stdio},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, exec::Exec, images::Start, scenarios::Story, wait};
use slotmesh_e2e::{HttpAnswer, names::binary};

#[path = "../shared/chart.rs"]
mod chart;
#[path = "../run_as_a_cluster/crds.rs"]
#[expect(dead_code, reason = "the other test needs the rest")]
mod crds;

pub use chart::SYSTEM;

/// The namespace that takes part.
pub const SHOP: &str = "shop";
pub const NODES: u8 = 2;
const IMAGE: &str = "e2e.test/http:1";
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/slotmesh");

/// Installs slotmesh with its proxy, and makes the shop.
pub fn prepare(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        chart::make_images(cluster)?;
        let start = Start { entrypoint: vec!["/http".into()], ..Start::default() };
        cluster.images().make(IMAGE, &[(binary("slotmesh-e2e", "http")?.as_path(), "/http")], &start)?;
        cluster.apply(&crds::gateway_api())?;
        cluster.helm(&[
            "install",
            "slotmesh",
            CHART,
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--set=proxy.enabled=true",
            "--wait",
        ])?;
        let list = |items: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        cluster.apply(&list(&[
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": SHOP, "labels": {"slotmesh.dev/mesh": "enabled"}}}),
            service("web", &json!({"app": "web"})),
            service("web-v1", &json!({"app": "web", "version": "v1"})),
            service("web-v2", &json!({"app": "web", "version": "v2"})),
            web("v1"),
            web("v2"),
            client("near", "a"),
            client("far", "b"),
        ]))?;
        for version in ["v1", "v2"] {
            cluster.rolled_out(SHOP, &format!("web-{version}")).await?;
        }
        for name in ["near", "far"] {
            cluster.ready(SHOP, name).await?;
        }
        Ok(())
    })
}

/// Lets the chart say what is scraped, and bring its dashboards.
pub fn monitor(cluster: &Cluster) -> Result<()> {
    cluster.apply(&crds::prometheus_operator())?;
    let kind = "crd/podmonitors.monitoring.coreos.com";
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", kind])?;
    let values = ["podMonitor.enabled=true", "podMonitor.interval=1s", "dashboards.enabled=true"];
    let mut args =
        vec!["upgrade", "slotmesh", CHART, "--namespace", SYSTEM, "--reset-then-reuse-values", "--wait"];
    args.extend(values.iter().flat_map(|value| ["--set", value]));
    cluster.helm(&args)?;
    Ok(())
}

fn service(name: &str, selector: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
           "spec": {"selector": selector, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
}

fn web(version: &str) -> Value {
    let labels = json!({"app": "web", "version": version});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": format!("web-{version}"), "namespace": SHOP},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{
                "name": "main", "image": IMAGE, "args": ["serve"], "env": [{"name": "NAME", "value": version}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            }]},
        }},
    })
}

/// A pod from which is asked.
fn client(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SHOP},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": IMAGE, "args": ["serve"]}]},
    })
}

/// An HTTPRoute for the shop's Service.
pub fn route(rules: &Value) -> String {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": SHOP},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    })
    .to_string()
}

/// The address of the shop's Service.
pub fn address(cluster: &Cluster) -> Result<String> {
    let of = ["get", "service", "web", "-n", SHOP, "-o", "jsonpath={.spec.clusterIP}"];
    Ok(format!("{}:80", cluster.kubectl(&of)?.trim()))
}

/// The answers that a pod gets to the requests of a client with these arguments.
pub async fn ask(cluster: &Cluster, from: &Pod, arguments: &[&str]) -> Result<Vec<HttpAnswer>> {
    let to = address(cluster)?;
    let command: Vec<&str> = ["/http", "ask", &to].iter().chain(arguments).copied().collect();
    let output = cluster.exec(from, "main", &command).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    said.lines().map(HttpAnswer::parse).collect()
}

/// The one answer to one request.
pub async fn ask_one(cluster: &Cluster, from: &Pod, arguments: &[&str]) -> Result<HttpAnswer> {
    ask(cluster, from, arguments).await?.pop().context("a request has an answer")
}

/// Waits until requests of a client with these arguments are answered like this, from a pod.
pub async fn until_answered(
    cluster: &Cluster,
    from: &Pod,
    what: &str,
    arguments: &[&str],
    is_so: impl Fn(&HttpAnswer) -> bool,
) -> Result<()> {
    wait::until_true(what, async || Ok(is_so(&ask_one(cluster, from, arguments).await?))).await
}

/// A client in a pod that asks all the time, on a connection that it keeps as long as that lasts.
pub struct Load {
    client: Child,
    /// It names what is run, and is read when that begins.
    _exec: Exec,
    reader: JoinHandle<std::io::Result<String>>,
}

impl Load {
    /// Begins to ask with these arguments.
    pub async fn start(cluster: &Cluster, from: &Pod, arguments: &[&str]) -> Result<Self> {
        let to = address(cluster)?;
        let command: Vec<&str> =
            ["/http", "ask", &to, "--on", "--gap", "2"].iter().chain(arguments).copied().collect();
        let mut exec = cluster.exec_command(from, "main", &command).await?;
        let mut client = exec.command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut stdout = client.stdout.take().context("its output is piped")?;
        let reader = std::thread::spawn(move || {
            let mut said = String::new();
            stdout.read_to_string(&mut said).map(|_| said)
        });
        Ok(Self { client, _exec: exec, reader })
    }

    /// Ends; the answers to all that was asked.
    pub fn end(mut self) -> Result<Vec<HttpAnswer>> {
        // Its input ends.
        drop(self.client.stdin.take().context("its input is piped")?);
        let said = self.reader.join().ok().context("the reader ends")??;
        let status = self.client.wait()?;
        ensure!(status.success(), "the load ended with {status}");
        said.lines().map(HttpAnswer::parse).collect()
    }
}
