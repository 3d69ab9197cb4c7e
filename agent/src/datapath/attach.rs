//! Attachment of the programs to workloads, and upgrades in place.
//!
//! What is attached stays so, whoever attached it: a link is replaced, never removed and made again, while its cgroup is.

use std::{
    collections::HashSet,
    fs,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use slotmesh_kernel::{Hook, Link, ask_of_cgroup, attached_programs, cgroup_id, program_id};
use slotmesh_records::{Identity, name_hash};

use super::{
    Datapath, DatapathError, Workload,
    error::{bpf, pin_error},
};
use crate::pins::remove_links;

impl Datapath {
    /// Attaches the programs to exactly these workloads: in place where an earlier agent attached
    /// them, so that no connection meets a moment without them; what is no longer named is detached.
    ///
    /// # Errors
    /// At the first workload that can't be attached; those that this call attached are detached again.
    pub fn attach(&self, workloads: &[Workload]) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        for workload in workloads {
            if let Err(error) = self.attach_one(workload, false, &mut new) {
                undo(new);
                return Err(error);
            }
        }
        self.retain(workloads)
    }

    /// Attaches the programs to a workload: in place where they are attached already, and anew where
    /// its cgroup has been made again.
    ///
    /// # Errors
    /// Where it can't be attached; what this call attached is detached again.
    pub fn enrol(&self, workload: &Workload) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        self.attach_one(workload, false, &mut new).inspect_err(|_| undo(new))
    }

    /// As [`enrol`](Self::enrol), of a workload whose cgroup is a pod's: what connects in a network namespace within
    /// the pod, which has addresses of its own, is left alone.
    ///
    /// # Errors
    /// As [`enrol`](Self::enrol).
    pub fn enrol_pod(&self, workload: &Workload) -> Result<(), DatapathError> {
        let mut new = Vec::new();
        self.attach_one(workload, true, &mut new).inspect_err(|_| undo(new))
    }

    /// Says of which class a workload is as a caller, from its next [`enrol`](Self::enrol) on; an empty class is that of
    /// its namespace. Until somebody says so, a workload keeps the class that an earlier agent gave it.
    pub fn classify(&self, workload: &Workload, class: &str) {
        let class = if class.is_empty() { &workload.namespace } else { class }.to_owned();
        self.classes.lock().unwrap_or_else(PoisonError::into_inner).insert(workload.id(), class);
    }

    /// Detaches the programs from a workload, if they are attached to it. The one that counts its sockets
    /// down stays until the cgroup is gone, and all its sockets.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn release(&self, workload: &Workload) -> Result<(), DatapathError> {
        self.classes.lock().unwrap_or_else(PoisonError::into_inner).remove(&workload.id());
        self.attached.remove(workload.id());
        let path = self.pins.links_of(workload.id());
        remove_links(&path).map_err(pin_error(&path))
    }

    /// Detaches the programs from all but these workloads.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn retain<'w>(&self, workloads: impl IntoIterator<Item = &'w Workload>) -> Result<(), DatapathError> {
        let wanted: HashSet<u64> = workloads.into_iter().map(Workload::id).collect();
        self.attached.retain(&wanted);
        let wanted: HashSet<PathBuf> = wanted.into_iter().map(|id| self.pins.links_of(id)).collect();
        for path in entries(&self.pins.links())? {
            if !wanted.contains(&path) {
                remove_links(&path).map_err(pin_error(&path))?;
                tracing::info!(links = %path.display(), "detached a workload that is no longer named");
            }
        }
        // Of cgroups that aren't routed any more, too.
        for path in entries(&self.pins.releases())? {
            if let Some(link) = self.live_release(&path)? {
                link.replace(self.release.as_fd()).map_err(bpf("upgrade the program that counts down"))?;
            }
        }
        Ok(())
    }

    /// The cookie of a workload's network namespace, that of its first process; `None` while it has none. Of a pod whose
    /// processes can't be looked at, it is known from its first connect on. What this says is to be checked: a process that
    /// is made or ends in this moment may have been taken for another.
    ///
    /// # Errors
    /// Where its cgroup can't be opened, or the kernel refuses.
    pub fn network_of(&self, workload: &Workload) -> Result<Option<u64>, DatapathError> {
        let dir = self.host.cgroup(&workload.cgroup)?;
        if let Some(program) = &self.pod_network
            && let Some(cookie) =
                ask_of_cgroup(program.as_fd(), dir.as_fd()).map_err(bpf("ask for a pod's namespace"))?
        {
            return Ok(Some(cookie));
        }
        let cgroup = cgroup_id(&dir).map_err(pin_error(&workload.cgroup))?;
        let identity = self.identity.get(&cgroup).map_err(bpf("read an identity"))?;
        Ok(identity.map(|identity| identity.network).filter(|network| *network != 0))
    }

    /// Removes the links of cgroups that are gone, and all their sockets.
    pub(crate) fn collect_releases(&self) -> Result<(), DatapathError> {
        for path in entries(&self.pins.releases())? {
            if self.live_release(&path)?.is_none() {
                fs::remove_file(&path).map_err(pin_error(&path))?;
            }
        }
        Ok(())
    }

    /// The link that counts a cgroup's sockets down; `None` where the cgroup is gone.
    fn live_release(&self, path: &Path) -> Result<Option<Link>, DatapathError> {
        let Some(link) = Link::open(path).map_err(bpf("open a link"))? else { return Ok(None) };
        let (cgroup, is_release) = link.target(Hook::SockRelease).map_err(bpf("read a link"))?;
        Ok((cgroup != 0 && is_release).then_some(link))
    }

    /// The directory of the links goes to `new` where it was missing.
    fn attach_one(
        &self,
        workload: &Workload,
        is_pod: bool,
        new: &mut Vec<PathBuf>,
    ) -> Result<(), DatapathError> {
        let describe = |what: &str| format!("{what} workload {workload}");
        let dir = self.host.cgroup(&workload.cgroup)?;
        let cgroup = cgroup_id(&dir).map_err(pin_error(&workload.cgroup))?;
        // First, and of the cgroup: whatever is redirected is counted down, whoever the workload is then.
        let release = self.pins.release_of(cgroup);
        match self.live_release(&release)? {
            Some(link) => {
                link.replace(self.release.as_fd()).map_err(bpf(describe("upgrade the programs of")))?;
            }
            None => {
                let link = Link::attach(Hook::SockRelease, dir.as_fd(), self.release.as_fd())
                    .map_err(bpf(describe("attach sock_release to")))?;
                link.pin(&release).map_err(bpf(describe("pin the link of")))?;
                new.push(release);
            }
        }
        let links = self.pins.links_of(workload.id());
        if self.pins.create_links_of(workload.id()).map_err(pin_error(&links))? {
            new.push(links.clone());
        }
        for (i, (hook, program)) in self.hooks.iter().enumerate() {
            let path = links.join(hook.as_str());
            let earlier = Link::open(&path).map_err(bpf(describe("open the link of")))?;
            match earlier {
                Some(link)
                    if link.target(*hook).map_err(bpf(describe("read the link of")))? == (cgroup, true) =>
                {
                    link.replace(program.as_fd()).map_err(bpf(describe("upgrade the programs of")))?;
                }
                other => {
                    // The cgroup was removed and made again, or the workload moved. Should it not be possible to
                    // attach to the new one, the old link stays.
                    let link = Link::attach(*hook, dir.as_fd(), program.as_fd())
                        .map_err(bpf(describe(&format!("attach {} to", hook.as_str()))))?;
                    if other.is_some() {
                        fs::remove_file(&path).map_err(pin_error(&path))?;
                    }
                    link.pin(&path).map_err(bpf(describe("pin the link of")))?;
                }
            }
            if i == 0 {
                // The first attachment makes the cgroup's storage; nothing decides yet.
                let identity = self.identity_of(workload, cgroup, is_pod);
                self.identity.update(&cgroup, &identity).map_err(bpf(describe("store the identity of")))?;
            }
        }
        self.attached.insert(workload, cgroup);
        self.warn_of_others(workload, &dir);
        Ok(())
    }

    /// Who a workload is, in this cgroup.
    fn identity_of(&self, workload: &Workload, cgroup: u64, is_pod: bool) -> Identity {
        let (id, namespace) = (workload.id(), name_hash(&workload.namespace));
        let told = self.classes.lock().unwrap_or_else(PoisonError::into_inner);
        let told = told.get(&id).map(|class| name_hash(class));
        let before = self.identity.get(&cgroup).ok().flatten().filter(|before| before.workload == id);
        let class = told.or_else(|| before.map(|before| before.class)).unwrap_or(namespace);
        let pod = if is_pod { cgroup } else { 0 };
        Identity { workload: id, namespace, class, pod, network: 0 }
    }

    /// Whoever else decides about the workload's connections does so beside us: another agent, with another pin root
    /// or on another BPF file system, knows nothing of this one.
    fn warn_of_others(&self, workload: &Workload, cgroup: &fs::File) {
        for (hook, program) in
            self.hooks.iter().filter(|(hook, _)| matches!(hook, Hook::Connect4 | Hook::Connect6))
        {
            let others = attached_programs(*hook, cgroup.as_fd()).and_then(|mut ids| {
                let own = program_id(program.as_fd())?;
                ids.retain(|id| *id != own);
                Ok(ids)
            });
            match others {
                Ok(others) if others.is_empty() => {}
                Ok(programs) => tracing::warn!(
                    %workload, hook = hook.as_str(), ?programs,
                    "other programs are attached to its cgroup, too, and both decide; is there another slotmesh agent, \
                     with a pin root of its own or on another BPF file system? `bpftool prog show id ID` tells whose they are"
                ),
                Err(error) => tracing::debug!(%workload, %error, "can't find out what else is attached"),
            }
        }
    }
}

/// The pins in a directory.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, DatapathError> {
    let paths =
        fs::read_dir(dir).and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    paths.map_err(pin_error(dir))
}

/// Removes what was attached before an attach failed: the error that led here says more than one that
/// follows from it.
fn undo(new: Vec<PathBuf>) {
    for path in new.iter().rev() {
        let _ = if path.is_dir() { remove_links(path) } else { fs::remove_file(path) };
    }
}
