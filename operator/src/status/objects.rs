//! Writes conditions onto the users' objects, and events about what is refused. The holder of the Lease
//! does; the others follow, so that they can go on at any time.
//!
//! Invariants: nothing is written before all objects and all MeshNodes are known; each status is compared
//! with the object as it is, and its write carries the object's resource version; and a status that
//! speaks of an older generation than the object has isn't written: our own watch will tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use slotmesh_compile::{Kind, ObjectKey, Report};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Counters, MANAGER, PATIENCE, Target, WriteError,
    events::Events,
    lease::Leadership,
    nodes::Nodes,
    notices::{News, Notices, Subject},
    pace::{Limits, Pace},
    shape, until,
    verdicts::{Truth, Verdict, Verdicts},
};
use crate::watch::resources;

/// A change and its acknowledgements are told together, if the nodes are quick.
const SETTLE: Duration = Duration::from_millis(300);

/// How fast objects are written.
const LIMITS: Limits = Limits {
    interval: Duration::from_millis(50),
    burst: 50,
    rest: Duration::from_secs(1),
    again: Duration::from_secs(1),
};

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Task {
    Status(ObjectKey),
    /// An event about what was refused when an object was read.
    Event(Report),
}

/// An object whose status was compared, or written.
struct Compared {
    version: Option<String>,
    verdict: Verdict,
}

/// How a task ended.
enum Outcome {
    Wrote,
    Nothing,
}

/// The task's state.
pub(super) struct ObjectWriter {
    client: Client,
    verdicts: Verdicts,
    pace: Pace<Task>,
    compared: HashMap<ObjectKey, Compared>,
    /// What is refused at present.
    refused: BTreeSet<Report>,
    /// The version in which a kind was last found.
    found: HashMap<Kind, ApiResource>,
    /// All objects are compiled.
    compiled: bool,
    events: Events,
    counters: Counters,
}

impl ObjectWriter {
    pub(super) fn new(client: &Client, events: Events, counters: Counters) -> Self {
        Self {
            client: client.clone(),
            verdicts: Verdicts::default(),
            pace: Pace::new(LIMITS),
            compared: HashMap::new(),
            refused: BTreeSet::new(),
            found: HashMap::new(),
            compiled: false,
            events,
            counters,
        }
    }

