//! The memory limit of the cgroup that this process runs in, v1 or v2.
//!
//! Slabs are charged to that cgroup. At its limit the kernel answers map creation with ENOMEM, and a
//! page fault ends the process; so a budget is held against the limit before anything is created.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The least limit of a cgroup and those above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// In bytes.
    pub bytes: u64,
    /// The file that says so.
    pub file: PathBuf,
}

/// v1 says "no limit" as the largest number of whole pages.
const UNLIMITED_V1: u64 = 1 << 62;

impl MemoryLimit {
    /// The limit of this process; `None` where there is none.
    ///
    /// # Errors
    /// Where `/proc` can't be read.
    pub fn of_self() -> io::Result<Option<Self>> {
        let cgroups = fs::read_to_string("/proc/self/cgroup")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        Ok(places(&cgroups, &mounts).into_iter().filter_map(Self::read).min_by_key(|limit| limit.bytes))
    }

    fn read(file: PathBuf) -> Option<Self> {
        // The root cgroup has no such file, v2 without the memory controller neither.
        let bytes: u64 = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        (bytes < UNLIMITED_V1).then_some(Self { bytes, file })
    }
}

/// The files that may hold a limit: in the process' cgroup and those above it that can be seen.
fn places(cgroups: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in cgroups.lines() {
        // hierarchy id : controllers : path
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (fs_type, option, file) = match controllers {
            "" => ("cgroup2", None, "memory.max"),
            list if list.split(',').any(|name| name == "memory") => {
                ("cgroup", Some("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for (root, at) in mounts(mountinfo, fs_type, option) {
            // A container may see its own cgroup as the root, or a path from outside of what it sees.
            let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
            found.extend(below.ancestors().map(|dir| Path::new(at).join(dir).join(file)));
        }
    }
    found
}

/// Root and mount point of the mounts of this type, and with this option where one is named.
fn mounts<'a>(
    mountinfo: &'a str,
    fs_type: &'a str,
    option: Option<&'a str>,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    mountinfo.lines().filter_map(move |line| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fs = fs.split(' ');
        (fs.next()? == fs_type).then_some(())?;
        let options = fs.nth(1)?;
        option.is_none_or(|wanted| options.split(',').any(|found| found == wanted)).then_some(())?;
        let mut mount = mount.split(' ').skip(3);
        Some((mount.next()?, mount.next()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      34 31 0:31 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    #[test]
    fn every_level_of_the_memory_hierarchy_is_looked_at() {
        let found = places("4:memory:/a/b\n1:cpu:/a\n0::/\n", V1);
        let expected = [
            "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/unified/memory.max",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_container_s_own_cgroup_is_its_root() {
        let v2 = "41 31 0:38 /pods/x /sys/fs/cgroup ro - cgroup2 cgroup2 rw,nsdelegate\n";
        let file = [PathBuf::from("/sys/fs/cgroup/memory.max")];
        assert_eq!(places("0::/pods/x\n", v2), file);
        assert_eq!(places("0::/\n", v2), file, "in a cgroup namespace");
    }

    #[test]
    fn no_limit_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let limit = |text: &str| {
            let file = dir.path().join("limit");
            fs::write(&file, text).unwrap();
            MemoryLimit::read(file).map(|limit| limit.bytes)
        };
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("9223372036854771712\n"), None);
        assert_eq!(limit("134217728\n"), Some(128 << 20));
        assert_eq!(MemoryLimit::read(dir.path().join("missing")), None);
    }
}
