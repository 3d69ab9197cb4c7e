//! The agent's Prometheus metrics.

mod clusters;
mod flush_times;
mod node;

use std::{sync::atomic::Ordering, time::Duration};

pub(crate) use clusters::render as render_running;
pub use node::NodeMetrics;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use slotmesh_slots::Stats;
use slotmesh_xds::ResourceType;

use self::flush_times::FlushTimes;
use crate::{RecordType, writer::Flush};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: TypeValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TypeValue(ResourceType);

impl EncodeLabelValue for TypeValue {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SlotLabel {
    class: u32,
    state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum SlotState {
    #[expect(non_camel_case_types, reason = "the label's value")]
    used,
    #[expect(non_camel_case_types, reason = "the label's value")]
    idle,
    #[expect(non_camel_case_types, reason = "the label's value")]
    retired,
}

/// The agent's metrics; sizes are read from the slot table when they are scraped.
pub struct Metrics {
    registry: Registry,
    flush: Family<TypeLabel, Histogram, fn() -> Histogram>,
    rejected: Family<TypeLabel, Counter>,
    slots: Family<SlotLabel, Gauge>,
    created: Gauge,
    empty: Gauge,
    remaining: Gauge,
    cap: Gauge,
    quarantined: Gauge,
    grace_periods: Counter,
    handles: Gauge,
    vips: Gauge,
    growth_failing: Gauge,
    own_tables: Counter,
    flush_times: FlushTimes,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("slotmesh_agent"),
            flush: Family::new_with_constructor(flush_histogram as fn() -> Histogram),
            rejected: Family::default(),
            slots: Family::default(),
            created: Gauge::default(),
            empty: Gauge::default(),
            remaining: Gauge::default(),
            cap: Gauge::default(),
            quarantined: Gauge::default(),
            grace_periods: Counter::default(),
            handles: Gauge::default(),
            vips: Gauge::default(),
            growth_failing: Gauge::default(),
            own_tables: Counter::default(),
            flush_times: FlushTimes::default(),
        };
        for ty in ResourceType::ALL {
            drop(metrics.rejected.get_or_create(&label(ty)));
        }
        for ty in RecordType::ALL {
            drop(metrics.flush.get_or_create(&label(ty.resource())));
        }
        let registry = &mut metrics.registry;
        registry.register_with_unit(
            "flush",
            "Time from validated resource to current records, by resource type",
            Unit::Seconds,
            metrics.flush.clone(),
        );
        registry.register("nacked_resources", "Resources refused, by type", metrics.rejected.clone());
        registry.register(
            "slots",
            "Slots by class (bytes) and state, in outer records that belong to a class",
            metrics.slots.clone(),
        );
        registry.register("outer_records", "Outer records (slabs) that exist", metrics.created.clone());
        registry.register(
            "outer_records_empty",
            "Outer records that are wholly idle and can take any class",
            metrics.empty.clone(),
        );
        registry.register("outer_records_cap", "The most outer records there are to be", metrics.cap.clone());
        registry.register(
            "growth_failing",
            "1 while the kernel refuses to create outer records",
            metrics.growth_failing.clone(),
        );
        registry.register(
            "vips",
            "Virtual addresses in the VIP map, of --max-addresses",
            metrics.vips.clone(),
        );
        registry.register(
            "outer_records_remaining",
            "Outer records not created yet, up to the cap",
            metrics.remaining.clone(),
        );
        registry.register(
            "quarantined_slots",
            "Slots and handles that wait for a grace period",
            metrics.quarantined.clone(),
        );
        registry.register(
            "grace_periods",
            "Grace periods that have passed since the agent started",
            metrics.grace_periods.clone(),
        );
        registry.register(
            "source_tables_by_owner",
            "Tables of sources of a thousand endpoints or more that the thread which makes changes current made itself",
            metrics.own_tables.clone(),
        );
        registry.register("handles", "Named resources that have a handle", metrics.handles.clone());
        metrics
    }

    /// A resource became current.
    pub fn flushed(&self, flush: Flush) {
        self.flush.get_or_create(&label(flush.ty.resource())).observe(flush.took.as_secs_f64());
        self.flush_times.observe(flush.took);
    }

    /// How long 99 of 100 flushes took at most, whatever their type; `None` before the first.
    pub fn flush_p99(&self) -> Option<Duration> {
        self.flush_times.p99()
    }

    /// Resources were refused.
    pub fn rejected(&self, ty: ResourceType, count: usize) {
        self.rejected.get_or_create(&label(ty)).inc_by(count as u64);
    }

    /// The owner of the maps made tables of many endpoints itself.
    pub(crate) fn made_tables(&self, count: u64) {
        self.own_tables.inc_by(count);
    }

    /// The exposition text, with the slot table as it is now.
    pub fn render(&self, stats: &Stats, vips: usize) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (class, counts) in &stats.classes {
            for (state, count) in [
                (SlotState::used, counts.used),
                (SlotState::idle, counts.idle),
                (SlotState::retired, counts.retired),
            ] {
                self.slots
                    .get_or_create(&SlotLabel { class: class.bytes() as u32, state })
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.created.set(i64::from(stats.slabs));
        self.empty.set(i64::from(stats.empty_slabs));
        self.remaining.set(i64::from(stats.remaining()));
        self.cap.set(i64::from(stats.cap));
        self.quarantined.set(gauge(stats.quarantined));
        follow(&self.grace_periods, stats.grace_periods);
        self.handles.set(gauge(stats.handles));
        self.vips.set(gauge(vips));
        self.growth_failing.set(i64::from(stats.growth_error.is_some()));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string doesn't fail");
        text
    }
}

/// Shows a count that is kept elsewhere and only rises.
fn follow(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

/// 250 ns to 8 ms (one grace period of the published design), doubling.
fn flush_histogram() -> Histogram {
    Histogram::new((0..16).map(|i| 250e-9 * f64::from(1_u32 << i)))
}

const fn label(ty: ResourceType) -> TypeLabel {
    TypeLabel { r#type: TypeValue(ty) }
}
