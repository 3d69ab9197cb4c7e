//! A cheap way to ask the owner of the maps, for the ADS client and the admin server.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use slotmesh_ads::Update;
use slotmesh_kernel::netns_cookie;
use slotmesh_records::{VipKey, name_hash};
use slotmesh_slots::{ClassStats, SlotClass, Stats};
use slotmesh_xds::{Rejection, ResourceName, Version};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use super::owner::Command;
use crate::{
    RecordType,
    config::{Invalid, Settings},
    datapath::Datapath,
    metrics::Metrics,
    pending_retries::PendingRetries,
    prepare::{Hashed, Prepared},
    running::{ConnectionCounts, DatapathState, RunningReader},
    traffic::TrafficReader,
    view::View,
};

/// A cheap way to ask the owner of the maps.
#[derive(Clone)]
pub struct Handle {
    pub(super) commands: Sender<Command>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) synced: watch::Receiver<bool>,
    pub(super) ended: CancellationToken,
    pub(super) retries: Arc<PendingRetries>,
    pub(super) hashed: Hashed,
    pub(super) changes: watch::Receiver<u64>,
    pub(super) running: Option<Arc<RunningReader>>,
    pub(crate) traffic: Option<Arc<TrafficReader>>,
    pub(super) datapath: Option<Arc<Datapath>>,
}

impl Handle {
    /// The programs; `None` where none are loaded.
    pub(crate) const fn datapath(&self) -> Option<&Arc<Datapath>> {
        self.datapath.as_ref()
    }

    /// The name of the listener that has an address; `None` where none has, or the agent has stopped.
    pub(crate) async fn listener_at(&self, key: VipKey) -> Option<String> {
        self.ask(|reply| Command::ListenerAt(key, reply)).await.flatten()
    }

    /// The names of those of these clusters that are in force, by the hashes of their names.
    pub(crate) async fn cluster_names(&self, hashes: HashSet<u64>) -> HashMap<u64, String> {
        self.ask(|reply| Command::ClusterNames(hashes, reply)).await.unwrap_or_default()
    }

    /// As [`cluster_names`](Self::cluster_names), on a thread that may wait.
    pub(crate) fn cluster_names_blocking(&self, hashes: HashSet<u64>) -> HashMap<u64, String> {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(Command::ClusterNames(hashes, reply));
        asked.ok().and_then(|()| answer.blocking_recv().ok()).unwrap_or_default()
    }

    /// Changes whenever the slot table may have changed; the value itself has no meaning.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The slot table as it is now and the SlotProfile in force, if one is; `None` once the agent has
    /// stopped.
    pub(crate) async fn slots(&self) -> Option<(Stats, Option<String>)> {
        self.ask(Command::Slots).await
    }

    /// The slot table as it is now and the number of virtual addresses; `None` once the agent has
    /// stopped.
    pub async fn stats(&self) -> Option<(Stats, usize)> {
        self.ask(Command::Stats).await
    }

    /// The slabs that serve a class, by index, and their slots by state; `None` once the agent has stopped.
    pub(crate) async fn slabs_of(&self, class: SlotClass) -> Option<Vec<(u32, ClassStats)>> {
        self.ask(|reply| Command::SlabsOf(class, reply)).await
    }

    /// What runs, of the `most` busiest clusters; nothing once the agent has stopped. Only the names of the
    /// clusters are asked of the owner of the maps.
    pub async fn running(&self, most: usize) -> DatapathState {
        let Some(reader) = self.running.clone() else { return DatapathState::default() };
        let read = spawn_blocking(move || {
            let of_sockets = (reader.sockets(), reader.flows());
            let of_proxies = (reader.proxied(), reader.proxies());
            let of_endpoints = (reader.endpoints(), reader.ejections());
            (reader.busiest(most), of_endpoints, of_sockets, reader.affinities(), of_proxies)
        });
        let Ok((busiest, (endpoints, ejections), (sockets, flows), affinities, (proxied, proxies))) =
            read.await
        else {
            return DatapathState::default();
        };
        let hashes = busiest.iter().map(|(hash, _)| *hash).collect();
        let names = self.cluster_names(hashes).await;
        let named = |(hash, state)| Some((names.get(&hash)?.clone(), state));
        let clusters = busiest.into_iter().filter_map(named).collect();
        DatapathState { clusters, endpoints, ejections, sockets, affinities, flows, proxied, proxies }
    }

    /// The addresses at which a proxy takes connections for route configurations (a connection's own address tells which it
    /// is for): of those of these that are in force and for requests; of all such where none are named. Nothing once the
    /// agent has stopped. An address stays a configuration's for as long as that is in force, also with the next agent.
    pub async fn proxy_addresses(&self, names: Option<Vec<ResourceName>>) -> HashMap<ResourceName, Ipv4Addr> {
        self.ask(|reply| Command::ProxyAddresses(names, reply)).await.unwrap_or_default()
    }

