//! The budget of the slabs against the memory limit of the agent's cgroup.

use slotmesh_kernel::MemoryLimit;
use slotmesh_slots::{Config, MemoryBudget};

/// What the agent takes beside the slabs: its own memory, programs and the other maps (measured with
/// 10,000 services).
const BESIDE_SLABS: u64 = 48 << 20;

/// Slabs that would not fit the memory limit.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{cap} slabs cost {}, and with the agent's own {}Mi that is above the memory limit of {} bytes ({}); lower \
     --memory-budget to at most {}, or raise the limit (a pod: resources.limits.memory)",
    MemoryBudget::of_slabs(*cap), BESIDE_SLABS >> 20, limit.bytes, limit.file.display(), fitting(limit)
)]
pub struct OverLimit {
    /// How many slabs there may be.
    pub cap: u32,
    /// The limit.
    pub limit: MemoryLimit,
}

/// The largest budget in whole MiB that fits.
fn fitting(limit: &MemoryLimit) -> String {
    format!("{}Mi", limit.bytes.saturating_sub(BESIDE_SLABS) >> 20)
}

/// Holds the settings against the limit of the cgroup that this process runs in.
///
/// # Errors
/// Where slabs up to the cap don't fit: the kernel would refuse to create them, or end the agent.
pub fn check(slots: &Config) -> Result<(), OverLimit> {
    let limit = MemoryLimit::of_self().unwrap_or_else(|error| {
        tracing::debug!(%error, "the memory limit can't be read");
        None
    });
    hold(slots.cap, limit)
}

fn hold(cap: u32, limit: Option<MemoryLimit>) -> Result<(), OverLimit> {
    match limit {
        Some(limit) if MemoryBudget::of_slabs(cap).bytes() + BESIDE_SLABS > limit.bytes => {
            Err(OverLimit { cap, limit })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_above_the_limit_are_refused_with_what_would_fit() {
        let limit = |mib: u64| Some(MemoryLimit { bytes: mib << 20, file: "/x/memory.max".into() });
        assert_eq!(hold(1000, None), Ok(()));
        assert_eq!(hold(1000, limit(128)), Ok(()));
        let error = hold(2048, limit(128)).unwrap_err().to_string();
        assert!(error.contains("2048 slabs cost 136Mi"), "{error}");
        assert!(error.contains("134217728 bytes (/x/memory.max)"), "{error}");
        assert!(error.contains("at most 80Mi"), "{error}");
    }
}
