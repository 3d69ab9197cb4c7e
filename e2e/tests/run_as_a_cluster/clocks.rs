//! The operator's clock is wrong, and jumps: its replicas run with libfaketime between them and the system's clock. (Timers,
//! which don't follow that clock, are left alone.)

use std::{env::consts::ARCH, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use slotmesh_cluster::{Cluster, images::Start, scenarios::Story, wait};
use slotmesh_e2e::names::binary;

use crate::{
    faults::{kill_all, meanwhile},
    mesh::{policy, says},
    world::{LOAD, SYSTEM, agents, all_ready, on_node, operators, volume_file},
};

const DEPLOYMENT: &str = "deployment/slotmesh-operator";
const IMAGE: &str = "e2e.test/operator:clock";
/// What the clock is set to: to where a token of an hour is over, or isn't issued yet.
const JUMPS: [&str; 3] = ["+3h", "-3h", "+0h"];

pub fn jump(cluster: &mut Cluster) -> Story<'_> {
    Box::pin(async move {
        let slotmesh = binary("slotmesh", "slotmesh")?;
        let library = format!("/usr/lib/{ARCH}-linux-gnu/faketime/libfaketimeMT.so.1");
        let start = Start {
            entrypoint: vec!["/slotmesh".into()],
            cmd: vec!["operator".into()],
            user: "65532:65532".into(),
            ..Start::default()
        };
        let files = [(slotmesh.as_path(), "/slotmesh"), (Path::new(&library), "/clock.so")];
        cluster.images().make(IMAGE, &files, &start).context("Debian's package libfaketime: `make setup`")?;
        set(cluster, "+0h")?;
        let variables = [
            ("LD_PRELOAD", "/clock.so"),
            ("FAKETIME_TIMESTAMP_FILE", "/clock/offset"),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("FAKETIME_DISABLE_SHM", "1"),
        ]
        .map(|(name, value)| json!({"name": name, "value": value}));
        let patch = json!({"spec": {"template": {"spec": {
            "containers": [{"name": "operator", "image": IMAGE, "env": variables,
                            "volumeMounts": [{"name": "clock", "mountPath": "/clock"}]}],
            "volumes": [{"name": "clock", "configMap": {"name": "clock"}}],
        }}}});
        cluster.kubectl(&["patch", DEPLOYMENT, "-n", SYSTEM, "-p", &patch.to_string()])?;
        cluster.rolled_out(SYSTEM, "slotmesh-operator").await?;
        meanwhile(cluster, async |cluster| {
            for (turn, offset) in JUMPS.into_iter().enumerate() {
                set(cluster, offset)?;
                wait::until_true("the replicas' clocks to jump", async || {
                    let there =
                        |pod| Ok(fs::read_to_string(volume_file(cluster, pod, "clock/offset")?)? == offset);
                    let all: Vec<bool> =
                        operators(cluster).await?.iter().map(there).collect::<Result<_>>()?;
                    Ok(all.iter().all(|there| *there))
                })
                .await?;
                let mut hours = vec![hour(offset)?];
                // Comes back with its token.
                kill_all(cluster, std::slice::from_ref(on_node(&agents(cluster).await?, "a")?)).await?;
                cluster.apply(&policy("turns", ["RoundRobin", "Random"][turn % 2]))?;
                says(cluster, "turns", "Programmed", "True").await?;
                hours.push(hour(offset)?);
                let mut logs = String::new();
                for pod in operators(cluster).await? {
                    logs += &cluster.container_log(&pod, "operator")?;
                }
                ensure!(hours.iter().any(|hour| logs.contains(hour)), "no clock says {hours:?}");
            }
            cluster.kubectl(&["delete", "trafficpolicies", "--all", "--namespace", LOAD])?;
            Ok(())
        })
        .await?;
        cluster.kubectl(&["rollout", "undo", DEPLOYMENT, "-n", SYSTEM])?;
        cluster.rolled_out(SYSTEM, "slotmesh-operator").await?;
        cluster.kubectl(&["delete", "configmap", "clock", "-n", SYSTEM])?;
        all_ready(cluster).await
    })
}

/// Sets the replicas' clocks, as soon as their nodes see it.
fn set(cluster: &Cluster, offset: &str) -> Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "clock", "namespace": SYSTEM},
        "data": {"offset": offset},
    });
    cluster.apply(&map.to_string()).map(drop)
}

/// The hour that a clock shows which is wrong by this, as logs write it.
fn hour(offset: &str) -> Result<String> {
    let offset = format!("{} hours", offset.trim_end_matches('h'));
    let output = Command::new("date").args(["--utc", "--date", &offset, "+%Y-%m-%dT%H:"]).output()?;
    ensure!(output.status.success(), "date: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
