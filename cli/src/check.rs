//! `slotmesh check`: whether operator and agents of a cluster are in sync. `helm test` runs it, in a pod: it asks the
//! pods' admin interfaces by their addresses.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::time::{Instant, sleep};

use crate::cluster::{AGAIN, reach};

/// The flags of `slotmesh check`.
#[derive(Debug, Args)]
pub struct Check {
    /// The namespace in which slotmesh is installed
    #[arg(long, env = "SLOTMESH_NAMESPACE", default_value = "slotmesh-system")]
    namespace: String,

    /// Seconds that they have to come in sync
    #[arg(long, env = "SLOTMESH_CHECK_TIMEOUT", default_value_t = 60, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=3_600))]
    timeout: u32,
}

/// A component: how its pods are labelled, where they are asked, and what says that all is well.
struct Component {
    name: &'static str,
    port: u16,
    metric: &'static str,
}

const COMPONENTS: [Component; 2] = [
    Component { name: "operator", port: 15021, metric: "slotmesh_operator_synced" },
    Component { name: "agent", port: 15020, metric: "slotmesh_agent_in_sync" },
];

impl Check {
    /// Prints what it found; returns when all is well.
    ///
    /// # Errors
    /// Names the pods that aren't in sync.
    pub fn run(self) -> anyhow::Result<()> {
        let Self { namespace, timeout } = self;
        let deadline = Instant::now() + Duration::from_secs(u64::from(timeout));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = reach().await?;
            let pods: Api<Pod> = Api::namespaced(client, &namespace);
            loop {
                let (lines, bad) = look(&pods).await?;
                if bad == 0 || Instant::now() >= deadline {
                    lines.iter().for_each(|line| println!("{line}"));
                    if bad > 0 {
                        bail!("{bad} not in sync; what holds them up is in their logs");
                    }
                    return Ok(());
                }
                sleep(AGAIN).await;
            }
        })
    }
}

/// A line for each pod, and how many are amiss.
async fn look(pods: &Api<Pod>) -> anyhow::Result<(Vec<String>, usize)> {
    let (mut lines, mut bad) = (Vec::new(), 0);
    for component in &COMPONENTS {
        let labels =
            format!("app.kubernetes.io/name=slotmesh,app.kubernetes.io/component={}", component.name);
        let found = pods.list(&ListParams::default().labels(&labels)).await.context("list pods")?;
        let all = found.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let before = lines.len();
        for pod in all {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
            let outcome = ask(component, pod);
            bad += usize::from(outcome.is_err());
            let said = outcome.map_or_else(|why| format!("{why:#}"), |()| "in sync".to_owned());
            lines.push(format!("{} {} on {node}: {said}", component.name, pod.name_any()));
        }
        if lines.len() == before {
            bad += 1;
            lines.push(format!("{}: no pods with the labels {labels}", component.name));
        }
    }
    Ok((lines, bad))
}

fn ask(component: &Component, pod: &Pod) -> anyhow::Result<()> {
    let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("no address yet")?;
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let url = format!("http://{host}:{}/metrics", component.port);
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let answer = ureq::Agent::new_with_config(config).get(&url).call().with_context(|| url.clone())?;
    let text = answer.into_body().read_to_string().with_context(|| url.clone())?;
    let expected = format!("{} 1", component.metric);
    anyhow::ensure!(text.lines().any(|line| line == expected), "not in sync");
    Ok(())
}
