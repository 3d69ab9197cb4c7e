//! The cgroups of a node's pods, as the kubelet lays them out.
//!
//! ```text
//!  cgroupfs driver   kubepods/[burstable|besteffort/]pod<uid>
//!  systemd driver    kubepods.slice/[kubepods-burstable.slice/]kubepods-burstable-pod<uid, - as _>.slice
//! ```
//!
//! Both may lie deeper, below the kubelet's own cgroup root (kubelet.slice, or what `--cgroup-root` says). So a pod's
//! cgroup is known by its own name, and is looked for below every cgroup that holds pods: one named after `kubepods`,
//! or after `kubelet` above such. The rest of the tree is read only while pods are named that aren't found, and what
//! pods themselves make is never: it may look like anything.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

/// How deep the cgroups lie that hold pods: `a.slice/kubelet.slice/kubelet-kubepods.slice/….slice`.
const DEPTH: usize = 5;

/// Why no pods can be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum NoPods {
    /// The kubelet uses cgroup v1.
    #[error(
        "the pods of this node are in cgroup v1 ({v1}), but programs attach to cgroup v2 ({root} has no \
         kubepods); boot the node with cgroup v2 (systemd.unified_cgroup_hierarchy=1)"
    )]
    Version1 {
        /// Where its pods are.
        v1: PathBuf,
        /// Where cgroup v2 is mounted.
        root: PathBuf,
    },
    /// The directory is no cgroup.
    #[error(
        "cgroup root {root}: {source}; name the directory where the host's cgroup v2 is mounted (--cgroup-root)"
    )]
    Root {
        /// What was named.
        root: PathBuf,
        /// Why it can't be read.
        #[source]
        source: std::io::Error,
    },
    /// Another agent enrols the same pods.
    #[error(
        "another slotmesh agent enrols the pods below {root}, perhaps with another pin root or on another BPF file system; \
         both would decide about each connection: stop it first"
    )]
    Taken {
        /// The cgroups' root, which the other one has locked.
        root: PathBuf,
    },
    /// inotify refuses.
    #[error("cgroups can't be watched: {0}; raise fs.inotify.max_user_instances and max_user_watches")]
    Unwatchable(#[source] notify::Error),
    /// There is no thread to watch them.
    #[error("the thread that watches cgroups can't be started: {0}")]
    Thread(#[source] std::io::Error),
}

/// Locks the root of the cgroups: whoever enrols its pods is alone, wherever it has its pins. Released by the kernel
/// when the process ends.
pub(super) fn lock(root: &Path) -> Result<File, NoPods> {
    let error = |source| NoPods::Root { root: root.to_owned(), source };
    let dir = File::open(root).map_err(error)?;
    match dir.try_lock() {
        Ok(()) => Ok(dir),
        Err(TryLockError::WouldBlock) => Err(NoPods::Taken { root: root.to_owned() }),
        Err(TryLockError::Error(source)) => Err(error(source)),
    }
}

/// A pod's uid: what its cgroup is named after.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PodUid {
    cgroupfs: String,
    systemd: String,
}

impl PodUid {
    /// `None` where it can't be one: it becomes part of a path.
    pub(super) fn new(uid: &str) -> Option<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (!uid.is_empty() && uid.len() <= 128 && uid.chars().all(good)).then(|| Self {
            cgroupfs: format!("pod{uid}"),
            systemd: format!("pod{}.slice", uid.replace('-', "_")),
        })
    }

    /// Whether this is the path of the pod's cgroup.
    pub(super) fn is_cgroup(&self, path: &Path) -> bool {
        name(path).is_some_and(|name| {
            name == self.cgroupfs
                || name.strip_suffix(self.systemd.as_str()).is_some_and(|before| before.ends_with('-'))
        })
    }
}

/// The cgroups that hold pods.
pub(super) struct Tree {
    root: PathBuf,
    parents: Vec<PathBuf>,
    /// Those of the parents that nobody watches yet.
    unwatched: Vec<PathBuf>,
}

impl Tree {
    pub(super) fn new(root: PathBuf) -> Self {
        let mut tree =
            Self { root: root.clone(), parents: vec![root.clone()], unwatched: vec![root.clone()] };
        tree.add_below(&root);
        tree
    }

