//! A user asks how the mesh of a cluster is, with rights of one's own. The API server and the operator are real; what
//! agents would have told stands in objects that the test writes.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_cluster::ControlPlane;
use slotmesh_e2e::{names, wait};

const CRDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/slotmesh/templates/crds");

/// Runs kubectl, with this on its standard input.
fn kubectl(cluster: &ControlPlane, args: &[&str], input: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), input)?;
    let output = cluster.kubectl()?.args(args).stdin(fs::File::open(file.path())?).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn apply(cluster: &ControlPlane, object: &Value) -> Result<()> {
    kubectl(cluster, &["apply", "--filename", "-"], &object.to_string())
}

/// Writes the status of an object without a namespace.
fn tell(cluster: &ControlPlane, kind: &str, name: &str, status: &Value) -> Result<()> {
    apply(
        cluster,
        &json!({"apiVersion": "slotmesh.dev/v1alpha1", "kind": kind, "metadata": {"name": name}}),
    )?;
    let patch = json!({ "status": status }).to_string();
    kubectl(cluster, &["patch", kind, name, "--subresource=status", "--type=merge", "--patch", &patch], "")
}

/// A Node's status: Ready or not, why, and what its agent refuses.
fn node(ready: &str, reason: &str, refused: &[&str]) -> Value {
    let refused: Vec<Value> =
        refused.iter().map(|name| json!({"resource": name, "reason": "no room for it"})).collect();
    json!({
        "conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "holder": {"replica": "op-1", "session": 1, "connected": ready == "True"},
        "refusedResources": refused.len(), "refused": refused,
    })
}

/// An operator that is killed when the test ends.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Operator {
    fn start(cluster: &ControlPlane) -> Result<Self> {
        let free = || Ok::<_, anyhow::Error>(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string());
        let mut command = Command::new(names::binary("slotmesh", "slotmesh")?);
        command.env("KUBECONFIG", cluster.kubeconfig()).stdin(Stdio::null());
        command.args(["operator", "--replica", "op-1", "--listen", &free()?, "--admin", &free()?]);
        Ok(Self(command.spawn().context("the operator")?))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_cluster() -> Result<()> {
    let cluster = ControlPlane::start().await?;
    let admin = cluster.kubeconfig();
    let status = |kubeconfig: &std::path::Path, args: &[&str]| -> Result<(i32, String, String)> {
        let mut command = Command::new(names::binary("slotmesh", "slotmesh")?);
        let output = command.arg("status").args(args).env("KUBECONFIG", kubeconfig).output()?;
        let code = output.status.code().context("it was killed")?;
        Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
    };

    let (code, _, said) = status(&admin, &[])?;
    ensure!(
        code == 1 && said.contains("MeshNodes can't be listed") && said.contains("installed"),
        "{code}: {said}"
    );
    kubectl(&cluster, &["apply", "--filename", CRDS], "")?;
    kubectl(&cluster, &["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "")?;
    kubectl(&cluster, &["create", "namespace", "slotmesh-system"], "")?;
    let (code, said, _) = status(&admin, &[])?;
    ensure!(code == 3 && said.contains("no operator runs"), "{code}: {said}");

    // Of three nodes one is away, and one refuses something.
    tell(&cluster, "MeshNode", "n1", &node("True", "Synced", &[]))?;
    tell(&cluster, "MeshNode", "n2", &node("False", "ConnectionLost", &[]))?;
    tell(
        &cluster,
        "MeshNode",
        "n3",
        &node("True", "Synced", &["cluster/outbound|80||web.shop.svc.cluster.local"]),
    )?;
    let groups = json!([{"version": "a", "nodes": {"n1": 1, "n2": 1}}, {"version": "b", "nodes": {"n3": 1}}]);
    tell(&cluster, "MeshReplica", "op-1", &json!({"agents": 3, "alike": 2, "groups": groups}))?;
    let (code, said, _) = status(&admin, &[])?;
    for part in [
        "Nodes: 2 of 3 ready, 1 resources refused. Objects not in force everywhere: 0.",
        "node n2: so it is: see `kubectl get pods --namespace slotmesh-system --field-selector spec.nodeName=n2",
        "node n3 refuses 1 of its resources, such as cluster/outbound|80||web.shop.svc.cluster.local: no room for it",
        "nobody writes conditions",
    ] {
        ensure!(code == 3 && said.contains(part), "{part}: {code}: {said}");
    }
    let (_, json, _) = status(&admin, &["-o", "json"])?;
    let survey: Value = serde_json::from_str(&json)?;
    ensure!(
        survey["nodes"][1]["since"] == "2026-01-01T00:00:00Z" && survey["nodes"][2]["acknowledged"] == "b",
        "{survey}"
    );

    // An object that nodes lack.
    let policy = json!({"apiVersion": "slotmesh.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}], "maxConnections": 9}});
    apply(&cluster, &policy)?;
    let condition = json!([{"type": "Programmed", "status": "False", "reason": "Pending", "message": "node n2: away",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let ancestor = json!({"ancestorRef": {"group": "", "kind": "Service", "name": "web"},
        "controllerName": "slotmesh.dev/operator", "conditions": condition});
    let patch = json!({"status": {"ancestors": [ancestor]}}).to_string();
    let patching =
        ["patch", "trafficpolicy", "web", "--subresource=status", "--type=merge", "--patch", &patch];
    kubectl(&cluster, &patching, "")?;
    let (_, said, _) = status(&admin, &[])?;
    let pending =
        "TrafficPolicy default/web isn't in force on all nodes since 2026-01-01T00:00:00Z: node n2: away";
    ensure!(said.contains(pending), "{said}");
    kubectl(&cluster, &["delete", "trafficpolicy", "web"], "")?;

    // Whoever may see the mesh, and nothing of the installation.
    let viewer = cluster.write_kubeconfig("viewer", "viewer", None)?;
    let (code, _, said) = status(&viewer, &[])?;
    ensure!(code == 1 && said.contains("forbidden"), "{code}: {said}");
    kubectl(
        &cluster,
        &[
            "create",
            "clusterrole",
            "viewer",
            "--verb=list",
            "--resource=meshnodes.slotmesh.dev,meshreplicas.slotmesh.dev",
        ],
        "",
    )?;
    kubectl(
        &cluster,
        &["create", "clusterrolebinding", "viewer", "--clusterrole=viewer", "--user=viewer"],
        "",
    )?;
    // The API server learns of rights by a watch.
    wait::until_true("the right to take effect", || Ok(status(&viewer, &[])?.0 == 3))?;
    let (_, said, _) = status(&viewer, &[])?;
    ensure!(
        said.contains("not known: pods of slotmesh-system can't be listed") && said.contains("op-1"),
        "{said}"
    );

    // A mesh of a real operator and no node is well as soon as the operator leads.
    for (kind, name) in [("meshnode", "n1"), ("meshnode", "n2"), ("meshnode", "n3"), ("meshreplica", "op-1")]
    {
        kubectl(&cluster, &["delete", kind, name], "")?;
    }
    let _operator = Operator::start(&cluster)?;
    let (code, said, err) = status(&admin, &["--timeout", "120"])?;
    ensure!(code == 0 && said.contains("All is well.") && said.contains("op-1"), "{code}: {said}{err}");
    Ok(())
}
