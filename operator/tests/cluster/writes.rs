//! How often the users' objects are written: for what concerns them, and for nothing else.
//!
//! | what happens | writes to objects |
//! | --- | --- |
//! | a node joins, or leaves | 0 |
//! | pods roll | 0 |
//! | a route is edited | 2 at most |
//! | another controller writes its own entry, again and again | 0 |
//!
//! `SLOTMESH_STATUS_OBJECTS` and `SLOTMESH_STATUS_NODES` say how many there are; `make stress` asks for 5,000 and
//! 1,000.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use slotmesh_cluster::wait;
use slotmesh_operator::status::WriteTarget;

use crate::{
    replica::{Agent, Replica},
    status::{becomes, mesh_node, prepare},
    support::{apply, delete, get, pod},
};

/// At once, to an API server of one machine.
const PARALLEL: usize = 16;

pub fn size(variable: &str, default: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text}")),
        Err(_) => Ok(default),
    }
}

pub fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

/// The objects of one Service: itself, its route and its policy.
fn objects(i: usize) -> [Value; 3] {
    let name = format!("s{i}");
    let web = json!({"group": "", "kind": "Service", "name": name});
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"ports": [{"port": 80, "name": "http"}]},
        }),
        route(&name, 1),
        json!({
            "apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"targetRefs": [web], "maxConnections": 9},
        }),
    ]
}

/// A part of the connections to a Service goes to `web`.
fn route(service: &str, weight: u32) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": service, "namespace": "shop"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": service}],
            "rules": [{"backendRefs": [
                {"name": service, "port": 80, "weight": 9}, {"name": "web", "port": 80, "weight": weight},
            ]}],
        },
    })
}

pub async fn apply_all(client: &Client, objects: Vec<Value>) -> Result<()> {
    stream::iter(objects)
        .map(|object| async move { apply(client, object).await.map(drop) })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// Waits until nothing has been written for a while, and returns how much was since `before`.
async fn writes_since(replica: &Replica, before: u64) -> u64 {
    let mut last = replica.counters.writes(WriteTarget::Object);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = replica.counters.writes(WriteTarget::Object);
        if now == last {
            return now - before;
        }
        last = now;
    }
}

/// How many of all routes and policies are programmed.
async fn programmed(client: &Client) -> Result<usize> {
    let mut count = 0;
    for (group, version, kind) in
        [("gateway.networking.k8s.io", "v1", "HTTPRoute"), ("slotmesh.dev", "v1alpha1", "TrafficPolicy")]
    {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let all =
            Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await?;
        let is = |object: &&DynamicObject| {
            let places = ["/status/parents/0/conditions", "/status/ancestors/0/conditions"];
            let mut conditions = places.iter().filter_map(|at| object.data.pointer(at)?.as_array()).flatten();
            conditions.any(|c| c["type"] == "Programmed" && c["status"] == "True")
        };
        count += all.items.iter().filter(is).count();
    }
    Ok(count)
}

