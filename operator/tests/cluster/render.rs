//! What the chart's values make of its objects. An API server takes each combination, as it would at an install.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use slotmesh_cluster::ControlPlane;

use crate::support::NAMESPACE;

/// Arguments of helm, and what they make.
type Choice = (&'static [&'static str], fn(&Rendered) -> Result<()>);

const SECURITY: [Choice; 3] = [
    (&[], |made| {
        made.agent_security(json!({
            "appArmorProfile": {"type": "Unconfined"},
            "seLinuxOptions": {"type": "spc_t"},
            "seccompProfile": {"type": "RuntimeDefault"},
        }))
    }),
    (
        &[
            "--set=agent.appArmorProfile=null",
            "--set=agent.seLinuxOptions=null",
            "--set=agent.seccompProfile=null",
        ],
        |made| made.agent_security(json!({})),
    ),
    (
        &[
            "--set=agent.appArmorProfile.type=Localhost",
            "--set=agent.appArmorProfile.localhostProfile=slotmesh",
            "--set=agent.seLinuxOptions.level=s0:c1",
            "--set=agent.seccompProfile.type=Unconfined",
        ],
        |made| {
            made.agent_security(json!({
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "slotmesh"},
                "seLinuxOptions": {"type": "spc_t", "level": "s0:c1"},
                "seccompProfile": {"type": "Unconfined"},
            }))
        },
    ),
];

const QUOTA: [Choice; 4] = [
    (&[], |made| made.quota(None)),
    (&["--api-versions=networking.gke.io/v1"], |made| made.quota(Some("20k"))),
    (&["--set=priorityQuota.enabled=true", "--set=priorityQuota.pods=7"], |made| made.quota(Some("7"))),
    (&["--api-versions=networking.gke.io/v1", "--set=priorityQuota.enabled=false"], |made| made.quota(None)),
];

const SPREAD: [Choice; 2] = [
    (&[], |made| made.spread("DoNotSchedule")),
    (&["--set=operator.spread=ScheduleAnyway"], |made| made.spread("ScheduleAnyway")),
];

/// What the chart made.
struct Rendered(Vec<Value>);

impl Rendered {
    fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    fn pod(&self, kind: &str, name: &str) -> Result<&Value> {
        let owner = self.find(kind, name).with_context(|| format!("there is no {kind} {name}"))?;
        Ok(&owner["spec"]["template"]["spec"])
    }

    fn agent_security(&self, expected: Value) -> Result<()> {
        let found = &self.pod("DaemonSet", "slotmesh-agent")?["securityContext"];
        ensure!(*found == expected, "the agents' pods have {found}, not {expected}");
        Ok(())
    }

    fn quota(&self, expected: Option<&str>) -> Result<()> {
        let found = self.find("ResourceQuota", "slotmesh").map(|quota| &quota["spec"]["hard"]["pods"]);
        ensure!(found.and_then(Value::as_str) == expected, "the quota is {found:?}, not {expected:?}");
        Ok(())
    }

    fn spread(&self, expected: &str) -> Result<()> {
        let constraints = &self.pod("Deployment", "slotmesh-operator")?["topologySpreadConstraints"];
        ensure!(constraints[0]["whenUnsatisfiable"] == expected, "{constraints}");
        Ok(())
    }

    /// What holds whatever the values.
    fn always(&self) -> Result<()> {
        for (kind, name) in [("DaemonSet", "slotmesh-agent"), ("Deployment", "slotmesh-operator")] {
            let selector = &self.pod(kind, name)?["nodeSelector"];
            ensure!(
                *selector == json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}),
                "{name} runs where {selector}"
            );
        }
        let agent = &self.pod("DaemonSet", "slotmesh-agent")?["containers"][0];
        let mounts = agent["volumeMounts"].as_array().context("no volumes are mounted")?;
        for name in ["bpffs", "cgroups"] {
            let mount = mounts.iter().find(|mount| mount["name"] == name).context(name)?;
            ensure!(mount["mountPropagation"] == "HostToContainer", "{mount}");
        }
        Ok(())
    }
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/slotmesh")
}

fn template(cluster: &ControlPlane, args: &[&str]) -> Result<Output> {
    let mut helm = cluster.helm()?;
    helm.args(["template", "slotmesh"]).arg(chart());
    // Without a cluster helm takes an old version for granted.
    helm.args(["--kube-version=v1.34.0", "--namespace", NAMESPACE, "--no-hooks"]);
    Ok(helm.args(args).output()?)
}

