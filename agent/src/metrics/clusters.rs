//! Metrics of what runs: the connections of each cluster.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use slotmesh_records::ProxyTotals;

use crate::DatapathState;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FallbackLabel {
    reason: &'static str,
}

/// The lines of the exposition, without its end mark. A cluster that is gone leaves nothing behind.
pub(crate) fn render(running: DatapathState) -> String {
    let DatapathState { clusters, endpoints, ejections, sockets, affinities, flows, proxied, proxies } =
        running;
    let (active, opened, refused, too_fast) = (
        Family::<Label, Gauge>::default(),
        Family::<Label, Counter>::default(),
        Family::<Label, Counter>::default(),
        Family::<Label, Counter>::default(),
    );
    for (cluster, state) in clusters {
        let label = Label { cluster };
        active.get_or_create(&label).set(i64::try_from(state.active).unwrap_or(i64::MAX));
        opened.get_or_create(&label).inc_by(state.opened);
        refused.get_or_create(&label).inc_by(state.refused);
        too_fast.get_or_create(&label).inc_by(state.too_fast);
    }
    let mut registry = Registry::with_prefix("slotmesh_agent");
    registry.register(
        "cluster_connections_active",
        "TCP connections of this node's workloads to the cluster, from connect until the socket is closed",
        active,
    );
    registry.register("cluster_connections", "TCP connections that began, since the cluster's first", opened);
    registry.register(
        "cluster_connections_refused",
        "Connects refused because the cluster had as many connections as it may have",
        refused,
    );
    registry.register(
        "cluster_connections_too_fast",
        "Connects refused because new connections to the cluster came faster than they may",
        too_fast,
    );
    let counted = Gauge::<i64>::default();
    counted.set(i64::try_from(endpoints).unwrap_or(i64::MAX));
    registry.register(
        "endpoints_counted",
        "Endpoints at which connections are counted, for LeastConnections; at most --max-counted-endpoints",
        counted,
    );
    let (active, total) = (Gauge::<i64>::default(), Counter::<u64>::default());
    active.set(i64::try_from(ejections.active).unwrap_or(i64::MAX));
    total.inc_by(ejections.total);
    registry.register(
        "endpoints_ejected",
        "Endpoints that are left out, because as many connects to them failed in a row as outlier detection says",
        active,
    );
    registry.register(
        "ejections",
        "How often outlier detection left an endpoint out, of the clusters that are in force",
        total,
    );
    let recorded = Gauge::<i64>::default();
    recorded.set(i64::try_from(sockets.recorded).unwrap_or(i64::MAX));
    registry.register(
        "sockets_recorded",
        "Sockets with a record of what they were connected to, until they are closed; at most --max-sockets",
        recorded,
    );
    let (unrecorded, uncounted) = (Counter::<u64>::default(), Counter::<u64>::default());
    unrecorded.inc_by(sockets.unrecorded);
    uncounted.inc_by(sockets.uncounted);
    registry.register(
        "connections_unrecorded",
        "Connections for whose socket there was no record: not counted, and refused where a limit is set",
        unrecorded,
    );
    registry.register(
        "connections_uncounted",
        "Connections that found no room for another count: refused where a limit is set",
        uncounted,
    );
    let (held, evicted) = (Gauge::<i64>::default(), Counter::<u64>::default());
    held.set(i64::try_from(affinities.held).unwrap_or(i64::MAX));
    evicted.inc_by(affinities.evicted);
    registry.register(
        "affinities",
        "Endpoints that workloads keep to by session affinity; at most --max-affinities",
        held,
    );
    registry.register(
        "affinities_evicted",
        "Session affinities that were given up for want of room, those used longest ago first",
        evicted,
    );
    for (name, help, count) in [
        (
            "proxied_connections",
            "Connections that went to the proxy of their network namespace, which looks at their requests",
            proxied.sent,
        ),
        (
            "proxied_refused",
            "Connections for a proxy that were refused, because there is none at the moment",
            proxied.refused,
        ),
        (
            "udp_flows",
            "Flows of UDP that began: the first datagram of a socket to a Service port, or its connect",
            flows.opened,
        ),
        (
            "udp_flows_moved",
            "Flows of UDP that went to another endpoint, because theirs had gone",
            flows.moved,
        ),
        (
            "udp_flows_evicted",
            "Flows of UDP that gave way to newer ones of their socket, which sends to more Service ports than it may \
             have flows",
            flows.evicted,
        ),
        (
            "udp_refused",
            "Datagrams and connects of UDP refused, because there was no endpoint",
            flows.refused,
        ),
        (
            "udp_unrecorded",
            "Datagrams and connects of UDP that were left to kube-proxy for want of room for their socket's record",
            flows.unrecorded,
        ),
    ] {
        let counter = Counter::<u64>::default();
        counter.inc_by(count);
        registry.register(name, help, counter);
    }
    register_proxied(&mut registry, &proxied, proxies);
    let mut text = String::new();
    encode_registry(&mut text, &registry).expect("writing to a string doesn't fail");
    text
}

