//! What a socket of UDP remembers: where its datagrams to each VIP go, and so whose answers come from there.

use bytemuck::{Pod, Zeroable};

use crate::VipKey;

/// The endpoint to which a socket sends what it sends to a VIP. Versioned as
/// [`SocketState`](crate::SocketState) is.
///
/// Threads of a process may send through one socket at the same time, and no lock is held: whoever reads may find
/// some bytes of one flow and some of another one. So it carries a check of all of them, without which it isn't there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    /// What the application asks for; a port of 0 where there is no flow.
    pub vip: VipKey,
    /// The endpoint's port, network order.
    pub port: u16,
    /// [`Identity::caller`](crate::Identity::caller) of the program that chose the endpoint.
    pub caller: u16,
    /// The endpoint's address, network order.
    pub addr: [u32; 4],
    /// Half of the hash of the cluster's name.
    pub cluster: u32,
    /// Half of the content hash of the endpoints among which it was found last; 0 where these have none.
    pub version: u32,
    /// The number by which the cluster was chosen.
    pub number: u32,
    /// See [`check`](Self::check).
    pub check: u32,
}

impl Flow {
    /// The flow with its check.
    #[inline(always)]
    #[must_use]
    pub const fn checked(mut self) -> Self {
        self.check = self.check();
        self
    }

    /// Whether these are the bytes of one flow.
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.vip.port != 0 && self.check == self.check()
    }

    /// A hash of all but itself.
    #[inline(always)]
    const fn check(&self) -> u32 {
        const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
        let words = [
            (self.vip.tag() as u64) << 32 | self.port as u64 | (self.caller as u64) << 16,
            (self.addr[0] as u64) << 32 | self.addr[1] as u64,
            (self.addr[2] as u64) << 32 | self.addr[3] as u64,
            (self.cluster as u64) << 32 | self.version as u64,
            self.number as u64,
        ];
        let mut hash = 0;
        let mut i = 0;
        while i < words.len() {
            hash = (hash ^ words[i]).wrapping_mul(MIX);
            hash ^= hash >> 29;
            i += 1;
        }
        (hash >> 32) as u32
    }
}

/// The flows of a socket, in its sk_storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SocketFlows {
    /// Where datagrams go whose destination is given with each: the oldest gives way to a further one. The last is
    /// where the socket is connected to.
    pub flows: [Flow; SocketFlows::CONNECTED + 1],
    /// The flow that is made next.
    pub next: u32,
    /// The flow that was used last.
    pub last: u16,
    /// 1 once its owner has closed it: programs of several cgroups may see that.
    pub is_closed: u16,
}

impl SocketFlows {
    /// How many VIPs a socket may send to in turn and still get each answer from the VIP that was asked. With what
    /// the kernel adds this fills 512 bytes.
    pub const FLOWS: usize = 6;
    /// The place of the flow of a connected socket.
    pub const CONNECTED: usize = Self::FLOWS;
    /// For how many sockets it counts against the most that may be recorded.
    pub const PLACES: usize = 2;
}

const _: () = assert!(size_of::<SocketFlows>() == 400);

/// What became of flows, as far as the CPUs of one lane have seen it: so that no two CPUs write the same line of
/// memory all the time. The map has [`LANES`](Self::LANES) of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowTotals {
    /// Flows that began: a socket's first datagram to a VIP, or its connect.
    pub opened: u64,
    /// Flows that gave way, because their socket sends to more VIPs than it may have flows.
    pub evicted: u64,
    /// Flows that went to another endpoint, because theirs had gone.
    pub moved: u64,
    /// Datagrams and connects refused, because there was no endpoint.
    pub refused: u64,
    /// Datagrams and connects that were left alone, because no more sockets may be recorded.
    pub unrecorded: u64,
    /// Zero: the next element lies in another line of memory.
    pub reserved: [u64; 3],
}

impl FlowTotals {
    /// The number of lanes; a power of two.
    pub const LANES: u32 = 64;

    /// The sum of two.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            opened: self.opened + other.opened,
            evicted: self.evicted + other.evicted,
            moved: self.moved + other.moved,
            refused: self.refused + other.refused,
            unrecorded: self.unrecorded + other.unrecorded,
            reserved: [0; 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16, endpoint: u32) -> Flow {
        let vip = VipKey::new("10.96.0.10".parse().unwrap(), port, VipKey::UDP);
        Flow { vip, addr: [0, 0, 0, endpoint], port: 9, ..Flow::zeroed() }.checked()
    }

    #[test]
    fn nothing_is_no_flow() {
        assert!(!Flow::zeroed().is_whole());
        assert!(!Flow::zeroed().checked().is_whole());
        assert!(flow(53, 1).is_whole());
    }

    /// Whatever a reader finds while another one writes.
    #[test]
    fn bytes_of_two_flows_are_no_flow() {
        const WORDS: usize = size_of::<Flow>() / 4;
        let (old, new) = (flow(53, 1), flow(54, 0x0201_0203));
        let (old_words, new_words): ([u32; WORDS], [u32; WORDS]) = (bytemuck::cast(old), bytemuck::cast(new));
        for mask in 0..1_u32 << WORDS {
            let mixed: [u32; WORDS] =
                core::array::from_fn(|i| if mask >> i & 1 == 0 { old_words[i] } else { new_words[i] });
            let mixed: Flow = bytemuck::cast(mixed);
            assert_eq!(mixed.is_whole(), mixed == old || mixed == new, "{mask:b}");
        }
    }
}
