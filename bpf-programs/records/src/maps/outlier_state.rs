//! Endpoints to which connects fail, and those that are left out for it.

use bytemuck::{Pod, Zeroable};

use super::{Count, EndpointKey, cluster_tag};

/// What is known of an endpoint to which connects fail, or failed: made by the first that does, removed by the agent
/// when it has been quiet for [`IDLE`](Self::IDLE). Keyed by a [hash](Self::key) of what it is of, as programs have
/// little room on their stack where they ask for it. Under the key of a [family](Self::family_key) it tells how many
/// endpoints of a cluster's family are left out. Versioned as [`SocketState`](super::SocketState) is. Times
/// are the kernel's nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct OutlierState {
    /// The endpoint; of port 0 for a family of the cluster.
    pub of: EndpointKey,
    /// Of an endpoint, connects that failed in a row; of a family, how many endpoints are left out.
    pub failures: Count,
    /// Until when it is left out; 0 where it isn't.
    pub until: u64,
    /// When it was taken back last.
    pub back: u64,
    /// Of an endpoint, how often in a row it was left out; of a family, how often any was.
    pub times: u64,
    /// When a connect failed last.
    pub failed: u64,
}

impl OutlierState {
    /// After so many nanoseconds without a failed connect an endpoint is as one of which nothing is known.
    pub const IDLE: u64 = 600_000_000_000;

    /// The state of an endpoint to which no connect has failed, or of a family.
    #[inline(always)]
    pub const fn none(of: &EndpointKey) -> Self {
        let failures = Count::none(cluster_tag(Self::key(of.cluster, of.at.addr, of.at.port)));
        Self { of: *of, failures, until: 0, back: 0, times: 0, failed: 0 }
    }

    /// The key of an address and port of a cluster, both in network order.
    #[inline(always)]
    pub const fn key(cluster: u64, addr: [u32; 4], port: u16) -> u64 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = (cluster ^ addr[0] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[1] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[2] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ addr[3] as u64).wrapping_mul(MIX);
        hash = (hash ^ hash >> 29 ^ port as u64).wrapping_mul(MIX);
        hash ^ hash >> 32
    }

    /// What stands for a family of a cluster's endpoints: an address that is none.
    #[inline(always)]
    pub const fn family(cluster: u64, is_v6: u64) -> EndpointKey {
        EndpointKey::new(cluster, [0, 0, 0, is_v6 as u32], 0)
    }

    /// The key of that.
    #[inline(always)]
    pub const fn family_key(cluster: u64, is_v6: u64) -> u64 {
        Self::key(cluster, [0, 0, 0, is_v6 as u32], 0)
    }

    /// How often in a row an endpoint is left out that was `times` before, and came back then: where it has been in for
    /// longer than it was out, it begins anew.
    #[inline(always)]
    pub const fn times(times: u64, back: u64, base_ms: u32, most_ms: u32, now: u64) -> u64 {
        let was_in = now.wrapping_sub(back);
        if times == 0 || was_in > Self::length(times, base_ms, most_ms) { 1 } else { times + 1 }
    }

    /// For how many nanoseconds an endpoint is left out the so-many-th time in a row.
    #[inline(always)]
    pub const fn length(times: u64, base_ms: u32, most_ms: u32) -> u64 {
        let times = if times > 1 << 20 { 1 << 20 } else { times };
        let long = base_ms as u64 * times;
        let most = if most_ms > base_ms { most_ms as u64 } else { base_ms as u64 };
        (if long > most { most } else { long }) * 1_000_000
    }

    /// How many of `count` endpoints may be left out.
    #[inline(always)]
    pub const fn most(count: u32, percent: u32) -> u32 {
        if percent == 0 {
            return 0;
        }
        let most = (count as u64 * percent as u64 / 100) as u32;
        if most == 0 { 1 } else { most }
    }

    /// Tells whether so few of `count` endpoints are left that all are used.
    #[inline(always)]
    pub const fn is_panic(count: u32, out: u32, percent: u32) -> bool {
        (count.saturating_sub(out) as u64) * 100 < count as u64 * percent as u64
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::{maps::words, name_hash};

    #[test]
    fn who_is_left_out_again_soon_is_for_longer() {
        const SECOND: u64 = 1_000_000_000;
        let times =
            |times, back, now| OutlierState::times(times, back * SECOND, 10_000, 25_000, now * SECOND);
        assert_eq!(
            [times(0, 0, 5), times(1, 100, 105), times(1, 100, 110), times(1, 100, 111)],
            [1, 2, 2, 1]
        );
        assert_eq!([times(2, 100, 120), times(2, 100, 121)], [3, 1]);
        let lengths = [1, 2, 3, u64::MAX].map(|times| OutlierState::length(times, 10_000, 25_000) / SECOND);
        assert_eq!(lengths, [10, 20, 25, 25]);
        assert_eq!(OutlierState::length(3, 10_000, 1) / SECOND, 10, "the most is never less than the first");
    }

    #[test]
    fn endpoints_and_families_have_keys_of_their_own() {
        let mut keys = std::vec::Vec::new();
        for cluster in [1, 2, name_hash("web")] {
            keys.extend([0, 1].map(|family| OutlierState::family_key(cluster, family)));
            for ip in ["10.0.0.1", "10.0.0.2", "::1", "fd00::1"] {
                let addr = words(ip.parse().unwrap());
                keys.extend([80_u16, 81].map(|port| OutlierState::key(cluster, addr, port.to_be())));
            }
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }

    #[test]
    fn one_may_be_left_out_in_any_case_and_none_with_0_percent() {
        let most = |count, percent| OutlierState::most(count, percent);
        assert_eq!([most(3, 10), most(3, 0), most(10, 50), most(10, 100), most(1, 1)], [1, 0, 5, 10, 1]);
        let panic = |count, out, percent| OutlierState::is_panic(count, out, percent);
        assert!(panic(10, 6, 50) && !panic(10, 5, 50) && !panic(10, 10, 0) && panic(10, 1, 100));
    }
}
