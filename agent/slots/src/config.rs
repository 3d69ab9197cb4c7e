//! Settings of the slot engine: how many slabs there are, and when they come.

use std::num::NonZeroUsize;

use slotmesh_records::MAX_SLABS;

/// When outer records are created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// All up to the cap at start.
    Eager,
    /// `initial` at start, more in the background ahead of demand.
    Background,
    /// `initial` at start, more when a flush finds no slot.
    OnDemand,
}

/// How many slabs there are to be. A slab is 64 KiB of records and costs 68 KiB of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// When slabs are created.
    pub growth: Growth,
    /// Slabs created before the engine is ready, and never given back; at least 1.
    pub initial: u32,
    /// The most slabs there are to be; at most `MAX_SLABS`.
    pub cap: u32,
    /// Background growth begins when fewer slabs than this are wholly idle.
    pub low_watermark: u32,
    /// Slabs are given back when more than this are wholly idle.
    pub high_watermark: u32,
    /// How many slabs growth creates at a time; at least 1.
    pub batch: u32,
    /// How many threads share the creation of slabs.
    pub threads: NonZeroUsize,
}

/// Settings that contradict each other, in words.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Contradiction(pub String);

impl Default for Config {
    /// 2 MiB at start, at most 128 MiB, 512 KiB ahead of demand, at most 8 MiB unused.
    fn default() -> Self {
        Self {
            growth: Growth::Background,
            initial: 32,
            cap: 2048,
            low_watermark: 8,
            high_watermark: 128,
            batch: 32,
            threads: NonZeroUsize::MIN,
        }
    }
}

impl Config {
    /// The contradiction in these settings, in words; `None` where there is none.
    pub fn contradiction(&self) -> Option<Contradiction> {
        let Self { growth: _, initial, cap, low_watermark, high_watermark, batch, threads: _ } = *self;
        let contradiction = |text| Some(Contradiction(text));
        if initial == 0 || cap == 0 || batch == 0 {
            return contradiction("initial slabs, cap and batch are at least 1".to_owned());
        }
        if cap > MAX_SLABS {
            return contradiction(format!(
                "a cap of {cap} slabs is above the most there can be, {MAX_SLABS}"
            ));
        }
        if initial > cap {
            return contradiction(format!("{initial} initial slabs are more than the cap, {cap}"));
        }
        // Else what growth creates would be given back at once.
        let least = low_watermark.saturating_add(batch);
        if high_watermark < least {
            return contradiction(format!(
                "the high watermark, {high_watermark}, is below the low watermark and one batch, \
                 {low_watermark} + {batch} = {least}"
            ));
        }
        None
    }
}
