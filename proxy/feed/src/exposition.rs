//! Metrics of what the proxy is fed.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use slotmesh_ads::Stats;
use slotmesh_xds::ResourceType;

use crate::{ResourceSink, TYPES};

/// Reads the state of a sink and its stream at each scrape.
pub struct FeedMetrics {
    sink: ResourceSink,
    stats: Arc<Stats>,
}

impl fmt::Debug for FeedMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedMetrics").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct ByType {
    r#type: &'static str,
}

impl FeedMetrics {
    /// Makes them part of a registry.
    pub fn register(sink: ResourceSink, stats: Arc<Stats>, registry: &mut Registry) {
        registry.register_collector(Box::new(Self { sink, stats }));
    }
}

fn gauge(value: usize) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Collector for FeedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { sink, stats } = self;
        let flags = [
            ("agent_connected", "1 while there is a stream from the agent", stats.connected()),
            ("agent_in_sync", "1 while the agent has said all that it has to say", stats.in_sync()),
            (
                "broker_connected",
                "1 while there is a connection to the socket broker",
                sink.sockets().is_connected(),
            ),
        ];
        for (name, help, is) in flags {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge(usize::from(is)).encode(encoder)?;
        }
        let counters = [
            ("agent_connects", "Streams from the agent that were opened", stats.connects()),
            (
                "sockets_waited",
                "Connections to endpoints that waited for a socket of their pod",
                sink.sockets().waited(),
            ),
        ];
        for (name, help, value) in counters {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)?;
        }
        let counts = sink.counts();
        let help = "Resources in force; a workload is a pod whose connections are accepted";
        let mut family = encoder.encode_descriptor("resources", help, None, MetricType::Gauge)?;
        for ty in TYPES {
            gauge(counts[ty]).encode(family.encode_family(&ByType { r#type: ResourceType::as_str(ty) })?)?;
        }
        let help = "Resources that were refused";
        let mut family = encoder.encode_descriptor("resources_refused", help, None, MetricType::Counter)?;
        for ty in TYPES {
            let refused = ConstCounter::new(stats.rejected(ty));
            refused.encode(family.encode_family(&ByType { r#type: ResourceType::as_str(ty) })?)?;
        }
        Ok(())
    }
}