    /// Refuses a node whose pods are elsewhere. A node without any pods yet is none.
    pub(super) fn check(&mut self) -> Result<(), NoPods> {
        fs::read_dir(&self.root).map_err(|source| NoPods::Root { root: self.root.clone(), source })?;
        if self.parents.len() > 1 {
            return Ok(());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        match v1_pods(&mounts) {
            Some(v1) => Err(NoPods::Version1 { v1, root: self.root.clone() }),
            None => Ok(()),
        }
    }

    /// The cgroups to watch besides.
    pub(super) fn take_unwatched(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.unwatched)
    }

    /// Whether a cgroup at this path holds pods.
    pub(super) fn is_parent(&self, path: &Path) -> bool {
        name(path).is_some_and(holds_pods)
    }

    /// A cgroup that holds pods was created, perhaps in the place of one that was removed.
    pub(super) fn found_parent(&mut self, path: &Path) {
        self.parents.retain(|known| known == path || !known.starts_with(path));
        self.add(path.to_owned(), true);
    }

    /// Looks for further cgroups that hold pods, in one of them.
    pub(super) fn look_below(&mut self, path: &Path) {
        self.add_below(path);
    }

    /// Looks for cgroups that hold pods wherever they may be.
    pub(super) fn look_everywhere(&mut self) {
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            if self.depth(&dir) >= DEPTH {
                continue;
            }
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|ty| ty.is_dir())) {
                if entry.file_name().to_str().is_some_and(holds_pods) {
                    self.add(entry.path(), false);
                } else {
                    dirs.push(entry.path());
                }
            }
        }
        for known in self.parents.clone() {
            self.add_below(&known);
        }
    }

    fn depth(&self, path: &Path) -> usize {
        path.strip_prefix(&self.root).map_or(0, |below| below.components().count())
    }

    /// The cgroup of a pod, if it exists.
    pub(super) fn find(&self, uid: &PodUid) -> Option<PathBuf> {
        self.parents.iter().find_map(|parent| {
            let direct = parent.join(&uid.cgroupfs);
            if direct.is_dir() {
                return Some(direct);
            }
            // systemd names a slice after all those above it.
            let slice = name(parent)?.strip_suffix(".slice")?;
            let path = parent.join(format!("{slice}-{}", uid.systemd));
            path.is_dir().then_some(path)
        })
    }

    fn add(&mut self, path: PathBuf, again: bool) {
        let known = self.parents.contains(&path);
        if known && !again {
            return;
        }
        if !known {
            self.parents.push(path.clone());
        }
        self.unwatched.push(path.clone());
        self.add_below(&path);
    }

    fn add_below(&mut self, path: &Path) {
        if self.depth(path) >= DEPTH {
            return;
        }
        let Ok(entries) = fs::read_dir(path) else { return };
        for entry in entries.flatten() {
            let is_dir = entry.file_type().is_ok_and(|ty| ty.is_dir());
            if is_dir && entry.file_name().to_str().is_some_and(holds_pods) {
                self.add(entry.path(), false);
            }
        }
    }
}

