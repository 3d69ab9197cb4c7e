//! Workloads and their cgroups.

use std::{collections::HashMap, fmt, path::PathBuf};

use slotmesh_kernel::{Host, cgroup_id};
use slotmesh_records::name_hash;

use super::DatapathError;

/// A workload and its cgroup.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
}

impl Workload {
    /// The hash by which programs and pins know it.
    pub fn id(&self) -> u64 {
        name_hash(&self.to_string())
    }

    /// Checks that the workloads can be attached: each has a cgroup, none in or below that of another.
    ///
    /// # Errors
    /// At the first that can't.
    pub fn check(workloads: &[Self], host: &Host) -> Result<(), DatapathError> {
        let mut cgroups = Vec::with_capacity(workloads.len());
        for workload in workloads {
            let dir = host.cgroup(&workload.cgroup)?;
            let pin = |source| DatapathError::Pin { path: workload.cgroup.clone(), source };
            cgroups.push((
                workload.cgroup.canonicalize().map_err(pin)?,
                cgroup_id(&dir).map_err(pin)?,
                workload,
            ));
        }
        // In the order of paths, what lies below a directory follows it.
        cgroups.sort();
        for pair in cgroups.windows(2) {
            let [(outer, _, of), (inner, _, with)] = pair else { continue };
            if inner.starts_with(outer) {
                return Err(DatapathError::Nested { outer: of.to_string(), inner: with.to_string() });
            }
        }
        // One hierarchy may be mounted at several places.
        let mut ids = HashMap::new();
        let root = host.cgroup(&host.cgroup2).ok().and_then(|root| cgroup_id(&root).ok());
        for (_, id, workload) in cgroups {
            if Some(id) == root {
                tracing::warn!(
                    %workload, cgroup = %workload.cgroup.display(),
                    "its cgroup is the root of the hierarchy: connections of every process on this machine are routed"
                );
            }
            if let Some(other) = ids.insert(id, workload) {
                return Err(DatapathError::Nested { outer: other.to_string(), inner: workload.to_string() });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
