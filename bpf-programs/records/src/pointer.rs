//! Slot pointers: where a record lies, in 32 bits.

use core::{fmt, marker::PhantomData};

use bytemuck::{Pod, Zeroable};

/// The granule of slots, in bytes: one cache line.
pub const UNIT_BYTES: usize = 64;
/// Units in a slab.
pub const UNITS_PER_SLAB: u32 = 1024;
/// Bytes in a slab, the one element of an inner map.
pub const SLAB_BYTES: usize = UNITS_PER_SLAB as usize * UNIT_BYTES;
/// Elements of the outer map that hold slabs: 16,384 slabs are 1 GiB of records.
pub const MAX_SLABS: u32 = 16_384;

/// The index of a slab in the outer map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlabIndex(u32);

impl SlabIndex {
    /// The slab with this index; `None` from [`MAX_SLABS`] on.
    pub const fn new(index: u32) -> Option<Self> {
        if index < MAX_SLABS { Some(Self(index)) } else { None }
    }

    /// The index as a number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for SlabIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a slot begins: slab index << 10 | 64-byte unit within the slab. Zero is null.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct SlotPtr(u32);

impl SlotPtr {
    /// Points at nothing.
    pub const NULL: Self = Self(0);
    /// Where the superblock lies. Its pointer is the null pointer: nothing refers to it.
    pub const SUPERBLOCK: Self = Self(0);

    /// The slot at `unit` of `slab`; `None` where the slab has no such unit.
    pub const fn new(slab: SlabIndex, unit: u32) -> Option<Self> {
        if unit < UNITS_PER_SLAB { Some(Self(slab.0 * UNITS_PER_SLAB + unit)) } else { None }
    }

    /// The pointer with these bits, as read from a record.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The bits that a record holds.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether it points at nothing.
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }

    /// The slab part, not checked against [`MAX_SLABS`]: the pointer may come from a damaged record.
    pub const fn slab_bits(self) -> u32 {
        self.0 / UNITS_PER_SLAB
    }

    /// The slab that it points into; `None` where the outer map can't have one.
    pub const fn slab(self) -> Option<SlabIndex> {
        SlabIndex::new(self.slab_bits())
    }

    /// The unit within the slab.
    pub const fn unit(self) -> u32 {
        self.0 % UNITS_PER_SLAB
    }

    /// The byte offset within the slab.
    pub const fn offset(self) -> usize {
        self.unit() as usize * UNIT_BYTES
    }
}

impl fmt::Debug for SlotPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.slab_bits(), self.unit())
    }
}

macro_rules! typed_pointer {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<T>(SlotPtr, PhantomData<fn() -> T>);

        impl<T> $name<T> {
            /// Points at nothing.
            pub const NULL: Self = Self(SlotPtr::NULL, PhantomData);

            /// Says what a slot pointer points at.
            pub const fn new(ptr: SlotPtr) -> Self {
                Self(ptr, PhantomData)
            }

            /// The slot pointer itself.
            pub const fn ptr(self) -> SlotPtr {
                self.0
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<T> {}

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        // SAFETY: transparent over `SlotPtr`, for which all-zero bits are valid.
        unsafe impl<T> Zeroable for $name<T> {}
        // SAFETY: transparent over `SlotPtr`, which is plain data; the marker holds no T.
        unsafe impl<T: 'static> Pod for $name<T> {}
    };
}

typed_pointer! {
    /// A child: written before its parent, retired with it, named by no other record.
    Owned
}
typed_pointer! {
    /// A reference to a [`Handle`](crate::Handle), which has a life of its own.
    Ref
}
typed_pointer! {
    /// A shortcut to a record that the same version owns by another path: it lives as long, and whoever
    /// walks the records gets there by its owner.
    Within
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointer_splits_into_slab_and_unit() {
        let slab = SlabIndex::new(MAX_SLABS - 1).unwrap();
        let ptr = SlotPtr::new(slab, 1023).unwrap();
        assert_eq!((ptr.slab(), ptr.unit(), ptr.offset()), (Some(slab), 1023, SLAB_BYTES - UNIT_BYTES));
        assert_eq!(SlotPtr::new(slab, 1024), None);
        assert_eq!(SlabIndex::new(MAX_SLABS), None);
        assert_eq!(SlotPtr::from_bits(u32::MAX).slab(), None);
    }
}
