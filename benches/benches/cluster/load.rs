//! What the API server is given: Services, EndpointSlices, nodes and pods, by eight connections.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::Client;
use serde_json::{Value, json};

/// The namespace that takes part in the mesh.
pub const NAMESPACE: &str = "bench";
/// The endpoints of a Service.
pub const ENDPOINTS: usize = 10;
/// Where every endpoint of the probed Service really is: the loopback interface has all these addresses.
pub const LOCAL: &str = "10.200.0.1/16";
/// The port of all Services, and of all endpoints.
const PORT: u16 = 80;
pub const TARGET: u16 = 8080;
/// The Service that a client connects to.
pub const PROBE: &str = "probe";

/// Connections at a time.
const CONNECTIONS: usize = 8;

/// An object and the path that it is posted to.
pub type Post = (String, Value);

/// Creates objects; what the API server answered.
pub async fn create(client: &Client, posts: impl IntoIterator<Item = Post>) -> Result<Vec<Value>> {
    let (client, started) = (&client, Instant::now());
    let post = |(path, object): Post| async move {
        let request = http::Request::post(&path).header("content-type", "application/json");
        let request = request.body(serde_json::to_vec(&object)?)?;
        let answer = client.request::<Value>(request).await;
        answer.with_context(|| format!("create {} at {path}", object["metadata"]["name"]))
    };
    let mut answers = Vec::new();
    let mut made = stream::iter(posts).map(post).buffered(CONNECTIONS);
    while let Some(answer) = made.try_next().await? {
        answers.push(answer);
        if answers.len() % 2_500 == 0 {
            eprintln!("  {} objects after {:.0?}", answers.len(), started.elapsed());
        }
    }
    Ok(answers)
}

fn third_and_last(service: usize) -> (u8, u8) {
    ((service / 250) as u8, (service % 250) as u8)
}

/// The endpoints of a Service; the last one moves with the generation, and stays the last.
pub fn endpoints(service: usize, generation: usize) -> Vec<Ipv4Addr> {
    let (high, low) = third_and_last(service);
    let last = |i| if i + 1 == ENDPOINTS { 200 + (generation % 50) as u8 } else { 100 + i as u8 };
    (0..ENDPOINTS).map(|i| Ipv4Addr::new(10, 130 + high, low, last(i))).collect()
}

/// The endpoint of the probed Service, which tells the generation.
pub fn probe_endpoint(generation: u16) -> Ipv4Addr {
    let [high, low] = generation.to_be_bytes();
    Ipv4Addr::new(10, 200, high, low)
}

/// A Service without selector.
pub fn service(name: &str) -> Post {
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"ports": [{"name": "tcp", "port": PORT, "targetPort": TARGET}]},
    });
    (format!("/api/v1/namespaces/{NAMESPACE}/services"), object)
}

/// The address that a Service was given.
pub fn vip(service: &Value) -> Result<SocketAddr> {
    let address = service["spec"]["clusterIP"].as_str().context("a Service is given an address")?;
    Ok(SocketAddr::new(address.parse()?, PORT))
}

/// A TrafficPolicy for a Service, with so many connections at most.
pub fn policy(service: &str, most: usize) -> Post {
    let path = format!("/apis/slotmesh.dev/v1alpha1/namespaces/{NAMESPACE}/trafficpolicies");
    let target = json!({"group": "", "kind": "Service", "name": service});
    let object = json!({
        "apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "bench", "namespace": NAMESPACE},
        "spec": {"targetRefs": [target], "maxConnections": most},
    });
    (path, object)
}

/// The EndpointSlice of a Service.
pub fn slice(service: &str, endpoints: &[Ipv4Addr]) -> Post {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": service, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "tcp", "port": TARGET, "protocol": "TCP"}],
    });
    (format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"), object)
}

/// A node.
pub fn node(name: &str) -> Post {
    ("/api/v1/nodes".to_owned(), json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
}

/// A pod on a node, which nobody runs.
pub fn pod(namespace: &str, name: &str, account: &str, node: &str) -> Post {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "main", "image": "none"}],
        },
    });
    (format!("/api/v1/namespaces/{namespace}/pods"), object)
}

/// A token for the operator, of the agent's pod that this is: what the kubelet would project into it.
pub fn token_of(pod: &Value, account: &str, audience: &str) -> Post {
    let (namespace, name) = (&pod["metadata"]["namespace"], &pod["metadata"]["name"]);
    let namespace = namespace.as_str().unwrap_or_default();
    let object = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {"name": account},
        "spec": {
            "audiences": [audience], "expirationSeconds": 3_600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]},
        },
    });
    (format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"), object)
}

/// The question whether a token is good, as the operator asks it.
pub fn review_of(token: &str, audience: &str) -> Post {
    let object = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"audiences": [audience], "token": token},
    });
    ("/apis/authentication.k8s.io/v1/tokenreviews".to_owned(), object)
}

/// Lists a kind as the operator does, by a watch that begins with all objects: how long it took, and how
/// many bytes came.
pub async fn list(client: &Client, path: &str) -> Result<(Duration, usize)> {
    use futures::AsyncBufReadExt as _;
    const ALL: &str =
        "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let started = Instant::now();
    let request = http::Request::get(format!("{path}?{ALL}")).body(Vec::new())?;
    let mut lines = client.request_stream(request).await?.lines();
    let mut bytes = 0;
    while let Some(line) = lines.try_next().await? {
        bytes += line.len();
        if line.contains("k8s.io/initial-events-end") {
            return Ok((started.elapsed(), bytes));
        }
    }
    anyhow::bail!("the list of {path} has no end")
}
