//! Statuses: what users see of nodes and of their objects, whatever happens to agents and replicas.

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use slotmesh_cluster::{ControlPlane, wait};
use slotmesh_crds::own;

use crate::{
    replica::{Agent, Replica},
    support::{NAMESPACE, apply, delete, get, namespace, pod, service},
};

/// A CRD of somebody else's, with as little schema as the API server takes, and a status.
fn foreign(group: &str, version: &str, plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "annotations": {
            "api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
            "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
        },
    })
}

pub fn mesh_node(name: &str) -> Value {
    json!({"apiVersion": "slotmesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": name}})
}

/// All MeshReplicas.
pub async fn mesh_replicas(client: &Client) -> Result<Vec<Value>> {
    let api = kube::Api::<own::MeshReplica>::all(client.clone());
    let all = api.list(&kube::api::ListParams::default()).await?;
    all.items.into_iter().map(|replica| Ok(serde_json::to_value(replica)?)).collect()
}

pub fn policy(name: &str, max: u32) -> Value {
    json!({
        "apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}], "maxConnections": max},
    })
}

/// A cluster with two nodes, each with a pod that takes part.
pub async fn prepare() -> Result<(ControlPlane, Client)> {
    let cluster = ControlPlane::start().await?;
    let client = cluster.client().await?;
    for definition in own::definitions() {
        apply(&client, serde_json::to_value(definition)?).await?;
    }
    for object in [
        foreign("networking.istio.io", "v1", "virtualservices", "VirtualService"),
        foreign("networking.istio.io", "v1", "serviceentries", "ServiceEntry"),
        foreign("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}),
        namespace(NAMESPACE, json!({})),
        namespace("shop", json!({"slotmesh.dev/mesh": "enabled"})),
        service("web"),
        service("api"),
    ] {
        apply(&client, object).await?;
    }
    for (name, node, ip) in [("web-0", "n1", "10.1.0.7"), ("web-1", "n2", "10.1.0.8")] {
        wait::until_true("the account of pods", async || {
            Ok(apply(&client, pod(name, "web", node, ip)).await.is_ok())
        })
        .await?;
    }
    Ok((cluster, client))
}

/// The condition of this type, wherever it stands in the status.
pub fn condition<'v>(object: &'v Value, ty: &str) -> Option<&'v Value> {
    let lists = ["/status/conditions", "/status/ancestors/0/conditions"];
    let ours = object.pointer("/status/parents").and_then(Value::as_array).into_iter().flatten();
    let ours = ours.filter(|parent| parent["controllerName"] == own::CONTROLLER);
    let ours = ours.filter_map(|parent| parent["conditions"].as_array());
    let mut conditions = lists.iter().filter_map(|at| object.pointer(at)?.as_array()).chain(ours).flatten();
    conditions.find(|condition| condition["type"] == ty)
}

/// Waits until an object's condition is like this, for its newest generation.
pub async fn becomes(client: &Client, object: &Value, ty: &str, status: &str, reason: &str) -> Result<()> {
    says(client, object, [ty, status, reason], "").await
}

/// Waits until an object's condition (type, status, reason) has this in its message, for its newest
/// generation.
pub async fn says(
    client: &Client,
    object: &Value,
    [ty, status, reason]: [&str; 3],
    part: &str,
) -> Result<()> {
    let mut last = Value::Null;
    let waited = wait::until_true(
        &format!("{ty}={status} ({reason}: {part}) of {}", object["metadata"]["name"]),
        async || {
            last = get(client, object).await?.unwrap_or_default();
            let generation = &last["metadata"]["generation"];
            let is = |c: &&Value| {
                let newest = c["observedGeneration"].is_null() || c["observedGeneration"] == *generation;
                let message = c["message"].as_str().unwrap_or_default();
                c["status"] == status && c["reason"] == reason && newest && message.contains(part)
            };
            Ok(condition(&last, ty).is_some_and(|c| is(&c)))
        },
    )
    .await;
    waited.with_context(|| format!("{last:#}"))
}

