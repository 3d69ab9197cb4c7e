//! Workloads that are named at the start, by their cgroups, and stay attached: also when their cgroups are made again.
//! What they are as callers, the operator says.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::ready,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_ads::Update;
use slotmesh_kernel::cgroup_id;
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version, Workload as Named};
use tokio::sync::watch;

use super::{
    NoPods,
    watcher::{Watched, Watcher},
};
use crate::{
    Agent, Datapath, Workload,
    handlers::{Handler, Handling, HeldResources},
};

/// A cgroup may be made again together with those above it, of which inotify tells nothing. So it is looked at, too.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps workloads attached. Ends when it is dropped.
#[derive(Debug)]
pub struct FixedWorkloads {
    _watcher: Watcher<Infallible>,
}

struct Fixed {
    workload: Workload,
    /// The cgroup that it is attached to.
    cgroup: Option<u64>,
    /// What was said last.
    trouble: Option<String>,
}

struct State {
    datapath: Arc<Datapath>,
    workloads: Vec<Fixed>,
    /// The directories that are watched, and which ones they were.
    watched: HashSet<(PathBuf, u64)>,
    next: Instant,
}

impl FixedWorkloads {
    /// Keeps these workloads attached, which are attached already.
    ///
    /// # Errors
    /// Where cgroups can't be watched.
    pub fn keep(datapath: Arc<Datapath>, workloads: Vec<Workload>) -> Result<Self, NoPods> {
        let fixed = |workload: Workload| Fixed { workload, cgroup: None, trouble: None };
        let workloads = workloads.into_iter().map(fixed).collect();
        let mut state = State { datapath, workloads, watched: HashSet::new(), next: Instant::now() };
        // What was made again since they were attached.
        state.look(Instant::now());
        Ok(Self { _watcher: Watcher::start(state)? })
    }
}

impl Watched for State {
    type Request = Infallible;

    fn asked(&mut self, request: Infallible, _: Instant) {
        match request {}
    }

    fn created(&mut self, paths: &[PathBuf], now: Instant) {
        if self.workloads.iter().any(|fixed| paths.contains(&fixed.workload.cgroup)) {
            self.look(now);
        }
    }

    fn missed(&mut self, now: Instant) {
        self.look(now);
    }

    fn watching(&mut self, _: &Path, now: Instant) {
        self.look(now);
    }

    fn to_watch(&mut self) -> Vec<PathBuf> {
        self.new_parents()
    }

    fn due(&self) -> Option<Instant> {
        Some(self.next)
    }

    fn retry(&mut self, now: Instant) {
        self.look(now);
    }
}

impl State {
    fn look(&mut self, now: Instant) {
        self.next = now + LOOK;
        for fixed in &mut self.workloads {
            let Fixed { workload, cgroup, trouble } = fixed;
            let Some(there) = inode(&workload.cgroup) else {
                if cgroup.take().is_some() {
                    tracing::warn!(%workload, "its cgroup is gone; it is attached again when it is made again");
                }
                continue;
            };
            if *cgroup == Some(there) {
                continue;
            }
            match self.datapath.enrol(workload) {
                Ok(()) => {
                    tracing::info!(%workload, cgroup = %workload.cgroup.display(), "attached");
                    (*cgroup, *trouble) = (Some(there), None);
                }
                Err(error) => {
                    let error = error.to_string();
                    if trouble.as_ref() != Some(&error) {
                        tracing::warn!(%workload, error, "can't be attached; trying again");
                    }
                    *trouble = Some(error);
                }
            }
        }
    }

    /// The directories in which the cgroups are, where they have been made since they were watched last.
    fn new_parents(&mut self) -> Vec<PathBuf> {
        let parents = self.workloads.iter().filter_map(|fixed| fixed.workload.cgroup.parent());
        let there: HashSet<(PathBuf, u64)> =
            parents.filter_map(|dir| Some((dir.to_owned(), inode(dir)?))).collect();
        let new = there.difference(&self.watched).map(|(dir, _)| dir.clone()).collect();
        self.watched = there;
        new
    }
}

fn inode(dir: &Path) -> Option<u64> {
    cgroup_id(&std::fs::File::open(dir).ok()?).ok()
}

/// A handler that takes the classes of workloads that are named at the start.
pub struct FixedCallers {
    datapath: Arc<Datapath>,
    workloads: Vec<Workload>,
    /// Whether they are attached: before that, a class waits for the attachment.
    attached: watch::Receiver<bool>,
    /// The resources that the operator has sent, and the workload of each by its place.
    held: Mutex<HashMap<ResourceName, (Version, Option<usize>)>>,
}

impl FixedCallers {
    /// Takes the classes of these workloads, which the agent attaches.
    pub fn new(agent: &Agent, workloads: Vec<Workload>) -> Self {
        let (datapath, attached) = (agent.datapath().clone(), agent.synced());
        Self { datapath, workloads, attached, held: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ResourceName, (Version, Option<usize>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a workload its class: in place where it is attached.
    fn classify(&self, at: usize, class: &str) -> Result<(), String> {
        let Some(workload) = self.workloads.get(at) else { return Ok(()) };
        self.datapath.classify(workload, class);
        // One whose cgroup is gone gets it when that is made again.
        if *self.attached.borrow() && workload.cgroup.exists() {
            self.datapath.enrol(workload).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn named(&self, resource: &Resource) -> Result<(), String> {
        let Named { namespace, name, class, .. } = Named::decode(resource.content.as_ref())
            .map_err(|error| format!("not a valid Workload message: {error}"))?;
        let is = |workload: &Workload| workload.namespace == namespace && workload.name == name;
        let at = self.workloads.iter().position(is);
        self.known().insert(resource.name.clone(), (resource.version, at));
        at.map_or(Ok(()), |at| self.classify(at, &class))
    }
}

impl Handler for FixedCallers {
    fn types(&self) -> &'static [ResourceType] {
        &[ResourceType::Workload]
    }

    fn held(&self) -> Handling<'_, HeldResources> {
        let own = self.known();
        let held =
            own.iter().map(|(name, (version, _))| (ResourceType::Workload, name.clone(), *version)).collect();
        Box::pin(ready(held))
    }

    fn apply(&self, update: Update) -> Handling<'_, Vec<Rejection>> {
        Box::pin(async move {
            let mut rejected = Vec::new();
            let mut reject = |name: &ResourceName, outcome: Result<(), String>| {
                rejected.extend(outcome.err().map(|reason| Rejection { name: name.clone(), reason }));
            };
            for resource in &update.upserts {
                reject(&resource.name, self.named(resource));
            }
            for name in &update.removed {
                let gone = self.known().remove(name);
                if let Some((_, Some(at))) = gone {
                    reject(name, self.classify(at, ""));
                }
            }
            rejected
        })
    }
}
