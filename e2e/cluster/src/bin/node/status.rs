//! States of a pod's containers, and the pod's status made of them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, Pod, PodCondition,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{environment::Addresses, runtime::Exit};

fn now() -> Time {
    Time(Timestamp::now())
}

/// The statuses of a pod's containers, by name. Whoever waits for [`Board::changed`] is told of a change.
#[derive(Debug, Default)]
pub struct Board {
    all: Mutex<BTreeMap<String, ContainerStatus>>,
    changed: Notify,
}

impl Board {
    /// Enters a container that isn't there yet.
    pub fn enter(&self, container: &Container) {
        let image = container.image.clone().unwrap_or_default();
        let status = ContainerStatus {
            name: container.name.clone(),
            image_id: image.clone(),
            image,
            started: Some(false),
            state: Some(waiting("ContainerCreating", "")),
            ..ContainerStatus::default()
        };
        self.with(&container.name.clone(), |entry| *entry = status);
    }

    fn with(&self, name: &str, change: impl FnOnce(&mut ContainerStatus)) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(name.to_owned()).or_default();
        let before = entry.clone();
        change(entry);
        if *entry != before {
            self.changed.notify_one();
        }
    }

    /// Waits for a change since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// It waits for something.
    pub fn waiting(&self, name: &str, reason: &str, message: &str) {
        self.with(name, |entry| {
            entry.ready = false;
            entry.started = Some(false);
            entry.state = Some(waiting(reason, message));
        });
    }

    /// It runs. `started`: there is nothing more to wait for.
    pub fn running(&self, name: &str, id: &str, count: u32, started: bool) {
        self.with(name, |entry| {
            entry.container_id = Some(format!("crun://{id}"));
            entry.restart_count = i32::try_from(count).unwrap_or(i32::MAX);
            entry.started = Some(started);
            let running = ContainerStateRunning { started_at: Some(now()) };
            entry.state = Some(ContainerState { running: Some(running), ..ContainerState::default() });
        });
    }

    /// Its startup probe succeeded.
    pub fn started(&self, name: &str) {
        self.with(name, |entry| entry.started = Some(true));
    }

    /// Takes the word of its readiness probe.
    pub fn set_ready(&self, name: &str, ready: bool) {
        self.with(name, |entry| entry.ready = ready);
    }

    /// True once it runs and its startup probe succeeded.
    pub fn is_started(&self, name: &str) -> bool {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(name).is_some_and(|entry| entry.started == Some(true))
    }

    /// It has ended.
    pub fn terminated(&self, name: &str, id: &str, exit: Exit, message: Option<String>) {
        self.with(name, |entry| {
            let began = entry.state.as_ref().and_then(|state| state.running.as_ref()?.started_at.clone());
            let reason = if exit.code == 0 { "Completed" } else { "Error" };
            let terminated = ContainerStateTerminated {
                container_id: Some(format!("crun://{id}")),
                exit_code: exit.code,
                signal: exit.signal,
                reason: Some(reason.to_owned()),
                message,
                started_at: began,
                finished_at: Some(now()),
            };
            let state = ContainerState { terminated: Some(terminated), ..ContainerState::default() };
            entry.ready = false;
            entry.started = Some(false);
            entry.last_state = Some(state.clone());
            entry.state = Some(state);
        });
    }

    fn of(&self, containers: &[Container]) -> Vec<ContainerStatus> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        containers.iter().filter_map(|container| all.get(&container.name).cloned()).collect()
    }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    let message = Some(message.to_owned()).filter(|text| !text.is_empty());
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

/// Stage of a pod's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Volumes and network are being made.
    Preparing,
    /// Init containers run.
    Initializing,
    /// All are started.
    Started,
    /// All have ended, for good: whether well.
    Ended(bool),
}

/// The status to write.
pub fn of(
    pod: &Pod,
    board: &Board,
    progress: Progress,
    addresses: Option<&Addresses>,
    began: &Timestamp,
    trouble: Option<&str>,
) -> Value {
    let spec = pod.spec.clone().unwrap_or_default();
    let containers = board.of(&spec.containers);
    let init = board.of(spec.init_containers.as_deref().unwrap_or_default());
    let initialized = !matches!(progress, Progress::Preparing | Progress::Initializing);
    let all_ready = initialized
        && containers.len() == spec.containers.len()
        && containers.iter().all(|container| container.ready);
    let phase = match progress {
        Progress::Ended(true) => "Succeeded",
        Progress::Ended(false) => "Failed",
        Progress::Started if containers.iter().any(|container| container.container_id.is_some()) => "Running",
        _ => "Pending",
    };
    let conditions = conditions(
        pod,
        &[
            ("PodReadyToStartContainers", addresses.is_some()),
            ("Initialized", initialized),
            ("ContainersReady", all_ready),
            ("Ready", all_ready),
        ],
    );
    let mut status = json!({
        "phase": phase,
        "conditions": conditions,
        "startTime": Time(*began),
        "containerStatuses": containers,
        "initContainerStatuses": init,
        "message": trouble,
        "observedGeneration": pod.metadata.generation,
    });
    if let Some(addresses) = addresses {
        let all = |of: &[String; 2]| json!([{"ip": of[0]}, {"ip": of[1]}]);
        status["hostIP"] = json!(addresses.host[0]);
        status["hostIPs"] = all(&addresses.host);
        status["podIP"] = json!(addresses.pod[0]);
        status["podIPs"] = all(&addresses.pod);
    }
    json!({"status": status})
}

/// The pod's conditions with these set; when one changes, it says since when.
fn conditions(pod: &Pod, set: &[(&str, bool)]) -> Vec<PodCondition> {
    let mut all = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    for (kind, holds) in set {
        let value = if *holds { "True" } else { "False" };
        match all.iter_mut().find(|condition| condition.type_ == *kind) {
            Some(condition) if condition.status == value => {}
            Some(condition) => {
                condition.status = value.to_owned();
                condition.last_transition_time = Some(now());
            }
            None => all.push(PodCondition {
                type_: (*kind).to_owned(),
                status: value.to_owned(),
                last_transition_time: Some(now()),
                ..PodCondition::default()
            }),
        }
    }
    all
}
