//! Reads one line of 64 bytes of a record, in each of the stores that the benchmarks compare: so that
//! what was written is known to be what programs see.
//!
//! The benchmarks bring the maps; what is declared here are the smallest of the same types, so that who
//! loads this object for other programs doesn't pay for them.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_OK},
    btf_maps::{Array, ArrayOfMaps, HashMap},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use slotmesh_records::{SlotPtr, UNIT_BYTES};

use crate::{
    line::{FLAT_BYTES, LARGE, Line, SMALL, class_of},
    place::Place,
};

const ETHERNET: usize = 14;

type Words = [u64; UNIT_BYTES / 8];

/// A record in a map of its own, where every inner map has this size.
#[repr(C, align(8))]
pub struct Sized<const N: usize>(pub [u8; N]);

/// Stands for the one big element of the flat store.
#[btf_map]
static FLAT: Array<Sized<64>, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// One record an inner map, as large as the published records.
#[btf_map]
static SMALL_RECORDS: ArrayOfMaps<Array<Sized<SMALL>, 1, 0>, 1> = ArrayOfMaps::new();
/// One record an inner map, as large as the packed records.
#[btf_map]
static LARGE_RECORDS: ArrayOfMaps<Array<Sized<LARGE>, 1, 0>, 1> = ArrayOfMaps::new();
/// Hash maps by size class.
#[btf_map]
static HASH_64: HashMap<u32, Sized<64>, 1, 0> = HashMap::new();
/// See [`HASH_64`].
#[btf_map]
static HASH_256: HashMap<u32, Sized<256>, 1, 0> = HashMap::new();
/// See [`HASH_64`].
#[btf_map]
static HASH_1024: HashMap<u32, Sized<1024>, 1, 0> = HashMap::new();
/// See [`HASH_64`].
#[btf_map]
static HASH_4096: HashMap<u32, Sized<4096>, 1, 0> = HashMap::new();

/// Answers the question that stands in the packet.
#[inline(always)]
fn answer(ctx: &TcContext, read: impl FnOnce(&Line) -> Option<Words>) -> i32 {
    if let Ok(mut line) = ctx.load::<Line>(ETHERNET) {
        if let Some(words) = read(&line) {
            line.words = words;
            line.found = 1;
        }
        let _ = ctx.skb.store(ETHERNET, &line, 0);
    }
    TC_ACT_OK as i32
}

/// Line `line` of a value of `N` bytes.
#[inline(always)]
fn words<const N: usize>(value: *const u8, line: u32) -> Option<Words> {
    let at = line as usize * UNIT_BYTES;
    if at > N - size_of::<Words>() {
        return None;
    }
    // SAFETY: within the value, by the check above; map values are aligned to 8 bytes.
    Some(unsafe { value.add(at).cast::<Words>().read_volatile() })
}

#[classifier]
pub fn read_slab(ctx: TcContext) -> i32 {
    answer(&ctx, |line| Place::of(SlotPtr::from_bits(line.id))?.read(line.line as usize * UNIT_BYTES))
}

#[classifier]
pub fn read_flat(ctx: TcContext) -> i32 {
    answer(&ctx, |line| {
        let value = FLAT.get_ptr(0)?.cast::<u8>();
        let at = (line.id as usize + line.line as usize) * UNIT_BYTES;
        if at > FLAT_BYTES - size_of::<Words>() {
            return None;
        }
        // SAFETY: within the element, by the check above.
        Some(unsafe { value.add(at).cast::<Words>().read_volatile() })
    })
}

#[classifier]
pub fn read_small(ctx: TcContext) -> i32 {
    answer(&ctx, |line| {
        let value = SMALL_RECORDS.get_value_ptr_mut(line.id, &0)?;
        words::<SMALL>(value.cast_const().cast(), line.line)
    })
}

#[classifier]
pub fn read_large(ctx: TcContext) -> i32 {
    answer(&ctx, |line| {
        let value = LARGE_RECORDS.get_value_ptr_mut(line.id, &0)?;
        words::<LARGE>(value.cast_const().cast(), line.line)
    })
}

#[classifier]
pub fn read_hash(ctx: TcContext) -> i32 {
    answer(&ctx, |line| match class_of(line.id) {
        0 => words::<64>(HASH_64.get_ptr(&line.id)?.cast(), line.line),
        1 => words::<256>(HASH_256.get_ptr(&line.id)?.cast(), line.line),
        2 => words::<1024>(HASH_1024.get_ptr(&line.id)?.cast(), line.line),
        _ => words::<4096>(HASH_4096.get_ptr(&line.id)?.cast(), line.line),
    })
}
