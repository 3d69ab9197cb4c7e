//! slotmesh as the chart installs it, and every namespace that a test makes as one that takes part.

use anyhow::Result;
use slotmesh_cluster::{Cluster, wait};

#[path = "../shared/chart.rs"]
mod chart;

pub use chart::SYSTEM;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/slotmesh");

/// Labels each namespace as it is created, so that no pod is there before.
const TAKES_PART: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: takes-part}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [namespaces]}]
  failurePolicy: Fail
  reinvocationPolicy: Never
  mutations:
    - patchType: ApplyConfiguration
      applyConfiguration:
        expression: 'Object{metadata: Object.metadata{labels: {"slotmesh.dev/mesh": "enabled"}}}'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: takes-part}
spec: {policyName: takes-part}
"#;

/// Installs slotmesh with these values of the chart, and lets take part what comes from then on.
pub async fn install(cluster: &Cluster, values: &[&str]) -> Result<()> {
    chart::make_images(cluster)?;
    let install = ["install", "slotmesh", CHART, "--namespace", SYSTEM, "--create-namespace", "--wait"];
    cluster.helm(&[&install, values].concat())?;
    cluster.apply(TAKES_PART)?;
    let label = r"jsonpath={.metadata.labels.slotmesh\.dev/mesh}";
    wait::until_true("a new namespace to take part", async || {
        cluster.kubectl(&["create", "namespace", "probe"])?;
        let labelled = cluster.kubectl(&["get", "namespace", "probe", "-o", label])? == "enabled";
        cluster.kubectl(&["delete", "namespace", "probe"])?;
        Ok(labelled)
    })
    .await
}
