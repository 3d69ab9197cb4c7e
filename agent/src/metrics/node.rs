//! Metrics that only the agent of a cluster's node has: its operator and its pods.

use prometheus_client::{encoding::text::encode_registry, metrics::gauge::Gauge, registry::Registry};
use slotmesh_ads::Stats;

use crate::Enrolled;

/// Shows what the client counts; how many pods there are is set when it is scraped.
pub struct NodeMetrics {
    registry: Registry,
    named: Gauge,
    attached: Gauge,
    overdue: Gauge,
}

impl NodeMetrics {
    /// Shows what the client counts.
    pub fn new(stats: &Stats) -> Self {
        let [named, attached, overdue] = [(); 3].map(|()| Gauge::default());
        let mut registry = Registry::with_prefix("slotmesh_agent");
        stats.register(&mut registry);
        registry.register("pods_named", "Pods of this node that take part", named.clone());
        registry.register("pods_attached", "Of these, pods whose connections are routed", attached.clone());
        registry.register(
            "pods_overdue",
            "Pods that should be attached by now and aren't; the log says why",
            overdue.clone(),
        );
        Self { registry, named, attached, overdue }
    }

    /// The lines of the exposition, without its end mark.
    pub fn render(&self, enrolled: &Enrolled) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
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
        let metrics = NodeMetrics::new(&Stats::default());
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
