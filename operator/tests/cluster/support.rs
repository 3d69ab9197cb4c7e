//! An operator on a control plane, and what it publishes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use slotmesh_cluster::{ControlPlane, wait};
use slotmesh_operator::{Operator, OperatorOptions, Status};
use slotmesh_xds::{Change, ResourceType};

/// Where slotmesh is installed.
pub const NAMESPACE: &str = "slotmesh-system";

type Published = Arc<Mutex<BTreeMap<(ResourceType, String), Vec<u8>>>>;

/// An operator, and what it has published.
pub struct Watched {
    pub operator: Operator,
    published: Published,
}

impl Watched {
    pub async fn start(cluster: &ControlPlane) -> Result<Self> {
        Self::start_on(cluster.client().await?).await
    }

    pub async fn start_on(client: Client) -> Result<Self> {
        let published = Published::default();
        let sink = Arc::clone(&published);
        let publish = move |changes: Vec<Change>| {
            let mut held = sink.lock().unwrap();
            for change in changes {
                match change {
                    Change::Upsert(r) => drop(held.insert((r.ty, r.name.to_string()), r.content.to_vec())),
                    Change::Remove(ty, name) => drop(held.remove(&(ty, name.to_string()))),
                }
            }
        };
        let operator = Operator::from_cluster(client, OperatorOptions::default(), publish)?;
        let watched = Self { operator, published };
        let synced = async || Ok(watched.status().synced);
        // Longer where a kind can't be listed: the API server takes its time to say so, and so do we to believe it.
        if wait::until_true("the first sync", synced).await.is_err() {
            wait::until_true("the first sync, once more", synced).await?;
        }
        Ok(watched)
    }

    pub fn status(&self) -> Status {
        self.operator.status().borrow().clone()
    }

    /// The names of what is published of a type.
    pub fn names(&self, ty: ResourceType) -> Vec<String> {
        self.published
            .lock()
            .unwrap()
            .keys()
            .filter(|(of, _)| *of == ty)
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// Waits until something of this type whose name contains `part` is published, or no longer.
    pub async fn has(&self, ty: ResourceType, part: &str, there: bool) -> Result<()> {
        let what = format!("{ty} {part} {}", if there { "to be there" } else { "to be gone" });
        wait::until_true(&what, async || Ok(self.names(ty).iter().any(|name| name.contains(part)) == there))
            .await
    }

    /// Waits until something of this type whose name contains `part` contains these bytes.
    pub async fn says(&self, ty: ResourceType, part: &str, bytes: &str) -> Result<()> {
        let what = format!("{ty} {part} to contain {bytes:?}");
        wait::until_true(&what, async || Ok(self.contains(ty, part, bytes))).await
    }

    /// Waits until nothing of this type whose name contains `part` contains these bytes.
    pub async fn says_not(&self, ty: ResourceType, part: &str, bytes: &str) -> Result<()> {
        let what = format!("{ty} {part} to contain {bytes:?} no longer");
        wait::until_true(&what, async || Ok(!self.contains(ty, part, bytes))).await
    }

    fn contains(&self, ty: ResourceType, part: &str, bytes: &str) -> bool {
        let says = |content: &[u8]| content.windows(bytes.len()).any(|window| window == bytes.as_bytes());
        let published = self.published.lock().unwrap();
        let mut of_type = published.iter().filter(|((of, name), _)| *of == ty && name.contains(part));
        of_type.any(|(_, content)| says(content))
    }
}

fn api(client: &Client, object: &Value) -> (Api<DynamicObject>, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let namespace = text("/metadata/namespace");
    let api = if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    (api, text("/metadata/name"))
}

/// As `kubectl apply --server-side`.
pub async fn apply(client: &Client, object: Value) -> Result<DynamicObject> {
    let (api, name) = api(client, &object);
    let params = PatchParams::apply("test").force();
    let mut spec = object.clone();
    spec.as_object_mut().map(|fields| fields.remove("status"));
    let applied = api.patch(&name, &params, &Patch::Apply(&spec)).await?;
    if let Some(status) = object.get("status") {
        let status = json!({"status": status});
        return Ok(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?);
    }
    Ok(applied)
}

/// The object as it is now.
pub async fn get(client: &Client, object: &Value) -> Result<Option<Value>> {
    let (api, name) = api(client, object);
    Ok(api.get_opt(&name).await?.map(serde_json::to_value).transpose()?)
}

pub async fn delete(client: &Client, object: &Value) -> Result<()> {
    let (api, name) = api(client, object);
    api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}

pub fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "name": "http"}]},
    })
}

pub fn pod(name: &str, app: &str, node: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
                 "containers": [{"name": "c", "image": "c"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                   "conditions": [{"type": "Ready", "status": "True"}]},
    })
}