/// Writes its own entry of a route's status, wherever that stands, and leaves the others alone.
async fn write_as_another_controller(client: &Client, route: &Value, round: usize) -> Result<()> {
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), "shop", &resource);
    let name = route["metadata"]["name"].as_str().unwrap_or_default();
    loop {
        let now = api.get(name).await?;
        let mut parents = now.data["status"]["parents"].as_array().cloned().unwrap_or_default();
        let theirs = json!({
            "parentRef": {"name": "edge"}, "controllerName": "example.com/gateway",
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted", "message": format!("{round}")}],
        });
        match parents.iter_mut().find(|parent| parent["controllerName"] == "example.com/gateway") {
            Some(entry) => *entry = theirs,
            // The first time at the front, where it moves ours.
            None => parents.insert(0, theirs),
        }
        let version = now.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "status": {"parents": parents}});
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_written_for_what_concerns_them_and_for_nothing_else() -> Result<()> {
    let services = size("SLOTMESH_STATUS_OBJECTS", 40)? / 2;
    let nodes = size("SLOTMESH_STATUS_NODES", 6)?.max(3);
    let (cluster, client) = prepare().await?;
    let names: Vec<String> = (1..nodes).map(|n| format!("n{n}")).collect();
    // `prepare` has made the first two, each with a pod.
    apply_all(&client, names.iter().skip(2).map(|name| node(name)).collect()).await?;
    let pods = names.iter().skip(2).enumerate();
    let ip = |i: usize| format!("10.2.{}.{}", i / 250, i % 250 + 1);
    apply_all(&client, pods.map(|(i, name)| pod(&format!("on-{name}"), "other", name, &ip(i))).collect())
        .await?;
    let route_0 = objects(0)[1].clone();
    wait::until_true("the definition to be served", async || {
        Ok(apply(&client, route_0.clone()).await.is_ok())
    })
    .await?;
    apply_all(&client, (0..services).flat_map(objects).collect()).await?;

    let replica = Replica::start(&cluster, "operator-a").await?;
    let mut agents = Vec::new();
    for name in &names {
        agents.push(Agent::connect(name, &replica).await?);
    }
    // Twenty a second.
    let mut patience = 0;
    while programmed(&client).await? < 2 * services {
        writes_since(&replica, 0).await;
        patience += 1;
        ensure!(patience < 60, "{} of {} objects are programmed", programmed(&client).await?, 2 * services);
    }
    writes_since(&replica, 0).await;
    let mark = || replica.counters.writes(WriteTarget::Object);

    let before = mark();
    let last = format!("n{nodes}");
    apply(&client, node(&last)).await?;
    let joins = Agent::connect(&last, &replica).await?;
    becomes(&client, &mesh_node(&last), "Ready", "True", "Synced").await?;
    let its_pod = pod("joins", "other", &last, "10.3.0.1");
    apply(&client, its_pod.clone()).await?;
    let clusters = |agent: &Agent| agent.has(slotmesh_xds::ResourceType::Cluster, "s0.shop");
    wait::until_true("the node to be told", async || Ok(clusters(&joins))).await?;
    let written = writes_since(&replica, before).await;
    ensure!(written == 0, "{written} writes for a node that joins");

    let before = mark();
    drop(joins);
    becomes(&client, &mesh_node(&last), "Ready", "False", "AgentStopped").await?;
    delete(&client, &its_pod).await?;
    delete(&client, &node(&last)).await?;
    wait::until_true("its MeshNode to go", async || Ok(get(&client, &mesh_node(&last)).await?.is_none()))
        .await?;
    let written = writes_since(&replica, before).await;
    ensure!(written == 0, "{written} writes for a node that leaves");

    // Each pod of `web` is followed by another one, and then goes.
    let before = mark();
    let rolls = if services > 1_000 { 100 } else { 20 };
    let rolling =
        |i: usize| pod(&format!("roll-{i}"), "web", &names[i % names.len()], &format!("10.4.0.{}", i + 1));
    for i in 0..rolls {
        apply(&client, rolling(i)).await?;
        if i > 0 {
            delete(&client, &rolling(i - 1)).await?;
        }
    }
    let written = writes_since(&replica, before).await;
    ensure!(written == 0, "{written} writes for a roll of {rolls} pods");

    let before = mark();
    apply(&client, route("s0", 3)).await?;
    becomes(&client, &route_0, "Programmed", "True", "Programmed").await?;
    let written = writes_since(&replica, before).await;
    ensure!((1..=2).contains(&written), "{written} writes for a route that was edited");

    write_as_another_controller(&client, &route_0, 0).await?;
    writes_since(&replica, 0).await;
    let before = mark();
    for round in 1..=100 {
        write_as_another_controller(&client, &route_0, round).await?;
    }
    let written = writes_since(&replica, before).await;
    ensure!(written == 0, "{written} writes while another controller wrote its own entry");
    let now = get(&client, &route_0).await?.context("no route")?;
    let parents = &now["status"]["parents"];
    ensure!(parents[0]["conditions"][0]["message"] == "100", "{now:#}");
    ensure!(parents[1]["controllerName"] == slotmesh_crds::own::CONTROLLER, "{now:#}");
    drop(agents);
    replica.stop().await
}
