//! Numbers of the traffic of workloads, and the end of each connection as it is told.
//!
//! Versioned as [`SocketState`](crate::SocketState) is: none of it lies in a record.

use bytemuck::{Pod, Zeroable};

use crate::VipKey;

/// The end of a connection, or why there was none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ConnectionEnding {
    /// It was closed, by whichever end.
    Closed = 0,
    /// The other end reset it, or answered no more.
    Reset = 1,
    /// The other end refused the connect.
    Refused = 2,
    /// The other end didn't answer the connect.
    TimedOut = 3,
    /// The connect was given up by who made it, sooner than an answer could be missed.
    Abandoned = 4,
    /// Nothing was sent: there is no way to the endpoint, or who connected had nothing to send.
    Unsent = 5,
    /// Refused in the kernel: the cluster had as many connections as it may have.
    Full = 6,
    /// Refused in the kernel: connections came faster than they may.
    TooFast = 7,
    /// Refused in the kernel: there was no endpoint to take.
    NoEndpoint = 8,
    /// Refused in the kernel: it had to be counted, and there was no room for that.
    NoRoom = 9,
}

impl ConnectionEnding {
    /// All of them, each at its number.
    pub const ALL: [Self; 10] = [
        Self::Closed,
        Self::Reset,
        Self::Refused,
        Self::TimedOut,
        Self::Abandoned,
        Self::Unsent,
        Self::Full,
        Self::TooFast,
        Self::NoEndpoint,
        Self::NoRoom,
    ];

    /// The name of it, as metrics and the access log have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::Abandoned => "abandoned",
            Self::Unsent => "unsent",
            Self::Full => "limit",
            Self::TooFast => "rate",
            Self::NoEndpoint => "no_endpoint",
            Self::NoRoom => "no_room",
        }
    }

    /// The one of this number; `None` where there is none.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Tells a connect that failed on its way from a connection that ended.
    pub const fn is_failure(self) -> bool {
        matches!(self, Self::Refused | Self::TimedOut | Self::Abandoned | Self::Unsent)
    }

    /// Tells a connect that a program refused.
    pub const fn is_refusal(self) -> bool {
        matches!(self, Self::Full | Self::TooFast | Self::NoEndpoint | Self::NoRoom)
    }
}

/// Whose connections to which cluster, as far as they ended on the CPUs of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct TrafficKey {
    /// [`name_hash`](crate::name_hash) of the cluster; 0 where none was found.
    pub cluster: u64,
    /// [`Identity::mark`](crate::Identity::mark) of the workload.
    pub source: u32,
    /// The number of a CPU by [`LANES`](Self::LANES).
    pub lane: u32,
}

impl TrafficKey {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 8;

    /// The element of all that have none of their own for want of room. The agent makes it before any program runs.
    #[inline(always)]
    pub const fn other(lane: u32) -> Self {
        Self { cluster: 0, source: 0, lane }
    }
}

/// Numbers of connections since the element was made. They only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TrafficState {
    /// How many ended so, by the number of the [`ConnectionEnding`].
    pub ended: [u64; 16],
    /// Of those that were established, how many ended without figures: where the kernel's structures aren't known, in MPTCP,
    /// and where the socket was disconnected before.
    pub unmeasured: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Segments that were sent again, of connects that failed, too.
    pub retransmits: u64,
    /// Smoothed round-trip times at the end, together, in microseconds.
    pub round_trip_us: u64,
    /// How many connections these are of.
    pub round_trips: u64,
    /// How long established connections lasted, together, in units of 2^20 ns.
    pub lasted: u64,
}

impl TrafficState {
    /// Nothing yet.
    pub const NONE: Self = Self {
        ended: [0; 16],
        unmeasured: 0,
        sent: 0,
        received: 0,
        retransmits: 0,
        round_trip_us: 0,
        round_trips: 0,
        lasted: 0,
    };

    /// The sum of two.
    #[must_use]
    pub fn plus(mut self, other: &Self) -> Self {
        for (sum, more) in self.ended.iter_mut().zip(other.ended) {
            *sum += more;
        }
        self.unmeasured += other.unmeasured;
        self.sent += other.sent;
        self.received += other.received;
        self.retransmits += other.retransmits;
        self.round_trip_us += other.round_trip_us;
        self.round_trips += other.round_trips;
        self.lasted += other.lasted;
        self
    }

    /// Those that ended so.
    pub const fn of(&self, ending: ConnectionEnding) -> u64 {
        self.ended[ending as usize]
    }
}

/// The agent's wishes about connections that end. All 0: nothing is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TrafficSettings {
    /// 1: count them.
    pub counts: u32,
    /// Tell of those whose random number is below this; [`ALL`](Self::ALL) of each.
    pub told: u32,
}

impl TrafficSettings {
    /// In [`told`](Self::told).
    pub const ALL: u32 = u32::MAX;
}

/// The end of a connection, as the programs tell the agent of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ConnectionEnd {
    /// When, in the kernel's monotonic nanoseconds.
    pub at: u64,
    /// See [`TrafficKey::cluster`].
    pub cluster: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// See [`TrafficKey::source`].
    pub source: u32,
    /// How long it lasted from its connect on, in units of 2^20 ns.
    pub lasted: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
    /// Smoothed round-trip time, in microseconds; 0 where there is none.
    pub round_trip_us: u32,
    /// The address that was asked for.
    pub original: VipKey,
    /// The endpoint: its address, network order; 0 where there is none.
    pub target: [u32; 4],
    /// The endpoint: its port, network order.
    pub target_port: u16,
    /// The number of its [`ConnectionEnding`].
    pub ending: u8,
    /// 1 where bytes, segments and times are known.
    pub is_measured: u8,
}

/// How many ends of connections couldn't be told, on the CPUs of a lane. The map has [`LANES`](Self::LANES) of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ToldTotals {
    /// Told.
    pub told: u64,
    /// Not told, because there was no room: the agent didn't keep up.
    pub lost: u64,
    /// Zero: the next element lies in another line of memory.
    pub reserved: [u64; 6],
}

impl ToldTotals {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 64;
}

/// A connection that is open, as the program that goes over sockets tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct OpenConnection {
    /// See [`TrafficKey::cluster`].
    pub cluster: u64,
    /// Bytes sent until now.
    pub sent: u64,
    /// Bytes received until now.
    pub received: u64,
    /// See [`TrafficKey::source`].
    pub source: u32,
    /// Segments sent again until now.
    pub retransmits: u32,
}

const _: () = assert!(size_of::<ConnectionEnd>() == 88 && size_of::<TrafficState>() == 184);

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn endings_are_found_by_their_numbers() {
        for (number, ending) in ConnectionEnding::ALL.into_iter().enumerate() {
            assert_eq!(ending as usize, number);
            assert_eq!(ConnectionEnding::from_number(number as u8), Some(ending));
            assert!(!(ending.is_failure() && ending.is_refusal()));
        }
        assert_eq!(ConnectionEnding::from_number(10), None);
        assert!(ConnectionEnding::ALL.len() <= TrafficState::NONE.ended.len());
    }

    #[test]
    fn lanes_add_up() {
        let mut one = TrafficState { sent: 1, lasted: 9, ..TrafficState::NONE };
        one.ended[ConnectionEnding::Full as usize] = 4;
        let sum = one.plus(&one).plus(&TrafficState::NONE);
        assert_eq!(
            (sum.sent, sum.lasted, sum.of(ConnectionEnding::Full), sum.of(ConnectionEnding::Closed)),
            (2, 18, 8, 0)
        );
    }
}
