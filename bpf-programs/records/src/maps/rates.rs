//! Buckets of tokens: rates of new connections to a cluster.

use bytemuck::{Pod, Zeroable};

/// A bucket of a cluster that has a rate of new connections: the key of [`BucketState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct BucketKey {
    /// [`name_hash`](super::name_hash) of the cluster.
    pub cluster: u64,
    /// [`Identity::workload`](super::Identity::workload) of the caller whose it is; 0 of the one for all, which there is in any case where connects
    /// were refused.
    pub caller: u64,
}

/// A bucket from which each new connection takes a token: made by the first, removed by the agent when it is full again,
/// and that of all with the cluster. Versioned as [`SocketState`](super::SocketState) is.
///
/// A token flows in after each `interval`; so one number tells how many there are: when the bucket will be full. All
/// times are the kernel's nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct BucketState {
    /// When it is full.
    pub full: u64,
    /// Connects that found no token in this or any other bucket of the cluster; of the one for all.
    pub refused: u64,
}

impl BucketState {
    /// Of a bucket that is being removed.
    pub const GONE: u64 = u64::MAX;

    /// The time in which a token flows in, of so many (not 0) a second. Rounded up, so there are never more.
    #[inline(always)]
    pub const fn interval(per_second: u32) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        SECOND.div_ceil(per_second as u64)
    }

    /// A token of a bucket that holds `burst`: when it will be full then; `None` where there is none.
    #[inline(always)]
    pub const fn take(full: u64, now: u64, interval: u64, burst: u32) -> Option<u64> {
        let full = if full > now { full } else { now };
        if full - now > interval * (burst.saturating_sub(1)) as u64 { None } else { Some(full + interval) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_never_gives_more_than_it_holds_and_what_flows_in() {
        for (per_second, burst) in [(1, 1), (3, 5), (1_000, 1), (7, 100), (1_000_000, 10)] {
            let interval = BucketState::interval(per_second);
            // As many as it holds at once, then one for each that flows in.
            let (mut full, start) = (0, 5_000_000_000);
            let mut taken = 0_u64;
            let mut now = start;
            for step in 0..2_000_u64 {
                match BucketState::take(full, now, interval, burst) {
                    Some(after) => {
                        full = after;
                        taken += 1;
                    }
                    None => now += interval / 3 + step % 2,
                }
                let most = u64::from(burst) + (now - start) / interval;
                assert!(taken <= most, "{per_second} {burst}: {taken} of {most}");
            }
            assert!(taken >= u64::from(burst), "{per_second} {burst}: {taken}");
            // A quiet time fills it, and no more than that.
            let now = full + 1_000_000_000_000;
            let mut at_once = 0;
            while let Some(after) = BucketState::take(full, now, interval, burst) {
                full = after;
                at_once += 1;
            }
            assert_eq!(at_once, burst);
        }
        assert_eq!(BucketState::interval(3), 333_333_334);
    }
}
