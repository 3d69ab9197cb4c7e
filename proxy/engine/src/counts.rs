//! Counts of requests and connections.
//!
//! Each worker has its own counts, which it alone writes; a scrape adds them up. So no word of memory is written by two
//! cores on the way of a request. Labels are bounded by the configuration: clusters and response codes.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::series::{self, SeriesTable};

/// Response codes that a cluster has counts of; further ones count as 0.
const CODES: usize = 16;
/// Cluster of requests that no cluster answered.
pub(crate) const NO_CLUSTER: &str = "-";

/// A number that one thread writes.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    pub(crate) fn one_more(&self) {
        self.add(1);
    }

    pub(crate) fn one_less(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(1), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts of a cluster on a worker.
#[derive(Debug, Default)]
pub(crate) struct ClusterStats {
    /// Responses: the code above 48 bits of count.
    codes: [AtomicU64; CODES],
    /// Responses with a code for which there was no room.
    other_codes: Count,
    pub(crate) retries: Count,
    pub(crate) retries_denied: Count,
    pub(crate) connects: Count,
    pub(crate) connect_failures: Count,
    pub(crate) timeouts: Count,
    pub(crate) resets: Count,
    pub(crate) active: Count,
}

impl ClusterStats {
    /// Counts a response by its code.
    pub(crate) fn response(&self, code: u16) {
        let wanted = u64::from(code) << 48;
        for place in &self.codes {
            let value = place.load(Relaxed);
            if value == 0 || value & (0xffff << 48) == wanted {
                place.store(wanted | (value & !(0xffff << 48)).wrapping_add(1), Relaxed);
                return;
            }
        }
        self.other_codes.one_more();
    }
}

/// Counts of a worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerStats {
    /// Locked when a cluster comes or goes, and by scrapes.
    clusters: Mutex<BTreeMap<Arc<str>, Arc<ClusterStats>>>,
    pub(crate) connections: Count,
    pub(crate) connections_open: Count,
    pub(crate) connections_at_rest: Count,
    pub(crate) connections_shed: Count,
    pub(crate) connections_unrouted: Count,
    pub(crate) requests_shed: Count,
    pub(crate) mirrors: Count,
    pub(crate) mirrors_shed: Count,
    pub(crate) tcp: Count,
    pub(crate) series: Arc<SeriesTable>,
}

impl WorkerStats {
    /// The counts of the cluster with this name.
    pub(crate) fn cluster(&self, name: &Arc<str>) -> Arc<ClusterStats> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.entry(name.clone()).or_default().clone()
    }

    /// Forgets a cluster that is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// The counts of all workers.
#[derive(Clone, Debug)]
pub(crate) struct Stats(pub(crate) Vec<Arc<WorkerStats>>);

#[derive(Clone, Debug, EncodeLabelSet)]
struct ByCluster {
    cluster: String,
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct ByCode {
    cluster: String,
    code: u16,
}

/// Sums over the workers.
#[derive(Debug, Default)]
struct Sums {
    codes: BTreeMap<u16, u64>,
    numbers: [u64; PER_CLUSTER.len()],
    active: u64,
}

type Number = fn(&ClusterStats) -> &Count;

/// Counters of clusters: name, meaning, value.
const PER_CLUSTER: [(&str, &str, Number); 6] = [
    ("retries", "Requests that were sent once more", |stats| &stats.retries),
    ("retries_denied", "Retries that the budget had no room for", |stats| &stats.retries_denied),
    ("upstream_connects", "Connections made to endpoints", |stats| &stats.connects),
    ("upstream_connect_failures", "Connections to endpoints that could not be made", |stats| {
        &stats.connect_failures
    }),
    ("timeouts", "Requests whose time was over", |stats| &stats.timeouts),
    ("upstream_resets", "Responses that endpoints broke off", |stats| &stats.resets),
];

type WorkerNumber = fn(&WorkerStats) -> &Count;

/// Counters of workers.
const PER_WORKER: [(&str, &str, WorkerNumber); 7] = [
    ("connections", "Connections accepted from clients", |stats| &stats.connections),
    ("connections_shed", "Connections closed for want of room", |stats| &stats.connections_shed),
    ("connections_unrouted", "Connections closed because no listener came for their address", |stats| {
        &stats.connections_unrouted
    }),
    ("requests_shed", "Requests answered 503 for want of room", |stats| &stats.requests_shed),
    ("mirrors", "Requests sent to a mirror", |stats| &stats.mirrors),
    ("mirrors_shed", "Mirrored requests left out for want of room", |stats| &stats.mirrors_shed),
    ("tcp_connections", "Connections passed through as TCP", |stats| &stats.tcp),
];

/// Gauges of workers.
const GAUGES: [(&str, &str, WorkerNumber); 2] = [
    ("connections_open", "Connections from clients that are open", |stats| &stats.connections_open),
    ("connections_at_rest", "Of these, idle ones that hold no buffer", |stats| &stats.connections_at_rest),
];

impl Stats {
    /// Makes the counts part of a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }

