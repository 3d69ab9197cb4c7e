//! The proxy ends, and another one takes its place.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;
use slotmesh_cluster::{Cluster, scenarios::Story, wait};

use crate::world::{Load, SHOP, SYSTEM, ask, route, until_answered};

/// The pods of broker and proxy.
pub const PROXIES: &str = "app.kubernetes.io/name=slotmesh,app.kubernetes.io/component=proxy";

async fn proxy_of(cluster: &Cluster, pod: &Pod) -> Result<Pod> {
    let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let proxies = cluster.pods(SYSTEM, PROXIES).await?;
    proxies.into_iter().find(|proxy| node(proxy) == node(pod)).context("each node has a proxy")
}

/// How often a container of a pod was started anew.
fn restarts(pod: &Pod, container: &str) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.filter(|status| status.name == container).map(|status| status.restart_count).sum()
}

/// The process of the proxy, or of the broker, in a pod of both.
fn process(cluster: &Cluster, pod: &Pod, command: &str) -> Result<u32> {
    let is_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == command.as_bytes())
    };
    cluster.processes(pod)?.into_iter().find(is_it).with_context(|| format!("{command} has a process"))
}

/// Kills a container's process and waits until it was started anew.
async fn kill_one(cluster: &Cluster, of: &Pod, command: &str) -> Result<()> {
    let before = proxy_of(cluster, of).await?;
    kill(Pid::from_raw(process(cluster, &before, command)?.cast_signed()), Signal::SIGKILL)?;
    wait::until_true(&format!("the {command} to be started anew"), async || {
        Ok(restarts(&proxy_of(cluster, of).await?, command) > restarts(&before, command))
    })
    .await
}

pub fn killed(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let rules = json!([{"matches": [{"path": {"value": "/v2"}}], "backendRefs": [{"name": "web-v2", "port": 80}]}]);
        cluster.apply(&route(&rules))?;
        let pod = cluster.ready(SHOP, "near").await?;
        until_answered(cluster, &pod, "the route", &["/v2"], |answer| answer.by() == "v2").await?;
        let before = proxy_of(cluster, &pod).await?;
        kill_one(cluster, &pod, "proxy").await?;
        until_answered(cluster, &pod, "the next proxy", &["/v2"], |answer| answer.by() == "v2").await?;
        let answers = ask(cluster, &pod, &["--times", "50", "/v2"]).await?;
        ensure!(answers.iter().all(|answer| answer.by() == "v2"), "{answers:?}");
        // Nobody else was touched.
        ensure!(restarts(&proxy_of(cluster, &pod).await?, "broker") == restarts(&before, "broker"));
        Ok(())
    })
}

pub fn upgraded(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let rules = json!([{"matches": [{"path": {"value": "/v2"}}], "backendRefs": [{"name": "web-v2", "port": 80}]}]);
        cluster.apply(&route(&rules))?;
        let pod = cluster.ready(SHOP, "near").await?;
        until_answered(cluster, &pod, "the route", &["/v2"], |answer| answer.by() == "v2").await?;
        let loads = [
            Load::start(cluster, &pod, &["/v2"]).await?,
            Load::start(cluster, &pod, &["--method", "POST", "/v2"]).await?,
        ];
        kill_one(cluster, &pod, "broker").await?;
        let uid = |pod: &Pod| pod.metadata.uid.clone();
        let before = uid(&proxy_of(cluster, &pod).await?);
        cluster.kubectl(&["rollout", "restart", "daemonset/slotmesh-proxy", "-n", SYSTEM])?;
        cluster.kubectl(&[
            "rollout",
            "status",
            "daemonset/slotmesh-proxy",
            "-n",
            SYSTEM,
            "--timeout=120s",
        ])?;
        let after = uid(&proxy_of(cluster, &pod).await?);
        ensure!(after != before, "the pod of broker and proxy wasn't replaced");
        until_answered(cluster, &pod, "the next proxy", &["/v2"], |answer| answer.by() == "v2").await?;
        for load in loads {
            let answers = load.end()?;
            let bad = answers.iter().find(|answer| answer.by() != "v2");
            ensure!(!answers.is_empty() && bad.is_none(), "of {} answers one is {bad:?}", answers.len());
        }
        Ok(())
    })
}
