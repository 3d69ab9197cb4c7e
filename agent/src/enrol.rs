//! Enrolment: the programs are attached to the pods that the operator names for this node.
//!
//! ```text
//!  ADS client --Workload--> Enrolment --attach, detach--> Datapath
//!             --the rest--> inner sink      ^
//!             cgroup tree --inotify---> watcher, and whatever is to be tried again
//! ```
//!
//! Invariants:
//! - A pod that the operator names is attached as soon as its cgroup exists: at once, or when the
//!   kubelet creates it, which is before the pod's first container starts.
//! - What an earlier agent attached stays attached until the operator has named all pods; then those
//!   that it didn't name are detached. Without an operator nothing is.
//! - Of pods with the same namespace and name only the one that was named last is attached: the others
//!   are on their way out.
//! - A pod that can't be attached is tried again, ever more rarely, and told of; what was attached before stays.
//! - A pod's cgroup takes its links along when it goes; their dead pins are collected when the
//!   operator takes the pod back.

mod cgroups;
mod fixed;
mod watcher;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version, Workload as Named};

use tokio::sync::watch;

pub use self::{
    cgroups::NoPods,
    fixed::{FixedCallers, FixedWorkloads},
};
use self::{
    cgroups::{PodUid, Tree},
    watcher::{Watched, Watcher},
};
use crate::{Datapath, Workload, room::Room};

/// The bounds of the delays before a pod is tried again that can't be attached, or whose cgroup isn't found.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Why a pod isn't attached, and when it is tried again.
#[derive(Debug)]
struct Trouble {
    what: String,
    delay: Duration,
    next: Instant,
    /// The operator was told, and is told again when it is over.
    told: bool,
}

/// What is said of a pod whose cgroup isn't found. It may just not exist yet.
const NO_CGROUP: &str = "its cgroup isn't found";

/// A pod that the operator named.
#[derive(Debug)]
struct Pod {
    version: Version,
    uid: PodUid,
    namespace: String,
    name: String,
    /// Its class as a caller; empty for its namespace's.
    class: String,
    /// As the operator named it.
    message: Named,
    /// What it is attached as; `None` while its cgroup doesn't exist, or can't be attached to.
    attached: Option<Workload>,
    /// Why it isn't attached as it should be.
    trouble: Option<Trouble>,
}

impl Pod {
    /// What all pods with its namespace and name have.
    fn id(&self) -> u64 {
        self.workload(PathBuf::new()).id()
    }

    fn workload(&self, cgroup: PathBuf) -> Workload {
        Workload { namespace: self.namespace.clone(), name: self.name.clone(), cgroup }
    }

    /// Notes what is the matter. The delays grow as long as it is the same.
    fn is_troubled(&mut self, what: &str, now: Instant) -> bool {
        let before = self.trouble.take().filter(|before| before.what == what);
        let (news, told) = (before.is_none(), before.as_ref().is_some_and(|before| before.told));
        let delay = before.map_or(FIRST_RETRY, |before| (before.delay * 2).min(LAST_RETRY));
        self.trouble = Some(Trouble { what: what.to_owned(), delay, next: now + delay, told });
        news
    }

    /// Whether somebody should know that it isn't attached: not of one that is merely being made.
    fn is_overdue(&self) -> bool {
        let lasts = |trouble: &Trouble| trouble.what != NO_CGROUP || trouble.delay >= LAST_RETRY / 4;
        self.trouble.as_ref().is_some_and(lasts)
    }
}

struct State {
    datapath: Arc<Datapath>,
    tree: Tree,
    pods: HashMap<ResourceName, Pod>,
    /// By [`Workload::id`]: of the pods with the same namespace and name, the one that was named last.
    latest: HashMap<u64, ResourceName>,
    /// Whom to tell that a pod is attached that was refused.
    healed: Arc<Room>,
    /// Whom to tell that other pods are attached.
    changes: watch::Sender<()>,
}

/// A pod that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedPod {
    /// The name of the resource by which the operator named it.
    pub resource: ResourceName,
    /// That resource.
    pub message: Named,
    /// The workload, with its cgroup.
    pub workload: Workload,
}

/// The pods that are attached, for somebody who follows them.
pub struct AttachedPods {
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<()>,
}

impl AttachedPods {
    /// All of them.
    pub fn now(&mut self) -> Vec<AttachedPod> {
        self.changes.mark_unchanged();
        let state = lock(&self.state);
        let attached = |(name, pod): (&ResourceName, &Pod)| {
            let workload = pod.attached.clone()?;
            Some(AttachedPod { resource: name.clone(), message: pod.message.clone(), workload })
        };
        state.pods.iter().filter_map(attached).collect()
    }

    /// Waits until they may be others than [`now`](Self::now) last said.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A sink that takes workloads, and hands the rest on. Clones are handles of the same.
#[derive(Clone)]
pub struct Enrolment<S> {
    inner: S,
    state: Arc<Mutex<State>>,
    healed: Arc<Room>,
    watcher: Arc<Watcher>,
    /// Held open for its lock.
    _alone: Arc<File>,
}

/// How many pods are named and attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// Pods that the operator named for this node.
    pub named: usize,
    /// Pods whose connections are routed.
    pub attached: usize,
    /// Pods that should be attached by now and aren't.
    pub overdue: usize,
    /// One of these, and why.
    pub example: Option<String>,
}

