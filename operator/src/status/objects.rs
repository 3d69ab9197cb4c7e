//! Writes conditions onto the users' objects, and events about what is refused. The holder of the Lease
//! does; the others follow, so that they can go on at any time.
//!
//! Conditions and events have queues of their own, so many events never keep conditions waiting. What comes in
//! and what goes out take turns: neither waits for the other to have nothing more to do.
//!
//! Invariants: nothing is written before all objects and all MeshNodes and MeshReplicas are known; each status is compared
//! with the object as it is, and its write carries the object's resource version; and a status that
//! speaks of an older generation than the object has isn't written: our own watch will tell.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use serde_json::{Value, json};
use slotmesh_compile::{Condition, ConditionStatus, ConditionType, Kind, ObjectKey, StatusForm};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Counters, MANAGER, PATIENCE, WriteError, WriteTarget,
    events::{Events, Warnings},
    lease::Leadership,
    nodes::ObservedNodes,
    programmed::{DesiredStatus, ProgrammedIndex},
    rate_limited_queue::{Limits, RateLimitedQueue},
    render_status, until,
    updates::{StatusUpdate, StatusUpdates, Subject},
};
use crate::watch::resources;

/// A change and its acknowledgements are told together, if the nodes are quick.
const SETTLE: Duration = Duration::from_millis(300);
/// Nodes that have not acknowledged an object after this long are named.
const LATE: Duration = Duration::from_secs(60);

/// How fast conditions are written.
const STATUSES: Limits = Limits {
    interval: Duration::from_millis(50),
    burst: 50,
    rest: Duration::from_secs(1),
    again: Duration::from_secs(1),
};

/// How fast events are written.
const EVENTS: Limits = Limits {
    interval: Duration::from_millis(200),
    burst: 25,
    rest: Duration::from_secs(10),
    again: Duration::from_secs(5),
};

/// An object whose status was compared, or written.
struct Compared {
    version: Option<String>,
    desired: DesiredStatus,
}

/// How a task ended.
enum Outcome {
    Wrote,
    Nothing,
}

/// The task's state.
pub(super) struct ObjectWriter {
    client: Client,
    programmed: ProgrammedIndex,
    statuses: RateLimitedQueue<ObjectKey>,
    events: RateLimitedQueue<ObjectKey>,
    compared: HashMap<ObjectKey, Compared>,
    /// Objects that nodes are about to acknowledge: the generation, and since when.
    waiting: HashMap<ObjectKey, (Option<i64>, Instant)>,
    /// Refusals at present, and what was reported of them last.
    warnings: Warnings,
    /// The version in which a kind was last found.
    found: HashMap<Kind, ApiResource>,
    /// All objects are compiled.
    compiled: bool,
    writer: Events,
    counters: Counters,
}

impl ObjectWriter {
    pub(super) fn new(client: &Client, writer: Events, counters: Counters) -> Self {
        Self {
            client: client.clone(),
            programmed: ProgrammedIndex::default(),
            statuses: RateLimitedQueue::new(STATUSES),
            events: RateLimitedQueue::new(EVENTS),
            compared: HashMap::new(),
            waiting: HashMap::new(),
            warnings: Warnings::default(),
            found: HashMap::new(),
            compiled: false,
            writer,
            counters,
        }
    }

    /// Runs until `stop`. `listed` is cancelled once all MeshNodes and MeshReplicas are known.
    pub(super) async fn run(
        mut self,
        updates: StatusUpdates,
        nodes: ObservedNodes,
        listed: CancellationToken,
        mut leadership: Leadership,
        stop: CancellationToken,
    ) {
        let (mut led, mut overdue) = (false, None);
        while !stop.is_cancelled() {
            let leading = leadership.leads();
            let leads = leading && self.compiled && listed.is_cancelled();
            if leads && !led {
                // Whatever the one before has written, or hasn't.
                self.compared.clear();
                for key in self.programmed.keys() {
                    self.statuses.add(key, Instant::now(), SETTLE);
                }
                for key in self.warnings.objects() {
                    self.events.add(key, Instant::now(), SETTLE);
                }
            }
            led = leads;
            // Not biased: of those that have something to do each gets its turn.
            tokio::select! {
                () = stop.cancelled() => return,
                () = leadership.turns(leading) => {}
                () = listed.cancelled(), if !listed.is_cancelled() => {}
                news = updates.take() => self.take_in(news),
                // Not before all is listed: what is told of a node comes from several objects.
                observed = nodes.take(), if listed.is_cancelled() => {
                    for (node, observed) in observed {
                        self.programmed.node(&node, observed, Instant::now());
                    }
                }
                () = until(overdue) => {}
                () = until(self.statuses.next()), if leads => {
                    if let Some(key) = self.statuses.pop(Instant::now()) {
                        self.write_status(&key, &leadership).await;
                    }
                }
                () = until(self.events.next()), if leads => {
                    if let Some(key) = self.events.pop(Instant::now()) {
                        self.write_events(&key).await;
                    }
                }
            }
            overdue = self.programmed.overdue(Instant::now());
            for key in self.programmed.take_dirty() {
                self.statuses.add(&key, Instant::now(), SETTLE);
            }
        }
    }

