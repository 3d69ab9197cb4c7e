//! The bpf(2) system call.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

pub(crate) use aya_obj::generated::{bpf_attr, bpf_cmd};

static CALLS: AtomicU64 = AtomicU64::new(0);

/// A bpf(2) call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct BpfError {
    /// The command, as in the manual page.
    pub call: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl BpfError {
    /// The error number.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// How many bpf(2) calls this process has made through this crate.
pub fn bpf_calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// All zero: the kernel refuses attributes whose unused bytes, padding included, are not.
pub(crate) fn attr() -> bpf_attr {
    // SAFETY: a union of plain integers; all-zero is valid.
    unsafe { mem::zeroed() }
}

/// Makes the call; the result is what the kernel returned, not negative.
pub(crate) fn bpf(call: &'static str, cmd: bpf_cmd, attr: &mut bpf_attr) -> Result<i32, BpfError> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    #[cfg(feature = "faults")]
    if let Some(errno) = crate::faults::due() {
        return Err(BpfError { call, source: io::Error::from_raw_os_error(errno) });
    }
    // SAFETY: `attr` is a whole, initialised bpf_attr; what its pointers point at is kept alive by the
    // callers in this crate until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, cmd as libc::c_long, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 {
        return Err(BpfError { call, source: io::Error::last_os_error() });
    }
    Ok(result as i32)
}

/// Makes a call that returns a new file descriptor.
pub(crate) fn bpf_fd(call: &'static str, cmd: bpf_cmd, attr: &mut bpf_attr) -> Result<OwnedFd, BpfError> {
    let fd = bpf(call, cmd, attr)?;
    // SAFETY: the kernel just returned this descriptor to us (bpf(2) sets close-on-exec itself).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object in bpffs.
pub(crate) fn pin(fd: &OwnedFd, path: &Path) -> Result<(), BpfError> {
    let path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.bpf_fd = fd.as_raw_fd() as u32;
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf("BPF_OBJ_PIN", bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object; `None` where nothing is pinned at the path.
pub(crate) fn open(path: &Path) -> Result<Option<OwnedFd>, BpfError> {
    let path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    match bpf_fd("BPF_OBJ_GET", bpf_cmd::BPF_OBJ_GET, &mut attr) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads `BPF_OBJ_GET_INFO_BY_FD` into a plain struct of the kernel's.
pub(crate) fn info<T>(fd: impl AsFd) -> Result<T, BpfError> {
    // SAFETY: only called for the kernel's info structs: plain integers, all-zero is valid.
    let mut info: T = unsafe { mem::zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = fd.as_fd().as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = (&raw mut info) as u64;
    bpf("BPF_OBJ_GET_INFO_BY_FD", bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

fn c_path(path: &Path) -> Result<std::ffi::CString, BpfError> {
    use std::os::unix::ffi::OsStrExt as _;
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|error| BpfError {
        call: "path",
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}
