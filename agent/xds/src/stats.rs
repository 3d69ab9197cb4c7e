//! Counters of the client, which are metrics themselves.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use slotmesh_xds::{PerType, ResourceType};

/// Events of the client's connections. Each value may be read at any time.
#[derive(Debug, Default)]
pub struct Stats {
    types: PerType<TypeStats>,
    connects: Counter,
    failures: Counter,
    connected: Gauge,
    in_sync: Gauge,
}

#[derive(Debug, Default)]
struct TypeStats {
    acks: Counter,
    nacks: Counter,
    rejected: Counter,
}

impl Stats {
    /// Shows the state of the stream, and how often there was one.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("connected", "1 while a stream to the operator is open", self.connected.clone());
        let help = "1 while a stream is open on which all types have been answered";
        registry.register("in_sync", help, self.in_sync.clone());
        registry.register("connects", "Streams to the operator that were opened", self.connects.clone());
        let help = "Attempts to reach the operator that failed";
        registry.register("connect_failures", help, self.failures.clone());
    }

    /// Responses of a type that were wholly accepted.
    pub fn acks(&self, ty: ResourceType) -> u64 {
        self.types[ty].acks.get()
    }

    /// Responses of a type in which something was refused.
    pub fn nacks(&self, ty: ResourceType) -> u64 {
        self.types[ty].nacks.get()
    }

    /// Resources of a type that were refused.
    pub fn rejected(&self, ty: ResourceType) -> u64 {
        self.types[ty].rejected.get()
    }

    /// Streams that were opened.
    pub fn connects(&self) -> u64 {
        self.connects.get()
    }

    /// Streams that were opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects().saturating_sub(1)
    }

    /// Attempts to connect that failed.
    pub fn failures(&self) -> u64 {
        self.failures.get()
    }

    /// A stream is open now.
    pub fn connected(&self) -> bool {
        self.connected.get() != 0
    }

    /// On the stream that is open now, all subscribed types are answered.
    pub fn in_sync(&self) -> bool {
        self.in_sync.get() != 0
    }

    pub(crate) fn answered(&self, ty: ResourceType, rejected: usize) {
        let stats = &self.types[ty];
        let count = if rejected == 0 { &stats.acks } else { &stats.nacks };
        count.inc();
        stats.rejected.inc_by(rejected as u64);
    }

    pub(crate) fn opened(&self) {
        self.connects.inc();
        self.connected.set(1);
    }

    pub(crate) fn synced(&self, in_sync: bool) {
        self.in_sync.set(in_sync.into());
    }

    pub(crate) fn failed(&self) {
        self.failures.inc();
    }

    pub(crate) fn closed(&self) {
        self.connected.set(0);
        self.in_sync.set(0);
    }
}
