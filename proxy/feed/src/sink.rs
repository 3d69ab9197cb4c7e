//! Resources from the agent, on their way into the engine.
//!
//! Clusters, load assignments, route configurations and listeners are the engine's. A Workload is a pod of this node whose
//! requests are looked at: its uid is the key by which the broker knows its network namespace.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use prost::Message;
use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_broker::Key;
use slotmesh_proxy::{DialOrigin, ProxyEngine, ProxyResource, ProxyResourceKind};
use slotmesh_xds::{PerType, Rejection, Resource, ResourceName, ResourceType, Version, Workload};
use tokio::{sync::Notify, time::timeout};

use crate::pods::PodSockets;

/// How long the broker may take for a listener; meanwhile nothing else is applied.
const LISTENER_TIME: Duration = Duration::from_secs(5);

/// Puts the agent's resources in force. Clones are handles of the same.
#[derive(Clone)]
pub struct ResourceSink(Arc<Inner>);

struct Inner {
    engine: Arc<ProxyEngine>,
    sockets: PodSockets,
    held: Mutex<Held>,
    is_synced: AtomicBool,
    /// Pods whose listener the broker didn't give.
    lacking: Mutex<BTreeSet<ResourceName>>,
    lacks: Notify,
}

/// Resources in force.
#[derive(Default)]
struct Held {
    versions: PerType<HashMap<ResourceName, Version>>,
    pods: HashMap<ResourceName, ServedPod>,
    last_origin: u64,
}

/// A pod whose connections are accepted.
#[derive(Clone)]
struct ServedPod {
    key: Key,
    origin: DialOrigin,
    port: u16,
}

impl ResourceSink {
    /// Feeds an engine, which dials with these sockets.
    pub fn new(engine: Arc<ProxyEngine>, sockets: PodSockets) -> Self {
        Self(Arc::new(Inner {
            engine,
            sockets,
            held: Mutex::default(),
            is_synced: AtomicBool::new(false),
            lacking: Mutex::default(),
            lacks: Notify::new(),
        }))
    }

    /// True once the agent's first state is in force.
    pub fn is_synced(&self) -> bool {
        self.0.is_synced.load(Relaxed)
    }

    /// How many resources of each type are in force.
    pub(crate) fn counts(&self) -> PerType<usize> {
        let held = self.0.held();
        PerType::from_fn(|ty| held.versions[ty].len())
    }

    /// The sockets that the engine dials with.
    pub(crate) fn sockets(&self) -> &PodSockets {
        &self.0.sockets
    }

    /// The resources in force, by type and name, one a line.
    pub fn list(&self) -> String {
        let held = self.0.held();
        let mut lines: Vec<String> = Vec::new();
        for (ty, versions) in held.versions.iter() {
            lines.extend(versions.iter().map(|(name, version)| format!("{ty} {name} {version}\n")));
        }
        lines.sort();
        lines.concat()
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn upsert(&self, resource: &Resource) -> Result<(), String> {
        if resource.ty == ResourceType::Workload {
            self.serve_pod(resource).await?;
        } else {
            let decoded = decode(resource)?;
            if decoded.name() != resource.name.as_str() {
                return Err(format!("its name is {:?}, and not the resource's", decoded.name()));
            }
            let faults = self.engine.apply(&decoded).map_err(|error| error.to_string())?;
            for fault in faults {
                tracing::warn!(ty = %resource.ty, resource = %resource.name, %fault, "a rule isn't in force");
            }
        }
        self.held().versions[resource.ty].insert(resource.name.clone(), resource.version);
        Ok(())
    }

    async fn serve_pod(&self, resource: &Resource) -> Result<(), String> {
        let Workload { uid, namespace, name, proxy_port, .. } =
            Workload::decode(&*resource.content).map_err(|error| error.to_string())?;
        let key = Key::new(&uid).ok_or_else(|| format!("uid: {uid:?} can't be a pod's"))?;
        let known = self.held().pods.get(&resource.name).cloned();
        let known = match known {
            Some(known) if known.key != key => {
                self.leave_pod(&resource.name);
                None
            }
            known => known,
        };
        if known.as_ref().is_some_and(|known| u32::from(known.port) == proxy_port) {
            return Ok(());
        }
        let lacking = |why: String| {
            self.lacking.lock().unwrap_or_else(PoisonError::into_inner).insert(resource.name.clone());
            self.lacks.notify_one();
            Err(why)
        };
        let (listener, port) = match timeout(LISTENER_TIME, self.sockets.listener(&key)).await {
            Ok(Ok(listener)) => listener,
            Ok(Err(why)) => return lacking(why),
            Err(_elapsed) => return lacking(format!("the socket broker is silent for {LISTENER_TIME:?}")),
        };
        if proxy_port != 0 && u32::from(port) != proxy_port {
            return lacking(format!("the socket broker listens at port {port}, and not at {proxy_port}"));
        }
        let origin = match known {
            Some(known) => known.origin,
            None => {
                let mut held = self.held();
                held.last_origin += 1;
                DialOrigin(held.last_origin)
            }
        };
        if !name.is_empty() {
            // As the kernel names the source of connections.
            self.engine.set_source(origin, &format!("{namespace}/{name}"));
            self.engine.set_workload(origin, &format!("{namespace}/{}", workload_of(&name)));
        }
        self.sockets.add(origin, &key);
        self.engine.listen_for(origin, &listener).map_err(|error| error.to_string())?;
        tracing::info!(pod = %resource.name, port, "connections are accepted");
        self.held().pods.insert(resource.name.clone(), ServedPod { key, origin, port });
        Ok(())
    }

    /// Ends all that a pod has here.
    fn leave_pod(&self, name: &ResourceName) {
        let left = self.held().pods.remove(name);
        if let Some(ServedPod { origin, .. }) = left {
            self.sockets.remove(origin);
            self.engine.remove_origin(origin);
            tracing::info!(pod = %name, "its connections end");
        }
    }

    fn remove(&self, ty: ResourceType, name: &ResourceName) {
        match kind(ty) {
            Some(kind) => self.engine.remove(kind, name.as_str()),
            None => {
                self.lacking.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
                self.leave_pod(name);
            }
        }
        self.held().versions[ty].remove(name);
    }
}

/// The name that a pod has from its Deployment, StatefulSet, DaemonSet or Job: without what Kubernetes adds to tell pods
/// apart. Of other pods their own.
fn workload_of(pod: &str) -> &str {
    // Letters and digits that can't make words, of which Kubernetes takes these parts.
    let is_random = |part: &str| part.bytes().all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte));
    let Some((front, last)) = pod.rsplit_once('-') else { return pod };
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return front;
    }
    if last.len() != 5 || !is_random(last) {
        return pod;
    }
    match front.rsplit_once('-') {
        Some((name, hash)) if (6..=10).contains(&hash.len()) && is_random(hash) => name,
        _ => front,
    }
}

