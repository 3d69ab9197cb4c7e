//! Metrics that only the agent of a cluster's node has: its operator and its pods.

use std::sync::Arc;

use prometheus_client::{
    encoding::text::encode_registry,
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use slotmesh_ads::Stats;

use super::follow;
use crate::Enrolled;

/// Reads what it shows when it is scraped.
pub struct NodeMetrics {
    registry: Registry,
    stats: Arc<Stats>,
    connected: Gauge,
    in_sync: Gauge,
    connects: Counter,
    failures: Counter,
    named: Gauge,
    attached: Gauge,
    overdue: Gauge,
}

impl NodeMetrics {
    /// Shows what the client counts.
    pub fn new(stats: Arc<Stats>) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("slotmesh_agent"),
            stats,
            connected: Gauge::default(),
            in_sync: Gauge::default(),
            connects: Counter::default(),
            failures: Counter::default(),
            named: Gauge::default(),
            attached: Gauge::default(),
            overdue: Gauge::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("connected", "1 while a stream to the operator is open", metrics.connected.clone());
        registry.register(
            "in_sync",
            "1 while a stream is open on which all types have been answered",
            metrics.in_sync.clone(),
        );
        registry.register("connects", "Streams to the operator that were opened", metrics.connects.clone());
        registry.register(
            "connect_failures",
            "Attempts to reach the operator that failed",
            metrics.failures.clone(),
        );
        registry.register("pods_named", "Pods of this node that take part", metrics.named.clone());
        registry.register(
            "pods_attached",
            "Of these, pods whose connections are routed",
            metrics.attached.clone(),
        );
        registry.register(
            "pods_overdue",
            "Pods that should be attached by now and aren't; the log says why",
            metrics.overdue.clone(),
        );
        metrics
    }

    /// The lines of the exposition, without its end mark.
    pub fn render(&self, enrolled: &Enrolled) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.connected.set(i64::from(self.stats.connected()));
        self.in_sync.set(i64::from(self.stats.in_sync()));
        follow(&self.connects, self.stats.connects());
        follow(&self.failures, self.stats.failures());
        self.named.set(gauge(enrolled.named));
        self.attached.set(gauge(enrolled.attached));
        self.overdue.set(gauge(enrolled.overdue));
        let mut text = String::new();
        encode_registry(&mut text, &self.registry).expect("writing to a string doesn't fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_holds_at_the_scrape() {
        let metrics = NodeMetrics::new(Arc::default());
        let text = metrics.render(&Enrolled { named: 3, attached: 2, overdue: 1, example: None });
        for line in [
            "slotmesh_agent_connected 0",
            "slotmesh_agent_pods_named 3",
            "slotmesh_agent_pods_attached 2",
            "slotmesh_agent_pods_overdue 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        assert!(!text.contains("# EOF"));
    }
}
