//! Enrolment: the programs are attached to the pods that the operator names for this node.
//!
//! ```text
//!  ADS client --Workload--> Enrolment --Request--> thread --attach, detach--> Datapath
//!                        cgroup tree --inotify-----^    `--> AttachedPods, Enrolled
//! ```
//!
//! One thread owns what is known of pods; it waits for requests, for cgroups, and for what is to be tried again.
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
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_ads::Update;
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version, Workload as Named};
use tokio::sync::{oneshot, watch};

pub use self::{
    cgroups::NoPods,
    fixed::{FixedCallers, FixedWorkloads},
};
use self::{
    cgroups::{PodUid, Tree},
    watcher::{Watched, Watcher},
};
use crate::{
    Agent, Datapath, Workload,
    handlers::{Handler, Handling, HeldResources},
    pending_retries::PendingRetries,
};

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
    healed: Arc<PendingRetries>,
    /// Other pods are attached than was published last.
    is_changed: bool,
    attached: watch::Sender<Vec<AttachedPod>>,
    enrolled: watch::Sender<Enrolled>,
}

/// A request to the thread.
enum Request {
    /// Take pods, and take pods back; the answer is what was refused.
    Apply(Update, oneshot::Sender<Vec<Rejection>>),
    /// Tell the pods that are named.
    Held(oneshot::Sender<HeldResources>),
    /// All pods are named.
    Complete(mpsc::Sender<()>),
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
pub struct AttachedPods(watch::Receiver<Vec<AttachedPod>>);

impl AttachedPods {
    /// All of them.
    pub fn now(&mut self) -> Vec<AttachedPod> {
        self.0.borrow_and_update().clone()
    }

    /// Waits until they may be others than [`now`](Self::now) last said.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A handler that takes workloads. Clones are handles of the same.
#[derive(Clone)]
pub struct Enrolment {
    thread: Arc<Watcher<Request>>,
    attached: watch::Receiver<Vec<AttachedPod>>,
    enrolled: watch::Receiver<Enrolled>,
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

impl Enrolment {
    /// Enrols the pods below `root`, a cgroup v2 directory (where the host's hierarchy is mounted).
    ///
    /// # Errors
    /// Where the node's pods are in no cgroup v2 hierarchy, or another agent enrols them.
    pub fn new(agent: &Agent, root: PathBuf) -> Result<Self, NoPods> {
        let alone = Arc::new(cgroups::lock(&root)?);
        let mut tree = Tree::new(root);
        tree.check()?;
        let (attached_sender, attached) = watch::channel(Vec::new());
        let (enrolled_sender, enrolled) = watch::channel(Enrolled::default());
        let thread = Watcher::start(State {
            datapath: agent.datapath().clone(),
            tree,
            pods: HashMap::new(),
            latest: HashMap::new(),
            healed: agent.handle().retries().clone(),
            is_changed: false,
            attached: attached_sender,
            enrolled: enrolled_sender,
        })?;
        Ok(Self { thread: Arc::new(thread), attached, enrolled, _alone: alone })
    }

    /// The pods that are attached, to be followed.
    pub fn attached(&self) -> AttachedPods {
        AttachedPods(self.attached.clone())
    }

    /// How many pods are named and attached.
    pub fn enrolled(&self) -> Enrolled {
        self.enrolled.borrow().clone()
    }

    /// Nothing is attached or detached from now on.
    pub fn end(&self) {
        self.thread.end();
    }
}

impl Handler for Enrolment {
    fn types(&self) -> &'static [ResourceType] {
        &[ResourceType::Workload]
    }

    fn held(&self) -> Handling<'_, HeldResources> {
        let (reply, held) = oneshot::channel();
        self.thread.ask(Request::Held(reply));
        Box::pin(async { held.await.unwrap_or_default() })
    }

