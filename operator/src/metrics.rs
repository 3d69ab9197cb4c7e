//! The operator's Prometheus metrics, read when they are scraped.

use std::sync::{Arc, atomic::Ordering};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use slotmesh_compile::{Kind, Severity};
use slotmesh_serve::{AdsServerConfig, Delays, Gate, HeldBack, RefusalReason, RefusedStreams, Shed, Store};
use slotmesh_xds::ResourceType;
use tokio::sync::watch;

use crate::{
    LeftAlone, Status,
    status::{Counters, WriteTarget},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeverityLabel {
    severity: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabel {
    target: &'static str,
}

/// See the module's comment.
pub struct Metrics {
    registry: Registry,
    store: Store,
    status: watch::Receiver<Status>,
    refusals: Arc<RefusedStreams>,
    held_back: Arc<HeldBack>,
    synced: Gauge,
    left_out: Family<KindLabel, Gauge>,
    left_alone: Family<ReasonLabel, Gauge>,
    resources: Family<TypeLabel, Gauge>,
    agents: Gauge,
    up_to_date: Gauge,
    rejected: Family<TypeLabel, Gauge>,
    refused: Family<ReasonLabel, Counter>,
    gate: Gate,
    unknown: Gauge,
    shed: Family<ReasonLabel, Counter>,
    held: Counter,
    given_up: Counter,
    reports: Family<SeverityLabel, Gauge>,
    compiled: Counter,
    left: Gauge,
    counters: Counters,
    leader: Gauge,
    writes: Family<TargetLabel, Counter>,
    write_errors: Family<TargetLabel, Counter>,
}

impl Metrics {
    /// Shows what is served, to whom, and what is to be said about it and was written.
    pub fn new(
        store: Store,
        status: watch::Receiver<Status>,
        server: &AdsServerConfig,
        counters: Counters,
    ) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("slotmesh_operator"),
            store,
            status,
            refusals: Arc::clone(&server.refusals),
            held_back: Arc::clone(&server.held_back),
            synced: Gauge::default(),
            left_out: Family::default(),
            left_alone: Family::default(),
            resources: Family::default(),
            agents: Gauge::default(),
            up_to_date: Gauge::default(),
            rejected: Family::default(),
            refused: Family::default(),
            gate: server.gate.clone(),
            unknown: Gauge::default(),
            shed: Family::default(),
            held: Counter::default(),
            given_up: Counter::default(),
            reports: Family::default(),
            compiled: Counter::default(),
            left: Gauge::default(),
            counters,
            leader: Gauge::default(),
            writes: Family::default(),
            write_errors: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("synced", "1 once all objects are compiled", metrics.synced.clone());
        registry.register(
            "left_out_kinds",
            "1 where a kind can't be listed, and everything else is served without it",
            metrics.left_out.clone(),
        );
        registry.register(
            "left_alone_pods",
            "Pods that don't take part though their namespace does, by reason",
            metrics.left_alone.clone(),
        );
        registry.register("resources", "Resources that are served, by type", metrics.resources.clone());
        registry.register("agents", "Agents with a stream to this replica", metrics.agents.clone());
        registry.register(
            "agents_up_to_date",
            "Of these, agents that have answered to all that is served",
            metrics.up_to_date.clone(),
        );
        registry.register(
            "rejected_resources",
            "Resources that agents refuse at present, by type, summed over the agents",
            metrics.rejected.clone(),
        );
        registry.register("refused_streams", "Streams that were refused, by reason", metrics.refused.clone());
        registry.register(
            "unknown_connections",
            "Connections of which nobody knows yet whose they are",
            metrics.unknown.clone(),
        );
        registry.register("shed_connections", "Connections that were ended, by reason", metrics.shed.clone());
        registry.register(
            "held_streams",
            "Streams whose agents came from a replica that knew more, and waited for this one",
            metrics.held.clone(),
        );
        registry.register(
            "held_streams_given_up",
            "Of these, streams that were answered though this replica hadn't caught up in time",
            metrics.given_up.clone(),
        );
        registry.register(
            "reports",
            "What is to be said about objects at present, by severity",
            metrics.reports.clone(),
        );
        registry.register("compiled_units", "Units compiled since the start", metrics.compiled.clone());
        registry.register(
            "services_left_to_kube_proxy",
            "Services that ask for what isn't done yet, whose connections are left to kube-proxy",
            metrics.left.clone(),
        );
        let Delays { published, answered } = metrics.store.delays();
        registry.register_with_unit(
            "publish",
            "Time from the event of a watch until what came of it was compiled and served",
            Unit::Seconds,
            published,
        );
        registry.register_with_unit(
            "propagation",
            "Time from the event of a watch until an agent had answered to all that came of it, for each agent",
            Unit::Seconds,
            answered,
        );
        registry.register(
            "leader",
            "1 on the replica that holds the Lease and writes conditions",
            metrics.leader.clone(),
        );
        registry.register(
            "status_writes",
            "MeshNodes, conditions of objects, and events that were written, by target",
            metrics.writes.clone(),
        );
        registry.register(
            "status_write_errors",
            "Writes of these that failed and were tried again, by target",
            metrics.write_errors.clone(),
        );
        metrics
    }

    /// The exposition text.
    pub fn render(&self) -> String {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let status = self.status.borrow().clone();
        self.synced.set(i64::from(status.synced));
        for kind in Kind::ALL {
            let left_out = i64::from(status.left_out.contains(&kind));
            self.left_out.get_or_create(&KindLabel { kind: kind.as_str() }).set(left_out);
        }
        for reason in LeftAlone::ALL {
            let count = status.left_alone.get(&reason).copied().unwrap_or_default();
            self.left_alone.get_or_create(&ReasonLabel { reason: reason.as_str() }).set(gauge(count));
        }
        let agents = self.store.agents();
        self.agents.set(gauge(agents.len()));
        self.up_to_date.set(gauge(agents.iter().filter(|agent| agent.up_to_date).count()));
        for ty in ResourceType::ALL {
            let label = TypeLabel { r#type: ty.as_str() };
            let rejected = agents.iter().map(|agent| agent.types[ty].rejected.len()).sum();
            self.resources.get_or_create(&label).set(gauge(self.store.count(ty)));
            self.rejected.get_or_create(&label).set(gauge(rejected));
        }
        for severity in Severity::ALL {
            let count = status.reports.iter().filter(|report| report.severity == severity).count();
            self.reports.get_or_create(&SeverityLabel { severity: severity.as_str() }).set(gauge(count));
        }
        follow(&self.compiled, status.compiled.units);
        self.left.set(i64::try_from(status.left_to_kube_proxy).unwrap_or(i64::MAX));
        for reason in RefusalReason::ALL {
            let counter = self.refused.get_or_create(&ReasonLabel { reason: reason.as_str() });
            follow(&counter, self.refusals.count(reason));
        }
        self.unknown.set(gauge(self.gate.unknown()));
        for reason in Shed::ALL {
            let counter = self.shed.get_or_create(&ReasonLabel { reason: reason.as_str() });
            follow(&counter, self.gate.shed(reason));
        }
        follow(&self.held, self.held_back.begun());
        follow(&self.given_up, self.held_back.given_up());
        self.leader.set(i64::from(self.counters.is_leader()));
        for target in WriteTarget::ALL {
            let label = TargetLabel { target: target.as_str() };
            follow(&self.writes.get_or_create(&label), self.counters.writes(target));
            follow(&self.write_errors.get_or_create(&label), self.counters.errors(target));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string doesn't fail");
        text
    }
}

/// Shows a count that is kept elsewhere and only rises.
fn follow(counter: &Counter, total: u64) {
    counter.inner().fetch_max(total, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_type_is_shown_from_the_start() {
        let (_sender, status) = watch::channel(Status::default());
        let metrics = Metrics::new(Store::new(), status, &AdsServerConfig::default(), Counters::default());
        let text = metrics.render();
        for line in [
            "slotmesh_operator_synced 0",
            "slotmesh_operator_left_out_kinds{kind=\"HTTPRoute\"} 0",
            "slotmesh_operator_resources{type=\"workload\"} 0",
            "slotmesh_operator_refused_streams_total{reason=\"other_node\"} 0",
            "slotmesh_operator_left_alone_pods{reason=\"sidecar\"} 0",
            "slotmesh_operator_unknown_connections 0",
            "slotmesh_operator_shed_connections_total{reason=\"crowded\"} 0",
            "slotmesh_operator_reports{severity=\"refused\"} 0",
            "slotmesh_operator_leader 0",
            "slotmesh_operator_propagation_seconds_count 0",
            "slotmesh_operator_held_streams_total 0",
            "slotmesh_operator_held_streams_given_up_total 0",
            "slotmesh_operator_status_writes_total{target=\"node\"} 0",
            "slotmesh_operator_status_write_errors_total{target=\"event\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
    }
}