const fn kind(ty: ResourceType) -> Option<ProxyResourceKind> {
    match ty {
        ResourceType::Cluster => Some(ProxyResourceKind::Cluster),
        ResourceType::Endpoints => Some(ProxyResourceKind::Endpoints),
        ResourceType::Route => Some(ProxyResourceKind::Route),
        ResourceType::Listener => Some(ProxyResourceKind::Listener),
        _ => None,
    }
}

fn decode(resource: &Resource) -> Result<ProxyResource, String> {
    fn message<M: Message + Default>(content: &[u8]) -> Result<M, String> {
        M::decode(content).map_err(|error| error.to_string())
    }
    let content = resource.content.as_ref();
    Ok(match resource.ty {
        ResourceType::Cluster => ProxyResource::Cluster(message(content)?),
        ResourceType::Endpoints => ProxyResource::Endpoints(message(content)?),
        ResourceType::Route => ProxyResource::Route(message(content)?),
        ResourceType::Listener => ProxyResource::Listener(message(content)?),
        _ => return Err("a proxy doesn't take that".to_owned()),
    })
}

impl Sink for ResourceSink {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let held = self.0.held();
        let of = |ty, versions: &HashMap<ResourceName, Version>| -> Vec<_> {
            versions.iter().map(|(name, version)| (ty, name.clone(), *version)).collect()
        };
        held.versions.iter().flat_map(|(ty, versions)| of(ty, versions)).collect()
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in &update.upserts {
            if let Err(reason) = self.0.upsert(resource).await {
                rejected.push(Rejection { name: resource.name.clone(), reason });
            }
        }
        for name in &update.removed {
            self.0.remove(update.ty, name);
        }
        self.0.engine.settled().await;
        rejected
    }

    fn synced(&self) {
        self.0.is_synced.store(true, Relaxed);
    }

    async fn retries(&self) -> AskAgain {
        self.0.lacks.notified().await;
        let names = std::mem::take(&mut *self.0.lacking.lock().unwrap_or_else(PoisonError::into_inner));
        let names = names.into_iter().map(|name| (ResourceType::Workload, name)).collect();
        AskAgain { names, soon: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_workload_have_its_name() {
        for (pod, workload) in [
            ("web-7d4b9c5f6d-x2k4z", "web"),
            ("my-web-7d4b9c5f6d-x2k4z", "my-web"),
            ("node-agent-x2k4z", "node-agent"),
            ("db-0", "db"),
            ("db-12", "db"),
            ("client", "client"),
            ("my-client", "my-client"),
            ("by-hand", "by-hand"),
        ] {
            assert_eq!(workload_of(pod), workload, "{pod}");
        }
    }
}
