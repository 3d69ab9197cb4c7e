//! Places in slabs, and how programs read them: within bounds, and each handle by one load.

use core::{
    arch::asm,
    mem::{offset_of, size_of},
};

use bytemuck::Pod;
use slotmesh_records::{Handle, SLAB_BYTES, SlotPtr};

use crate::slabs::{OUTER, Slab};

/// A slot: its slab, and the bytes from the slab's start.
pub struct Place {
    slab: *const Slab,
    /// 64 bits wide, as the sums are: of a 32-bit sum the verifier forgets the bound that was checked.
    offset: usize,
}

impl Place {
    #[inline(always)]
    pub fn of(ptr: SlotPtr) -> Option<Self> {
        if ptr.is_null() {
            return None;
        }
        let slab = OUTER.get_value_ptr_mut(ptr.slab_bits(), &0)?.cast_const();
        Some(Self { slab, offset: ptr.offset() })
    }

    /// Reads a `T` at `offset` bytes from the slot's start, if it lies within the slab.
    #[inline(always)]
    pub fn read<T: Pod>(&self, offset: usize) -> Option<T> {
        let at = self.checked::<T>(offset)?;
        // SAFETY: within the slab, which stays mapped for this run; slots are aligned to 64 bytes and
        // fields to their natural alignment. The agent doesn't change a record that can be reached.
        Some(unsafe { at.read() })
    }

    /// The one load of a handle: its current version; `None` while it has none.
    #[inline(always)]
    pub fn load_current(&self) -> Option<SlotPtr> {
        let at = self.checked::<u32>(offset_of!(Handle, current))?;
        // SAFETY: as in `read`. Volatile: this is the word that changes, and it must be loaded once.
        let ptr = SlotPtr::from_bits(unsafe { at.read_volatile() });
        if ptr.is_null() { None } else { Some(ptr) }
    }

    #[inline(always)]
    fn checked<T>(&self, offset: usize) -> Option<*const T> {
        let mut at = self.offset + offset;
        // SAFETY: a move to itself. Keeps the compiler from checking one sum and adding another one to the
        // slab's address: the verifier wants to see the checked register added.
        unsafe { asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
        if at > SLAB_BYTES - size_of::<T>() {
            return None;
        }
        // SAFETY: the check above keeps the whole `T` within the slab.
        Some(unsafe { self.slab.cast::<u8>().add(at) }.cast::<T>())
    }
}

/// The byte offset of element `i` of the tail of a `T`.
#[inline(always)]
pub fn tail<T, E>(i: u32) -> usize {
    size_of::<T>() + i as usize * size_of::<E>()
}
