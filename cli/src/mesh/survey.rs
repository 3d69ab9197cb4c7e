//! The state of the mesh, from the objects that tell of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Pod},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use serde::Serialize;
use slotmesh_crds::own::{MeshNode, MeshReplica, MeshReplicaStatus};

use super::pending::{PendingObject, pending};

/// The Lease whose holder writes conditions, as the chart has it.
const LEASE: &str = "slotmesh-operator";

/// Of 100 outer records, how many have to be left or idle.
const SCARCE: u64 = 5;

/// All that is told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Survey {
    pub healthy: bool,
    pub operator: Vec<ReplicaState>,
    pub nodes: Vec<NodeState>,
    /// Objects that aren't in force on all nodes.
    pub pending: Vec<PendingObject>,
    /// What is amiss, and what to do.
    pub advice: Vec<String>,
    /// What couldn't be read.
    pub unknown: Vec<String>,
}

/// A replica of the operator.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaState {
    pub name: String,
    /// It writes conditions; `None` where the Lease can't be read.
    pub leader: Option<bool>,
    /// Its pod is ready; `None` where pods can't be read, or there is none.
    pub ready: Option<bool>,
    pub restarts: Option<i32>,
    /// How many agents it has.
    pub agents: u32,
    /// How many of these have acknowledged the same as most.
    pub alike: u32,
    /// Nodes whose agents have just begun.
    pub syncing: Vec<String>,
}

/// A node, as its agent and operator tell of it.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    pub name: String,
    pub ready: bool,
    /// Why it is so, for machines.
    pub reason: String,
    pub message: String,
    /// Since when it is ready, or isn't.
    pub since: Option<Time>,
    /// All that it has acknowledged, in one hash. Nodes differ where they are sent other things, too.
    pub acknowledged: Option<String>,
    pub agent_version: Option<String>,
    /// Replica to which its agent is connected.
    pub replica: Option<String>,
    pub resources: Option<u32>,
    pub slots_used: Option<u64>,
    pub slots_idle: Option<u64>,
    pub slabs_remaining: Option<u32>,
    pub slabs_cap: Option<u32>,
    pub profile: Option<String>,
    /// How many resources the agent refuses.
    pub refused: u32,
    /// Some of these: the resource and why.
    pub refusals: Vec<RefusedResource>,
}

/// A resource that an agent refuses.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedResource {
    pub resource: String,
    pub reason: String,
    pub at: Option<Time>,
}

/// Reads the state.
///
/// # Errors
/// When MeshNodes and MeshReplicas can't be read.
pub async fn survey(client: &Client, namespace: &str) -> anyhow::Result<Survey> {
    let all = ListParams::default();
    let remedy =
        "; is slotmesh installed, and may you list them? `kubectl auth can-i list meshnodes.slotmesh.dev`";
    let labels = ListParams::default().labels("app.kubernetes.io/name=slotmesh");
    let mut unlisted = Vec::new();
    let nodes = Api::<MeshNode>::all(client.clone());
    let replicas = Api::<MeshReplica>::all(client.clone());
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let lease = Api::<Lease>::namespaced(client.clone(), namespace);
    let (nodes, replicas, pods, lease, pending) = tokio::join!(
        nodes.list(&all),
        replicas.list(&all),
        pods.list(&labels),
        lease.get_opt(LEASE),
        pending(client, &mut unlisted),
    );
    let nodes = nodes.with_context(|| format!("MeshNodes can't be listed{remedy}"))?.items;
    let replicas = replicas.with_context(|| format!("MeshReplicas can't be listed{remedy}"))?.items;
    let mut unknown = Vec::new();
    let pods = match pods {
        Ok(pods) => Some(pods.items),
        Err(error) => {
            unknown.push(format!("pods of {namespace} can't be listed: {error}"));
            None
        }
    };
    let leader = match lease {
        Ok(lease) => Some(lease.and_then(holder).unwrap_or_default()),
        Err(error) => {
            unknown.push(format!("the Lease {namespace}/{LEASE} can't be read: {error}"));
            None
        }
    };
    unknown.extend(unlisted);
    let mut survey = judge(nodes, replicas, pods.as_deref(), leader.as_deref(), namespace);
    survey.advice.extend(pending.iter().map(PendingObject::advice));
    survey.healthy &= pending.is_empty();
    (survey.pending, survey.unknown) = (pending, unknown);
    Ok(survey)
}

