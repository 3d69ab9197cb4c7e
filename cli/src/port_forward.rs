//! The way to the admin interface of a pod, which answers on the pod's loopback only: `kubectl port-forward`, so with the
//! rights, the context and the way of logging in that kubectl has.

use std::{
    io::{self, BufRead as _, BufReader, Read as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};

use crate::cluster::reach;

/// A pod that is asked.
#[derive(Clone, Copy, Debug)]
pub enum AskedPod<'n> {
    /// The agent of this node.
    Agent(&'n str),
    /// Any replica of the operator.
    Operator,
}

impl AskedPod<'_> {
    const fn component(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Operator => "operator",
        }
    }

    /// The port of its admin interface, as the chart has it.
    const fn port(&self) -> u16 {
        match self {
            Self::Agent(_) => 15_020,
            Self::Operator => 15_021,
        }
    }
}

/// A port of this machine that leads to a pod, until this is dropped.
#[derive(Debug)]
pub struct Forward {
    kubectl: Child,
    address: SocketAddr,
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        drop(self.kubectl.kill());
        drop(self.kubectl.wait());
    }
}

impl Forward {
    /// Finds the pod in the namespace of the installation, and leads to it.
    ///
    /// # Errors
    /// Where there is no such pod, or kubectl doesn't lead there.
    pub fn to(asked: AskedPod<'_>, namespace: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let pod = runtime.block_on(find(asked, namespace))?;
        Self::start(namespace, &pod, asked.port())
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    fn start(namespace: &str, pod: &str, port: u16) -> anyhow::Result<Self> {
        let what = format!("kubectl port-forward --namespace {namespace} pod/{pod} :{port}");
        let mut command = Command::new("kubectl");
        command.args(what.split(' ').skip(1)).args(["--address", "127.0.0.1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut kubectl = match command.spawn() {
            Ok(kubectl) => kubectl,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!(
                    "there is no kubectl on PATH, by which the pod is reached; forward its port in another way, and name it \
                       with --admin"
                )
            }
            Err(error) => return Err(error).context(what),
        };
        let out = kubectl.stdout.take().context("it is piped")?;
        let err = kubectl.stderr.take().context("it is piped")?;
        let (mut out, mut line) = (BufReader::new(out), String::new());
        out.read_line(&mut line)?;
        let Some(address) = forwarded(&line) else {
            // It has nothing more to say once it has ended.
            drop(kubectl.kill());
            drop(kubectl.wait());
            let mut said = String::new();
            BufReader::new(err).read_to_string(&mut said)?;
            bail!("{what}: {}", said.trim_end());
        };
        // It tells of each connection, and dies if nobody reads that.
        drain(out)?;
        drain(err)?;
        Ok(Self { kubectl, address })
    }
}

/// Reads all that comes, until its writer ends.
fn drain(mut from: impl io::Read + Send + 'static) -> io::Result<()> {
    thread::Builder::new().spawn(move || io::copy(&mut from, &mut io::sink())).map(drop)
}

/// `Forwarding from 127.0.0.1:40123 -> 15020`
fn forwarded(line: &str) -> Option<SocketAddr> {
    line.strip_prefix("Forwarding from ")?.split(' ').next()?.parse().ok()
}

/// The nodes on which agents run, in the order of their names.
///
/// # Errors
/// Where pods can't be listed.
pub fn agents_nodes(namespace: &str) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pods: Api<Pod> = Api::namespaced(reach().await?, namespace);
        let params = ListParams::default().labels(&labels("agent"));
        let found =
            pods.list(&params).await.with_context(|| format!("pods of {namespace} can't be listed"))?;
        let running = found.items.into_iter().filter(runs).filter_map(|pod| pod.spec?.node_name);
        let mut nodes: Vec<String> = running.collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(nodes)
    })
}

fn labels(component: &str) -> String {
    format!("app.kubernetes.io/name=slotmesh,app.kubernetes.io/component={component}")
}

fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

async fn find(asked: AskedPod<'_>, namespace: &str) -> anyhow::Result<String> {
    let pods: Api<Pod> = Api::namespaced(reach().await?, namespace);
    let mut params = ListParams::default().labels(&labels(asked.component()));
    if let AskedPod::Agent(node) = asked {
        params = params.fields(&format!("spec.nodeName={node}"));
    }
    let found = pods.list(&params).await.with_context(|| format!("pods of {namespace} can't be listed"))?;
    let pod = found.iter().find(|pod| runs(pod));
    pod.map(|pod| pod.name_any()).with_context(|| match asked {
        AskedPod::Agent(node) => format!(
            "no agent runs on node {node} in namespace {namespace}; `kubectl get nodes` lists nodes, and --namespace says where \
             slotmesh is installed"
        ),
        AskedPod::Operator => {
            format!("no operator runs in namespace {namespace}; --namespace says where slotmesh is installed")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_says_where_it_listens() {
        assert_eq!(forwarded("Forwarding from 127.0.0.1:40123 -> 15020\n"), "127.0.0.1:40123".parse().ok());
        assert_eq!(forwarded("error: unable to forward port\n"), None);
        assert_eq!(forwarded(""), None);
    }
}
