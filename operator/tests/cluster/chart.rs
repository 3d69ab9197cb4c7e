//! The chart on a real API server: it is accepted, its CRDs refuse nonsense, and the operator and the agent
//! may do what they need and no more.

use std::path::Path;

use anyhow::{Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use slotmesh_cluster::ControlPlane;

use crate::support::{NAMESPACE, apply};

async fn installed() -> Result<ControlPlane> {
    let cluster = ControlPlane::start().await?;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/slotmesh");
    let out = cluster
        .helm()?
        .args(["install", "slotmesh"])
        .arg(chart)
        .args(["--namespace", NAMESPACE, "--create-namespace"])
        .output()?;
    ensure!(out.status.success(), "helm: {}", String::from_utf8_lossy(&out.stderr));
    Ok(cluster)
}

/// Whether a service account of the chart's may do something.
fn may(cluster: &ControlPlane, account: &str, what: &[&str]) -> Result<bool> {
    let account = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
    let out = cluster.kubectl()?.args(["auth", "can-i"]).args(what).arg(account).output()?;
    let answer = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    ensure!(answer == "yes" || answer == "no", "{what:?}: {answer} {}", String::from_utf8_lossy(&out.stderr));
    Ok(answer == "yes")
}

#[tokio::test]
async fn rights_are_enough_and_no_more() -> Result<()> {
    let cluster = installed().await?;
    let own = format!("--namespace={NAMESPACE}");
    for what in [
        &["watch", "services", "--all-namespaces"][..],
        &["list", "endpointslices.discovery.k8s.io", "--all-namespaces"],
        &["watch", "pods", "--all-namespaces"],
        &["watch", "servicecidrs.networking.k8s.io"],
        &["watch", "trafficpolicies.slotmesh.dev", "--all-namespaces"],
        &["create", "tokenreviews.authentication.k8s.io"],
        &["update", "secrets/slotmesh-authority", &own],
        &["patch", "configmaps/slotmesh-ca", &own],
        &["get", "leases.coordination.k8s.io/slotmesh-operator", &own],
        &["update", "leases.coordination.k8s.io/slotmesh-operator", &own],
        &["watch", "meshnodes.slotmesh.dev"],
        &["create", "meshnodes.slotmesh.dev"],
        &["patch", "meshnodes.slotmesh.dev", "--subresource=status"],
        &["create", "meshreplicas.slotmesh.dev"],
        &["patch", "meshreplicas.slotmesh.dev", "--subresource=status"],
        &["delete", "meshreplicas.slotmesh.dev"],
        &["patch", "trafficpolicies.slotmesh.dev", "--subresource=status", "--all-namespaces"],
        &["patch", "slotprofiles.slotmesh.dev", "--subresource=status"],
        &["create", "events.events.k8s.io", "--all-namespaces"],
        &["patch", "events.events.k8s.io", "--all-namespaces"],
    ] {
        ensure!(may(&cluster, "slotmesh-operator", what)?, "the operator may not {what:?}");
        ensure!(!may(&cluster, "slotmesh-agent", what)?, "the agent may {what:?}");
    }
    for what in [
        &["create", "secrets", &own][..],
        &["get", "secrets", &own],
        &["get", "secrets", "--all-namespaces"],
        &["update", "services", "--all-namespaces"],
        &["patch", "services", "--subresource=status", "--all-namespaces"],
        &["patch", "trafficpolicies.slotmesh.dev", "--all-namespaces"],
        &["update", "trafficpolicies.slotmesh.dev", "--subresource=status", "--all-namespaces"],
        &["delete", "meshnodes.slotmesh.dev"],
        &["patch", "nodes", "--subresource=status"],
        &["create", "leases.coordination.k8s.io", &own],
        &["update", "leases.coordination.k8s.io/other", &own],
        &["update", "leases.coordination.k8s.io/slotmesh-operator", "--namespace=kube-system"],
        &["delete", "events.events.k8s.io", "--all-namespaces"],
        &["create", "pods", &own],
    ] {
        ensure!(!may(&cluster, "slotmesh-operator", what)?, "the operator may {what:?}");
    }
    Ok(())
}

#[tokio::test]
async fn custom_resources_that_contradict_themselves_are_refused() -> Result<()> {
    let cluster = installed().await?;
    let client = cluster.client().await?;
    let profile = |spec: Value| {
        json!({"apiVersion": "slotmesh.dev/v1alpha1", "kind": "SlotProfile",
               "metadata": {"name": "edge"}, "spec": spec})
    };
    let policy = |spec: Value| {
        json!({"apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
               "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
    };
    let web = json!([{"group": "", "kind": "Service", "name": "web"}]);
    for (object, says) in [
        (profile(json!({"initial": 9, "cap": 8})), "initial must not be more than cap"),
        (
            profile(json!({"lowWatermark": 8, "batch": 8, "highWatermark": 15})),
            "highWatermark must be at least",
        ),
        (profile(json!({"memoryBudget": "67Ki"})), "at least 68Ki"),
        (profile(json!({"memoryBudget": "much"})), "must be a quantity"),
        (profile(json!({"memoryBudget": "136Ki", "cap": 3})), "room for cap outer records"),
        (profile(json!({"memoryBudget": "136Ki", "initial": 3})), "room for the initial outer records"),
        (policy(json!({"targetRefs": web})), "the policy says nothing"),
        (
            policy(json!({"maxConnections": 5,
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"},
                               {"group": "", "kind": "Service", "name": "web"}]})),
            "must not name the same Service and port twice",
        ),
        (
            policy(
                json!({"maxConnections": 5, "targetRefs": [{"group": "apps", "kind": "Deployment", "name": "web"}]}),
            ),
            "a policy is attached to a Service",
        ),
    ] {
        refused(&client, object, says).await?;
    }
    apply(&client, profile(json!({"initial": 8, "cap": 8, "memoryBudget": "544Ki"}))).await?;
    apply(&client, policy(json!({"maxConnections": 5, "targetRefs": web}))).await?;
    Ok(())
}

async fn refused(client: &Client, object: Value, says: &str) -> Result<()> {
    match apply(client, object.clone()).await {
        Ok(_) => anyhow::bail!("accepted: {object}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(says), "{object} is refused with {text:?}, not with {says:?}");
            Ok(())
        }
    }
}