/// The objects as an API server would store them.
fn rendered(cluster: &ControlPlane, args: &[&str]) -> Result<Rendered> {
    let out = template(cluster, args)?;
    ensure!(out.status.success(), "helm: {}", String::from_utf8_lossy(&out.stderr));
    let mut kubectl = cluster
        .kubectl()?
        .args(["create", "--dry-run=server", "--output=json", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    kubectl.stdin.take().context("kubectl has no input")?.write_all(&out.stdout)?;
    let taken = kubectl.wait_with_output()?;
    ensure!(taken.status.success(), "kubectl: {}", String::from_utf8_lossy(&taken.stderr));
    let objects = serde_json::Deserializer::from_slice(&taken.stdout).into_iter();
    let mut all = Vec::new();
    for object in objects {
        let mut object: Value = object?;
        match object["items"].take() {
            Value::Array(items) => all.extend(items),
            _ => all.push(object),
        }
    }
    Ok(Rendered(all))
}

async fn cluster() -> Result<ControlPlane> {
    let cluster = ControlPlane::start().await?;
    let made = cluster.kubectl()?.args(["create", "namespace", NAMESPACE]).output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Ok(cluster)
}

#[tokio::test]
async fn every_combination_of_the_platforms_values_is_accepted() -> Result<()> {
    let cluster = cluster().await?;
    let mut others = [&["--set=networkPolicy.enabled=false"][..], &["--set=dashboards.enabled=true"], &[]]
        .into_iter()
        .cycle();
    for security in &SECURITY {
        for quota in &QUOTA {
            for spread in &SPREAD {
                let chosen = [security, quota, spread];
                let mut args: Vec<&str> = chosen.iter().flat_map(|(args, _)| *args).copied().collect();
                args.extend(others.next().into_iter().flatten());
                let made = rendered(&cluster, &args).with_context(|| format!("{args:?}"))?;
                for (_, expect) in chosen {
                    expect(&made).with_context(|| format!("{args:?}"))?;
                }
                made.always().with_context(|| format!("{args:?}"))?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn broker_and_proxy_are_made_where_they_are_asked_for_with_the_rights_that_they_need() -> Result<()> {
    let cluster = cluster().await?;
    let without = rendered(&cluster, &[])?;
    ensure!(without.find("DaemonSet", "slotmesh-proxy").is_none(), "nobody asked for it");
    let made = rendered(&cluster, &["--set=proxy.enabled=true", "--set=proxy.sockets=/run/mesh"])?;
    made.always()?;
    let pod = made.pod("DaemonSet", "slotmesh-proxy")?;
    ensure!(pod["automountServiceAccountToken"] == false && pod["hostNetwork"].is_null(), "{pod}");
    ensure!(pod["securityContext"]["seccompProfile"] == json!({"type": "RuntimeDefault"}), "{pod}");
    let security = |name: &str| {
        let containers = pod["containers"].as_array().into_iter().flatten();
        containers.filter(|container| container["name"] == name).map(|of| &of["securityContext"]).next()
    };
    let broker = json!({
        "runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]},
    });
    ensure!(security("broker") == Some(&broker), "{pod}");
    let proxy = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
    });
    ensure!(security("proxy") == Some(&proxy), "{pod}");
    // The agent's rights stay as they are; it meets the others in one folder of the node.
    let agent = made.pod("DaemonSet", "slotmesh-agent")?;
    let before = &without.pod("DaemonSet", "slotmesh-agent")?["containers"][0]["securityContext"];
    ensure!(agent["containers"][0]["securityContext"] == *before, "{agent}");
    for pod in [pod, agent] {
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let shared = volumes.filter(|volume| volume["hostPath"]["path"] == "/run/mesh").count();
        ensure!(shared == 1, "{pod}");
    }
    Ok(())
}

#[tokio::test]
async fn values_that_are_none_are_refused() -> Result<()> {
    let cluster = cluster().await?;
    for (value, says) in [
        ("agent.appArmorProfile.type=Off", "appArmorProfile"),
        ("agent.seccompProfile.type=Localhost", "localhostProfile"),
        ("agent.seccompProfile.localhostProfile=mine.json", "localhostProfile"),
        ("agent.seLinuxOptions.kind=spc_t", "seLinuxOptions"),
        ("operator.spread=Never", "spread"),
        ("priorityQuota.enabled=sometimes", "enabled"),
        ("priorityQuota.pods=0", "pods"),
        ("operator.replica=2", "replica"),
        ("proxy.sockets=here", "sockets"),
        ("proxy.workers=0", "workers"),
        ("proxy.http1=nginx", "http1"),
    ] {
        let out = template(&cluster, &["--set", value])?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(!out.status.success() && said.contains(says), "{value}: {said}");
    }
    Ok(())
}