/// Metrics of connections whose requests are looked at.
fn register_proxied(registry: &mut Registry, proxied: &ProxyTotals, proxies: usize) {
    let namespaces = Gauge::<i64>::default();
    namespaces.set(i64::try_from(proxies).unwrap_or(i64::MAX));
    registry.register(
        "proxied_namespaces",
        "Network namespaces in which a proxy takes connections whose requests are looked at",
        namespaces,
    );
    let fallbacks = Family::<FallbackLabel, Counter>::default();
    for (reason, count) in [("absent", proxied.absent), ("unreachable", proxied.unreachable)] {
        fallbacks.get_or_create(&FallbackLabel { reason }).inc_by(count);
    }
    registry.register(
        "proxied_fallbacks",
        "Connections for a proxy that went where the rule for every request says: their namespace has none (absent), or \
         their socket can't reach it, as it is for IPv6 only or bound to an IPv6 address or a device (unreachable)",
        fallbacks,
    );
}

#[cfg(test)]
mod tests {
    use slotmesh_records::{FlowTotals, SocketTotals};

    use super::*;
    use crate::{Affinities, ConnectionCounts, Ejections};

    #[test]
    fn a_cluster_shows_its_connections() {
        let state = ConnectionCounts { active: 3, opened: 40, refused: 2, too_fast: 13 };
        let sockets = SocketTotals { recorded: 7, unrecorded: 1, uncounted: 6 };
        let flows = FlowTotals {
            opened: 11,
            evicted: 2,
            moved: 4,
            refused: 8,
            unrecorded: 5,
            ..FlowTotals::default()
        };
        let clusters = vec![("outbound|80||a.b.svc.cluster.local".to_owned(), state)];
        let affinities = Affinities { held: 8, evicted: 9 };
        let ejections = Ejections { active: 3, total: 12 };
        let proxied =
            ProxyTotals { sent: 15, absent: 12, refused: 13, unreachable: 14, ..ProxyTotals::default() };
        let running = DatapathState {
            clusters,
            endpoints: 5,
            ejections,
            sockets,
            affinities,
            flows,
            proxied,
            proxies: 16,
        };
        let text = render(running);
        for line in [
            "affinities 8",
            "affinities_evicted_total 9",
            "endpoints_counted 5",
            "endpoints_ejected 3",
            "ejections_total 12",
            "sockets_recorded 7",
            "connections_unrecorded_total 1",
            "connections_uncounted_total 6",
            "proxied_namespaces 16",
            "proxied_connections_total 15",
            "proxied_refused_total 13",
            "proxied_fallbacks_total{reason=\"absent\"} 12",
            "proxied_fallbacks_total{reason=\"unreachable\"} 14",
            "udp_flows_total 11",
            "udp_flows_evicted_total 2",
            "udp_flows_moved_total 4",
            "udp_refused_total 8",
            "udp_unrecorded_total 5",
            "cluster_connections_active{cluster=\"outbound|80||a.b.svc.cluster.local\"} 3",
            "cluster_connections_total{cluster=\"outbound|80||a.b.svc.cluster.local\"} 40",
            "cluster_connections_too_fast_total{cluster=\"outbound|80||a.b.svc.cluster.local\"} 13",
            "cluster_connections_refused_total{cluster=\"outbound|80||a.b.svc.cluster.local\"} 2",
        ] {
            assert!(text.lines().any(|l| l == format!("slotmesh_agent_{line}")), "{line}: {text}");
        }
    }
}
