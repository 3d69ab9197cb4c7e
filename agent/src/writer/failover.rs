//! Load assignments of which nearer endpoints go before others, while connects to the nearer ones fail.
//!
//! Who is left out is decided in the kernel, and told here when it changes. Which endpoints callers have is decided when an
//! assignment is written. So where all that it holds are left out, or where others stand in for those that were, it is
//! asked for once more, and written by what is known then.
//!
//! Invariant: an assignment is asked for only while it holds the nearest of several distances; what isn't so costs nothing.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
};

use slotmesh_records::{Cluster, Guard, Handle, name_hash};

use super::Writer;
use crate::{
    RecordType,
    config::{self, Endpoints, Source},
    held::Held,
    running::LeftOut,
};

/// Endpoints that are left out, and the load assignments that this concerns.
#[derive(Default)]
pub(super) struct Failover {
    /// As it was told last.
    left_out: LeftOut,
    /// The load assignments of clusters in force with outlier detection, by the hash of the cluster's name.
    guarded: HashMap<u64, String>,
    /// Load assignments in force that have endpoints farther away: whether some of those stand in for nearer ones.
    farther: HashMap<String, bool>,
}

impl Writer {
    /// Takes note of the endpoints that are left out now.
    pub(crate) fn set_left_out(&mut self, left_out: LeftOut) {
        if self.failover.left_out != left_out {
            self.failover.left_out = left_out;
            self.look_at_left_out();
        }
    }

    /// A cluster is in force, or isn't any more (`None`).
    pub(super) fn guard(&mut self, name: &str, cluster: Option<&config::Cluster<'_>>) {
        let assignment = cluster.and_then(|cluster| match cluster.source {
            Source::Assignment(assignment) if cluster.outliers.is_some() => Some(assignment),
            _ => None,
        });
        self.guard_over(name, assignment);
    }

    fn guard_over(&mut self, name: &str, assignment: Option<&str>) {
        let guarded = &mut self.failover.guarded;
        if guarded.is_empty() && assignment.is_none() {
            return;
        }
        let hash = name_hash(name);
        if guarded.get(&hash).map(String::as_str) == assignment {
            return;
        }
        match assignment {
            Some(assignment) => drop(guarded.insert(hash, assignment.to_owned())),
            None => drop(guarded.remove(&hash)),
        }
        if self.failover.left_out.contains_key(&hash) {
            self.look_at_left_out();
        }
    }

    /// As [`guard`](Self::guard), of a cluster that an earlier agent has put in force.
    pub(super) fn guard_recovered(&mut self, name: &str) {
        let assignment = self.guarded_by(name);
        self.guard_over(name, assignment.as_deref());
    }

    /// The load assignment of a cluster with outlier detection, by its records.
    fn guarded_by(&self, cluster: &str) -> Option<String> {
        let root = self.engine.current(self.engine.find(RecordType::Cluster.kind(), cluster)?);
        let (cluster, _) = self.engine.record::<Cluster>(root)?;
        let (guard, _) = self.engine.record::<Guard>(cluster.guard.ptr())?;
        let (_, name) = self.engine.record::<Handle>(cluster.endpoints.ptr())?;
        (guard.failures != 0).then(|| std::str::from_utf8(name).ok().map(str::to_owned))?
    }

    /// A load assignment is in force, or isn't any more (`None`).
    pub(super) fn note_farther(&mut self, name: &str, endpoints: Option<&Endpoints<'_>>) {
        let farther = &mut self.failover.farther;
        match endpoints.and_then(|endpoints| endpoints.farther) {
            Some(stand_in) => match farther.get_mut(name) {
                Some(held) => *held = stand_in,
                None => drop(farther.insert(name.to_owned(), stand_in)),
            },
            None if farther.is_empty() => {}
            None => drop(farther.remove(name)),
        }
    }

    /// Others are left out than before, or other assignments are concerned.
    fn look_at_left_out(&mut self) {
        let mut left_out = HashMap::<String, BTreeSet<SocketAddr>>::new();
        for (cluster, endpoints) in &self.failover.left_out {
            if let Some(assignment) = self.failover.guarded.get(cluster) {
                left_out.entry(assignment.clone()).or_default().extend(endpoints);
            }
        }
        let before = std::mem::replace(&mut self.view.left_out, Arc::new(left_out));
        self.hashed_names.see_from(&self.view);
        let now = &self.view.left_out;
        let concerned = before.keys().chain(now.keys()).filter(|name| before.get(*name) != now.get(*name));
        let stale: BTreeSet<_> = concerned.filter(|name| self.is_to_be_chosen_anew(name)).cloned().collect();
        self.stale.extend(stale.into_iter().map(|name| (RecordType::Endpoints, name.into())));
    }

    /// Tells whether other endpoints may be the nearest ones now.
    fn is_to_be_chosen_anew(&self, assignment: &str) -> bool {
        match self.failover.farther.get(assignment) {
            None => false,
            Some(true) => true,
            Some(false) => {
                let Some(left_out) = self.view.left_out.get(assignment) else { return false };
                let handle = self.engine.find(RecordType::Endpoints.kind(), assignment);
                let held = handle.and_then(|handle| Held::read(&self.engine, self.engine.current(handle)));
                let Some(endpoints) = held.as_ref().and_then(Held::endpoints) else { return false };
                [&endpoints.v4, &endpoints.v6].into_iter().any(|family| {
                    let is_out =
                        |at: &config::Endpoint| left_out.contains(&SocketAddr::new(at.ip, at.port.get()));
                    !family.is_empty() && family.iter().all(is_out)
                })
            }
        }
    }
}
