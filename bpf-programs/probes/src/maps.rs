//! The maps in which the probes are told what to read, and report what they found.

use aya_ebpf::{btf_maps::Array, macros::btf_map};

use crate::report::{OWNERS, Owner, Report};

/// Whose trees [`tree`](crate::tree) reads.
#[btf_map]
pub static TREES: Array<Owner, { OWNERS as usize }> = Array::new();

/// What [`tree`](crate::tree) found.
#[btf_map]
pub static REPORT: Array<Report, 1> = Array::new();
