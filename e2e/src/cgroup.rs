//! Cgroups of the v2 hierarchy: what a workload is to the programs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::names;

/// A cgroup that is removed, with the processes in it, when this is dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// A new cgroup at the top of the hierarchy.
    ///
    /// # Errors
    /// Where there is no v2 hierarchy or it can't be written.
    pub fn new() -> Result<Self> {
        names::sweep();
        let dir = v2_root()?.join(names::unique());
        fs::create_dir(&dir).with_context(|| format!("create the cgroup {} (needs root)", dir.display()))?;
        Ok(Self(dir))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Moves a process in. Sockets that it has already stay where they were created.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        let file = self.0.join("cgroup.procs");
        fs::write(&file, pid.to_string()).with_context(|| format!("move process {pid} to {}", file.display()))
    }
}

impl Cgroup {
    /// Removes it and makes it again: another cgroup in the same place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn renew(&mut self) -> Result<()> {
        self.remove();
        fs::create_dir(&self.0).with_context(|| format!("create the cgroup {} again", self.0.display()))
    }

    fn remove(&self) {
        // A process that just ended is counted for a moment; one that didn't is ended with its cgroup.
        for attempt in 0..200 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    if attempt == 50 {
                        drop(fs::write(self.0.join("cgroup.kill"), "1"));
                    }
                    thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
        eprintln!("the cgroup {} stays: it can't be removed", self.0.display());
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Where the cgroup v2 hierarchy is mounted.
///
/// # Errors
/// When it isn't.
pub fn v2_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (mount, fs) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            fs.starts_with("cgroup2 ").then(|| PathBuf::from(point))
        })
        .context("no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup")
}