    fn sums(&self) -> BTreeMap<Arc<str>, Sums> {
        let mut all: BTreeMap<Arc<str>, Sums> = BTreeMap::new();
        for worker in &self.0 {
            let clusters = worker.clusters.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for (name, stats) in clusters {
                let sums = all.entry(name).or_default();
                for value in stats.codes.iter().map(|place| place.load(Relaxed)).filter(|value| *value != 0) {
                    let code = u16::try_from(value >> 48).unwrap_or_default();
                    *sums.codes.entry(code).or_default() += value & !(0xffff << 48);
                }
                let others = stats.other_codes.get();
                if others > 0 {
                    *sums.codes.entry(0).or_default() += others;
                }
                for (sum, (_, _, number)) in sums.numbers.iter_mut().zip(PER_CLUSTER) {
                    *sum += number(&stats).get();
                }
                sums.active = sums.active.wrapping_add(stats.active.get());
            }
        }
        all
    }
}

impl Collector for Stats {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sums = self.sums();
        let counter = MetricType::Counter;
        let help = "Responses by cluster and code; the cluster is - where none was asked";
        let mut family = encoder.encode_descriptor("responses", help, None, counter)?;
        for (cluster, of) in &sums {
            for (code, count) in &of.codes {
                let labels = ByCode { cluster: cluster.to_string(), code: *code };
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        series::encode(self.0.iter().map(|worker| &*worker.series), &mut encoder)?;
        for (index, (name, help, _)) in PER_CLUSTER.into_iter().enumerate() {
            let mut family = encoder.encode_descriptor(name, help, None, counter)?;
            for (cluster, of) in &sums {
                let labels = ByCluster { cluster: cluster.to_string() };
                ConstCounter::new(of.numbers[index]).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Requests in flight by cluster";
        let mut family = encoder.encode_descriptor("requests_active", help, None, MetricType::Gauge)?;
        for (cluster, of) in &sums {
            let labels = ByCluster { cluster: cluster.to_string() };
            ConstGauge::new(i64::try_from(of.active).unwrap_or_default())
                .encode(family.encode_family(&labels)?)?;
        }
        for (name, help, number) in PER_WORKER {
            let sum: u64 = self.0.iter().map(|worker| number(worker).get()).sum();
            ConstCounter::new(sum).encode(encoder.encode_descriptor(name, help, None, counter)?)?;
        }
        for (name, help, number) in GAUGES {
            let sum: u64 = self.0.iter().map(|worker| number(worker).get()).sum();
            let value = ConstGauge::new(i64::try_from(sum).unwrap_or_default());
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn workers_are_added_up() {
        let stats = Stats(vec![Arc::default(), Arc::default()]);
        let web: Arc<str> = "web".into();
        for (worker, code) in [(0, 200), (1, 200), (1, 503)] {
            stats.0[worker].cluster(&web).response(code);
        }
        stats.0[0].cluster(&web).retries.one_more();
        stats.0[0].cluster(&web).active.one_more();
        stats.0[1].connections.add(5);
        for code in 0..40 {
            stats.0[0].cluster(&"many".into()).response(400 + code);
        }
        let mut registry = Registry::with_prefix("slotmesh_proxy");
        stats.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            "slotmesh_proxy_responses_total{cluster=\"web\",code=\"200\"} 2",
            "slotmesh_proxy_responses_total{cluster=\"web\",code=\"503\"} 1",
            "slotmesh_proxy_responses_total{cluster=\"many\",code=\"0\"} 24",
            "slotmesh_proxy_retries_total{cluster=\"web\"} 1",
            "slotmesh_proxy_requests_active{cluster=\"web\"} 1",
            "slotmesh_proxy_connections_total 5",
        ] {
            assert!(text.contains(line), "{line} isn't in\n{text}");
        }
        stats.0[0].forget("many");
        text.clear();
        encode(&mut text, &registry).unwrap();
        assert!(!text.contains("many"));
    }
}
