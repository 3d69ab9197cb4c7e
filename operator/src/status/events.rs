//! Events about what is refused, for `kubectl describe` and `kubectl get events`.
//!
//! Invariant: the same message about the same object is one Event, whichever replica writes it and
//! however often: its name follows from object, reason and message. Said again by the same process, its
//! count rises.

use std::collections::HashMap;

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
use slotmesh_crds::own::CONTROLLER;
use xxhash_rust::xxh3::xxh3_64;

use super::{MANAGER, PATIENCE, WriteError};

/// The API server takes notes up to 1,024 bytes.
const LONGEST: usize = 1_000;
/// How many events are remembered, to count them.
const REMEMBERED: usize = 4_096;

/// Writes events.
pub(super) struct Events {
    client: Client,
    replica: String,
    /// How often each was said.
    said: HashMap<String, i32>,
}

impl Events {
    pub(super) fn new(client: &Client, replica: &str) -> Self {
        Self { client: client.clone(), replica: replica.to_owned(), said: HashMap::new() }
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
            Err(WriteError::Conflict) => match self.said.get(&name).copied() {
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
        if self.said.len() >= REMEMBERED {
            self.said.clear();
        }
        self.said.insert(name, times);
    }
}

fn event(object: &DynamicObject, replica: &str, reason: &str, note: &str, now: Timestamp) -> Event {
    let types = object.types.clone().unwrap_or_default();
    let meta = &object.metadata;
    let mut note = note.to_owned();
    if note.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
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

    use super::*;

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
