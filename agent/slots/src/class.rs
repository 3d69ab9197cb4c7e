//! Slot classes: the sizes that slots come in.

use std::fmt;

use slotmesh_records::{UNIT_BYTES, UNITS_PER_SLAB};

/// Sizes in units of 64 bytes. Steps of at most half keep the loss in a slot below a third.
const UNITS: [u16; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];

/// A slot size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotClass(u8);

impl SlotClass {
    /// How many classes there are.
    pub const COUNT: usize = UNITS.len();

    /// All classes, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// The smallest class that holds `bytes`; `None` above the largest, 4096.
    pub fn for_bytes(bytes: usize) -> Option<Self> {
        UNITS.iter().position(|&units| bytes <= usize::from(units) * UNIT_BYTES).map(|i| Self(i as u8))
    }

    /// The class of slots of exactly this many units, as a record's header tells.
    pub fn of_units(units: u16) -> Option<Self> {
        UNITS.iter().position(|&u| u == units).map(|i| Self(i as u8))
    }

    /// The slot size in units of 64 bytes.
    pub const fn units(self) -> u16 {
        UNITS[self.0 as usize]
    }

    /// The slot size in bytes.
    pub const fn bytes(self) -> usize {
        self.units() as usize * UNIT_BYTES
    }

    /// How many slots of this class a slab holds.
    pub const fn slots_per_slab(self) -> u16 {
        UNITS_PER_SLAB as u16 / self.units()
    }

    /// Position among [`all`](Self::all).
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SlotClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_class_that_fits_is_chosen() {
        let class = |bytes| SlotClass::for_bytes(bytes).map(SlotClass::bytes);
        assert_eq!(
            [class(0), class(64), class(65), class(4096), class(4097)],
            [Some(64), Some(64), Some(128), Some(4096), None]
        );
        for class in SlotClass::all() {
            assert_eq!(SlotClass::of_units(class.units()), Some(class));
        }
    }
}