    /// Runs until `stop`. `listed` is cancelled once all MeshNodes are known.
    pub(super) async fn run(
        mut self,
        notices: Notices,
        nodes: Nodes,
        listed: CancellationToken,
        mut leadership: Leadership,
        stop: CancellationToken,
    ) {
        let mut led = false;
        loop {
            let leading = leadership.leads();
            let leads = leading && self.compiled && listed.is_cancelled();
            if leads && !led {
                // Whatever the one before has written, or hasn't.
                self.compared.clear();
                let objects = self.verdicts.keys().cloned().map(Task::Status);
                let events = self.refused.iter().cloned().map(Task::Event);
                for task in objects.chain(events) {
                    self.pace.want(&task, Instant::now(), SETTLE);
                }
            }
            led = leads;
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = leadership.turns(leading) => {}
                () = listed.cancelled(), if !listed.is_cancelled() => {}
                news = notices.take() => self.take_in(news),
                told = nodes.take() => {
                    for (node, told) in told {
                        self.verdicts.node(&node, told);
                    }
                    self.look_at_dirty();
                }
                () = until(self.pace.next()), if leads => {
                    if let Some(task) = self.pace.pop(Instant::now()) {
                        self.carry_out(task, &leadership).await;
                    }
                }
            }
        }
    }

    fn take_in(&mut self, news: BTreeMap<Subject, News>) {
        for (subject, news) in news {
            match (subject, news) {
                (Subject::Object(key), News::Object { conditions, version }) => {
                    // Somebody else may have written into the status.
                    if version.is_some()
                        && self.compared.get(&key).is_some_and(|ours| ours.version != version)
                    {
                        self.compared.remove(&key);
                    }
                    self.verdicts.object(&key, conditions.map(|conditions| *conditions));
                }
                (Subject::Report(report), News::Holds(true)) => {
                    self.pace.want(&Task::Event(report.clone()), Instant::now(), SETTLE);
                    self.refused.insert(report);
                }
                (Subject::Report(report), News::Holds(false)) => {
                    self.refused.remove(&report);
                    self.pace.forget(&Task::Event(report));
                }
                (_, News::Served(due)) => {
                    self.compiled = true;
                    self.verdicts.served(due);
                }
                // A subject's news are of its kind.
                (Subject::Served | Subject::Object(_) | Subject::Report(_), _) => {}
            }
        }
        self.look_at_dirty();
    }

    fn look_at_dirty(&mut self) {
        for key in self.verdicts.take_dirty() {
            self.pace.want(&Task::Status(key), Instant::now(), SETTLE);
        }
    }

    async fn carry_out(&mut self, task: Task, leadership: &Leadership) {
        let (outcome, target) = match &task {
            Task::Status(key) => (self.status(key, leadership).await, Target::Object),
            Task::Event(report) => (self.event(report).await, Target::Event),
        };
        match outcome {
            Ok(Outcome::Wrote) => {
                self.counters.wrote(target);
                self.pace.wrote(&task, Instant::now());
            }
            Ok(Outcome::Nothing) => self.pace.idle(&task),
            Err(WriteError::Conflict) => {
                debug!(?task, "the object has changed meanwhile");
                self.pace.failed(&task, Instant::now());
            }
            Err(error) => {
                self.counters.failed(target);
                warn!(?task, %error, "can't be written; trying again");
                self.pace.failed(&task, Instant::now());
            }
        }
    }

    async fn status(&mut self, key: &ObjectKey, leadership: &Leadership) -> Result<Outcome, WriteError> {
        let Some(verdict) = self.verdicts.judge(key) else {
            self.compared.remove(key);
            return Ok(Outcome::Nothing);
        };
        if self.compared.get(key).is_some_and(|compared| compared.verdict == verdict) {
            return Ok(Outcome::Nothing);
        }
        let Some((resource, object)) = self.read(key).await? else { return Ok(Outcome::Nothing) };
        if object.metadata.generation > verdict.generation {
            return Ok(Outcome::Nothing);
        }
        let version = object.metadata.resource_version.clone();
        let value = serde_json::to_value(&object).unwrap_or_default();
        let Some(status) = shape::status(key.kind, &value, &verdict, Timestamp::now()) else {
            self.compared.insert(key.clone(), Compared { version, verdict });
            return Ok(Outcome::Nothing);
        };
        if !leadership.leads() {
            return Ok(Outcome::Nothing);
        }
        let api = self.api(key, &resource);
        let name = &*key.name.name;
        let write = async {
            match key.kind {
                // These are ours alone.
                Kind::TrafficPolicy | Kind::SlotProfile => {
                    let patch = apply(&resource, &object, &status);
                    api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch)).await
                }
                // A list without keys belongs to one manager as a whole, and here others write into it.
                _ => {
                    let patch = json!({"metadata": {"resourceVersion": version}, "status": status});
                    let params =
                        PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                    api.patch_status(name, &params, &Patch::Merge(&patch)).await
                }
            }
        };
        let written = tokio::time::timeout(PATIENCE, write).await??;
        debug!(object = %key, "wrote its conditions");
        self.tell_refusals(&written, &verdict).await;
        let version = written.metadata.resource_version;
        self.compared.insert(key.clone(), Compared { version, verdict });
        Ok(Outcome::Wrote)
    }

    /// Agents refuse what the object compiled to. (What was refused before is told by reports.)
    async fn tell_refusals(&mut self, object: &DynamicObject, verdict: &Verdict) {
        let said = verdict.places.iter().flat_map(|place| &place.conditions);
        for said in said.filter(|said| said.ty == "Programmed" && said.truth == Truth::False) {
            if said.reason != "Refused" {
                continue;
            }
            match self.events.warn(object, "RefusedByAgents", &said.message).await {
                Ok(()) => self.counters.wrote(Target::Event),
                Err(error) => {
                    self.counters.failed(Target::Event);
                    warn!(%error, "an event can't be written");
                }
            }
        }
    }

    async fn event(&mut self, report: &Report) -> Result<Outcome, WriteError> {
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == report.object.kind) else {
            return Ok(Outcome::Nothing);
        };
        let name = slotmesh_compile::ObjectName {
            namespace: report.object.namespace.clone(),
            name: report.object.name.clone(),
        };
        let Some((_, object)) = self.read(&ObjectKey { kind, name }).await? else {
            return Ok(Outcome::Nothing);
        };
        let note = match &report.field {
            Some(field) if !report.message.contains(field.as_str()) => format!("{field}: {}", report.message),
            _ => report.message.clone(),
        };
        self.events.warn(&object, report.reason.as_str(), &note).await?;
        Ok(Outcome::Wrote)
    }

    fn api(&self, key: &ObjectKey, resource: &ApiResource) -> Api<DynamicObject> {
        let client = self.client.clone();
        match &*key.name.namespace {
            "" => Api::all_with(client, resource),
            namespace => Api::namespaced_with(client, namespace, resource),
        }
    }

    /// The object as it is now, in the first version of its kind that the cluster has.
    async fn read(&mut self, key: &ObjectKey) -> Result<Option<(ApiResource, DynamicObject)>, WriteError> {
        let known = self.found.get(&key.kind).cloned();
        for resource in known.into_iter().chain(resources(key.kind)) {
            let api = self.api(key, &resource);
            let read = tokio::time::timeout(PATIENCE, api.get_opt(&key.name.name)).await??;
            if let Some(mut object) = read {
                object.metadata.managed_fields = None;
                // Reading one object tells neither, reading a list does.
                object.types.get_or_insert_with(|| kube::core::TypeMeta {
                    api_version: resource.api_version.clone(),
                    kind: resource.kind.clone(),
                });
                self.found.insert(key.kind, resource.clone());
                return Ok(Some((resource, object)));
            }
        }
        Ok(None)
    }
}

/// A server-side apply of a status.
fn apply(resource: &ApiResource, object: &DynamicObject, status: &Value) -> Value {
    let mut metadata = json!({
        "name": object.metadata.name,
        "resourceVersion": object.metadata.resource_version,
    });
    if let Some(namespace) = &object.metadata.namespace {
        metadata["namespace"] = namespace.as_str().into();
    }
    json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": status})
}