fn name(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

/// Whether a cgroup of this name is one that the kubelet creates above its pods.
fn holds_pods(name: &str) -> bool {
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    if matches!(stem, "kubelet" | "kubepods" | "burstable" | "besteffort") {
        return true;
    }
    let last = stem.rsplit('-').next().unwrap_or(stem);
    name.ends_with(".slice")
        && stem.contains("kubepods")
        && matches!(last, "kubepods" | "burstable" | "besteffort")
}

/// The pods' cgroup of a v1 hierarchy, if there is one, from the text of `/proc/self/mountinfo`.
fn v1_pods(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        (fs.split(' ').next() == Some("cgroup")).then_some(())?;
        let root = Path::new(mount.split(' ').nth(4)?);
        ["kubepods", "kubepods.slice"].into_iter().map(|pods| root.join(pods)).find(|pods| pods.is_dir())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "5f3c1a1e-0b5c-4f4e-9c55-0d7f6c6a1b2c";

    /// A directory tree that looks like a cgroup's.
    fn tree(dirs: &[&str]) -> (tempfile::TempDir, Tree) {
        let root = tempfile::tempdir().unwrap();
        for dir in dirs {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let tree = Tree::new(root.path().to_owned());
        (root, tree)
    }

    #[test]
    fn pods_are_found_in_every_layout() {
        let uid = PodUid::new(UID).unwrap();
        let dashed = UID.replace('-', "_");
        for path in [
            format!("kubepods/pod{UID}"),
            format!("kubepods/burstable/pod{UID}"),
            format!("kubepods/besteffort/pod{UID}"),
            format!("kubepods.slice/kubepods-pod{dashed}.slice"),
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{dashed}.slice"),
            format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
                 kubelet-kubepods-besteffort-pod{dashed}.slice"
            ),
        ] {
            let (root, tree) = tree(&["system.slice/x.service", &path]);
            assert_eq!(tree.find(&uid), Some(root.path().join(&path)), "{path}");
            assert!(uid.is_cgroup(Path::new(&path)), "{path}");
            assert!(!tree.parents.iter().any(|p| p.ends_with("system.slice") || uid.is_cgroup(p)));
            assert_eq!(tree.find(&PodUid::new("other").unwrap()), None);
        }
    }

    #[test]
    fn cgroups_that_hold_pods_are_told_from_pods_and_containers() {
        for yes in ["kubepods", "kubepods.slice", "kubepods-burstable.slice", "kubelet.slice", "besteffort"] {
            assert!(holds_pods(yes), "{yes}");
        }
        let pod = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
        for no in ["system.slice", "user.slice", "cri-containerd-0.scope", &pod, &format!("pod{UID}")] {
            assert!(!holds_pods(no), "{no}");
        }
    }

    #[test]
    fn a_layout_that_comes_later_is_found() {
        let (root, mut tree) = tree(&[]);
        let uid = PodUid::new(UID).unwrap();
        let pods = root.path().join("kubepods");
        fs::create_dir_all(pods.join("burstable").join(format!("pod{UID}"))).unwrap();
        assert_eq!(tree.find(&uid), None);
        assert!(tree.is_parent(&pods));
        tree.found_parent(&pods);
        assert!(tree.find(&uid).is_some());
    }

    #[test]
    fn a_kubelet_with_a_cgroup_root_of_its_own_is_found_and_what_pods_make_is_not() {
        let (uid, other) = (PodUid::new(UID).unwrap(), PodUid::new("other").unwrap());
        let dashed = UID.replace('-', "_");
        for path in [
            format!("custom/kubepods/burstable/pod{UID}"),
            format!("custom.slice/custom-kubepods.slice/custom-kubepods-pod{dashed}.slice"),
        ] {
            let forged = format!("{path}/container/kubepods/podother");
            let (root, mut tree) = tree(&["system.slice/x.service/y", &path, &forged]);
            assert_eq!(tree.find(&uid), None, "{path}");
            tree.take_unwatched();
            tree.look_everywhere();
            assert_eq!(tree.find(&uid), Some(root.path().join(&path)));
            assert_eq!(tree.find(&other), None);
            // Its parents are watched from now on, once.
            assert!(tree.take_unwatched().contains(&root.path().join(&path).parent().unwrap().to_owned()));
            tree.look_everywhere();
            assert_eq!(tree.take_unwatched(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn what_is_no_uid_becomes_no_path() {
        for bad in ["", "../x", "a/b", "a b"] {
            assert!(PodUid::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn pods_in_version_1_are_found_to_be_refused() {
        let (root, _) = tree(&["memory/kubepods", "unified"]);
        let root = root.path().display();
        let hybrid = format!(
            "30 23 0:26 / {root}/unified rw - cgroup2 cgroup2 rw\n31 23 0:27 / {root}/memory rw - cgroup cgroup rw,memory\n"
        );
        assert_eq!(v1_pods(&hybrid), Some(format!("{root}/memory/kubepods").into()));
        assert_eq!(v1_pods(&hybrid.replace("memory rw - cgroup ", "memory rw - tmpfs ")), None);
    }
}
