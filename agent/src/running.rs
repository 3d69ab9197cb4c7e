//! What runs of clusters (connections, turns) outlives every flush; here it ends, some time after its
//! cluster. The programs make the entries; the agent only removes them, so an update makes no call. Those of
//! endpoints the programs remove, too.

use std::{cmp::Reverse, collections::VecDeque};

use slotmesh_kernel::Map;
use slotmesh_records::{ClusterState, EndpointCount, EndpointKey, name_hash};

/// What runs now.
#[derive(Clone, Debug, Default)]
pub struct RunningNow {
    /// Of the clusters that are in force, the busiest of those that had a connection, by name.
    pub clusters: Vec<(String, ClusterState)>,
    /// At how many endpoints connections count.
    pub endpoints: usize,
}

/// Reads what runs, on whatever thread: by maps of its own, so it keeps nobody from an update.
pub(crate) struct RunningReader {
    clusters: Map<u64, ClusterState>,
    endpoints: Map<EndpointKey, EndpointCount>,
}

impl RunningReader {
    /// Reads these maps.
    pub const fn new(clusters: Map<u64, ClusterState>, endpoints: Map<EndpointKey, EndpointCount>) -> Self {
        Self { clusters, endpoints }
    }

    /// The `most` busiest clusters, busiest first, by the hash of the cluster's name.
    pub fn busiest(&self, most: usize) -> Vec<(u64, ClusterState)> {
        if most == 0 {
            return Vec::new();
        }
        let mut entries = self.clusters.entries().unwrap_or_else(|error| {
            tracing::warn!(%error, "what runs of clusters can't be read");
            Vec::new()
        });
        entries.sort_unstable_by_key(|&(cluster, state)| Reverse((state.active, state.opened, cluster)));
        entries.truncate(most);
        entries
    }

    /// At how many endpoints connections count.
    pub fn endpoints(&self) -> usize {
        self.endpoints.entries().map_or_else(
            |error| {
                tracing::warn!(%error, "the counts of endpoints can't be read");
                0
            },
            |all| all.len(),
        )
    }
}

/// How many departed clusters are looked at in one go.
const AT_ONCE: usize = 32;

/// The state of clusters, and which of them have gone.
#[derive(Default)]
pub(crate) struct Running {
    map: Option<Map<u64, ClusterState>>,
    departed: VecDeque<u64>,
}

impl Running {
    /// Takes the map over, with all that an earlier agent left there.
    pub fn open(&mut self, map: Map<u64, ClusterState>) {
        self.map = Some(map);
    }

    /// What an earlier agent left of clusters that aren't there any more goes.
    ///
    /// Not before the first sync: in an upgrade to other records there are no clusters until then, while the
    /// earlier agent's programs go on counting. What they count at the moment of a removal would be lost, and
    /// its end would bring the count below zero.
    pub fn leave_behind(&mut self, exists: impl Fn(u64) -> bool) {
        match self.map.as_ref().map_or(Ok(Vec::new()), Map::keys) {
            Ok(keys) => self.departed.extend(keys.into_iter().filter(|&cluster| !exists(cluster))),
            Err(error) => tracing::warn!(%error, "what runs of clusters that are gone can't be removed"),
        }
    }

    /// A cluster has been removed.
    pub fn depart(&mut self, cluster: u64) {
        self.departed.push_back(cluster);
    }

    /// A cluster of this name is there (again).
    pub fn stay(&mut self, name: &str) {
        if !self.departed.is_empty() {
            let cluster = name_hash(name);
            self.departed.retain(|&departed| departed != cluster);
        }
    }

    /// Removes what has no connections any more, of a bounded number of departed clusters.
    pub fn poll(&mut self) {
        let Some(map) = &self.map else { return };
        for _ in 0..AT_ONCE.min(self.departed.len()) {
            let Some(cluster) = self.departed.pop_front() else { return };
            let removed = match map.get(&cluster) {
                Ok(None) => Ok(true),
                Ok(Some(ClusterState { active: 0, .. })) => map.delete(&cluster).map(|_| true),
                Ok(Some(_)) => Ok(false),
                Err(error) => Err(error),
            };
            match removed {
                Ok(true) => {}
                Ok(false) => self.departed.push_back(cluster),
                Err(error) => {
                    tracing::warn!(%error, "what runs of a cluster that is gone can't be removed");
                    self.departed.push_back(cluster);
                }
            }
        }
    }
}
