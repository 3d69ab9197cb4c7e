//! Where the slabs are mapped: one reserved range of addresses, slab `i` at `i * 64 KiB`, so that a
//! slot pointer becomes an address by one multiplication.
//!
//! The growth thread maps slabs ([`Reservation::map`]), the one owner of the [`Arena`] adopts them.
//! Only the owner reads and writes; the kernel's programs read the same pages, and what they may see
//! changing is one aligned word, stored with release ordering ([`Arena::publish`]).

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use slotmesh_records::{SLAB_BYTES, SlabIndex, SlotPtr};

/// A reserved range of addresses for slabs. Unmapped when the last owner goes.
#[derive(Debug)]
pub struct Reservation {
    base: NonNull<u8>,
    /// For each slab, whether the arena uses it: then it may not be mapped anew.
    in_use: Box<[AtomicBool]>,
}

// SAFETY: the pointer is only the start of a range that this value owns; all access goes through
// `Arena`, of which there is one.
unsafe impl Send for Reservation {}
// SAFETY: as above; `map` works on disjoint slabs, each handed over by a `MappedSlab`.
unsafe impl Sync for Reservation {}

/// Proof that a slab is mapped and in nobody's hands yet. Gives the arena's owner the right to use it.
#[derive(Debug)]
pub struct MappedSlab {
    index: SlabIndex,
    /// The reservation's address.
    base: NonZeroUsize,
}

impl MappedSlab {
    /// Which slab.
    pub const fn index(&self) -> SlabIndex {
        self.index
    }
}

impl Reservation {
    /// Reserves addresses (no memory) for `slabs` slabs; the arena is the only one over them.
    pub fn new(slabs: u32) -> io::Result<(Arc<Self>, Arena)> {
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                slabs as usize * SLAB_BYTES,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let base = check(base)?;
        let in_use = (0..slabs).map(|_| AtomicBool::new(false)).collect();
        let range = Arc::new(Self { base, in_use });
        let arena = Arena { range: range.clone(), mapped: vec![false; slabs as usize] };
        Ok((range, arena))
    }

    /// Maps the array map `map` as slab `index`, with its pages present, so that the first write to
    /// the slab takes no page fault.
    pub fn map(&self, index: SlabIndex, map: BorrowedFd<'_>) -> io::Result<MappedSlab> {
        self.map_at(index, libc::MAP_SHARED | libc::MAP_POPULATE, map.as_raw_fd())
    }

    /// Maps ordinary memory as slab `index`: for tests and models that need no kernel.
    pub fn map_anonymous(&self, index: SlabIndex) -> io::Result<MappedSlab> {
        self.map_at(index, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// Takes a slab's pages away again; its addresses stay reserved.
    pub fn unmap(&self, slab: MappedSlab) -> io::Result<()> {
        let reserved = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        self.replace(slab.index, libc::PROT_NONE, reserved, -1)
    }

    fn map_at(&self, index: SlabIndex, flags: libc::c_int, fd: libc::c_int) -> io::Result<MappedSlab> {
        self.replace(index, libc::PROT_READ | libc::PROT_WRITE, flags, fd)?;
        Ok(self.token(index))
    }

    fn token(&self, index: SlabIndex) -> MappedSlab {
        MappedSlab { index, base: self.base.addr() }
    }

    /// # Panics
    /// Where the slab is outside the reservation, or in use.
    fn replace(
        &self,
        index: SlabIndex,
        protection: libc::c_int,
        flags: libc::c_int,
        fd: libc::c_int,
    ) -> io::Result<()> {
        let in_use = self.in_use.get(index.get() as usize);
        let in_use = in_use.unwrap_or_else(|| panic!("slab {index} is outside the reservation"));
        assert!(!in_use.load(Ordering::Acquire), "slab {index} is in use");
        // SAFETY: within the range that this value owns.
        let at = unsafe { self.base.add(index.get() as usize * SLAB_BYTES) };
        // SAFETY: MAP_FIXED replaces only pages of our own reservation. Nobody holds a pointer into the
        // slab: the token that permits its use is made after it is mapped, and given up to unmap it.
        let mapped =
            unsafe { libc::mmap(at.as_ptr().cast(), SLAB_BYTES, protection, flags | libc::MAP_FIXED, fd, 0) };
        check(mapped).map(drop)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the whole range is ours, and no `Arena` is left that could reach into it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.in_use.len() * SLAB_BYTES) };
    }
}

