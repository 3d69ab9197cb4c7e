//! The caller and its destination in a cluster: on which node it is, whether it takes part, and what a Service's address
//! is. All of it by the API server, with the rights of whoever asks.

use std::net::SocketAddr;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::{Api, Client, Error};
use slotmesh_operator::why_absent;

use super::args::{Caller, Protocol};
use crate::cluster::reach;

/// A pod of a cluster.
#[derive(Debug)]
pub struct ClusterPod {
    /// Its node.
    pub node: String,
    /// Why it doesn't take part; `None` where it does, or nobody may know.
    pub absent: Option<String>,
}

/// Looks for a pod.
///
/// # Errors
/// Where it isn't there, has no node, or can't be read.
pub fn pod(from: &Caller) -> anyhow::Result<ClusterPod> {
    run(async {
        let client = reach().await?;
        let Caller { namespace, name } = from;
        let pod = match Api::<Pod>::namespaced(client.clone(), namespace).get(name).await {
            Ok(pod) => pod,
            Err(Error::Api(status)) if status.code == 404 => {
                bail!("there is no pod {namespace}/{name}; `kubectl get pods --namespace {namespace}`")
            }
            Err(error) => return Err(error).with_context(|| format!("pod {namespace}/{name} can't be read")),
        };
        let absent = why(&client, namespace, &pod).await;
        let node = pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty());
        let node = node.with_context(|| {
            format!("pod {namespace}/{name} isn't scheduled to a node yet, so it makes no connections")
        })?;
        Ok(ClusterPod { node, absent })
    })
}

async fn why(client: &Client, namespace: &str, pod: &Pod) -> Option<String> {
    let namespace = Api::<Namespace>::all(client.clone()).get(namespace).await.ok()?;
    why_absent(&namespace, pod)
}

/// The first address of a Service's port that there is; `None` where the host isn't that of a Service, or it has no such
/// port.
pub fn service_address(from: &Caller, host: &str, port: u16, protocol: Protocol) -> Option<SocketAddr> {
    let mut parts = host.split('.');
    let name = parts.next()?.to_owned();
    let namespace = parts.next().unwrap_or(&from.namespace).to_owned();
    let found = run(async {
        let client = reach().await?;
        Ok(Api::<Service>::namespaced(client, &namespace).get_opt(&name).await?)
    });
    let spec = found.ok().flatten()?.spec?;
    let is_it = |of: &str| of.eq_ignore_ascii_case(protocol.as_str());
    let has_port = spec
        .ports
        .iter()
        .flatten()
        .any(|one| one.port == i32::from(port) && is_it(one.protocol.as_deref().unwrap_or("TCP")));
    let ip = spec.cluster_ip.filter(|_| has_port)?.parse().ok()?;
    Some(SocketAddr::new(ip, port))
}

fn run<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(asked)
}