/// The holder of a Lease that hasn't run out.
fn holder(lease: Lease) -> Option<String> {
    let spec = lease.spec?;
    let end = spec.renew_time?.0.as_second() + i64::from(spec.lease_duration_seconds?);
    spec.holder_identity.filter(|_| Timestamp::now().as_second() <= end)
}

/// The state that follows from what was read; `None` is what couldn't be. A leader without a name is none.
fn judge(
    nodes: Vec<MeshNode>,
    replicas: Vec<MeshReplica>,
    pods: Option<&[Pod]>,
    leader: Option<&str>,
    namespace: &str,
) -> Survey {
    let told: Vec<(String, MeshReplicaStatus)> = replicas
        .into_iter()
        .map(|replica| (replica.name_any(), replica.status.unwrap_or_default()))
        .collect();
    let acknowledged = acknowledged(&told);
    let nodes: Vec<NodeState> = nodes
        .into_iter()
        .map(|node| {
            let version = acknowledged.get(&node.name_any()).map(|(version, _)| version.clone());
            NodeState { acknowledged: version, ..node_state(node) }
        })
        .collect();
    let operator = operator_state(&told, pods, leader, &nodes);
    let mut advice = Vec::new();
    about_operator(&operator, leader, namespace, &mut advice);
    nodes.iter().for_each(|node| about_node(node, namespace, &mut advice));
    about_agents(&nodes, pods, namespace, &mut advice);
    Survey { healthy: advice.is_empty(), operator, nodes, pending: Vec::new(), advice, unknown: Vec::new() }
}

/// Version in one hash and session of each node that a replica tells of. Of two replicas, the one with the higher
/// session has the node.
fn acknowledged(told: &[(String, MeshReplicaStatus)]) -> BTreeMap<String, (String, u64)> {
    let mut found: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for group in told.iter().flat_map(|(_, status)| &status.groups) {
        for (node, session) in &group.nodes {
            let known = found.get(node).is_some_and(|(_, known)| known >= session);
            if !known {
                found.insert(node.clone(), (group.version.clone(), *session));
            }
        }
    }
    found
}

fn node_state(node: MeshNode) -> NodeState {
    let name = node.name_any();
    let Some(status) = node.status else {
        let message = "no agent of this node has ever connected".to_owned();
        return NodeState { name, reason: "NeverConnected".to_owned(), message, ..NodeState::default() };
    };
    let ready = status.conditions.into_iter().find(|condition| condition.type_ == "Ready");
    let (is_ready, reason, message, since) = match ready {
        Some(ready) => {
            (ready.status == "True", ready.reason, ready.message, Some(ready.last_transition_time))
        }
        None => (false, "Unknown".to_owned(), "nothing is said of it yet".to_owned(), None),
    };
    let slots = status.slots.as_ref();
    NodeState {
        name,
        ready: is_ready,
        reason,
        message,
        since,
        agent_version: status.agent_version,
        replica: status.holder.map(|holder| holder.replica),
        resources: status.resources,
        slots_used: slots.map(|slots| slots.used),
        slots_idle: slots.map(|slots| slots.idle),
        slabs_remaining: slots.map(|slots| slots.remaining),
        slabs_cap: slots.map(|slots| slots.cap),
        profile: status.slot_profile,
        refused: status.refused_resources.unwrap_or_default(),
        refusals: status
            .refused
            .into_iter()
            .map(|refusal| RefusedResource {
                resource: refusal.resource,
                reason: refusal.reason,
                at: refusal.at,
            })
            .collect(),
        ..NodeState::default()
    }
}

