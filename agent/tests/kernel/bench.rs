//! An agent of a test's own.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use slotmesh_ads::{Sink as _, Update};
use slotmesh_agent::{Affinities, Agent, DatapathState, MapSizes, Options, RecordType, metrics::Metrics};
use slotmesh_slots::Config;
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version};

/// An agent with a pin root of its own, which goes with it.
pub(crate) struct Bench {
    pub(crate) agent: Option<Agent>,
    pub(crate) metrics: Arc<Metrics>,
    runtime: tokio::runtime::Runtime,
    pin_root: PathBuf,
    slots: Config,
    pub(crate) maps: MapSizes,
}

impl Bench {
    pub(crate) fn new(slots: Config) -> Self {
        Self::with_maps(slots, MapSizes::default())
    }

    pub(crate) fn with_maps(slots: Config, maps: MapSizes) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let pin_root = PathBuf::from(format!("/sys/fs/bpf/slotmesh-test-{}-{n}", std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut bench = Self { agent: None, metrics: Arc::default(), runtime, pin_root, slots, maps };
        bench.start();
        bench
    }

    pub(crate) fn start(&mut self) {
        let agent = Agent::start(self.options(), self.metrics.clone());
        self.agent = Some(agent.unwrap_or_else(|error| panic!("the agent doesn't start: {error}")));
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            pin_root: self.pin_root.clone(),
            slots: self.slots,
            sockets: slotmesh_agent::memory::SOCKETS,
            maps: self.maps,
            workloads: Vec::new(),
            node: "node-a".to_owned(),
        }
    }

    /// Ends the agent in order, and leaves the maps: its owner finishes the command it is at.
    pub(crate) fn stop(&mut self) {
        self.agent = None;
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("the agent runs")
    }

    pub(crate) fn upsert(&self, ty: ResourceType, upserts: Vec<Resource>) -> Vec<Rejection> {
        let update = Update { ty, upserts, removed: Vec::new() };
        self.runtime.block_on(self.agent().handlers().apply(update))
    }

    pub(crate) fn remove(&self, ty: ResourceType, names: &[&str]) {
        let removed = names.iter().map(|&name| ResourceName::from(name)).collect();
        let refused =
            self.runtime.block_on(self.agent().handlers().apply(Update { ty, upserts: Vec::new(), removed }));
        assert_eq!(refused, []);
    }

    pub(crate) fn held(&self) -> Vec<(ResourceType, String)> {
        let held = self.runtime.block_on(self.agent().handlers().held());
        let mut held: Vec<_> = held.into_iter().map(|(ty, name, _)| (ty, name.to_string())).collect();
        held.sort();
        held
    }

    /// The version of a resource that the agent says it has.
    pub(crate) fn version(&self, ty: ResourceType, name: &str) -> Option<Version> {
        let held = self.runtime.block_on(self.agent().handlers().held());
        held.into_iter().find(|(of, at, _)| *of == ty && at.as_str() == name).map(|(.., version)| version)
    }

    /// How many session affinities there are.
    pub(crate) fn affinities(&self) -> Affinities {
        self.runtime.block_on(self.agent().handle().running(0)).affinities
    }

    /// The endpoints of a cluster that are left out, and for how much longer.
    pub(crate) fn left_out(&self, cluster: &str) -> BTreeMap<SocketAddr, Duration> {
        self.runtime.block_on(self.agent().handle().left_out(cluster))
    }

    /// What the records hold of a resource.
    pub(crate) fn show(&self, ty: ResourceType, name: &str) -> Option<serde_json::Value> {
        let ty = RecordType::of(ty)?;
        self.runtime.block_on(self.agent().handle().show(ty, name.into()))
    }

    /// The addresses at which a proxy takes connections for these route configurations, or for all.
    pub(crate) fn proxy_addresses(&self, names: Option<&[&str]>) -> HashMap<ResourceName, Ipv4Addr> {
        let names = names.map(|names| names.iter().map(|&name| name.into()).collect());
        self.runtime.block_on(self.agent().handle().proxy_addresses(names))
    }

    /// The state of at most ten clusters, and of sockets.
    pub(crate) fn running(&self) -> DatapathState {
        self.runtime.block_on(self.agent().handle().running(10))
    }

    /// The lines of the metrics that tell of traffic.
    pub(crate) fn traffic(&self) -> String {
        self.runtime.block_on(self.agent().handle().traffic_lines())
    }

    pub(crate) fn stats(&self) -> slotmesh_slots::Stats {
        self.runtime.block_on(self.agent().handle().stats()).expect("the agent runs").0
    }

    /// What the agent wants to be sent again within this time, while things `change`; returns with the first.
    pub(crate) fn retries_within(
        &self,
        time: Duration,
        change: impl Fn(),
    ) -> Vec<(ResourceType, ResourceName)> {
        let handlers = self.agent().handlers();
        let started = Instant::now();
        while started.elapsed() < time {
            change();
            let retry = async { tokio::time::timeout(Duration::from_millis(50), handlers.retries()).await };
            if let Ok(due) = self.runtime.block_on(retry) {
                return due.names;
            }
        }
        Vec::new()
    }

    /// Says that all types have been answered, and waits until the agent has done what it does then.
    pub(crate) fn sync(&self) {
        self.agent().handlers().synced();
        let synced = async { self.agent().synced().wait_for(|synced| *synced).await.map(drop) };
        self.runtime.block_on(synced).expect("the owner of the maps runs");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.remove().expect("the pins can be removed");
        }
        let _ = std::fs::remove_dir_all(&self.pin_root);
    }
}
