//! An object as it comes from the API server: text with a name, which is then read or isn't.
//!
//! Invariant: an object that can't be read ends neither the list nor the watch that it is part of.
//!
//! The watchers of all kinds are one and the same code, because what they yield is text: [`Kind`] decodes it.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed as _, Error as _},
};
use serde_json::value::RawValue;
use slotmesh_compile::{Kind, Object};

use super::prune::prune;

/// Why an object can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// Such as `spec.hosts[0]`; `None` where all of it is wrong.
    pub(super) field: Option<String>,
    pub(super) reason: String,
}

/// An object, not read yet but for what the watcher needs: its name and resource version.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) meta: ObjectMeta,
    text: Box<RawValue>,
}

/// The metadata that a watcher needs of any object; the object has its own.
#[derive(Deserialize)]
struct Head {
    metadata: Names,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Head { metadata } = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let Names { name, namespace, resource_version } = metadata;
        Ok(Self { meta: ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }, text })
    }
}

/// Decodes an object of a kind and prunes it.
pub(super) fn decode(kind: Kind, raw: &Raw) -> Result<Object, Unreadable> {
    let text = raw.text.get();
    let read = kind.deserialize(&mut serde_json::Deserializer::from_str(text));
    let mut object = read.map_err(|error| explain(kind, text, &error.to_string()))?;
    prune(&mut object);
    Ok(object)
}

/// Finds the field; costs as much as decoding once more.
fn explain(kind: Kind, text: &str, reason: &str) -> Unreadable {
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    match kind.deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track)) {
        Err(error) => {
            let field = track.path().to_string();
            // The place in the text of the wire tells a user nothing.
            let reason = error.to_string();
            let reason = reason.rsplit_once(" at line ").map_or(reason.as_str(), |(reason, _)| reason);
            Unreadable { field: (field != ".").then_some(field), reason: reason.to_owned() }
        }
        Ok(_) => Unreadable { field: None, reason: reason.to_owned() },
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
impl Raw {
    /// From JSON.
    pub(super) fn of(value: &serde_json::Value) -> Self {
        serde_json::from_str(&value.to_string()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    #[test]
    fn an_object_that_can_not_be_read_is_known_by_name_field_and_reason() {
        let list = r#"{"apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "good", "namespace": "shop", "resourceVersion": "5"}},
            {"metadata": {"name": "bad", "namespace": "shop", "resourceVersion": "6"},
             "spec": {"ports": [{"port": "http"}]}}]}"#;
        let list: ObjectList<Raw> = serde_json::from_str(list).unwrap();
        let [good, bad] = &list.items[..] else { panic!("{list:?}") };
        assert!(decode(Kind::Service, good).is_ok());
        assert_eq!(bad.meta.name.as_deref(), Some("bad"));
        assert_eq!(bad.meta.resource_version.as_deref(), Some("6"));
        let unreadable = decode(Kind::Service, bad).unwrap_err();
        assert_eq!(unreadable.field.as_deref(), Some("spec.ports[0].port"));
        assert!(unreadable.reason.starts_with("invalid type: string \"http\""), "{unreadable:?}");
        assert!(!unreadable.reason.contains("line"), "{unreadable:?}");
    }

    #[test]
    fn an_event_of_a_watch_is_read_and_pruned() {
        let event = r#"{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"n",
            "resourceVersion":"9","managedFields":[{"manager":"m"}]},"spec":{"containers":[{"name":"c"}]}}}"#;
        let event: WatchEvent<Raw> = serde_json::from_str(event).unwrap();
        let WatchEvent::Added(pod) = event else { panic!("{event:?}") };
        let Object::Pod(pod) = decode(Kind::Pod, &pod).unwrap() else { panic!("no pod") };
        assert!(pod.metadata.managed_fields.is_none());
        assert!(pod.spec.as_ref().unwrap().containers.is_empty());
    }
}