fn is_of(pod: &Pod, component: &str) -> bool {
    let label = pod.labels().get("app.kubernetes.io/component");
    pod.metadata.deletion_timestamp.is_none() && label.is_some_and(|label| label == component)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn operator_state(
    told: &[(String, MeshReplicaStatus)],
    pods: Option<&[Pod]>,
    leader: Option<&str>,
    nodes: &[NodeState],
) -> Vec<ReplicaState> {
    let mut found = BTreeMap::<String, ReplicaState>::new();
    let held: BTreeSet<&str> = nodes.iter().filter_map(|node| node.replica.as_deref()).collect();
    for (name, status) in told {
        // What is left of one that is gone, whose nodes others have.
        let pod_is_there = pods.is_none_or(|pods| pods.iter().any(|pod| pod.name_any() == *name));
        if !pod_is_there && !held.contains(name.as_str()) && leader != Some(name) {
            continue;
        }
        let state = ReplicaState {
            agents: status.agents,
            alike: status.alike,
            syncing: status.syncing.clone(),
            ..ReplicaState::default()
        };
        found.insert(name.clone(), state);
    }
    // It may have no agents yet.
    if let Some(leader) = leader.filter(|leader| !leader.is_empty()) {
        found.entry(leader.to_owned()).or_default();
    }
    for pod in pods.into_iter().flatten().filter(|pod| is_of(pod, "operator")) {
        let state = found.entry(pod.name_any()).or_default();
        state.ready = Some(is_ready(pod));
        let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        state.restarts = Some(containers.map(|container| container.restart_count).sum());
    }
    found
        .into_iter()
        .map(|(name, state)| {
            let leader = leader.map(|leader| leader == name);
            ReplicaState { name, leader, ..state }
        })
        .collect()
}

fn about_operator(
    operator: &[ReplicaState],
    leader: Option<&str>,
    namespace: &str,
    advice: &mut Vec<String>,
) {
    let look = format!("`kubectl get pods --namespace {namespace} --output wide`");
    if operator.is_empty() {
        advice.push(format!(
            "no operator runs: what is in force stays so, and nothing changes. See {look}, or install the chart"
        ));
        return;
    }
    if leader.is_some_and(str::is_empty) {
        advice.push(format!(
            "no replica of the operator holds the Lease {namespace}/{LEASE}: nobody writes conditions. See their logs"
        ));
    }
    for replica in operator.iter().filter(|replica| replica.ready == Some(false)) {
        advice.push(format!(
            "operator {} isn't ready: its /readyz and its log say what it waits for (`kubectl logs --namespace {namespace} \
             {})`",
            replica.name, replica.name
        ));
    }
}

fn about_node(node: &NodeState, namespace: &str, advice: &mut Vec<String>) {
    let NodeState { name, reason, message, .. } = node;
    if !node.ready {
        let pods = format!(
            "`kubectl get pods --namespace {namespace} --field-selector spec.nodeName={name} --output wide`"
        );
        let todo = match reason.as_str() {
            "Syncing" => "wait; if it lasts, its agent's log says what it refuses".to_owned(),
            "PodsNotAttached" => "its agent's log says why their cgroups can't be attached to".to_owned(),
            "StreamRefused" | "TokenExpired" => "the operator's log says why it isn't let in".to_owned(),
            "NeverConnected" => format!("does an agent run there? {pods}"),
            _ => format!("see {pods} and its agent's log"),
        };
        advice.push(format!("node {name}: {message}: {todo}"));
    }
    if node.refused > 0 {
        let first = node.refusals.first();
        let first = first.map_or(String::new(), |one| format!(", such as {}: {}", one.resource, one.reason));
        advice.push(format!(
            "node {name} refuses {} of its resources{first}; what it had of them stays in force",
            node.refused
        ));
    }
    if let (Some(remaining), Some(cap), Some(idle), Some(used)) =
        (node.slabs_remaining, node.slabs_cap, node.slots_idle, node.slots_used)
        && u64::from(remaining) * 100 < u64::from(cap) * SCARCE
        && idle * 100 < (used + idle) * SCARCE
    {
        advice.push(format!(
            "node {name}: its slot table is nearly full: raise memoryBudget by a SlotProfile for the node, or \
             `agent.memoryBudget` of the chart"
        ));
    }
}

/// Agents that run and of whose node nothing is told.
fn about_agents(nodes: &[NodeState], pods: Option<&[Pod]>, namespace: &str, advice: &mut Vec<String>) {
    let known: BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    for pod in pods.into_iter().flatten().filter(|pod| is_of(pod, "agent")) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if node.is_none_or(|node| !known.contains(node)) {
            let name = pod.name_any();
            let at = node.unwrap_or("no node yet");
            advice.push(format!(
                "agent {name} (on {at}) has not connected to an operator yet: see its events and log (`kubectl describe pod \
                 --namespace {namespace} {name}`)"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn node(name: &str, ready: &str, reason: &str) -> MeshNode {
        let condition = json!({"type": "Ready", "status": ready, "reason": reason, "message": "so it is",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        from_value(
            json!({"metadata": {"name": name}, "status": {"conditions": [condition], "agentVersion": "0.1.0",
            "holder": {"replica": "op-1", "session": 1, "connected": true},
            "slots": {"used": 9, "idle": 1, "retired": 0, "outerRecords": 1, "remaining": 9, "cap": 10}}}),
        )
        .unwrap()
    }

    fn replica(name: &str, groups: Value) -> MeshReplica {
        from_value(json!({"metadata": {"name": name}, "status": {"agents": 3, "alike": 2, "groups": groups}}))
            .unwrap()
    }

    fn pod(name: &str, component: &str, node: &str, ready: &str) -> Pod {
        from_value(json!({"metadata": {"name": name, "labels": {"app.kubernetes.io/component": component}},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}],
                "containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": true, "restartCount": 2}]}}))
        .unwrap()
    }

    fn groups() -> Value {
        json!([{"version": "a", "nodes": {"n1": 1, "n2": 1}}, {"version": "b", "nodes": {"n3": 1}}])
    }

    #[test]
    fn a_mesh_in_which_all_is_well_needs_no_advice() {
        let pods = [pod("op-1", "operator", "n1", "True"), pod("agent-1", "agent", "n1", "True")];
        let groups = json!([{"version": "a", "nodes": {"n1": 1}}]);
        let survey = judge(
            vec![node("n1", "True", "Synced")],
            vec![replica("op-1", groups)],
            Some(&pods),
            Some("op-1"),
            "s",
        );
        assert!(survey.healthy, "{:?}", survey.advice);
        assert_eq!((survey.operator[0].leader, survey.operator[0].restarts), (Some(true), Some(2)));
        assert!(survey.nodes[0].ready && survey.nodes[0].acknowledged.as_deref() == Some("a"));
    }

    #[test]
    fn whatever_is_amiss_is_named_with_what_to_do() {
        let pods = [pod("op-1", "operator", "n1", "False"), pod("agent-9", "agent", "n9", "True")];
        let mut refusing = node("n2", "True", "Synced");
        let status = refusing.status.as_mut().unwrap();
        status.refused_resources = Some(1);
        status.refused = from_value(json!([{"resource": "cluster/x", "reason": "no room"}])).unwrap();
        let mut full = node("n3", "True", "Synced");
        full.status.as_mut().unwrap().slots.as_mut().unwrap().remaining = 0;
        full.status.as_mut().unwrap().slots.as_mut().unwrap().idle = 0;
        let nodes = vec![
            node("n1", "False", "ConnectionLost"),
            refusing,
            full,
            MeshNode::new("n4", Default::default()),
        ];
        let survey = judge(nodes, vec![replica("op-1", groups())], Some(&pods), Some(""), "s");
        let said = survey.advice.join("\n");
        for part in [
            "holds the Lease s/slotmesh-operator",
            "operator op-1 isn't ready",
            "node n1: so it is: see `kubectl get pods --namespace s --field-selector spec.nodeName=n1",
            "node n2 refuses 1 of its resources, such as cluster/x: no room",
            "node n3: its slot table is nearly full",
            "node n4: no agent of this node has ever connected",
            "agent agent-9 (on n9) has not connected",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!survey.healthy);
    }

    #[test]
    fn the_replica_with_the_higher_session_tells_of_a_node() {
        let told = |name: &str, version: &str, session: u64| {
            let status =
                replica(name, json!([{"version": version, "nodes": {"n1": session}}])).status.unwrap();
            (name.to_owned(), status)
        };
        let found = acknowledged(&[told("op-1", "new", 2), told("op-2", "old", 1)]);
        assert_eq!(found["n1"], ("new".to_owned(), 2));
    }

    #[test]
    fn what_can_not_be_read_is_no_fault() {
        let groups = json!([{"version": "a", "nodes": {"n1": 1}}]);
        let survey =
            judge(vec![node("n1", "True", "Synced")], vec![replica("op-1", groups)], None, None, "s");
        assert!(survey.healthy, "{:?}", survey.advice);
        assert_eq!((survey.operator[0].leader, survey.operator[0].ready), (None, None));
    }

    #[test]
    fn no_operator_at_all_is_a_fault() {
        let survey = judge(Vec::new(), Vec::new(), Some(&[]), Some(""), "s");
        assert!(!survey.healthy && survey.advice[0].contains("no operator runs"), "{:?}", survey.advice);
    }
}
