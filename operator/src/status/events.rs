//! Events about what is refused, for `kubectl describe` and `kubectl get events`.
//!
//! Invariants: however much is wrong with an object, it has one event for what was refused of it when it was
//! read or compiled, and one for what agents refuse, each with as many of the warnings as fit. The same message about the same object is one Event, whichever replica writes it and
//! however often: its name follows from object, reason and message. Said again by the same process, its
//! count rises.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::json;
use slotmesh_compile::{Kind, ObjectKey, ObjectName, Report};
use slotmesh_crds::own::CONTROLLER;
use xxhash_rust::xxh3::xxh3_64;

use super::{MANAGER, PATIENCE, WriteError, shorten};

/// The API server takes notes up to 1,024 bytes.
const LONGEST: usize = 1_000;
/// The length of ". And 1000000 more".
const ROOM_FOR_MORE: usize = 24;
/// How many events are remembered, to count them.
const REMEMBERED: usize = 4_096;

/// The content of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Warning {
    pub(super) reason: &'static str,
    pub(super) note: String,
}

/// All that is wrong with one object.
#[derive(Debug, Default)]
struct ObjectWarnings {
    reports: BTreeSet<Report>,
    /// The part of it that agents refuse.
    agents: Option<String>,
    /// Warnings that were reported of it last.
    reported: Vec<Warning>,
}

/// Refusals at present, by object, and what was reported of them.
#[derive(Debug, Default)]
pub(super) struct Warnings(HashMap<ObjectKey, ObjectWarnings>);

impl Warnings {
    /// A report of something refused holds, or does no longer; the object of which there is something to say.
    pub(super) fn report(&mut self, report: Report, holds: bool) -> Option<ObjectKey> {
        let kind = Kind::named(&report.object.kind)?;
        let name =
            ObjectName { namespace: report.object.namespace.clone(), name: report.object.name.clone() };
        let key = ObjectKey { kind, name };
        let wrong = self.0.entry(key.clone()).or_default();
        if holds {
            wrong.reports.insert(report);
        } else {
            wrong.reports.remove(&report);
        }
        self.settle(&key);
        holds.then_some(key)
    }

    /// Notes what agents refuse of an object; tells whether that is something to report.
    pub(super) fn agents(&mut self, key: &ObjectKey, refused: Option<String>) -> bool {
        if refused.is_none() && !self.0.contains_key(key) {
            return false;
        }
        let wrong = self.0.entry(key.clone()).or_default();
        let news = refused.is_some() && refused != wrong.agents;
        wrong.agents = refused;
        self.settle(key);
        news
    }

    /// An object with which nothing is wrong any more is forgotten: what is wrong later is said anew.
    fn settle(&mut self, key: &ObjectKey) {
        if self.0.get(key).is_some_and(|wrong| wrong.reports.is_empty() && wrong.agents.is_none()) {
            self.0.remove(key);
        }
    }

    /// The objects with which something is wrong.
    pub(super) fn objects(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.keys()
    }

    /// Warnings about an object that weren't reported yet.
    pub(super) fn unreported(&self, key: &ObjectKey) -> Vec<Warning> {
        let Some(wrong) = self.0.get(key) else { return Vec::new() };
        let reports = wrong.reports.first().map(|first| {
            let mut note = String::new();
            for (i, report) in wrong.reports.iter().enumerate() {
                let one = report.text();
                let more = wrong.reports.len() - i;
                if i > 0 && note.len() + one.len() > LONGEST - ROOM_FOR_MORE {
                    _ = write!(note, ". And {more} more");
                    break;
                }
                if i > 0 {
                    note.push_str(". ");
                }
                note.push_str(&shorten(&one, LONGEST - ROOM_FOR_MORE));
            }
            Warning { reason: first.reason.as_str(), note }
        });
        let agents = wrong.agents.as_ref().map(|refused| Warning {
            reason: "RefusedByAgents",
            note: shorten(refused, LONGEST).into_owned(),
        });
        reports.into_iter().chain(agents).filter(|warning| !wrong.reported.contains(warning)).collect()
    }

    /// That was said; what was said for the same reason before counts no more.
    pub(super) fn reported(&mut self, key: &ObjectKey, warning: Warning) {
        if let Some(wrong) = self.0.get_mut(key) {
            wrong.reported.retain(|reported| reported.reason != warning.reason);
            wrong.reported.push(warning);
        }
    }
}

/// Writes events.
pub(super) struct Events {
    client: Client,
    replica: String,
    /// How often each was said.
    reported: HashMap<String, i32>,
}

impl Events {
    pub(super) fn new(client: &Client, replica: &str) -> Self {
        Self { client: client.clone(), replica: replica.to_owned(), reported: HashMap::new() }
    }

