//! What the host offers, and clear refusals where it doesn't.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use crate::{BpfError, Map, MapKind, MapSpec};

/// `BPF_FS_MAGIC` of statfs(2).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Something that slotmesh needs and the host doesn't offer, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Missing capabilities.
    #[error(
        "missing capabilities: {missing}; run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON \
         (a pod: securityContext.capabilities.add)"
    )]
    Capabilities {
        /// The names of those that are missing.
        missing: String,
    },
    /// The kernel offers no bpf(2).
    #[error(
        "this kernel offers no BPF (bpf(2): {0}); slotmesh needs Linux 6.1 or later with CONFIG_BPF_SYSCALL=y"
    )]
    NoBpf(io::Error),
    /// No cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted (looked in /proc/self/mountinfo); mount one: \
         mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoCgroup2,
    /// A directory that isn't a cgroup.
    #[error("{path} is not a cgroup of a v2 hierarchy: {reason}; name a directory below {root}")]
    NotCgroup {
        /// The directory.
        path: PathBuf,
        /// Why it can't be used.
        reason: String,
        /// Where cgroup v2 is mounted.
        root: PathBuf,
    },
    /// bpffs can't be had.
    #[error(
        "no BPF file system at {path} and it can't be mounted: {source}; mount it: mount -t bpf bpf {path}"
    )]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another agent has the pin root.
    #[error(
        "another slotmesh agent holds {path}; stop it first, or give this one a pin root of its own (--pin-root)"
    )]
    Locked {
        /// The pin root.
        path: PathBuf,
    },
    /// The pin root can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What was found on the host.
#[derive(Debug)]
pub struct Host {
    /// Where cgroup v2 is mounted.
    pub cgroup2: PathBuf,
}

impl Host {
    /// Checks capabilities, BPF and cgroup v2.
    pub fn probe() -> Result<Self, HostError> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let missing = missing_capabilities(&status);
        if !missing.is_empty() {
            return Err(HostError::Capabilities { missing: missing.join(", ") });
        }
        probe_bpf()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let cgroup2 = mount_point(&mounts, "cgroup2").ok_or(HostError::NoCgroup2)?;
        Ok(Self { cgroup2 })
    }

    /// Opens a cgroup's directory.
    pub fn cgroup(&self, path: &Path) -> Result<File, HostError> {
        let refuse = |reason: String| HostError::NotCgroup {
            path: path.to_owned(),
            reason,
            root: self.cgroup2.clone(),
        };
        let dir = File::open(path).map_err(|error| refuse(error.to_string()))?;
        if !path.join("cgroup.controllers").exists() {
            return Err(refuse("it has no cgroup.controllers file".to_owned()));
        }
        Ok(dir)
    }
}

/// The id by which the kernel knows a cgroup: its directory's inode number.
pub fn cgroup_id(dir: &File) -> io::Result<u64> {
    Ok(dir.metadata()?.ino())
}

fn probe_bpf() -> Result<(), HostError> {
    const PROBE: MapSpec = MapSpec { name: "slotmesh_probe", kind: MapKind::Array, max_entries: 1, flags: 0 };
    Map::<u32, u32>::create(&PROBE, None).map(drop).or_else(judge_probe)
}

/// No bpf(2) at all, or none for us, is a refusal; any other error will be told where it matters.
fn judge_probe(error: BpfError) -> Result<(), HostError> {
    match error.errno() {
        Some(libc::ENOSYS | libc::EPERM) => Err(HostError::NoBpf(error.source)),
        _ => Ok(()),
    }
}