/// The events about an object with this reason: how many, and how often each was said.
async fn events(client: &Client, kind: &str, name: &str, reason: &str) -> Result<Vec<Value>> {
    use k8s_openapi::api::events::v1::Event;
    let list = kube::Api::<Event>::all(client.clone()).list(&kube::api::ListParams::default()).await?;
    let about = |event: &Event| {
        let regarding = event.regarding.clone().unwrap_or_default();
        regarding.kind.as_deref() == Some(kind)
            && regarding.name.as_deref() == Some(name)
            && event.reason.as_deref() == Some(reason)
            && event.type_.as_deref() == Some("Warning")
    };
    list.items.into_iter().filter(about).map(|event| Ok(serde_json::to_value(event)?)).collect()
}

/// One story, on one control plane.
#[tokio::test(flavor = "multi_thread")]
async fn statuses_say_what_every_node_has_acknowledged() -> Result<()> {
    let (cluster, client) = prepare().await?;
    let a = Replica::start(&cluster, "operator-a").await?;
    let n1 = Agent::connect("n1", &a).await?;

    // A MeshNode tells what its agent tells, and belongs to its Node.
    becomes(&client, &mesh_node("n1"), "Ready", "True", "Synced").await?;
    n1.report("n1", 5).await?;
    let node = wait::until("the numbers", async || {
        let node = get(&client, &mesh_node("n1")).await?;
        Ok(node.filter(|node| node["status"]["slots"]["used"] == 5))
    })
    .await?;
    let (status, owner) = (&node["status"], &node["metadata"]["ownerReferences"][0]);
    ensure!(status["flushP99"] == "41us" && status["agentVersion"] == "0.1.0", "{node:#}");
    ensure!(
        status["holder"] == json!({"replica": "operator-a", "session": 1, "connected": true}),
        "{node:#}"
    );
    ensure!(owner["kind"] == "Node" && owner["name"] == "n1", "{node:#}");
    let columns = cluster.kubectl()?.args(["get", "mn"]).output()?;
    let columns = String::from_utf8_lossy(&columns.stdout).into_owned();
    let line = columns.lines().find(|line| line.starts_with("n1 ")).context("no n1")?.to_owned();
    let words: Vec<&str> = line.split_whitespace().collect();
    ensure!(words[1] == "True" && words[3..7] == ["5", "7", "30", "41us"], "{columns}");

    // A policy is programmed once every node that has an agent has acknowledged it. Another node that comes
    // changes nothing.
    let web = policy("web", 5);
    apply(&client, web.clone()).await?;
    let pending = ["Programmed", "False", "Pending"];
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;
    becomes(&client, &web, "Accepted", "True", "Accepted").await?;
    let before = get(&client, &web).await?.context("no policy")?;
    let n2 = Agent::connect("n2", &a).await?;
    becomes(&client, &mesh_node("n2"), "Ready", "True", "Synced").await?;
    let after = get(&client, &web).await?.context("no policy")?;
    ensure!(before["metadata"]["resourceVersion"] == after["metadata"]["resourceVersion"], "{after:#}");
    wait::until_true("both to be told to have the same", async || {
        let replicas = mesh_replicas(&client).await?;
        let alike = |replica: &Value| replica["status"]["groups"][0]["nodes"] == json!({"n1": 1, "n2": 1});
        Ok(replicas.iter().any(alike))
    })
    .await?;

    // What an agent refuses is told with the reason, on the object and on the node, and in an event.
    n2.refuse(Some("web"));
    apply(&client, policy("web", 6)).await?;
    let refused = ["Programmed", "False", "Refused"];
    says(&client, &web, refused, "not acknowledged by n2 (refuses cluster/").await?;
    says(&client, &web, refused, ": there is no room)").await?;
    let node = get(&client, &mesh_node("n2")).await?.context("n2 is gone")?;
    ensure!(node["status"]["lastRefusal"]["reason"] == "there is no room", "{node:#}");
    wait::until_true("an event", async || {
        Ok(events(&client, "TrafficPolicy", "web", "RefusedByAgents").await?.len() == 1)
    })
    .await?;
    n2.refuse(None);
    apply(&client, policy("web", 7)).await?;
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;

    // Two policies for one Service: the older wins.
    let late = policy("later", 9);
    apply(&client, late.clone()).await?;
    becomes(&client, &late, "Conflicted", "True", "Conflicted").await?;
    becomes(&client, &late, "Programmed", "False", "NotAccepted").await?;
    becomes(&client, &web, "Conflicted", "False", "NoConflict").await?;
    delete(&client, &late).await?;

    // A stopped agent keeps it False, and is named.
    drop(n2);
    becomes(&client, &mesh_node("n2"), "Ready", "False", "AgentStopped").await?;
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;
    apply(&client, policy("web", 8)).await?;
    says(&client, &web, pending, "not acknowledged by n2 (not ready since 2").await?;
    let n2 = Agent::connect("n2", &a).await?;
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;

    // Another replica takes an agent over, and the first doesn't say that it is gone.
    let b = Replica::start(&cluster, "operator-b").await?;
    ensure!(a.counters.is_leader() && !b.counters.is_leader());
    let moved = Agent::connect("n1", &b).await?;
    drop(n1);
    wait::until_true("b to hold n1", async || {
        let node = get(&client, &mesh_node("n1")).await?.unwrap_or_default();
        Ok(node["status"]["holder"] == json!({"replica": "operator-b", "session": 2, "connected": true}))
    })
    .await?;
    apply(&client, policy("web", 9)).await?;
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;

    // The leader goes in order: the other leads at once, and goes on where it was.
    let before = get(&client, &web).await?.context("no policy")?;
    a.stop().await?;
    drop(n2);
    let n2 = Agent::connect("n2", &b).await?;
    wait::until_true("b to lead", async || Ok(b.counters.is_leader())).await?;
    becomes(&client, &mesh_node("n2"), "Ready", "True", "Synced").await?;
    apply(&client, policy("web", 10)).await?;
    becomes(&client, &web, "Programmed", "True", "Programmed").await?;
    // What the first told goes once the other has all its nodes.
    wait::until_true("its MeshReplica to go", async || Ok(mesh_replicas(&client).await?.len() == 1)).await?;
    let after = get(&client, &web).await?.context("no policy")?;
    let accepted = |object: &Value| condition(object, "Accepted").map(|c| c["lastTransitionTime"].clone());
    ensure!(accepted(&before) == accepted(&after), "nothing has changed about that: {after:#}");

    // A node that goes takes its MeshNode along, and nobody waits for it any more.
    delete(&client, &pod("web-0", "web", "n1", "")).await?;
    drop(moved);
    delete(&client, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).await?;
    wait::until_true("n1's MeshNode to go", async || Ok(get(&client, &mesh_node("n1")).await?.is_none()))
        .await?;
    apply(&client, policy("web", 11)).await?;
    let programmed = ["Programmed", "True", "Programmed"];
    says(&client, &web, programmed, "every node that it is for has acknowledged it").await?;
    drop(n2);
    b.stop().await
}

