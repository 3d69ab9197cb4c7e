//! The cgroups that a cluster's nodes live in.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// A cluster's cgroups. They are removed, with the processes in them, when this is dropped.
#[derive(Debug)]
pub struct Cgroups {
    unified: PathBuf,
    memory: Option<PathBuf>,
}

impl Cgroups {
    /// Makes those of this name, in the v2 hierarchy and, where the memory controller isn't in that, in
    /// its own. What begins with `prefix` and a number of a process that is no more is removed before.
    ///
    /// # Errors
    /// Where there is no v2 hierarchy or it can't be written.
    pub fn new(prefix: &str, name: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let root = mounted(&mounts, |kind, _| kind == "cgroup2")
            .context("no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")?;
        let own = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
        let memory = mounted(&mounts, |kind, options| {
            kind == "cgroup" && options.split(',').any(|option| option == "memory")
        });
        let memory = memory.and_then(|root| {
            let path = own.lines().find_map(|line| line.split_once(":memory:"))?.1;
            Some(root.join(path.trim_start_matches('/')))
        });
        for parent in [Some(&root), memory.as_ref()].into_iter().flatten() {
            stale(parent, prefix).iter().for_each(|dir| remove(dir));
        }
        let this = Self { unified: root.join(name), memory: memory.map(|parent| parent.join(name)) };
        for dir in [Some(&this.unified), this.memory.as_ref()].into_iter().flatten() {
            fs::create_dir(dir)
                .with_context(|| format!("create the cgroup {} (needs root)", dir.display()))?;
        }
        Ok(this)
    }

    /// A node's cgroup.
    pub fn node(&self, name: &str) -> PathBuf {
        self.unified.join(name)
    }

    /// A node's cgroup of the memory controller, which is made.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn node_memory(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(dir) = self.memory.as_ref().map(|dir| dir.join(name)) else { return Ok(None) };
        fs::create_dir_all(&dir).with_context(|| format!("create the cgroup {}", dir.display()))?;
        Ok(Some(dir))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        [Some(&self.unified), self.memory.as_ref()].into_iter().flatten().for_each(|dir| remove(dir));
    }
}

fn mounted(mounts: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        wanted(fs.next()?, fs.nth(1)?).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn stale(parent: &Path, prefix: &str) -> Vec<PathBuf> {
    let dead = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path()).filter(dead).collect()
}

/// Removes a cgroup and all below. A process that just ended is counted for a moment; one that didn't is
/// ended with its cgroup.
fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    for attempt in 0..400 {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                if attempt == 50 {
                    drop(fs::write(dir.join("cgroup.kill"), "1"));
                }
                thread::sleep(Duration::from_millis(5));
            }
            _ => return,
        }
    }
    eprintln!("the cgroup {} stays: it can't be removed", dir.display());
}