    /// Says what is wrong with an object.
    pub(super) async fn warn(
        &mut self,
        object: &DynamicObject,
        reason: &str,
        note: &str,
    ) -> Result<(), WriteError> {
        let event = event(object, &self.replica, reason, note, Timestamp::now());
        let (name, namespace) = (event.name_any(), event.namespace().unwrap_or_default());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let created = tokio::time::timeout(PATIENCE, api.create(&params, &event)).await?;
        match created.map_err(WriteError::from) {
            Ok(_) => {
                self.count(name, 1);
                Ok(())
            }
            Err(WriteError::Conflict) => match self.reported.get(&name).copied() {
                // Said by another, or before a restart: nothing has happened since.
                None => {
                    self.count(name, 1);
                    Ok(())
                }
                Some(before) => {
                    let series =
                        json!({"count": before + 1, "lastObservedTime": MicroTime(Timestamp::now())});
                    let (params, patch) = (PatchParams::default(), Patch::Merge(json!({"series": series})));
                    tokio::time::timeout(PATIENCE, api.patch(&name, &params, &patch)).await??;
                    self.count(name, before + 1);
                    Ok(())
                }
            },
            Err(error) => Err(error),
        }
    }

    fn count(&mut self, name: String, times: i32) {
        if self.reported.len() >= REMEMBERED {
            self.reported.clear();
        }
        self.reported.insert(name, times);
    }
}

fn event(object: &DynamicObject, replica: &str, reason: &str, note: &str, now: Timestamp) -> Event {
    let types = object.types.clone().unwrap_or_default();
    let meta = &object.metadata;
    let note = shorten(note, LONGEST).into_owned();
    let uid = meta.uid.clone().unwrap_or_default();
    let hash = xxh3_64([types.kind.as_str(), &uid, reason, &note].join("\0").as_bytes());
    // The longest name that leaves room for the hash.
    let stem: String = object.name_any().chars().take(200).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{hash:016x}", stem.trim_end_matches('.'))),
            // Events about objects without a namespace are kept in this one.
            namespace: Some(meta.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(types.api_version),
            kind: Some(types.kind),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        }),
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        note: Some(note),
        action: Some("Program".to_owned()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(replica.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ApiResource, GroupVersionKind};
    use slotmesh_compile::{ObjectRef, Severity};

    use super::*;

    fn report(field: usize) -> Report {
        let key = ObjectKey { kind: Kind::VirtualService, name: ObjectName::new("shop", "web") };
        let message =
            "there is no Service shop/nowhere; until it exists, port 80 goes to the Service's own endpoints";
        let field = Some(format!("spec.http[{field:04}].route[0].destination.host"));
        Report::new(ObjectRef::new(&key, None), field, Severity::Refused, message.to_owned())
    }

    #[test]
    fn a_thousand_faults_of_one_object_are_one_bounded_event() {
        let mut warnings = Warnings::default();
        let keys: BTreeSet<_> = (0..1_000).filter_map(|i| warnings.report(report(i), true)).collect();
        let key = keys.first().expect("an object");
        assert_eq!(keys.len(), 1);
        let reported = warnings.unreported(key);
        let [one] = &reported[..] else { panic!("{reported:?}") };
        assert!(one.note.starts_with("spec.http[0000].route[0].destination.host: there is no Service"));
        assert!(one.note.ends_with(" more") && one.note.len() <= 1_024, "{}", one.note);
        warnings.reported(key, one.clone());
        assert!(warnings.unreported(key).is_empty(), "reported once");
        // What agents refuse is another event, and what is over is forgotten.
        assert!(warnings.agents(key, Some("no room".to_owned())));
        assert_eq!(warnings.unreported(key)[0].reason, "RefusedByAgents");
        assert!(!warnings.agents(key, None));
        (0..1_000).for_each(|i| assert_eq!(warnings.report(report(i), false), None));
        assert_eq!(warnings.objects().count(), 0);
        warnings.report(report(0), true);
        assert_eq!(warnings.unreported(key).len(), 1, "reported anew");
    }

    fn object(name: &str) -> DynamicObject {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Service"));
        let mut object = DynamicObject::new(name, &resource);
        object.metadata.uid = Some("u".into());
        object
    }

    #[test]
    fn the_same_message_has_the_same_name_on_every_replica() {
        let now = Timestamp::UNIX_EPOCH;
        let name =
            |name: &str, replica, reason, note| event(&object(name), replica, reason, note, now).name_any();
        let one = name("web", "a", "Invalid", "no");
        assert_eq!(one, name("web", "b", "Invalid", "no"));
        assert!(one.starts_with("web.") && one.len() == 20);
        assert_ne!(one, name("web", "a", "Invalid", "never"));
        assert_ne!(one, name("web", "a", "Conflicted", "no"));
        assert!(name(&"x".repeat(253), "a", "Invalid", "no").len() <= 253);
    }

    #[test]
    fn what_the_api_server_would_refuse_is_shortened() {
        let event = event(&object("web"), "a", "Invalid", &"ä".repeat(2_000), Timestamp::UNIX_EPOCH);
        assert!(event.note.unwrap().len() <= 1_024);
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
    }
}
