//! Features of the host, and clear refusals where it doesn't.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{BpfError, Map, MapKind, MapSpec};

/// `CGROUP2_SUPER_MAGIC` of statfs(2).
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Where a BPF file system is by convention.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// How long to wait for whoever holds a directory that is to be mounted on: mounting takes no time.
pub(crate) const LOCK_DEADLINE: Duration = Duration::from_secs(5);

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
    /// Somebody forbids bpf(2).
    #[error(
        "bpf(2) is forbidden ({0}) although the capabilities are there; likely causes: a user namespace \
         (a rootless container; run slotmesh in the initial one), a seccomp filter (a pod: \
         securityContext.seccompProfile.type: Unconfined), or kernel lockdown \
         (/sys/kernel/security/lockdown)"
    )]
    BpfForbidden(io::Error),
    /// No cgroup v2.
    #[error(
        "no cgroup v2 hierarchy is mounted (looked in /proc/self/mountinfo); mount one: \
         mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoCgroup2,
    /// There is no such directory.
    #[error(
        "there is no cgroup {path}; create it (mkdir -p {path}), or name one that is there, below {root}"
    )]
    NoCgroup {
        /// The path that was named.
        path: PathBuf,
        /// Where the v2 hierarchy is.
        root: PathBuf,
    },
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
    /// Nothing is mounted over what isn't ours.
    #[error(
        "pin root {path} is on no BPF file system, and none is mounted over {parent}, which is in use; \
         choose one below {BPFFS}, or mount one: mount -t bpf bpf {path}, and use --pin-root {path}/pins"
    )]
    NoMount {
        /// The pin root.
        path: PathBuf,
        /// Its parent.
        parent: PathBuf,
    },
    /// Not a directory that an agent can call its own.
    #[error(
        "pin root {path}: {reason}; choose a directory of its own, such as {BPFFS}/slotmesh (--pin-root)"
    )]
    PinRoot {
        /// The pin root.
        path: PathBuf,
        /// Why it can't be used.
        reason: String,
    },
    /// Somebody holds a lock and doesn't give it back.
    #[error(
        "{path} has been locked by another process for {LOCK_DEADLINE:?}; end it (`fuser {path}` tells which)"
    )]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Another agent has the pin root.
    #[error(
        "another slotmesh agent holds {path}; stop it first, or give this one a pin root of its own (--pin-root)"
    )]
    Locked {
        /// The pin root.
        path: PathBuf,
    },
    /// A file or directory can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Findings about the host.
#[derive(Debug)]
pub struct Host {
    /// Where cgroup v2 is mounted.
    pub cgroup2: PathBuf,
}

impl Host {
    /// Checks capabilities, BPF and cgroup v2.
    pub fn probe() -> Result<Self, HostError> {
        let read = |path: &str| {
            fs::read_to_string(path).map_err(|source| HostError::Io { path: path.into(), source })
        };
        let status = read("/proc/self/status")?;
        let missing = missing_capabilities(&status);
        if !missing.is_empty() {
            return Err(HostError::Capabilities { missing: missing.join(", ") });
        }
        probe_bpf()?;
        let mounts = read("/proc/self/mountinfo")?;
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
        let dir = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                HostError::NoCgroup { path: path.to_owned(), root: self.cgroup2.clone() }
            }
            _ => refuse(error.to_string()),
        })?;
        if magic(&dir).map_err(|error| refuse(error.to_string()))? != CGROUP2_MAGIC {
            return Err(refuse("it lies on another file system".to_owned()));
        }
        if !dir.metadata().is_ok_and(|found| found.is_dir()) {
            return Err(refuse("it is a file".to_owned()));
        }
        Ok(dir)
    }
}

/// The id by which the kernel knows a cgroup: its directory's inode number.
pub fn cgroup_id(dir: &File) -> io::Result<u64> {
    Ok(dir.metadata()?.ino())
}

/// The kernel's clock, by which programs tell the time (`CLOCK_MONOTONIC`).
pub fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a whole struct; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn probe_bpf() -> Result<(), HostError> {
    const PROBE: MapSpec = MapSpec { name: "slotmesh_probe", kind: MapKind::Array, max_entries: 1, flags: 0 };
    Map::<u32, u32>::create(&PROBE, None).map(drop).or_else(judge_probe)
}

/// No bpf(2) at all, or none for us, is a refusal; any other error will be told where it matters.
fn judge_probe(error: BpfError) -> Result<(), HostError> {
    match error.errno() {
        Some(libc::ENOSYS) => Err(HostError::NoBpf(error.source)),
        Some(libc::EPERM) => Err(HostError::BpfForbidden(error.source)),
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

/// The type of the file system that holds an open file.
pub(crate) fn magic(file: &File) -> io::Result<i64> {
    // SAFETY: statfs is plain integers, all-zero is valid.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a whole struct.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type)
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
        let text = judge_probe(error(libc::EPERM)).unwrap_err().to_string();
        for cause in ["user namespace", "seccomp", "lockdown"] {
            assert!(text.contains(cause), "{cause}: {text}");
        }
        assert!(!text.contains("CONFIG_BPF_SYSCALL"), "{text}");
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
        // As a hierarchy that was copied has.
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        let error = host.cgroup(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another file system") && error.contains("/sys/fs/cgroup"), "{error}");
        assert!(host.cgroup(&dir.path().join("missing")).is_err());
    }
}