impl<S: Sink> Enrolment<S> {
    /// Enrols the pods below `root`, a cgroup v2 directory (where the host's hierarchy is mounted).
    ///
    /// # Errors
    /// Where the node's pods are in no cgroup v2 hierarchy, or another agent enrols them.
    pub fn new(inner: S, datapath: Arc<Datapath>, root: PathBuf) -> Result<Self, NoPods> {
        let alone = Arc::new(cgroups::lock(&root)?);
        let mut tree = Tree::new(root);
        tree.check()?;
        let healed = Arc::<Room>::default();
        let (pods, latest) = (HashMap::new(), HashMap::new());
        let (changes, _) = watch::channel(());
        let state = State { datapath, tree, pods, latest, healed: healed.clone(), changes };
        let state = Arc::new(Mutex::new(state));
        let watcher = Arc::new(Watcher::start(state.clone())?);
        Ok(Self { inner, state, healed, watcher, _alone: alone })
    }

    /// The pods that are attached, to be followed.
    pub fn attached(&self) -> AttachedPods {
        let changes = lock(&self.state).changes.subscribe();
        AttachedPods { state: self.state.clone(), changes }
    }

    /// How many pods are named and attached.
    pub fn enrolled(&self) -> Enrolled {
        let state = lock(&self.state);
        let attached = state.pods.values().filter(|pod| pod.attached.is_some()).count();
        let mut overdue: Vec<_> = state.pods.values().filter(|pod| pod.is_overdue()).collect();
        overdue.sort_unstable_by_key(|pod| (&pod.namespace, &pod.name));
        let example = overdue.first().and_then(|pod| {
            let what = &pod.trouble.as_ref()?.what;
            Some(format!("{}/{}: {what}", pod.namespace, pod.name))
        });
        Enrolled { named: state.pods.len(), attached, overdue: overdue.len(), example }
    }
}

impl<S> Enrolment<S> {
    /// Nothing is attached from now on but what the sink is told.
    pub fn end(&self) {
        self.watcher.end();
    }
}

impl Watched for Arc<Mutex<State>> {
    fn created(&self, paths: &[PathBuf], now: Instant) {
        lock(self).appeared(paths, now);
    }

    fn missed(&self, now: Instant) {
        tracing::warn!("the kernel has dropped news of cgroups; looking at all of them");
        let mut state = lock(self);
        state.tree.look_everywhere();
        // Also those that are attached: their cgroups may have been made again.
        state.attach_all(now, |_| true);
    }

    fn watching(&self, dir: &Path, now: Instant) {
        lock(self).watched(dir, now);
    }

    fn to_watch(&self) -> Vec<PathBuf> {
        lock(self).tree.take_unwatched()
    }

    fn due(&self) -> Option<Instant> {
        lock(self).pods.values().filter_map(|pod| pod.trouble.as_ref()).map(|trouble| trouble.next).min()
    }

    fn retry(&self, now: Instant) {
        lock(self).retry(now);
    }
}

impl State {
    /// Something was created in the cgroup tree.
    fn appeared(&mut self, paths: &[PathBuf], now: Instant) {
        for path in paths {
            if self.tree.is_parent(path) {
                // Whatever was created in it before it was watched would be missed.
                self.tree.found_parent(path);
                self.attach_all(now, |pod| pod.attached.is_none());
            } else if let Some(name) = self.pods.iter().find_map(|(name, pod)| {
                (pod.uid.is_cgroup(path) && self.latest.get(&pod.id()) == Some(name)).then(|| name.clone())
            }) {
                // Also when it is attached: to a cgroup of this name that was removed.
                self.attach(&name, Some(path.clone()), now);
            }
        }
    }

    /// What was created in a cgroup before it was watched was told by nobody.
    fn watched(&mut self, dir: &Path, now: Instant) {
        self.tree.look_below(dir);
        // Also those that are attached: their cgroups may have been made again.
        let here: Vec<_> = self
            .pods
            .iter()
            .filter_map(|(name, pod)| Some((name.clone(), self.tree.find(&pod.uid)?)))
            .filter(|(_, cgroup)| cgroup.parent() == Some(dir))
            .map(|(name, _)| name)
            .collect();
        self.attach_each(here, now);
    }

    /// Tries again what is due.
    fn retry(&mut self, now: Instant) {
        let is_due = |pod: &Pod| pod.trouble.as_ref().is_some_and(|trouble| trouble.next <= now);
        if self.pods.values().any(|pod| is_due(pod) && pod.attached.is_none()) {
            // A kubelet may keep its pods where none does by default (--cgroup-root).
            self.tree.look_everywhere();
        }
        self.attach_all(now, is_due);
    }

    /// Attaches those pods that are wanted.
    fn attach_all(&mut self, now: Instant, is_wanted: impl Fn(&Pod) -> bool) {
        let wanted =
            self.pods.iter().filter(|(_, pod)| is_wanted(pod)).map(|(name, _)| name.clone()).collect();
        self.attach_each(wanted, now);
    }

