//! Where the programs of a control plane are.
//!
//! `KUBEBUILDER_ASSETS`, where it is set, names a folder with etcd, kube-apiserver and kubectl, and perhaps
//! others. What isn't there is what `cargo xtask control-plane` built or fetched.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// A program of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// All that pods of Kubernetes' own tests do.
    Agnhost,
    /// The server of a cluster's names.
    CoreDns,
    /// The store behind the API server.
    Etcd,
    /// The package manager.
    Helm,
    /// The API server.
    ApiServer,
    /// The controllers.
    ControllerManager,
    /// Makes Service addresses work on a node.
    Proxy,
    /// Chooses nodes for pods.
    Scheduler,
    /// The command line.
    Kubectl,
    /// Kubernetes' own end-to-end tests.
    KubernetesTests,
    /// Answers exec, attach, logs and port-forward on a node.
    KubeletServer,
    /// Scrapes metrics.
    Prometheus,
    /// Checks what is scraped.
    Promtool,
}

impl Program {
    /// The name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agnhost => "agnhost",
            Self::CoreDns => "coredns",
            Self::Etcd => "etcd",
            Self::Helm => "helm",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Proxy => "kube-proxy",
            Self::Scheduler => "kube-scheduler",
            Self::Kubectl => "kubectl",
            Self::KubernetesTests => "e2e.test",
            Self::KubeletServer => "kubelet-server",
            Self::Prometheus => "prometheus",
            Self::Promtool => "promtool",
        }
    }

    /// Its file.
    ///
    /// # Errors
    /// When it isn't there; the message says how to get it.
    pub fn path(self) -> Result<PathBuf> {
        let assets = env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let here = ["control-plane", "prometheus"].map(|dir| target.join(dir));
        let file = assets.iter().chain(&here).map(|dir| dir.join(self.name())).find(|file| file.is_file());
        match file {
            Some(file) => Ok(file.canonicalize().map_or(file.clone(), |real| keep_name(file, &real))),
            None => bail!("{self} is missing: run `make control-plane` (docs/development.md)"),
        }
    }
}

/// The folder without links, but the file by its own name: the programs are links to one file, which
/// knows by its name what it is.
fn keep_name(file: PathBuf, real: &Path) -> PathBuf {
    match (real.parent(), file.file_name()) {
        (Some(dir), Some(name)) if dir.join(name).is_file() => dir.join(name),
        _ => file,
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
