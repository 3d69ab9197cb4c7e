//! Metrics of what runs: the connections of each cluster.

use crate::RunningNow;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    cluster: String,
}

/// The lines of the exposition, without its end mark. A cluster that is gone leaves nothing behind.
pub(crate) fn render(RunningNow { clusters, endpoints }: RunningNow) -> String {
    let (active, opened, refused) = (
        Family::<Label, Gauge>::default(),
        Family::<Label, Counter>::default(),
        Family::<Label, Counter>::default(),
    );
    for (cluster, state) in clusters {
        let label = Label { cluster };
        active.get_or_create(&label).set(i64::try_from(state.active).unwrap_or(i64::MAX));
        opened.get_or_create(&label).inc_by(state.opened);
        refused.get_or_create(&label).inc_by(state.refused);
    }
    let mut registry = Registry::with_prefix("slotmesh_agent");
    registry.register(
        "cluster_connections_active",
        "TCP connections of this node's workloads to the cluster, from the SYN until the socket is closed",
        active,
    );
    registry.register("cluster_connections", "TCP connections that began, since the cluster's first", opened);
    registry.register(
        "cluster_connections_refused",
        "Connects refused because the cluster had as many connections as it may have",
        refused,
    );
    let counted = Gauge::<i64>::default();
    counted.set(i64::try_from(endpoints).unwrap_or(i64::MAX));
    registry.register(
        "endpoints_counted",
        "Endpoints at which connections are counted, for LeastConnections; at most 65536",
        counted,
    );
    let mut text = String::new();
    encode_registry(&mut text, &registry).expect("writing to a string doesn't fail");
    text
}

#[cfg(test)]
mod tests {
    use slotmesh_records::ClusterState;

    use super::*;

    #[test]
    fn a_cluster_shows_its_connections() {
        let state = ClusterState { active: 3, cursor: 9, opened: 40, refused: 2 };
        let clusters = vec![("outbound|80||a.b.svc.cluster.local".to_owned(), state)];
        let text = render(RunningNow { clusters, endpoints: 5 });
        for line in [
            "endpoints_counted 5",
            "cluster_connections_active{cluster=\"outbound|80||a.b.svc.cluster.local\"} 3",
            "cluster_connections_total{cluster=\"outbound|80||a.b.svc.cluster.local\"} 40",
            "cluster_connections_refused_total{cluster=\"outbound|80||a.b.svc.cluster.local\"} 2",
        ] {
            assert!(text.lines().any(|l| l == format!("slotmesh_agent_{line}")), "{line}: {text}");
        }
    }
}
