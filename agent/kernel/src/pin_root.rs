//! Directories of pins: on a BPF file system, which is mounted where there is none, and locked by one agent.

use std::{
    ffi::{CStr, CString},
    fs::{self, DirBuilder, File},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    HostError,
    host::{BPFFS, LOCK_DEADLINE, magic},
};

/// `BPF_FS_MAGIC` of statfs(2).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// Creates a directory, and those above it that are missing, for nobody but us.
fn create_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes sure that a pin root can lie where it is to be: on a BPF file system. Where there is none, one
/// is mounted on the pin root's parent, if that is [`BPFFS`], empty, or was missing; never over a
/// directory that is in use. Of several agents that start at once, one mounts.
///
/// Gives the pin root's path without links. The pin root itself isn't created.
pub fn ensure_bpffs(pin_root: &Path) -> Result<PathBuf, HostError> {
    let root = resolve(pin_root)?;
    let refuse = |reason: &str| HostError::PinRoot { path: root.clone(), reason: reason.to_owned() };
    let parent = root.parent().ok_or_else(|| refuse("it is the root of all"))?;
    let at = |source| HostError::Bpffs { path: parent.to_owned(), source };
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(parent);
    if existing == root {
        let (here, above) = (fs::metadata(&root).map_err(at)?, fs::metadata(parent).map_err(at)?);
        if !here.is_dir() {
            return Err(refuse("it is no directory"));
        }
        // It is removed at the end, which a mount point can't be.
        if here.dev() != above.dev() {
            return Err(refuse("a file system is mounted there"));
        }
    }
    if magic(&File::open(existing).map_err(at)?).map_err(at)? == BPF_FS_MAGIC {
        return Ok(root);
    }
    let missing = !parent.exists();
    if missing {
        create_private(parent).map_err(at)?;
    }
    let mounted = mount_bpffs(&root, parent, missing);
    if mounted.is_err() && missing {
        // Empty directories above it are left: another agent may have begun to use them.
        let _ = fs::remove_dir(parent);
    }
    mounted.map(|()| root)
}

/// The absolute path without links; what doesn't exist yet is taken by its word.
fn resolve(pin_root: &Path) -> Result<PathBuf, HostError> {
    let refuse = |reason: String| HostError::PinRoot { path: pin_root.to_owned(), reason };
    if !pin_root.is_absolute() {
        return Err(refuse("not an absolute path".to_owned()));
    }
    if pin_root.components().any(|part| part == Component::ParentDir) {
        return Err(refuse("its path contains ..".to_owned()));
    }
    for existing in pin_root.ancestors() {
        match existing.canonicalize() {
            Ok(found) => {
                let rest = pin_root.strip_prefix(existing).unwrap_or(Path::new(""));
                // Joining nothing would add a slash.
                return Ok(if rest.as_os_str().is_empty() { found } else { found.join(rest) });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refuse(error.to_string())),
        }
    }
    Err(refuse("nothing of its path exists".to_owned()))
}

fn mount_bpffs(root: &Path, parent: &Path, ours: bool) -> Result<(), HostError> {
    let at = |source| HostError::Bpffs { path: parent.to_owned(), source };
    let dir = File::open(parent).map_err(at)?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match dir.try_lock() {
            Ok(()) => break,
            Err(fs::TryLockError::Error(error)) => return Err(at(error)),
            Err(fs::TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(HostError::Busy { path: parent.to_owned() });
            }
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    // By its path: another agent may have mounted over what was just locked.
    if magic(&File::open(parent).map_err(at)?).map_err(at)? == BPF_FS_MAGIC {
        return Ok(());
    }
    let usual = parent == Path::new(BPFFS);
    let empty = || fs::read_dir(parent).is_ok_and(|mut entries| entries.next().is_none());
    if !(usual || ours || empty()) {
        return Err(HostError::NoMount { path: root.to_owned(), parent: parent.to_owned() });
    }
    let target = CString::new(parent.as_os_str().as_bytes()).map_err(|error| at(io::Error::other(error)))?;
    // Others use the usual one too, and expect the kernel's default of its mode.
    let data: &CStr = if usual { c"" } else { c"mode=0700" };
    // SAFETY: terminated strings, the last of them of options.
    let mounted =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, data.as_ptr().cast()) };
    if mounted == 0 { Ok(()) } else { Err(at(io::Error::last_os_error())) }
}

