//! Settings of the slot engine: how many slabs there are, and when they come.

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
    /// How many slabs growth creates at a time.
    pub batch: u32,
}

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
        }
    }
}

impl Config {
    /// What contradicts itself, in words; `None` where nothing does.
    pub fn contradiction(&self) -> Option<String> {
        let Self { growth: _, initial, cap, low_watermark, high_watermark, batch } = *self;
        if initial > cap {
            return Some(format!("{initial} initial slabs are more than the cap, {cap}"));
        }
        // Else what growth creates would be given back at once.
        let least = low_watermark.saturating_add(batch);
        (high_watermark < least).then(|| {
            format!(
                "the high watermark, {high_watermark}, is below the low watermark and one batch, \
                 {low_watermark} + {batch} = {least}"
            )
        })
    }
}
