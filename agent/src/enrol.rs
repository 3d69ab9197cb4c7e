//! Enrolment: the programs are attached to the pods that the operator names for this node.
//!
//! ```text
//!  ADS client --Workload--> Enrolment --attach, detach--> Datapath
//!             --the rest--> inner sink      ^
//!             cgroup tree --inotify---------+
//! ```
//!
//! Invariants:
//! - A pod that the operator names is attached as soon as its cgroup exists: at once, or when the
//!   kubelet creates it, which is before the pod's first container starts.
//! - What an earlier agent attached stays attached until the operator has named all pods; then those
//!   that it didn't name are detached. Without an operator nothing is.
//! - Of pods with the same namespace and name only the one that was named last is attached: the others
//!   are on their way out.
//! - A pod's cgroup takes its links along when it goes; their dead pins are collected when the
//!   operator takes the pod back.

mod cgroups;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use prost::Message as _;
use slotmesh_ads::{Sink, Update};
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version, Workload as Named};

pub use self::cgroups::NoPods;
use self::cgroups::{PodUid, Tree};
use crate::{Datapath, Workload};

/// A pod that the operator named.
#[derive(Debug)]
struct Pod {
    version: Version,
    uid: PodUid,
    namespace: String,
    name: String,
    /// What it is attached as; `None` while its cgroup doesn't exist, or can't be attached to.
    attached: Option<Workload>,
    /// Why it can't be attached, as it was last said.
    failed: Option<String>,
}

impl Pod {
    /// What all pods with its namespace and name have.
    fn id(&self) -> u64 {
        self.workload(PathBuf::new()).id()
    }

    fn workload(&self, cgroup: PathBuf) -> Workload {
        Workload { namespace: self.namespace.clone(), name: self.name.clone(), cgroup }
    }
}

struct State {
    datapath: Arc<Datapath>,
    tree: Tree,
    pods: HashMap<ResourceName, Pod>,
    /// By [`Workload::id`]: of the pods with the same namespace and name, the one that was named last.
    latest: HashMap<u64, ResourceName>,
}

/// A sink that takes workloads, and hands the rest on. Clones are handles of the same.
#[derive(Clone)]
pub struct Enrolment<S> {
    inner: S,
    state: Arc<Mutex<State>>,
    _watcher: Arc<Mutex<RecommendedWatcher>>,
}

/// How many pods are named and attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// Pods that the operator named for this node.
    pub named: usize,
    /// Pods whose connections are routed.
    pub attached: usize,
}

impl<S: Sink> Enrolment<S> {
    /// Enrols the pods below `root`, a cgroup v2 directory (where the host's hierarchy is mounted).
    ///
    /// # Errors
    /// Where the node's pods are in no cgroup v2 hierarchy.
    pub fn new(inner: S, datapath: Arc<Datapath>, root: PathBuf) -> Result<Self, NoPods> {
        let mut tree = Tree::new(root);
        tree.check()?;
        // Dropped together: the state's watcher calls back into the state.
        let state =
            Arc::new(Mutex::new(State { datapath, tree, pods: HashMap::new(), latest: HashMap::new() }));
        let weak = Arc::downgrade(&state);
        let told = move |event: notify::Result<notify::Event>| {
            let Some(state) = weak.upgrade() else { return };
            match event {
                Ok(event) if event.kind.is_create() => lock(&state).appeared(&event.paths),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cgroups can't be watched; looking at all of them");
                    lock(&state).look();
                }
            }
        };
        let mut watcher = notify::recommended_watcher(told).map_err(NoPods::Unwatchable)?;
        // The watcher's thread may be waiting for the state, and is waited for by `watch`.
        let parents = lock(&state).tree.parents();
        for dir in parents {
            watch(&mut watcher, &dir)?;
        }
        let watcher = Arc::new(Mutex::new(watcher));
        let on_parent = {
            let (watcher, state) = (Arc::downgrade(&watcher), Arc::downgrade(&state));
            move |dir: &Path| {
                let (watcher, state, dir) = (watcher.clone(), state.clone(), dir.to_owned());
                // Not from the watcher's own thread: it would wait for itself.
                std::thread::spawn(move || {
                    let Some(watcher) = watcher.upgrade() else { return };
                    if let Err(error) = watch(&mut lock(&watcher), &dir) {
                        tracing::warn!(%error, "pods below it aren't noticed");
                    }
                    if let Some(state) = state.upgrade() {
                        lock(&state).watched(&dir);
                    }
                });
            }
        };
        lock(&state).tree.on_parent(on_parent);
        Ok(Self { inner, state, _watcher: watcher })
    }

    /// How many pods are named and attached.
    pub fn enrolled(&self) -> Enrolled {
        let state = lock(&self.state);
        let attached = state.pods.values().filter(|pod| pod.attached.is_some()).count();
        Enrolled { named: state.pods.len(), attached }
    }
}

fn watch(watcher: &mut RecommendedWatcher, dir: &Path) -> Result<(), NoPods> {
    match watcher.watch(dir, RecursiveMode::NonRecursive) {
        // It is gone already, and its pods with it.
        Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => Ok(()),
        watched => watched.map_err(NoPods::Unwatchable),
    }
}