    /// The endpoints of a cluster that are left out because connects to them fail, and for how much longer.
    pub async fn left_out(&self, cluster: &str) -> BTreeMap<SocketAddr, Duration> {
        let Some(reader) = self.running.clone() else { return BTreeMap::new() };
        let cluster = name_hash(cluster);
        spawn_blocking(move || reader.left_out(cluster)).await.unwrap_or_default()
    }

    /// The connections of those of these clusters that have had any.
    pub(crate) async fn connections(&self, clusters: Vec<String>) -> HashMap<String, ConnectionCounts> {
        let Some(reader) = self.running.clone() else { return HashMap::new() };
        spawn_blocking(move || reader.of_clusters(clusters)).await.unwrap_or_default()
    }

    /// Sends connections whose requests are looked at to the proxy at this port, in the network namespace of a socket; with
    /// `None` they go where the rule for every request says.
    ///
    /// # Errors
    /// Where the socket is none, or the kernel has no retries for another proxy.
    pub fn set_proxy(&self, of: BorrowedFd<'_>, port: Option<u16>) -> io::Result<()> {
        let namespace = netns_cookie(of)?;
        let Some(reader) = &self.running else { return Ok(()) };
        reader.set_proxy(namespace, port).map_err(io::Error::other)
    }

    /// Puts settings of the node in force; with `None`, those of the agent's flags.
    pub(crate) async fn configure(&self, settings: Option<Settings>) -> Result<(), String> {
        match self.ask(|reply| Command::Configure(settings, reply)).await {
            Some(configured) => configured.map_err(|contradiction| Invalid::from(contradiction).to_string()),
            None => Err("the agent is stopping".to_owned()),
        }
    }

    /// The records in force: type, name, version.
    pub(crate) async fn held_records(&self) -> Vec<(RecordType, ResourceName, Version)> {
        self.ask(Command::Held).await.unwrap_or_default()
    }

    /// Makes records of one response, and returns what is refused; `None` where the agent has stopped.
    pub(crate) async fn apply_records(&self, ty: RecordType, update: Update) -> Option<Vec<Rejection>> {
        let held = |names| {
            let asked = self.ask(|reply| Command::Assignments(names, reply));
            async { asked.await.unwrap_or_default() }
        };
        let prepared = Box::new(Prepared::of(ty, &update, &self.hashed, held).await);
        self.ask(|reply| Command::Apply(ty, update, prepared, reply)).await
    }

    /// The first sync is over.
    pub(crate) fn tell_synced(&self) {
        // An owner that is gone says so itself.
        let _ = self.commands.send(Command::Synced);
    }

    /// Where resources are named that are to be asked for once more.
    pub(crate) const fn retries(&self) -> &Arc<PendingRetries> {
        &self.retries
    }

    /// What the kernel's records hold of a resource, as JSON; `None` where it isn't in force, or the agent
    /// has stopped.
    pub async fn show(&self, ty: RecordType, name: ResourceName) -> Option<serde_json::Value> {
        let shown = self.ask(|reply| Command::Show(ty, name, reply)).await.flatten()?;
        spawn_blocking(move || shown.json()).await.ok().flatten()
    }

    /// Where the node is.
    pub(crate) fn view(&self) -> View {
        self.hashed.view()
    }

    /// Whether the first sync is over, and there is still somebody to apply what comes.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow() && !self.has_ended()
    }

    /// Whether the agent has stopped: what is in force stays, but nothing new is applied.
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// The metrics of this agent.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).ok()?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::{super::owner::spawn_owner, *};

    #[test]
    fn an_agent_whose_owner_is_gone_is_not_ready() {
        let (commands, inbox) = channel();
        let (synced_sender, synced) = watch::channel(false);
        let ended = CancellationToken::new();
        let (_changed, changes) = watch::channel(0);
        let (metrics, retries, hashed) = (Arc::default(), Arc::default(), Hashed::default());
        let ended_too = ended.clone();
        let handle = Handle {
            commands,
            metrics,
            synced,
            ended: ended_too,
            retries,
            hashed,
            changes,
            running: None,
            traffic: None,
            datapath: None,
        };
        let owner = spawn_owner(&ended, move || {
            assert!(matches!(inbox.recv(), Ok(Command::Synced)));
            synced_sender.send_replace(true);
            assert!(matches!(inbox.recv(), Ok(Command::Wake)), "as a bug would");
        });
        handle.tell_synced();
        let mut synced = handle.synced.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(synced.wait_for(|synced| *synced)).unwrap();
        assert!(handle.is_synced() && !ended.is_cancelled());
        handle.commands.send(Command::Stop).unwrap();
        assert!(owner.unwrap().join().is_err(), "it panics");
        assert!(ended.is_cancelled() && !handle.is_synced());
    }
}
