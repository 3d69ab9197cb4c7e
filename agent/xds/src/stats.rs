//! Counters that the agent's metrics read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use slotmesh_xds::{PerType, ResourceType};

/// What has happened on the client's connections. Each value may be read at any time.
#[derive(Debug, Default)]
pub struct Stats {
    types: PerType<TypeStats>,
    connects: AtomicU64,
    failures: AtomicU64,
    connected: AtomicBool,
    in_sync: AtomicBool,
}

#[derive(Debug, Default)]
struct TypeStats {
    acks: AtomicU64,
    nacks: AtomicU64,
    rejected: AtomicU64,
}

impl Stats {
    /// Responses of a type that were wholly accepted.
    pub fn acks(&self, ty: ResourceType) -> u64 {
        self.types[ty].acks.load(Ordering::Relaxed)
    }

    /// Responses of a type in which something was refused.
    pub fn nacks(&self, ty: ResourceType) -> u64 {
        self.types[ty].nacks.load(Ordering::Relaxed)
    }

    /// Resources of a type that were refused.
    pub fn rejected(&self, ty: ResourceType) -> u64 {
        self.types[ty].rejected.load(Ordering::Relaxed)
    }

    /// Streams that were opened.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed)
    }

    /// Streams that were opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects().saturating_sub(1)
    }

    /// Attempts to connect that failed.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// A stream is open now.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// On the stream that is open now, all subscribed types are answered.
    pub fn in_sync(&self) -> bool {
        self.in_sync.load(Ordering::Relaxed)
    }

    pub(crate) fn answered(&self, ty: ResourceType, rejected: usize) {
        let stats = &self.types[ty];
        let count = if rejected == 0 { &stats.acks } else { &stats.nacks };
        count.fetch_add(1, Ordering::Relaxed);
        stats.rejected.fetch_add(rejected as u64, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.connected.store(true, Ordering::Relaxed);
    }

    pub(crate) fn synced(&self, in_sync: bool) {
        self.in_sync.store(in_sync, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.connected.store(false, Ordering::Relaxed);
        self.in_sync.store(false, Ordering::Relaxed);
    }
}