    fn apply(&self, update: Update) -> Handling<'_, Vec<Rejection>> {
        let names: Vec<ResourceName> = update.upserts.iter().map(|one| one.name.clone()).collect();
        let (reply, rejected) = oneshot::channel();
        self.thread.ask(Request::Apply(update, reply));
        Box::pin(async {
            let ended = |name| Rejection { name, reason: "the agent is stopping".to_owned() };
            rejected.await.unwrap_or_else(|_ended| names.into_iter().map(ended).collect())
        })
    }

    fn synced(&self) {
        let (reply, done) = mpsc::channel();
        self.thread.ask(Request::Complete(reply));
        // A thread that has ended detaches nothing.
        let _ = done.recv();
    }
}

impl Watched for State {
    type Request = Request;

    fn asked(&mut self, request: Request, now: Instant) {
        match request {
            Request::Apply(update, reply) => {
                let rejected = self.apply(&update, now);
                self.settled();
                let _ = reply.send(rejected);
            }
            Request::Held(reply) => drop(reply.send(self.held())),
            Request::Complete(reply) => {
                self.complete();
                let _ = reply.send(());
            }
        }
    }

    fn created(&mut self, paths: &[PathBuf], now: Instant) {
        self.appeared(paths, now);
    }

    fn missed(&mut self, now: Instant) {
        tracing::warn!("the kernel has dropped news of cgroups; looking at all of them");
        self.tree.look_everywhere();
        // Also those that are attached: their cgroups may have been made again.
        self.attach_all(now, |_| true);
    }

    fn watching(&mut self, dir: &Path, now: Instant) {
        self.watched(dir, now);
    }

    fn to_watch(&mut self) -> Vec<PathBuf> {
        self.tree.take_unwatched()
    }

    fn due(&self) -> Option<Instant> {
        self.pods.values().filter_map(|pod| pod.trouble.as_ref()).map(|trouble| trouble.next).min()
    }

    fn retry(&mut self, now: Instant) {
        self.try_again(now);
    }

    fn settled(&mut self) {
        if std::mem::take(&mut self.is_changed) {
            self.attached.send_replace(self.attached_pods());
        }
        let enrolled = self.count();
        self.enrolled.send_if_modified(|before| {
            let is_new = *before != enrolled;
            *before = enrolled;
            is_new
        });
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
    fn try_again(&mut self, now: Instant) {
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
                self.is_changed = true;
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
        self.is_changed = true;
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
    /// Takes the pods that are named, and takes back those that are removed.
    fn apply(&mut self, update: &Update, now: Instant) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        let mut reject = |name: &ResourceName, outcome: Result<(), String>| {
            rejected.extend(outcome.err().map(|reason| Rejection { name: name.clone(), reason }));
        };
        for resource in &update.upserts {
            reject(&resource.name, self.named(resource, now));
        }
        for name in &update.removed {
            reject(name, self.taken_back(name, now));
        }
        rejected
    }

    /// The pods that are named, but for those that were refused.
    fn held(&self) -> HeldResources {
        let is_told = |pod: &Pod| pod.trouble.as_ref().is_some_and(|trouble| trouble.told);
        let pods = self.pods.iter().filter(|(_, pod)| !is_told(pod));
        pods.map(|(name, pod)| (ResourceType::Workload, name.clone(), pod.version)).collect()
    }

    /// The pods that are attached.
    fn attached_pods(&self) -> Vec<AttachedPod> {
        let attached = |(name, pod): (&ResourceName, &Pod)| {
            let workload = pod.attached.clone()?;
            Some(AttachedPod { resource: name.clone(), message: pod.message.clone(), workload })
        };
        self.pods.iter().filter_map(attached).collect()
    }

    /// How many pods are named and attached.
    fn count(&self) -> Enrolled {
        let attached = self.pods.values().filter(|pod| pod.attached.is_some()).count();
        let overdue = self.pods.values().filter(|pod| pod.is_overdue());
        let first = overdue.clone().min_by_key(|pod| (&pod.namespace, &pod.name));
        let example = first.and_then(|pod| {
            let what = &pod.trouble.as_ref()?.what;
            Some(format!("{}/{}: {what}", pod.namespace, pod.name))
        });
        Enrolled { named: self.pods.len(), attached, overdue: overdue.count(), example }
    }
}
