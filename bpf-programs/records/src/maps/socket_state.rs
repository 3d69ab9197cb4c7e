//! State of redirected sockets, and how many of them there may be.
//!
//! Versioned by [`STATE_VERSION`](super::STATE_VERSION), not by the layout hash.

use bytemuck::{Pod, Zeroable};

use super::{LaneKey, VipKey};

/// What a redirected socket remembers of its last connect, in its sk_storage. 56 bytes: with eight more the
/// kernel takes 64 more for each socket.
///
/// It isn't part of the layout hash: its layout, and that of [`Identity`](super::Identity), is versioned by
/// [`STATE_VERSION`](super::STATE_VERSION), which names the directories of their pins. A change of either raises it once a
/// release has been made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketState {
    /// What the application asked for: what getpeername answers.
    pub original: VipKey,
    /// Where it was redirected to: the port, network order.
    pub target_port: u16,
    /// Where its cluster counts it, while it does: 0 among all, else one more than the lane. With
    /// [`AT_ENDPOINT`](Self::AT_ENDPOINT) where its endpoint does, too, and [`WATCHED`](Self::WATCHED).
    pub counted: u8,
    /// 1 once its owner has closed it: programs of several cgroups may see that.
    pub is_closed: u8,
    /// Where it was redirected to: the address. A program that runs after this one's, further up in the
    /// cgroup hierarchy, sees a connect to it.
    pub target: [u32; 4],
    /// [`name_hash`](super::name_hash) of the chosen cluster.
    pub cluster: u64,
    /// The upper half is that of whose program redirected it ([`Identity::mark`](super::Identity::mark)). The lower half tells since when
    /// it counts among the connections of its cluster ([`tick`](Self::tick)), and is 0 while it doesn't: whoever
    /// clears it has to take the connection out of the count, so that is done once.
    pub counting: u64,
}

impl SocketState {
    /// Set in [`counted`](Self::counted) where the endpoint counts the connection.
    pub const AT_ENDPOINT: u8 = 1 << 7;
    /// Set in [`counted`](Self::counted) where it matters whether the connect fails.
    pub const WATCHED: u8 = 1 << 6;
    /// The lower half of [`counting`](Self::counting).
    pub const SINCE: u64 = u32::MAX as u64;

    /// A time in the kernel's nanoseconds, in some two milliseconds: never 0, and back at the same number after 52
    /// days.
    #[inline(always)]
    pub const fn tick(nanoseconds: u64) -> u32 {
        (nanoseconds >> 20) as u32 | 1
    }

    /// Whose program redirected it: an [`Identity::mark`](super::Identity::mark).
    #[inline(always)]
    pub const fn mark(&self) -> u32 {
        (self.counting >> 32) as u32
    }
}

/// How many sockets are recorded, and what had no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketTotals {
    /// Sockets with a [`SocketState`] that their owners haven't closed.
    pub recorded: u64,
    /// Connections without a record, for want of room: redirected where their cluster has no limit, else
    /// refused.
    pub unrecorded: u64,
    /// Connections that couldn't be counted, because as many clusters or endpoints are counted as can be.
    pub uncounted: u64,
}

impl SocketTotals {
    /// The sum of all elements of the map.
    pub fn of(shares: impl IntoIterator<Item = (u32, SocketShare)>) -> Self {
        let mut totals = Self::default();
        for (i, share) in shares {
            let places = if i == 0 { share.places } else { share.places.wrapping_neg() };
            totals.recorded = totals.recorded.wrapping_add(places);
            totals.unrecorded += share.unrecorded;
            totals.uncounted += share.uncounted;
        }
        totals
    }
}

/// What is known of sockets by the CPUs of one lane, or by all: so that no two CPUs write the same line of memory at
/// each connect, places for records are taken, and given back, by the batch.
///
/// The map has an element of all, and [`LANES`](Self::LANES) behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketShare {
    /// Of all: the places that were taken. Of a lane: those of them in which no socket is recorded yet.
    pub places: u64,
    /// See [`SocketTotals::unrecorded`].
    pub unrecorded: u64,
    /// See [`SocketTotals::uncounted`].
    pub uncounted: u64,
    /// Zero: the next element lies in other lines of memory.
    pub reserved: [u64; 13],
}

impl SocketShare {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 64;
    /// The elements of the map.
    pub const ELEMENTS: u32 = 1 + Self::LANES;
}

/// How many sockets may be recorded: the one element of a map of its own, which the agent writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketLimit {
    /// The most sockets.
    pub most: u64,
    /// How many places a lane takes at once; it keeps at most twice as many. 0: one by one.
    pub batch: u64,
}

impl SocketLimit {
    /// At most so many sockets, on so many CPUs: less than a sixteenth of the places lie idle in lanes.
    pub fn new(most: u32, cpus: u32) -> Self {
        const MOST: u32 = 32;
        let batch = most / (cpus.clamp(1, SocketShare::LANES) * 32);
        Self { most: most.into(), batch: batch.min(MOST).into() }
    }
}

const _: () = assert!(
    size_of::<SocketState>() == 56
        && size_of::<SocketShare>() == 128
        && LaneKey::LANES < SocketState::WATCHED as u32
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_sockets_are_those_taken_without_the_idle_ones() {
        let share = |places| SocketShare { places, unrecorded: 1, uncounted: 2, ..SocketShare::default() };
        let totals = SocketTotals::of([(0, share(40)), (1, share(7)), (64, share(3))]);
        assert_eq!(totals, SocketTotals { recorded: 30, unrecorded: 3, uncounted: 6 });
        // A lane that has just given some back.
        assert_eq!(SocketTotals::of([(1, share(5)), (0, share(9))]).recorded, 4);
    }

    #[test]
    fn few_places_lie_idle_in_lanes() {
        for (most, cpus) in
            [(65_536, 2), (65_536, 64), (65_536, 512), (1_000, 8), (2, 4), (0, 1), (u32::MAX, 1)]
        {
            let SocketLimit { most: allowed, batch } = SocketLimit::new(most, cpus);
            assert_eq!(allowed, u64::from(most));
            let lanes = u64::from(cpus.min(SocketShare::LANES));
            assert!(2 * batch * lanes <= allowed / 16, "{batch} of {most} on {cpus}");
        }
        assert_eq!(SocketLimit::new(2, 4).batch, 0, "so few are counted exactly");
    }

    #[test]
    fn a_time_in_a_record_is_never_0() {
        for nanoseconds in [0, 1, 1 << 20, (1 << 52) - 1, 1 << 52, u64::MAX] {
            assert_ne!(SocketState::tick(nanoseconds), 0);
        }
        assert_eq!(SocketState::tick(5 << 20), 5);
    }
}
