//! What the demo made, and whether all of it is gone.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use slotmesh_e2e::{bpf::Footprint, wait};

/// Everything that the demo made so far; noted before it is used, so that a failure leaves it known.
#[derive(Clone, Debug, Default)]
pub struct Made {
    /// Network namespaces, as the kernel names them.
    pub namespaces: BTreeSet<String>,
    /// Processes.
    pub processes: BTreeSet<u32>,
    /// Cgroups.
    pub cgroups: Vec<PathBuf>,
    /// Directories of manifests.
    pub directories: Vec<PathBuf>,
    /// Maps, programs, links and pins.
    pub footprint: Option<Footprint>,
}

impl Made {
    /// What there was.
    pub fn describe(&self) -> String {
        let bpf = self.footprint.as_ref().map_or_else(String::new, |footprint| footprint.describe() + ", ");
        format!(
            "{bpf}{} network namespaces, {} processes, {} cgroup, {} directory",
            self.namespaces.len(),
            self.processes.len(),
            self.cgroups.len(),
            self.directories.len()
        )
    }

    /// Waits until all of it is gone.
    ///
    /// # Errors
    /// With what stays.
    pub fn expect_gone(&self) -> Result<()> {
        let paths: Vec<_> =
            self.cgroups.iter().chain(&self.directories).filter(|path| path.exists()).collect();
        ensure!(paths.is_empty(), "{paths:?} are still there");
        let processes: Vec<_> =
            self.processes.iter().filter(|pid| Path::new("/proc").join(pid.to_string()).exists()).collect();
        ensure!(processes.is_empty(), "the processes {processes:?} still run");
        wait::until_true("the network namespaces to be gone", || Ok(in_use().is_disjoint(&self.namespaces)))?;
        self.footprint.as_ref().map_or(Ok(()), Footprint::expect_gone)
    }
}

/// The network namespaces that threads are in, or that are mounted somewhere.
fn in_use() -> BTreeSet<String> {
    let tasks = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|process| {
        // Processes end while they are looked at.
        fs::read_dir(process.path().join("task")).ok()
    });
    let links = tasks.flatten().flatten().filter_map(|task| fs::read_link(task.path().join("ns/net")).ok());
    let mut found: BTreeSet<_> = links.map(|link| link.to_string_lossy().into_owned()).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter_map(|line| Some(line.split(' ').nth(3)?.to_owned())));
    found
}
