//! The processes of a pod: those that run in it, and further ones, as `kubectl exec` starts them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use tempfile::NamedTempFile;

use crate::{Cluster, node};

/// A command that runs in a container. It is to be started while this lives.
#[derive(Debug)]
pub struct Exec {
    /// The command: input and output are the process's in the container.
    pub command: Command,
    // Read by the runtime as it starts the process.
    _process: NamedTempFile,
}

impl Cluster {
    /// Runs a command in a container of a pod, as `kubectl exec` does.
    ///
    /// # Errors
    /// When the pod doesn't run.
    pub async fn exec(&self, pod: &Pod, container: &str, command: &[&str]) -> Result<Output> {
        let mut exec = self.exec_command(pod, container, command).await?;
        tokio::task::spawn_blocking(move || exec.command.output()).await?.context("run nsenter")
    }

    /// Prepares a command in a container of a pod.
    ///
    /// # Errors
    /// When the pod doesn't run.
    pub async fn exec_command(&self, pod: &Pod, container: &str, command: &[&str]) -> Result<Exec> {
        let api: Api<Pod> = Api::namespaced(self.client().await?, &pod.namespace().unwrap_or_default());
        let pod = api.get(&pod.name_any()).await?;
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let id =
            statuses.filter(|status| status.name == container).find_map(|status| status.container_id.clone());
        let id = id.with_context(|| format!("{container} of {} doesn't run", pod.name_any()))?;
        let id = id.rsplit('/').next().unwrap_or_default().to_owned();
        let node = node_of(&pod)?;
        let config = self.node_config(node)?;
        let process = node::beside(&config.inside(&node::bundle(&id)), command)?;
        let file = NamedTempFile::new_in(config.inside(Path::new("/tmp")))?;
        fs::write(file.path(), serde_json::to_vec(&process)?)?;
        let seen = Path::new("/tmp").join(file.path().file_name().context("a file has a name")?);
        let mut crun = self.on_node(node)?;
        crun.args(["crun", "exec", "--process"]).arg(seen).arg(&id);
        Ok(Exec { command: crun, _process: file })
    }

    /// The processes of a pod, by their numbers on this machine.
    ///
    /// # Errors
    /// When it has none.
    pub fn processes(&self, pod: &Pod) -> Result<Vec<u32>> {
        let name = format!("pod{}", pod.uid().unwrap_or_default());
        let mut found = Vec::new();
        let mut dirs = vec![(self.node_config(node_of(pod)?)?.cgroup.join("kubepods"), false)];
        while let Some((dir, inside)) = dirs.pop() {
            // Cgroups come and go.
            let below = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let is_pod = |path: &PathBuf| inside || path.ends_with(&name);
            dirs.extend(below.filter(|path| path.is_dir()).map(|path| (path.clone(), is_pod(&path))));
            if inside {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            }
        }
        ensure!(!found.is_empty(), "{} has no process", pod.name_any());
        found.sort_unstable();
        Ok(found)
    }
}

fn node_of(pod: &Pod) -> Result<&str> {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).context("it has no node")
}