fn check(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

/// The mapped slabs, in the hands of their one owner.
#[derive(Debug)]
pub struct Arena {
    range: Arc<Reservation>,
    mapped: Vec<bool>,
}

impl Arena {
    /// Takes a slab into use.
    ///
    /// # Panics
    /// Where the slab was mapped in another reservation.
    pub fn adopt(&mut self, slab: &MappedSlab) {
        assert_eq!(slab.base, self.range.base.addr(), "a slab of another reservation");
        self.mapped[slab.index.get() as usize] = true;
        self.range.in_use[slab.index.get() as usize].store(true, Ordering::Release);
    }

    /// Takes a slab out of use: nothing of it is reached through this arena any more.
    ///
    /// # Panics
    /// Where it isn't in use.
    pub fn surrender(&mut self, slab: SlabIndex) -> MappedSlab {
        assert!(self.has(slab), "slab {slab} isn't in use");
        self.mapped[slab.get() as usize] = false;
        self.range.in_use[slab.get() as usize].store(false, Ordering::Release);
        self.range.token(slab)
    }

    /// Tells whether the slab is in use.
    pub fn has(&self, slab: SlabIndex) -> bool {
        self.mapped.get(slab.get() as usize).copied().unwrap_or(false)
    }

    /// The first `bytes` of the slot; `None` where it isn't wholly within a slab in use.
    pub fn slot(&self, ptr: SlotPtr, bytes: usize) -> Option<&[u8]> {
        let at = self.address(ptr, bytes)?;
        // SAFETY: `address` checked that the range lies within a mapped slab; only `&mut self` writes.
        Some(unsafe { std::slice::from_raw_parts(at.as_ptr(), bytes) })
    }

    /// The first `bytes` of a slot that no program can reach, to be written.
    pub fn slot_mut(&mut self, ptr: SlotPtr, bytes: usize) -> Option<&mut [u8]> {
        let at = self.address(ptr, bytes)?;
        // SAFETY: as in `slot`; `&mut self` makes it the only reference of this process.
        Some(unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), bytes) })
    }

    /// The one aligned release store: programs that see `value` see all that was written before.
    ///
    /// # Panics
    /// Where the word isn't within a slab in use, or not aligned.
    pub fn publish(&mut self, ptr: SlotPtr, offset: usize, value: u32) {
        assert!(offset.is_multiple_of(4), "a published word is aligned");
        let at = self.address(ptr, offset + 4).expect("a published word lies within a slab in use");
        // SAFETY: checked above; atomics may be shared with other readers of the same memory.
        unsafe { AtomicU32::from_ptr(at.add(offset).as_ptr().cast()) }.store(value, Ordering::Release);
    }

    fn address(&self, ptr: SlotPtr, bytes: usize) -> Option<NonNull<u8>> {
        let slab = ptr.slab()?;
        if !self.has(slab) || ptr.offset() + bytes > SLAB_BYTES {
            return None;
        }
        // SAFETY: the slab lies within the reserved range, and the offset within the slab.
        Some(unsafe { self.range.base.add(slab.get() as usize * SLAB_BYTES + ptr.offset()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab(index: u32) -> SlabIndex {
        SlabIndex::new(index).unwrap()
    }

    #[test]
    fn only_slabs_in_use_can_be_reached() {
        let (range, mut arena) = Reservation::new(4).unwrap();
        let one = SlotPtr::new(slab(1), 1023).unwrap();
        assert!(arena.slot(one, 64).is_none());
        arena.adopt(&range.map_anonymous(slab(1)).unwrap());
        arena.slot_mut(one, 64).unwrap().fill(7);
        arena.publish(one, 8, u32::MAX);
        assert_eq!(&arena.slot(one, 64).unwrap()[6..14], [7, 7, 255, 255, 255, 255, 7, 7]);
        assert!(arena.slot(one, 65).is_none(), "past the slab's end");
        assert!(arena.slot(SlotPtr::from_bits(u32::MAX), 1).is_none(), "a wild pointer");
        let given_up = arena.surrender(slab(1));
        assert!(arena.slot(one, 64).is_none(), "out of use");
        range.unmap(given_up).unwrap();
    }
}