    fn take_in(&mut self, news: BTreeMap<Subject, StatusUpdate>) {
        for (subject, news) in news {
            match (subject, news) {
                (Subject::Object(key), StatusUpdate::Object(conditions)) => {
                    self.programmed.object(&key, conditions.map(|conditions| *conditions));
                }
                (Subject::Seen(key), StatusUpdate::Version(version)) => {
                    // Somebody else may have written into the status. What is none of ours has nothing of ours in it.
                    let ours = self.compared.get(&key).filter(|ours| !ours.desired.ancestors.is_empty());
                    if ours.is_some_and(|ours| ours.version != version) {
                        self.compared.remove(&key);
                        self.statuses.add(&key, Instant::now(), SETTLE);
                    }
                }
                (Subject::Report(report), StatusUpdate::Holds(holds)) => {
                    if let Some(key) = self.warnings.report(*report, holds) {
                        self.events.add(&key, Instant::now(), SETTLE);
                    }
                }
                (_, StatusUpdate::Served(due)) => {
                    self.compiled = true;
                    self.programmed.served(due, Instant::now());
                }
                // A subject's news are of its kind.
                (Subject::Served | Subject::Object(_) | Subject::Seen(_) | Subject::Report(_), _) => {}
            }
        }
    }

    async fn write_status(&mut self, key: &ObjectKey, leadership: &Leadership) {
        match self.status(key, leadership).await {
            Ok(Outcome::Wrote) => {
                self.counters.wrote(WriteTarget::Object);
                self.statuses.done(key, Instant::now());
            }
            Ok(Outcome::Nothing) => self.statuses.skip(key),
            Err(WriteError::Conflict) => {
                debug!(object = %key, "the object has changed meanwhile");
                self.statuses.retry(key, Instant::now());
            }
            Err(error) => {
                self.counters.failed(WriteTarget::Object);
                warn!(object = %key, %error, "its conditions can't be written; trying again");
                self.statuses.retry(key, Instant::now());
            }
        }
        // Asked again only if nothing happens until then.
        let now = Instant::now();
        if let Some((_, since)) = self.waiting.get(key).filter(|(_, since)| *since + LATE > now) {
            self.statuses.add(key, now, *since + LATE - now);
        }
    }

    async fn write_events(&mut self, key: &ObjectKey) {
        match self.event(key).await {
            Ok(Outcome::Wrote) => {
                self.counters.wrote(WriteTarget::Event);
                self.events.done(key, Instant::now());
            }
            Ok(Outcome::Nothing) => self.events.skip(key),
            Err(error) => {
                self.counters.failed(WriteTarget::Event);
                warn!(object = %key, %error, "an event about it can't be written; trying again");
                self.events.retry(key, Instant::now());
            }
        }
    }

    async fn status(&mut self, key: &ObjectKey, leadership: &Leadership) -> Result<Outcome, WriteError> {
        let Some(desired) = self.evaluate(key) else {
            self.compared.remove(key);
            return Ok(Outcome::Nothing);
        };
        let refused = refused_by_agents(&desired);
        if self.warnings.agents(key, refused) {
            self.events.add(key, Instant::now(), SETTLE);
        }
        if self.compared.get(key).is_some_and(|compared| compared.desired == desired) {
            return Ok(Outcome::Nothing);
        }
        let Some((resource, object)) = self.read(key).await? else { return Ok(Outcome::Nothing) };
        if object.metadata.generation > desired.generation {
            return Ok(Outcome::Nothing);
        }
        let version = object.metadata.resource_version.clone();
        let value = serde_json::to_value(&object).unwrap_or_default();
        let Some(status) = render_status::render(key.kind, &value, &desired, Timestamp::now()) else {
            self.compared.insert(key.clone(), Compared { version, desired });
            return Ok(Outcome::Nothing);
        };
        if !leadership.leads() {
            return Ok(Outcome::Nothing);
        }
        let api = self.api(key, &resource);
        let name = &*key.name.name;
        let write = async {
            match key.kind.spec().status {
                // These are ours alone.
                StatusForm::Ancestors | StatusForm::NodeCounts => {
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
        let version = written.metadata.resource_version;
        self.compared.insert(key.clone(), Compared { version, desired });
        Ok(Outcome::Wrote)
    }

    /// The status that an object is to have now.
    fn evaluate(&mut self, key: &ObjectKey) -> Option<DesiredStatus> {
        let desired = self.programmed.evaluate(key, false);
        let Some(waits) = desired.as_ref().filter(|desired| desired.waits) else {
            self.waiting.remove(key);
            return desired;
        };
        let now = Instant::now();
        let waiting = self.waiting.entry(key.clone()).or_insert((waits.generation, now));
        if waiting.0 != waits.generation {
            *waiting = (waits.generation, now);
        }
        let late = now.saturating_duration_since(waiting.1) >= LATE;
        if late { self.programmed.evaluate(key, true) } else { desired }
    }

    async fn event(&mut self, key: &ObjectKey) -> Result<Outcome, WriteError> {
        let unreported = self.warnings.unreported(key);
        if unreported.is_empty() {
            return Ok(Outcome::Nothing);
        }
        let Some((_, object)) = self.read(key).await? else { return Ok(Outcome::Nothing) };
        for warning in unreported {
            self.writer.warn(&object, warning.reason, &warning.note).await?;
            self.warnings.reported(key, warning);
        }
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

/// The message where agents refuse something that the object compiled to.
fn refused_by_agents(desired: &DesiredStatus) -> Option<String> {
    let mut conditions = desired.ancestors.iter().flat_map(|place| &place.conditions);
    let is_refused = |one: &&Condition| {
        one.ty == ConditionType::Programmed && one.status == ConditionStatus::False && one.reason == "Refused"
    };
    conditions.find(is_refused).map(|refused| refused.message.clone())
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