    fn attach_each(&mut self, names: Vec<ResourceName>, now: Instant) {
        for name in names {
            self.attach(&name, None, now);
        }
    }

    /// Attaches a pod, unless another one has its name; to the cgroup that was just made, or to the one it has.
    fn attach(&mut self, name: &ResourceName, made: Option<PathBuf>, now: Instant) {
        let Some(pod) = self.pods.get_mut(name) else { return };
        if self.latest.get(&pod.id()) != Some(name) {
            pod.trouble = None;
            return;
        }
        let Some(cgroup) = made.or_else(|| self.tree.find(&pod.uid)) else {
            // One that is on its way out has had its cgroup.
            if pod.attached.is_none() {
                let known = pod.is_overdue();
                pod.is_troubled(NO_CGROUP, now);
                if pod.is_overdue() && !known {
                    tracing::warn!(pod = %name, "{NO_CGROUP}: its connections go unrouted");
                }
            } else {
                pod.trouble = None;
            }
            return;
        };
        let workload = pod.workload(cgroup);
        self.datapath.classify(&workload, &pod.class);
        match self.datapath.enrol_pod(&workload) {
            Ok(()) => {
                tracing::info!(%workload, cgroup = %workload.cgroup.display(), "attached");
                pod.attached = Some(workload);
                self.changes.send_replace(());
                if pod.trouble.take().is_some_and(|trouble| trouble.told) {
                    self.healed.put(BTreeSet::from([(ResourceType::Workload, name.clone())]), true);
                }
            }
            // It is gone again already.
            Err(_) if !workload.cgroup.exists() => {
                pod.is_troubled(NO_CGROUP, now);
            }
            Err(error) => {
                if pod.is_troubled(&error.to_string(), now) {
                    let routed = pod.attached.is_some();
                    tracing::warn!(%workload, %error, routed_as_before = routed, "can't be attached; trying again");
                }
            }
        }
    }

    fn named(&mut self, resource: &Resource, now: Instant) -> Result<(), String> {
        let message = Named::decode(resource.content.as_ref())
            .map_err(|error| format!("not a valid Workload message: {error}"))?;
        let Named { uid, namespace, name, class, .. } = message.clone();
        let uid = PodUid::new(&uid).ok_or_else(|| format!("uid: {uid:?} can't be the uid of a pod"))?;
        if namespace.is_empty() || name.is_empty() {
            return Err("namespace and name must not be empty".to_owned());
        }
        let version = resource.version;
        let mut pod = Pod { version, uid, namespace, name, class, message, attached: None, trouble: None };
        let mut old = self.pods.remove(&resource.name);
        if let Some(old) = old.as_mut().filter(|old| old.uid == pod.uid && old.id() == pod.id()) {
            // What works stays, should it not be possible to attach it anew.
            pod.attached = old.attached.take();
        }
        self.latest.insert(pod.id(), resource.name.clone());
        self.pods.insert(resource.name.clone(), pod);
        self.attach(&resource.name, None, now);
        if let Some(old) = old.and_then(|old| old.attached) {
            self.detach(&old);
        }
        // It is tried again, and the operator is told when it is attached.
        let trouble = self.pods.get_mut(&resource.name).and_then(|pod| pod.trouble.as_mut());
        match trouble.filter(|trouble| trouble.what != NO_CGROUP) {
            Some(trouble) => {
                trouble.told = true;
                Err(trouble.what.clone())
            }
            None => Ok(()),
        }
    }

    fn taken_back(&mut self, name: &ResourceName, now: Instant) -> Result<(), String> {
        let Some(pod) = self.pods.remove(name) else { return Ok(()) };
        self.changes.send_replace(());
        if let Some(workload) = &pod.attached {
            self.detach(workload);
        }
        if self.latest.get(&pod.id()) == Some(name) {
            self.latest.remove(&pod.id());
            if let Some((other, _)) = self.pods.iter().find(|(_, other)| other.id() == pod.id()) {
                let other = other.clone();
                self.latest.insert(pod.id(), other.clone());
                self.attach(&other, None, now);
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

impl<S: Sink> Sink for Enrolment<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let mut held = self.inner.held().await;
        let state = lock(&self.state);
        let is_told = |pod: &Pod| pod.trouble.as_ref().is_some_and(|trouble| trouble.told);
        let pods = state.pods.iter().filter(|(_, pod)| !is_told(pod));
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
        let now = Instant::now();
        for resource in &update.upserts {
            reject(&resource.name, state.named(resource, now));
        }
        for name in &update.removed {
            reject(name, state.taken_back(name, now));
        }
        drop(state);
        self.watcher.changed();
        rejected
    }

    fn synced(&self) {
        lock(&self.state).complete();
        self.inner.synced();
    }

    async fn room(&self) -> AskAgain {
        tokio::select! {
            names = self.inner.room() => names,
            names = self.healed.taken() => names,
        }
    }
}

/// A panic elsewhere leaves maps that are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
