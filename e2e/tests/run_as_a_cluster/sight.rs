//! A node is sent what its pods can make use of, and no more.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use slotmesh_cluster::{Cluster, scenarios::Story, wait};
use slotmesh_e2e::mesh::at;

use crate::{
    crds,
    world::{LOAD, NODES, World, address, agents, all_ready, client, enrolled, id, on_node, reached},
};

const PRIVATE: &str = "private";
const ADDRESS: &str = "240.0.0.1";
const LISTENER: &str = "240.0.0.1_80";

/// What a namespace keeps to itself is on the nodes of its pods, from the first of them to the last.
pub fn exported(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        all_ready(cluster).await?;
        cluster.apply(&crds::istio())?;
        let established = "--for=condition=Established";
        cluster.kubectl(&["wait", established, "crd/serviceentries.networking.istio.io", "--timeout=60s"])?;
        let backends = cluster.pods(LOAD, "app=web,version=v1").await?;
        let to = address(backends.first().context("there is a pod of v1")?)?;
        let expected: BTreeSet<u16> = [id(to)?].into();
        cluster.apply(&list(&[
            json!({"apiVersion": "v1", "kind": "Namespace",
                   "metadata": {"name": PRIVATE, "labels": {"slotmesh.dev/mesh": "enabled"}}}),
            entry(to),
            client("own", PRIVATE, "b", json!({})),
        ]))?;
        let own = World {
            vip: at(ADDRESS, 80),
            near: cluster.ready(PRIVATE, "own").await?,
            ..World::look(cluster).await?
        };
        let leads = async |from| {
            wait::until_true("the ServiceEntry to lead where it says", async || {
                Ok(own.connect(cluster, from, 20).await.is_ok_and(|log| reached(&log) == expected))
            })
            .await
        };
        leads(&own.near).await?;
        is_programmed(cluster).await?;
        has(cluster, &["b"]).await?;
        // Another node, where nothing of it has changed.
        cluster.apply(&client("late", PRIVATE, "a", json!({})).to_string())?;
        let late = cluster.ready(PRIVATE, "late").await?;
        enrolled(cluster).await?;
        leads(&late).await?;
        has(cluster, &["a", "b"]).await?;
        cluster.kubectl(&["delete", "pod", &late.name_any(), "--namespace", PRIVATE])?;
        has(cluster, &["b"]).await?;
        is_programmed(cluster).await?;
        cluster.kubectl(&["delete", "namespace", PRIVATE])?;
        has(cluster, &[]).await
    })
}

fn list(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn entry(to: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "db", "namespace": PRIVATE},
        "spec": {
            "hosts": ["db.example.com"], "exportTo": ["."], "addresses": [ADDRESS], "resolution": "STATIC",
            "ports": [{"number": 80, "name": "tcp", "protocol": "TCP", "targetPort": 8080}],
            "endpoints": [{"address": to}],
        },
    })
}

/// Waits until exactly these nodes have the listener.
async fn has(cluster: &Cluster, nodes: &[&str]) -> Result<()> {
    wait::until_true(&format!("the listener to be on {nodes:?} alone"), async || {
        let agents = agents(cluster).await?;
        let mut found = Vec::new();
        for node in NODES {
            let command = ["/slotmesh", "get", "listeners", "--output", "json"];
            let said = cluster.exec(on_node(&agents, node)?, "agent", &command).await?;
            let errors = String::from_utf8_lossy(&said.stderr);
            ensure!(said.status.success(), "slotmesh get on node {node}: {errors}");
            let listeners: Vec<Value> = serde_json::from_slice(&said.stdout)?;
            if listeners.iter().any(|listener| listener["name"] == LISTENER) {
                found.push(node);
            }
        }
        Ok(found == nodes)
    })
    .await
}

/// Waits until the ServiceEntry is said to be in force on all nodes that it is for.
async fn is_programmed(cluster: &Cluster) -> Result<()> {
    wait::until_true("the ServiceEntry to be programmed", async || {
        let said = r#"jsonpath={.status.conditions[?(@.type=="Programmed")].status}"#;
        let entry = ["get", "serviceentry", "db", "--namespace", PRIVATE, "-o", said];
        Ok(cluster.kubectl(&entry)?.trim() == "True")
    })
    .await
}