impl State {
    /// Something was created in the cgroup tree.
    fn appeared(&mut self, paths: &[PathBuf]) {
        for path in paths {
            if self.tree.is_parent(path) {
                // Whatever was created in it before it was watched would be missed.
                self.tree.found_parent(path);
                self.look();
            } else if let Some((name, pod)) = self.pods.iter_mut().find(|(_, pod)| pod.uid.is_cgroup(path))
                && self.latest.get(&pod.id()) == Some(name)
            {
                // Also when it is attached: to a cgroup of this name that was removed.
                attach(&self.datapath, pod, path.clone());
            }
        }
    }

    /// What was created in a cgroup before it was watched was told by nobody.
    fn watched(&mut self, dir: &Path) {
        self.tree.look_below(dir);
        // Also when they are attached: their cgroups may have been made again.
        self.attach_all(|_, cgroup| cgroup.parent() == Some(dir));
    }

    /// Looks for the cgroups of all pods that aren't attached.
    fn look(&mut self) {
        self.attach_all(|pod, _| pod.attached.is_none());
    }

    /// Attaches the pods that are wanted and have a cgroup.
    fn attach_all(&mut self, is_wanted: impl Fn(&Pod, &Path) -> bool) {
        for (name, pod) in &mut self.pods {
            if self.latest.get(&pod.id()) == Some(name)
                && let Some(cgroup) = self.tree.find(&pod.uid).filter(|cgroup| is_wanted(pod, cgroup))
            {
                attach(&self.datapath, pod, cgroup);
            }
        }
    }

    fn named(&mut self, resource: &Resource) -> Result<(), String> {
        let Named { uid, namespace, name, .. } = Named::decode(resource.content.as_ref())
            .map_err(|error| format!("not a valid Workload message: {error}"))?;
        let uid = PodUid::new(&uid).ok_or_else(|| format!("uid: {uid:?} can't be the uid of a pod"))?;
        if namespace.is_empty() || name.is_empty() {
            return Err("namespace and name must not be empty".to_owned());
        }
        let mut pod = Pod { version: resource.version, uid, namespace, name, attached: None, failed: None };
        match self.tree.find(&pod.uid) {
            Some(cgroup) => attach(&self.datapath, &mut pod, cgroup),
            None => tracing::debug!(pod = %resource.name, "the pod's cgroup doesn't exist yet"),
        }
        let failed = pod.failed.clone();
        self.latest.insert(pod.id(), resource.name.clone());
        if let Some(old) = self.pods.insert(resource.name.clone(), pod).and_then(|old| old.attached) {
            self.detach(&old);
        }
        // It is tried again when its cgroup is made again.
        failed.map_or(Ok(()), Err)
    }

    fn taken_back(&mut self, name: &ResourceName) -> Result<(), String> {
        let Some(pod) = self.pods.remove(name) else { return Ok(()) };
        if let Some(workload) = &pod.attached {
            self.detach(workload);
        }
        if self.latest.get(&pod.id()) == Some(name) {
            self.latest.remove(&pod.id());
            if let Some((other, _)) = self.pods.iter().find(|(_, other)| other.id() == pod.id()) {
                self.latest.insert(pod.id(), other.clone());
                self.attach_all(|other, _| other.id() == pod.id());
            }
        }
        Ok(())
    }

    /// Detaches what no pod is attached as any more: a pod of the same name may have come meanwhile.
    fn detach(&self, workload: &Workload) {
        let id = workload.id();
        if self.pods.values().filter_map(|pod| pod.attached.as_ref()).any(|other| other.id() == id) {
            return;
        }
        match self.datapath.release(workload) {
            Ok(()) => tracing::info!(%workload, "detached"),
            Err(error) => tracing::error!(%workload, %error, "can't be detached"),
        }
    }

    /// All pods are named: whatever else is attached isn't to be.
    fn complete(&self) {
        let kept: Vec<Workload> = self.pods.values().map(|pod| pod.workload(PathBuf::new())).collect();
        if let Err(error) = self.datapath.retain(&kept) {
            tracing::error!(%error, "what an earlier agent attached can't be detached");
        }
    }
}

fn attach(datapath: &Datapath, pod: &mut Pod, cgroup: PathBuf) {
    let workload = pod.workload(cgroup);
    match datapath.enrol(&workload) {
        Ok(()) => {
            tracing::info!(%workload, cgroup = %workload.cgroup.display(), "attached");
            (pod.attached, pod.failed) = (Some(workload), None);
        }
        // It may be gone again already.
        Err(_) if !workload.cgroup.exists() => {}
        Err(error) => {
            tracing::warn!(%workload, %error, "can't be attached: its connections go unrouted");
            pod.failed = Some(error.to_string());
        }
    }
}

impl<S: Sink> Sink for Enrolment<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let mut held = self.inner.held().await;
        let state = lock(&self.state);
        let pods = state.pods.iter().filter(|(_, pod)| pod.failed.is_none());
        held.extend(pods.map(|(name, pod)| (ResourceType::Workload, name.clone(), pod.version)));
        held
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        if update.ty != ResourceType::Workload {
            return self.inner.apply(update).await;
        }
        let mut state = lock(&self.state);
        let mut rejected = Vec::new();
        let mut reject = |name: &ResourceName, outcome: Result<(), String>| {
            rejected.extend(outcome.err().map(|reason| Rejection { name: name.clone(), reason }));
        };
        for resource in &update.upserts {
            reject(&resource.name, state.named(resource));
        }
        for name in &update.removed {
            reject(name, state.taken_back(name));
        }
        rejected
    }

    fn synced(&self) {
        lock(&self.state).complete();
        self.inner.synced();
    }

    async fn room(&self) {
        self.inner.room().await;
    }
}

/// A panic elsewhere leaves maps that are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
