//! What the store readers are asked and answer; also part of the benchmarks (by `#[path]`), so that both
//! sides mean the same.

use bytemuck::{Pod, Zeroable};

/// The size of the flat store's one element.
pub const FLAT_BYTES: usize = 256 << 20;

/// The size of an inner map that holds one published record: the largest is an array of 320 pointers.
pub const SMALL: usize = 1344;

/// The size of an inner map that holds one packed record.
pub const LARGE: usize = 4096;

/// Which of the four hash maps holds a record: the upper bits of its id.
#[inline(always)]
pub const fn class_of(id: u32) -> u32 {
    id >> 30
}

/// One line of a record, behind the Ethernet header of the test run's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Line {
    /// The record: a slot pointer, a 64-byte unit of the flat array, an outer index, or a key.
    pub id: u32,
    /// Which 64 bytes of it.
    pub line: u32,
    /// 1 where there is such a line.
    pub found: u32,
    /// Zero.
    pub reserved: u32,
    /// The line.
    pub words: [u64; 8],
}
