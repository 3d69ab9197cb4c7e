//! Names that no other test uses, and where things are.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};

/// What all names of cgroups and pin roots begin with.
const PREFIX: &str = "slotmesh-e2e-";
/// Where BPF objects are pinned.
const BPFFS: &str = "/sys/fs/bpf";

fn next() -> u32 {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// A name that no other test of this machine uses.
pub fn unique() -> String {
    format!("{PREFIX}{}-{}", process::id(), next())
}

/// A port for an admin interface, below the ephemeral ones.
pub fn admin_port() -> u16 {
    const FIRST: u16 = 15_020;
    const COUNT: u32 = 10_000;
    FIRST + u16::try_from(next() % COUNT).unwrap_or_default()
}

/// A pin root of one's own. It goes, with all in it, when this is dropped.
#[derive(Debug)]
pub struct PinRoot(PathBuf);

impl PinRoot {
    /// A name only: the agent makes the directory.
    pub fn new() -> Self {
        sweep();
        Self(Path::new(BPFFS).join(unique()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Default for PinRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PinRoot {
    fn drop(&mut self) {
        remove_pins(&self.0);
    }
}

fn remove_pins(root: &Path) {
    if let Err(error) = fs::remove_dir_all(root)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("{} stays: {error}", root.display());
    }
}

/// Removes, once a process, the cgroups and pin roots of test processes that are no more (killed
/// before they could do it themselves).
pub fn sweep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        stale(Path::new(BPFFS)).iter().for_each(|root| remove_pins(root));
        if let Ok(root) = crate::cgroup::v2_root() {
            for dir in stale(&root) {
                drop(fs::remove_dir(dir));
            }
        }
    });
}

fn stale(dir: &Path) -> Vec<PathBuf> {
    let dead = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
    };
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(dead).collect()
}

/// A binary of the workspace, built with the same profile as the running one.
///
/// # Errors
/// When it isn't there; the message says how to build it.
pub fn binary(package: &str, name: &str) -> Result<PathBuf> {
    let me = env::current_exe().context("where is this executable?")?;
    let beside = me.parent().context("an executable has a directory")?;
    // Tests are one directory further down than binaries.
    let dir = if beside.ends_with("deps") { beside.parent().unwrap_or(beside) } else { beside };
    let path = dir.join(name);
    ensure!(path.is_file(), "{} is missing: run `cargo build -p {package}`", path.display());
    Ok(path)
}
