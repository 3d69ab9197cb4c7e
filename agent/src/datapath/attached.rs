//! The workloads that are attached, and as whom the programs know them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use slotmesh_admin::WorkloadInForce;
use slotmesh_records::{Identity, mark_of};

use super::{Datapath, DatapathError, Workload, error::bpf};

/// Attached workloads and their cgroups' ids, by the ids of the workloads.
#[derive(Debug, Default)]
pub(super) struct AttachedWorkloads(Mutex<BTreeMap<u64, (Workload, u64)>>);

impl AttachedWorkloads {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (Workload, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, workload: &Workload, cgroup: u64) {
        self.lock().insert(workload.id(), (workload.clone(), cgroup));
    }

    pub(super) fn remove(&self, workload: u64) {
        self.lock().remove(&workload);
    }

    pub(super) fn retain(&self, wanted: &HashSet<u64>) {
        self.lock().retain(|workload, _| wanted.contains(workload));
    }
}

impl Datapath {
    /// The namespaces and names of the workloads that are attached, by their marks.
    pub(crate) fn sources(&self) -> HashMap<u32, [String; 2]> {
        let named = |workload: &Workload| [workload.namespace.clone(), workload.name.clone()];
        self.attached.lock().iter().map(|(id, (workload, _))| (mark_of(*id), named(workload))).collect()
    }

    /// The workloads that are attached, by namespace and name.
    pub fn workloads(&self) -> Vec<WorkloadInForce> {
        let classes = self.classes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let attached = self.attached.lock();
        let mut found: Vec<WorkloadInForce> = attached
            .iter()
            .map(|(id, (workload, _))| WorkloadInForce {
                namespace: workload.namespace.clone(),
                name: workload.name.clone(),
                cgroup: workload.cgroup.display().to_string(),
                class: classes.get(id).cloned(),
            })
            .collect();
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        found
    }

    /// The identity that the kernel holds of an attached workload, `NAMESPACE/NAME`; `None` where it isn't attached.
    ///
    /// # Errors
    /// Where the kernel doesn't tell.
    pub(crate) fn identity_in_force(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Identity>, DatapathError> {
        let attached = self.attached.lock();
        let mut of_name = attached.values();
        let is = |(workload, _): &&(Workload, u64)| workload.namespace == namespace && workload.name == name;
        let Some(cgroup) = of_name.find(is).map(|(_, cgroup)| *cgroup) else { return Ok(None) };
        drop(attached);
        self.identity.get(&cgroup).map_err(bpf("read the identity of a workload"))
    }
}
