//! Workloads that are named at the start, by their cgroups, and stay attached: also when their cgroups are made again.
//! What they are as callers, the operator says.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prost::Message as _;
use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_kernel::cgroup_id;
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version, Workload as Named};
use tokio::sync::watch;

use super::{
    NoPods, lock,
    watcher::{Watched, Watcher},
};
use crate::{Datapath, Workload};

/// A cgroup may be made again together with those above it, of which inotify tells nothing. So it is looked at, too.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps workloads attached. Ends when it is dropped.
#[derive(Debug)]
pub struct FixedWorkloads {
    _watcher: Watcher,
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
        Ok(Self { _watcher: Watcher::start(Arc::new(Mutex::new(state)))? })
    }
}

impl Watched for Arc<Mutex<State>> {
    fn created(&self, paths: &[PathBuf], now: Instant) {
        let mut state = lock(self);
        if state.workloads.iter().any(|fixed| paths.contains(&fixed.workload.cgroup)) {
            state.look(now);
        }
    }

    fn missed(&self, now: Instant) {
        lock(self).look(now);
    }

    fn watching(&self, _: &Path, now: Instant) {
        lock(self).look(now);
    }

    fn to_watch(&self) -> Vec<PathBuf> {
        lock(self).new_parents()
    }

    fn due(&self) -> Option<Instant> {
        Some(lock(self).next)
    }

    fn retry(&self, now: Instant) {
        lock(self).look(now);
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

/// A sink that takes the classes of workloads that are named at the start, and hands the rest on.
pub struct FixedCallers<S> {
    inner: S,
    datapath: Arc<Datapath>,
    workloads: Vec<Workload>,
    /// Whether they are attached: before that, a class waits for the attachment.
    attached: watch::Receiver<bool>,
    /// The resources that the operator has sent, and the workload of each by its place.
    held: Mutex<HashMap<ResourceName, (Version, Option<usize>)>>,
}

impl<S> FixedCallers<S> {
    /// Takes the classes of these workloads, which `attached` tells of when they are.
    pub fn new(
        inner: S,
        datapath: Arc<Datapath>,
        workloads: Vec<Workload>,
        attached: watch::Receiver<bool>,
    ) -> Self {
        Self { inner, datapath, workloads, attached, held: Mutex::default() }
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
        lock(&self.held).insert(resource.name.clone(), (resource.version, at));
        at.map_or(Ok(()), |at| self.classify(at, &class))
    }
}

impl<S: Sink> Sink for FixedCallers<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        let mut held = self.inner.held().await;
        let own = lock(&self.held);
        held.extend(own.iter().map(|(name, (version, _))| (ResourceType::Workload, name.clone(), *version)));
        held
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        if update.ty != ResourceType::Workload {
            return self.inner.apply(update).await;
        }
        let mut rejected = Vec::new();
        let mut reject = |name: &ResourceName, outcome: Result<(), String>| {
            rejected.extend(outcome.err().map(|reason| Rejection { name: name.clone(), reason }));
        };
        for resource in &update.upserts {
            reject(&resource.name, self.named(resource));
        }
        for name in &update.removed {
            let gone = lock(&self.held).remove(name);
            if let Some((_, Some(at))) = gone {
                reject(name, self.classify(at, ""));
            }
        }
        rejected
    }

    fn synced(&self) {
        self.inner.synced();
    }

    async fn room(&self) -> AskAgain {
        self.inner.room().await
    }
}
