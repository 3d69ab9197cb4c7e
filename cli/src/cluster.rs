//! The Kubernetes cluster that commands talk to.

use std::time::Duration;

use anyhow::anyhow;
use kube::{Client, Config};
use slotmesh_operator::connect;

/// The pause before the cluster is asked again.
pub const AGAIN: Duration = Duration::from_secs(1);

/// The API server: in a pod its own cluster's, else that of the kubeconfig.
///
/// # Errors
/// When neither is there.
pub async fn reach() -> anyhow::Result<Client> {
    // What kube says names its causes already.
    let config = Config::infer().await.map_err(|error| {
        anyhow!(
            "no cluster: run it in a pod with a service account, or name a kubeconfig file in KUBECONFIG ({error})"
        )
    })?;
    Ok(connect(config)?)
}