/// The lock of a pin root: one writer at a time. Released when dropped, or by the kernel when the
/// process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held open for its lock")] File);

impl Lock {
    /// Takes the lock of `root` (flock(2) works on directories of bpffs). Creates the directory, for
    /// nobody but us, where it is missing.
    pub fn take(root: &Path) -> Result<Self, HostError> {
        Self::take_with(root, || {})
    }

    /// `opened` is called between opening and locking.
    fn take_with(root: &Path, mut opened: impl FnMut()) -> Result<Self, HostError> {
        let io = |source| HostError::Io { path: root.to_owned(), source };
        let deadline = Instant::now() + LOCK_DEADLINE;
        while Instant::now() < deadline {
            create_private(root).map_err(io)?;
            let dir = match File::open(root) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                dir => dir.map_err(io)?,
            };
            let ours = dir.metadata().map_err(io)?;
            // SAFETY: the call has no preconditions.
            let me = unsafe { libc::geteuid() };
            if ours.uid() != me {
                let reason = format!("it belongs to user {}, not to us ({me})", ours.uid());
                return Err(HostError::PinRoot { path: root.to_owned(), reason });
            }
            opened();
            match dir.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(HostError::Locked { path: root.to_owned() });
                }
                Err(fs::TryLockError::Error(error)) => return Err(io(error)),
            }
            // An agent that ended may have removed the directory after it was opened here.
            let same = |now: fs::Metadata| (now.dev(), now.ino()) == (ours.dev(), ours.ino());
            if fs::metadata(root).is_ok_and(same) {
                return Ok(Self(dir));
            }
        }
        Err(HostError::Busy { path: root.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(HostError::Locked { .. })));
        drop(first);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_of_a_directory_that_was_removed_meanwhile_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let mut first = true;
        let lock = Lock::take_with(&root, || {
            if std::mem::take(&mut first) {
                fs::remove_dir(&root).unwrap();
            }
        });
        let _lock = lock.unwrap();
        assert!(!first);
        assert_eq!(fs::metadata(&root).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(Lock::take(&root), Err(HostError::Locked { .. })));
    }

    #[test]
    fn a_pin_root_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).expect("this needs root");
        let error = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(error.contains("65534"), "{error}");
    }

    #[test]
    fn nothing_is_mounted_over_a_directory_in_use() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "").unwrap();
        let root = dir.path().join("pins");
        let error = ensure_bpffs(&root).unwrap_err();
        assert!(matches!(error, HostError::NoMount { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("mount -t bpf bpf {}", root.display())), "{text}");
        assert!(dir.path().join("precious").exists() && !root.exists());
    }

    #[test]
    fn a_pin_root_is_a_directory_of_its_own() {
        for (root, reason) in [
            ("sys/fs/bpf/x", "absolute"),
            ("/sys/fs/bpf/../x", ".."),
            ("/proc", "mounted"),
            ("/", "root of all"),
            ("/etc/passwd", "no directory"),
        ] {
            let error = ensure_bpffs(Path::new(root)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("--pin-root"), "{root}: {error}");
        }
    }

    #[test]
    fn an_empty_or_missing_parent_is_mounted_on() {
        // In a mount namespace of this thread's own, so that nothing stays.
        // SAFETY: the calls take flags and terminated strings.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "needs root: {}", io::Error::last_os_error());
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let none = std::ptr::null();
            assert_eq!(libc::mount(c"none".as_ptr(), c"/".as_ptr(), none, private, std::ptr::null()), 0);
        }
        let dir = tempfile::tempdir().unwrap();
        for parent in [dir.path().join("missing"), dir.path().join("empty")] {
            if parent.ends_with("empty") {
                fs::create_dir(&parent).unwrap();
            }
            let root = ensure_bpffs(&parent.join("pins")).unwrap();
            assert_eq!(magic(&File::open(&parent).unwrap()).unwrap(), BPF_FS_MAGIC);
            assert_eq!(fs::metadata(&parent).unwrap().mode() & 0o777, 0o700);
            // And the second time, nothing is mounted.
            drop(Lock::take(&root).unwrap());
            assert_eq!(ensure_bpffs(&parent.join("pins")).unwrap(), root);
            let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            assert_eq!(mounts.lines().filter(|line| line.contains(parent.to_str().unwrap())).count(), 1);
            let target = CString::new(parent.as_os_str().as_bytes()).unwrap();
            // SAFETY: a terminated string.
            assert_eq!(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }, 0);
        }
    }
}
