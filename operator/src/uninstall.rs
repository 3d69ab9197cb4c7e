//! Before slotmesh is uninstalled: every node's agent takes the data path away.
//!
//! ```text
//!  slotmesh drain --patch--> DaemonSet: SLOTMESH_DRAIN=true, all nodes at once
//!                              each agent is replaced by one that cleans up and stays; ready: nothing is left
//!                 <--get---- DaemonSet: all pods replaced, all ready
//! ```
//!
//! A pod that is told to end can't know whether another one follows it, so it leaves the data path where it is.
//! That all are replaced and ready says that every node is clean; it takes no operator, and no agent that was
//! well before. A rollback of the release sets the variable back, and the agents route again.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

/// The variable by which an agent is told to clean its node instead of serving it.
const DRAIN: &str = "SLOTMESH_DRAIN";
/// The container that it is for.
const CONTAINER: &str = "agent";

/// Why the nodes can't be cleaned.
#[derive(Debug, thiserror::Error)]
#[error("DaemonSet {namespace}/{name}: {source}")]
pub struct DrainError {
    namespace: String,
    name: String,
    #[source]
    source: kube::Error,
}

/// The agents of a cluster.
#[derive(Clone, Debug)]
pub struct Agents {
    daemon_sets: Api<DaemonSet>,
    pods: Api<Pod>,
    namespace: String,
    name: String,
}

impl Agents {
    /// Those of this DaemonSet.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        Self {
            daemon_sets: Api::namespaced(client.clone(), namespace),
            pods: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Tells all agents to take the data path away; false where there are none to be told.
    ///
    /// # Errors
    /// Where the API server refuses or is away.
    pub async fn drain(&self) -> Result<bool, DrainError> {
        let told = json!({"spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"spec": {"containers": [
                {"name": CONTAINER, "env": [{"name": DRAIN, "value": "true"}]},
            ]}},
        }});
        match self.daemon_sets.patch(&self.name, &PatchParams::default(), &Patch::Strategic(told)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(source) => Err(self.error(source)),
        }
    }

    /// Whether all agents that were told have done so.
    ///
    /// # Errors
    /// Where the API server refuses or is away.
    pub async fn are_drained(&self) -> Result<bool, DrainError> {
        let found = self.daemon_sets.get_opt(&self.name).await.map_err(|source| self.error(source))?;
        Ok(found.is_none_or(|found| is_rolled_out(&found)))
    }

    /// The nodes whose agents haven't, by name, with what holds them up.
    ///
    /// # Errors
    /// Where the API server refuses or is away.
    pub async fn laggards(&self) -> Result<Vec<String>, DrainError> {
        let Some(found) = self.daemon_sets.get_opt(&self.name).await.map_err(|source| self.error(source))?
        else {
            return Ok(Vec::new());
        };
        let labels = found.spec.unwrap_or_default().selector.match_labels.unwrap_or_default();
        let selector: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let pods = self.pods.list(&ListParams::default().labels(&selector.join(","))).await;
        let pods = pods.map_err(|source| self.error(source))?;
        Ok(pods.iter().filter_map(held_up).collect())
    }

    fn error(&self, source: kube::Error) -> DrainError {
        DrainError { namespace: self.namespace.clone(), name: self.name.clone(), source }
    }
}

/// Whether every node has a pod of the last template, and it is ready.
fn is_rolled_out(found: &DaemonSet) -> bool {
    let Some(status) = &found.status else { return false };
    status.observed_generation == found.metadata.generation
        && status.updated_number_scheduled.unwrap_or_default() == status.desired_number_scheduled
        && status.number_ready == status.desired_number_scheduled
}

/// What to say of an agent's pod whose node isn't clean.
fn held_up(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref()?;
    let told = spec.containers.iter().flat_map(|container| container.env.iter().flatten());
    let told = told.filter(|env| env.name == DRAIN).any(|env| env.value.as_deref() == Some("true"));
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let why = match (told, ready) {
        (true, true) => return None,
        (true, false) => "isn't ready; see its log",
        (false, _) => "isn't replaced; is its node up?",
    };
    Some(format!("{} (pod {name} {why})", spec.node_name.as_deref().unwrap_or("a node to come")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon_set(status: serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": {"generation": 2}, "status": status})).unwrap()
    }

    #[test]
    fn drained_means_replaced_and_ready_on_every_node() {
        let status = json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3,
                            "numberReady": 3, "currentNumberScheduled": 3, "numberMisscheduled": 0});
        assert!(is_rolled_out(&daemon_set(status.clone())));
        for (field, value) in [("observedGeneration", 1), ("updatedNumberScheduled", 2), ("numberReady", 2)] {
            let mut other = status.clone();
            other[field] = json!(value);
            assert!(!is_rolled_out(&daemon_set(other)), "{field}");
        }
        assert!(!is_rolled_out(&daemon_set(serde_json::Value::Null)));
    }

    #[test]
    fn a_node_that_is_not_clean_is_named_with_the_reason() {
        let pod = |drain: &str, ready: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": "slotmesh-agent-x"},
                "spec": {"nodeName": "n1", "containers": [
                    {"name": "agent", "env": [{"name": DRAIN, "value": drain}]}]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        assert_eq!(held_up(&pod("true", "True")), None);
        assert!(held_up(&pod("true", "False")).unwrap().contains("n1 (pod slotmesh-agent-x isn't ready"));
        assert!(held_up(&pod("false", "True")).unwrap().contains("isn't replaced"));
    }
}