/// Each kind has its own form of status.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_is_told_in_its_own_form() -> Result<()> {
    let (cluster, client) = prepare().await?;
    let replica = Replica::start(&cluster, "operator-a").await?;
    let _n1 = Agent::connect("n1", &replica).await?;
    let _n2 = Agent::connect("n2", &replica).await?;

    // Gateway API: by parent; what other controllers wrote stays.
    let theirs =
        json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/gateway", "conditions": []});
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "parentRefs": [{"name": "edge"}, {"group": "", "kind": "Service", "name": "web", "port": 80}],
            "rules": [{"timeouts": {"request": "3s"}, "backendRefs": [{"name": "api", "port": 80}]}],
        },
        "status": {"parents": [theirs]},
    });
    wait::until_true("the definition to be served", async || Ok(apply(&client, route.clone()).await.is_ok()))
        .await?;
    let route_now = wait::until("our parent", async || {
        let route = get(&client, &route).await?.unwrap_or_default();
        let programmed = route["status"]["parents"][1]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Programmed" && c["status"] == "True");
        Ok(programmed.then_some(route))
    })
    .await?;
    let parents = &route_now["status"]["parents"];
    ensure!(parents[0] == theirs && parents[1]["controllerName"] == own::CONTROLLER, "{route_now:#}");
    ensure!(parents[1]["parentRef"] == route["spec"]["parentRefs"][1], "{route_now:#}");
    let accepted = &parents[1]["conditions"][0];
    ensure!(accepted["reason"] == "SomeFieldsNotSupported", "{route_now:#}");
    ensure!(
        accepted["message"].as_str().unwrap_or_default().contains("spec.rules[0].timeouts"),
        "{route_now:#}"
    );

    // Istio: conditions besides its own.
    let virtual_service = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"hosts": ["api"], "http": [{"route": [{"destination": {"host": "nowhere"}}]}]},
        "status": {"conditions": [{"type": "Reconciled", "status": "True"}]},
    });
    apply(&client, virtual_service.clone()).await?;
    becomes(&client, &virtual_service, "ResolvedRefs", "False", "BackendNotFound").await?;
    let now = get(&client, &virtual_service).await?.unwrap_or_default();
    ensure!(now["status"]["conditions"][0] == json!({"type": "Reconciled", "status": "True"}), "{now:#}");
    // What was refused is told in one event, also when somebody disturbs the status.
    wait::until_true("an event", async || {
        Ok(events(&client, "VirtualService", "api", "BackendNotFound").await?.len() == 1)
    })
    .await?;
    let disturbed = json!({"status": {"conditions": [{"type": "ResolvedRefs", "status": "True"}]}});
    let mut stolen = virtual_service.clone();
    stolen["status"] = disturbed["status"].clone();
    apply(&client, stolen).await?;
    becomes(&client, &virtual_service, "ResolvedRefs", "False", "BackendNotFound").await?;
    ensure!(events(&client, "VirtualService", "api", "BackendNotFound").await?.len() == 1);

    // An address of its own, in force on both nodes; and one that another has.
    let entry = |name: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"hosts": [format!("{name}.example.com")], "addresses": ["240.0.0.1"], "resolution": "STATIC",
                     "ports": [{"number": 80, "name": "tcp"}], "endpoints": [{"address": "10.9.0.1"}]},
            "status": {"addresses": [{"value": "240.240.0.1"}]},
        })
    };
    apply(&client, entry("a")).await?;
    becomes(&client, &entry("a"), "Programmed", "True", "Programmed").await?;
    let now = get(&client, &entry("a")).await?.unwrap_or_default();
    ensure!(now["status"]["addresses"] == entry("a")["status"]["addresses"], "{now:#}");
    apply(&client, entry("b")).await?;
    becomes(&client, &entry("b"), "Accepted", "False", "Conflicted").await?;

    // Nodes' own settings.
    let profile = json!({
        "apiVersion": "slotmesh.dev/v1alpha1", "kind": "SlotProfile", "metadata": {"name": "edge"},
        "spec": {"nodeNames": ["n1"], "cap": 64},
    });
    apply(&client, profile.clone()).await?;
    becomes(&client, &profile, "Programmed", "True", "Programmed").await?;
    let now = get(&client, &profile).await?.unwrap_or_default();
    let counts = (&now["status"]["selectedNodes"], &now["status"]["programmedNodes"]);
    ensure!(counts == (&json!(1), &json!(1)), "{now:#}");
    replica.stop().await
}
