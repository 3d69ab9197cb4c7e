//! One whole array map in this process' memory, outside of the slabs: what the benchmarks hold the slabs
//! against.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
};

/// The first `len` bytes of a `BPF_F_MMAPABLE` array, mapped. Programs may read what this value's owner
/// writes; what they may see changing is one aligned word ([`publish`](Self::publish)).
#[derive(Debug)]
pub struct MappedArray {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and has no tie to a thread.
unsafe impl Send for MappedArray {}

impl MappedArray {
    /// Maps the array, with its pages present.
    ///
    /// # Errors
    /// Where the map isn't mmapable, or shorter.
    pub fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, len })
    }

    /// Bytes to be written that no program can reach.
    ///
    /// # Panics
    /// Where they aren't within the array.
    pub fn bytes_mut(&mut self, at: usize, len: usize) -> &mut [u8] {
        assert!(at <= self.len && len <= self.len - at, "bytes {at}..{at}+{len} of {}", self.len);
        // SAFETY: within the mapping, by the check above; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(at), len) }
    }

    /// The one aligned release store: programs that see `value` see all that was written before.
    ///
    /// # Panics
    /// Where the word isn't within the array, or not aligned.
    pub fn publish(&mut self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4) && at + 4 <= self.len, "an aligned word within the array");
        // SAFETY: checked above; atomics may be shared with other readers of the same memory.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }.store(value, Ordering::Release);
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
