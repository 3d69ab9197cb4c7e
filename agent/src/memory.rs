//! The budget of the slabs against the memory limit of the agent's cgroup.

use slotmesh_kernel::MemoryLimit;
use slotmesh_slots::{Config, MemoryBudget};

/// What the agent takes beside the slabs: its own memory, programs and the other maps (measured with
/// 10,000 services).
const BESIDE_SLABS: u64 = 48 << 20;

/// Bytes of the kernel's memory for the record of a socket, charged to who made their map: 320, and what
/// is only partly used of the kernel's pages.
const SOCKET_BYTES: u64 = 400;

/// How many sockets may be recorded where nobody says: 25 MiB.
pub const SOCKETS: u32 = 65_536;

/// Slabs and sockets that would not fit the memory limit.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{cap} slabs cost {}, and with {sockets} sockets ({}Mi) and the agent's own {}Mi that is above the memory \
     limit of {} bytes ({}); lower --memory-budget to at most {}, or --max-sockets, or raise the limit (a pod: \
     resources.limits.memory)",
    MemoryBudget::of_slabs(*cap), of_sockets(*sockets) >> 20, BESIDE_SLABS >> 20, limit.bytes,
    limit.file.display(), fitting(limit, *sockets)
)]
pub struct OverLimit {
    /// How many slabs there may be.
    pub cap: u32,
    /// How many sockets may be recorded.
    pub sockets: u32,
    /// The limit.
    pub limit: MemoryLimit,
}

fn of_sockets(sockets: u32) -> u64 {
    u64::from(sockets) * SOCKET_BYTES
}

/// The largest budget in whole MiB that fits.
fn fitting(limit: &MemoryLimit, sockets: u32) -> String {
    format!("{}Mi", limit.bytes.saturating_sub(BESIDE_SLABS + of_sockets(sockets)) >> 20)
}

/// Holds the settings against the limit of the cgroup that this process runs in.
///
/// # Errors
/// Where slabs up to the cap, and as many sockets as may be recorded, don't fit: the kernel would refuse to
/// create them, or end the agent.
pub fn check(slots: &Config, sockets: u32) -> Result<(), OverLimit> {
    let limit = MemoryLimit::of_self().unwrap_or_else(|error| {
        tracing::debug!(%error, "the memory limit can't be read");
        None
    });
    hold(slots.cap, sockets, limit)
}

fn hold(cap: u32, sockets: u32, limit: Option<MemoryLimit>) -> Result<(), OverLimit> {
    let needed = MemoryBudget::of_slabs(cap).bytes() + of_sockets(sockets) + BESIDE_SLABS;
    match limit {
        Some(limit) if needed > limit.bytes => Err(OverLimit { cap, sockets, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_above_the_limit_is_refused_with_what_would_fit() {
        let limit = |mib: u64| Some(MemoryLimit { bytes: mib << 20, file: "/x/memory.max".into() });
        assert_eq!(hold(1000, 0, None), Ok(()));
        assert_eq!(hold(1000, 0, limit(128)), Ok(()));
        let error = hold(2048, 0, limit(128)).unwrap_err().to_string();
        assert!(error.contains("2048 slabs cost 136Mi"), "{error}");
        assert!(error.contains("134217728 bytes (/x/memory.max)"), "{error}");
        assert!(error.contains("at most 80Mi"), "{error}");
        let error = hold(1000, SOCKETS, limit(128)).unwrap_err().to_string();
        assert!(error.contains("65536 sockets (25Mi)") && error.contains("at most 55Mi"), "{error}");
    }
}