/// The names of the needed capabilities that `/proc/self/status` doesn't show as effective.
/// CAP_SYS_ADMIN stands for all of them, as in the kernel's own checks.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u32 = 21;
    const NEEDED: [(u32, &str); 3] = [(39, "CAP_BPF"), (12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON")];
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & 1 << bit != 0;
    NEEDED
        .into_iter()
        .filter(|&(bit, name)| !(has(bit) || has(SYS_ADMIN) && name != "CAP_NET_ADMIN"))
        .map(|(_, name)| name)
        .collect()
}

/// Where a file system of this type is mounted, from the text of `/proc/self/mountinfo`.
fn mount_point(mountinfo: &str, fs_type: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        (fs.split(' ').next() == Some(fs_type)).then_some(())?;
        mount.split(' ').nth(4).map(PathBuf::from)
    })
}

/// Makes sure that `path` lies on a BPF file system: where it doesn't, creates the directory and
/// mounts one. Whether it mounted one. Of several agents that start at once, one mounts.
pub fn ensure_bpffs(path: &Path) -> Result<bool, HostError> {
    let refuse = |source| HostError::Bpffs { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(refuse)?;
    let dir = File::open(path).map_err(refuse)?;
    dir.lock().map_err(refuse)?;
    let target =
        CString::new(path.as_os_str().as_bytes()).map_err(|error| refuse(io::Error::other(error)))?;
    // SAFETY: statfs is plain integers, all-zero is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated path and a whole struct.
    if unsafe { libc::statfs(target.as_ptr(), &raw mut found) } != 0 {
        return Err(refuse(io::Error::last_os_error()));
    }
    if found.f_type == BPF_FS_MAGIC {
        return Ok(false);
    }
    // SAFETY: terminated strings; no data.
    let mounted = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null::<libc::c_void>())
    };
    if mounted != 0 {
        return Err(refuse(io::Error::last_os_error()));
    }
    Ok(true)
}

/// The lock of a pin root: one writer at a time. Released when dropped, or by the kernel when the
/// process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held open for its lock")] File);

impl Lock {
    /// Takes the lock of `root`, an existing directory (flock(2) works on directories of bpffs).
    pub fn take(root: &Path) -> Result<Self, HostError> {
        let io = |source| HostError::Io { path: root.to_owned(), source };
        let dir = File::open(root).map_err(io)?;
        match dir.try_lock() {
            Ok(()) => Ok(Self(dir)),
            Err(fs::TryLockError::WouldBlock) => Err(HostError::Locked { path: root.to_owned() }),
            Err(fs::TryLockError::Error(error)) => Err(io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert_eq!(missing_capabilities("CapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000000000\n").len(), 3);
        assert_eq!(missing_capabilities("CapEff:\t0000008000001000\n"), ["CAP_PERFMON"]);
        assert_eq!(missing_capabilities("CapEff:\t0000000000200000\n"), ["CAP_NET_ADMIN"]);
        let error = HostError::Capabilities { missing: "CAP_BPF".to_owned() };
        assert!(error.to_string().contains("run as root"), "{error}");
    }

    #[test]
    fn a_kernel_without_bpf_is_refused_with_advice() {
        let error = |errno| BpfError { call: "BPF_MAP_CREATE", source: io::Error::from_raw_os_error(errno) };
        let text = judge_probe(error(libc::ENOSYS)).unwrap_err().to_string();
        assert!(text.contains("CONFIG_BPF_SYSCALL") && text.contains("6.1"), "{text}");
        assert!(judge_probe(error(libc::ENOMEM)).is_ok());
    }

    #[test]
    fn cgroup_v2_is_found_where_it_is_mounted() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup/unified rw,relatime shared:5 - cgroup2 cgroup2 rw\n\
                      31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(mount_point(hybrid, "cgroup2"), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("31 23 0:27 / /x rw - cgroup cgroup rw,cpu\n", "cgroup2"), None);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused() {
        let host = Host { cgroup2: "/sys/fs/cgroup".into() };
        let dir = tempfile::tempdir().unwrap();
        let error = host.cgroup(dir.path()).unwrap_err().to_string();
        assert!(error.contains("cgroup.controllers") && error.contains("/sys/fs/cgroup"), "{error}");
        assert!(host.cgroup(&dir.path().join("missing")).is_err());
    }

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(HostError::Locked { .. })));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }
}
