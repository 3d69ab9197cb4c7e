//! What runs of clusters (connections, turns) outlives every flush. The programs make the entries; a thread
//! of the agent's looks after them ([`Keeper`]): it finds connections that ended although nobody closed their
//! socket, and removes the entries in which nothing counts any more. The owner of the maps only tells it
//! which clusters are gone, so an update makes no call.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use slotmesh_kernel::{BpfError, Map, monotonic};
use slotmesh_records::{
    AffinityKey, AffinityState, AffinityTotals, BucketKey, BucketState, ClusterState, EndpointKey,
    EndpointState, FlowTotals, LaneKey, LaneState, NamespaceProxy, OutlierState, ProxyTotals, SocketShare,
    SocketTotals, name_hash,
};

use crate::datapath::{Datapath, DatapathError};

/// What runs now.
#[derive(Clone, Debug, Default)]
pub struct DatapathState {
    /// Of the clusters that are in force, the busiest of those that had a connection, by name.
    pub clusters: Vec<(String, ConnectionCounts)>,
    /// How many endpoints have an entry.
    pub endpoints: usize,
    /// Endpoints that are left out because connects to them fail.
    pub ejections: Ejections,
    /// How many sockets are recorded, and what had no room.
    pub sockets: SocketTotals,
    /// Numbers of flows of sockets of UDP.
    pub flows: FlowTotals,
    /// Session affinities.
    pub affinities: Affinities,
    /// Connections whose requests are looked at.
    pub proxied: ProxyTotals,
    /// Network namespaces with a proxy.
    pub proxies: usize,
}

/// Endpoints that are left out because connects to them fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejections {
    /// How many are.
    pub active: u64,
    /// How often any was, of the clusters that are there.
    pub total: u64,
}

/// The endpoints that workloads keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinities {
    /// How many are remembered.
    pub held: u64,
    /// How many were given up for want of room.
    pub evicted: u64,
}

/// Connections of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionCounts {
    /// Those that are open.
    pub active: u64,
    /// Those that have counted since the cluster's first.
    pub opened: u64,
    /// Connects refused because there were as many connections as there may be.
    pub refused: u64,
    /// Connects refused because they came faster than they may.
    pub too_fast: u64,
}

/// The maps of what runs.
pub(crate) struct RunningMaps {
    pub clusters: Map<u64, ClusterState>,
    /// Connections of clusters without a limit.
    pub lanes: Map<LaneKey, LaneState>,
    pub endpoints: Map<EndpointKey, EndpointState>,
    /// Rates of new connections.
    pub buckets: Map<BucketKey, BucketState>,
    /// Failed connects.
    pub outliers: Map<u64, OutlierState>,
    pub totals: Map<u32, SocketShare>,
    pub affinities: Map<AffinityKey, AffinityState>,
    pub affinity_totals: Map<u32, AffinityTotals>,
    pub flows: Map<u32, FlowTotals>,
    /// By the cookie of a network namespace.
    pub proxies: Map<u64, NamespaceProxy>,
    pub proxy_totals: Map<u32, ProxyTotals>,
}

impl RunningMaps {
    /// Connections of each cluster that has had one, by the hash of its name: those that count among all, and those
    /// of its lanes.
    pub fn counts(&self) -> Result<HashMap<u64, ConnectionCounts>, BpfError> {
        let mut counts = HashMap::<u64, ConnectionCounts>::new();
        for (cluster, state) in self.clusters.entries()? {
            let found = counts.entry(cluster).or_default();
            found.active += u64::from(state.active.get());
            found.opened += state.opened;
            found.refused += state.refused;
        }
        for (key, state) in self.lanes.entries()? {
            let found = counts.entry(key.cluster).or_default();
            found.active += u64::from(state.active.get());
            found.opened += state.opened;
        }
        for (key, state) in self.buckets.entries()? {
            counts.entry(key.cluster).or_default().too_fast += state.refused;
        }
        Ok(counts)
    }
}

/// Reads what runs, on whatever thread: so it keeps nobody from an update.
pub(crate) struct RunningReader(Arc<RunningMaps>);

impl RunningReader {
    /// Reads these maps.
    pub const fn new(maps: Arc<RunningMaps>) -> Self {
        Self(maps)
    }

    /// The `most` busiest clusters, busiest first, by the hash of the cluster's name.
    pub fn busiest(&self, most: usize) -> Vec<(u64, ConnectionCounts)> {
        if most == 0 {
            return Vec::new();
        }
        let mut entries: Vec<_> = self.read(RunningMaps::counts).into_iter().collect();
        entries.sort_unstable_by_key(|&(cluster, counts)| Reverse((counts.active, counts.opened, cluster)));
        entries.truncate(most);
        entries
    }

    /// The connections of those of these clusters that have had any, by name.
    pub fn of_clusters(&self, names: Vec<String>) -> HashMap<String, ConnectionCounts> {
        let counts = self.read(RunningMaps::counts);
        let found = |name: String| Some((counts.get(&name_hash(&name)).copied()?, name));
        names.into_iter().filter_map(found).map(|(counts, name)| (name, counts)).collect()
    }

    /// How many endpoints have an entry.
    pub fn endpoints(&self) -> usize {
        self.read(|maps| maps.endpoints.entries()).len()
    }

    /// The endpoints that are left out.
    pub fn ejections(&self) -> Ejections {
        let now = now();
        let mut found = Ejections::default();
        for (_, state) in self.read(|maps| maps.outliers.entries()) {
            if state.of.at.port == 0 {
                found.total += state.times;
            } else {
                found.active += u64::from(state.until > now);
            }
        }
        found
    }

    /// All endpoints that are left out now.
    pub fn all_left_out(&self) -> LeftOut {
        left_out(&self.read(|maps| maps.outliers.entries()), now())
    }

    /// The endpoints of a cluster that are left out, by the hash of its name, and for how much longer.
    pub fn left_out(&self, cluster: u64) -> BTreeMap<SocketAddr, Duration> {
        let now = now();
        let entries = self.read(|maps| maps.outliers.entries());
        let is_out =
            |state: &OutlierState| state.of.cluster == cluster && state.of.at.port != 0 && state.until > now;
        let out = entries.into_iter().map(|(_, state)| state).filter(is_out);
        out.map(|state| (state.of.at.socket_addr(), Duration::from_nanos(state.until - now))).collect()
    }

    /// How many sockets are recorded.
    pub fn sockets(&self) -> SocketTotals {
        SocketTotals::of(self.read(|maps| maps.totals.entries()))
    }

    /// Numbers of flows of sockets of UDP.
    pub fn flows(&self) -> FlowTotals {
        let lanes = self.read(|maps| maps.flows.entries());
        lanes.into_iter().fold(FlowTotals::default(), |sum, (_, lane)| sum.plus(lane))
    }

    /// Numbers of connections whose requests are looked at.
    pub fn proxied(&self) -> ProxyTotals {
        let lanes = self.read(|maps| maps.proxy_totals.entries());
        lanes.into_iter().fold(ProxyTotals::default(), |sum, (_, lane)| sum.plus(lane))
    }

    /// Says where the proxy of a network namespace listens; `None`: it has none.
    pub fn set_proxy(&self, namespace: u64, port: Option<u16>) -> Result<(), BpfError> {
        match port {
            Some(port) => {
                let proxy = NamespaceProxy { port: port.to_be(), ..NamespaceProxy::default() };
                self.0.proxies.update(&namespace, &proxy)
            }
            None => self.0.proxies.delete(&namespace).map(drop),
        }
    }

    /// The port of a namespace's proxy, as it is now.
    pub fn proxy_of(&self, namespace: u64) -> Option<u16> {
        self.read(|maps| maps.proxies.get(&namespace)).map(|proxy| u16::from_be(proxy.port))
    }

    /// Leaves no proxies but those of these namespaces.
    pub fn retain_proxies(&self, is_kept: impl Fn(u64) -> bool) {
        for (namespace, _) in self.read(|maps| maps.proxies.entries()) {
            if !is_kept(namespace)
                && let Err(error) = self.set_proxy(namespace, None)
            {
                tracing::warn!(%error, namespace, "a proxy that there is no more can't be removed");
            }
        }
    }

    /// How many network namespaces have a proxy.
    pub fn proxies(&self) -> usize {
        let entries = self.read(|maps| maps.proxies.entries());
        entries.into_iter().filter(|(_, proxy)| proxy.port != 0).count()
    }

    /// The session affinities. The totals are read first: what is made meanwhile isn't taken for given up.
    pub fn affinities(&self) -> Affinities {
        let AffinityTotals { made, removed } =
            self.read(|maps| maps.affinity_totals.get(&0)).unwrap_or_default();
        let held = self.read(|maps| maps.affinities.entries()).len() as u64;
        Affinities { held, evicted: made.saturating_sub(removed).saturating_sub(held) }
    }

    fn read<T: Default>(&self, read: impl FnOnce(&RunningMaps) -> Result<T, BpfError>) -> T {
        read(&self.0).unwrap_or_else(|error| {
            tracing::warn!(%error, "what runs can't be read");
            T::default()
        })
    }
}

/// Endpoints that are left out, by the hash of the cluster's name.
pub(crate) type LeftOut = HashMap<u64, BTreeSet<SocketAddr>>;

fn left_out(entries: &[(u64, OutlierState)], now: u64) -> LeftOut {
    let mut found = LeftOut::new();
    for (_, OutlierState { of, until, .. }) in entries {
        if of.at.port != 0 && *until > now {
            found.entry(of.cluster).or_default().insert(of.at.socket_addr());
        }
    }
    found
}

/// The kernel's monotonic nanoseconds, as programs have them.
fn now() -> u64 {
    u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX)
}

/// A message of the owner to the keeper.
enum KeeperMessage {
    /// A cluster has been removed.
    Removed(u64),
    /// A cluster is there (again).
    Back(u64),
    /// The clusters that are there: what is of others an earlier agent left.
    All(HashSet<u64>),
}

/// The owner's side: what it tells.
#[derive(Default)]
pub(crate) struct Running {
    keeper: Option<Sender<KeeperMessage>>,
    /// Clusters that were told to be gone, so that only their return needs to be told.
    gone: HashSet<u64>,
}

impl Running {
    /// From now on the keeper is told, who looks after these maps and all that an earlier agent left there.
    pub fn open(&mut self, maps: &Arc<RunningMaps>) -> Keeper {
        let (keeper, inbox) = channel();
        self.keeper = Some(keeper);
        Keeper { maps: maps.clone(), inbox, gone: HashSet::new(), left_out: LeftOut::new() }
    }

    /// What an earlier agent left of clusters that aren't there any more goes.
    ///
    /// Not before the first sync: in an upgrade to other records there are no clusters until then.
    pub fn mark_orphans(&self, exist: HashSet<u64>) {
        self.tell(KeeperMessage::All(exist));
    }

    /// A cluster has been removed.
    pub fn mark_removed(&mut self, cluster: u64) {
        self.gone.insert(cluster);
        self.tell(KeeperMessage::Removed(cluster));
    }

    /// A cluster of this name is there (again).
    pub fn unmark(&mut self, name: &str) {
        if !self.gone.is_empty() && self.gone.remove(&name_hash(name)) {
            self.tell(KeeperMessage::Back(name_hash(name)));
        }
    }

    fn tell(&self, told: KeeperMessage) {
        // A keeper that has ended has said why.
        let _ = self.keeper.as_ref().map(|keeper| keeper.send(told));
    }
}

/// How often sockets are looked at whose connection is over.
const EVERY: Duration = Duration::from_secs(1);
/// How often entries are looked at in which nothing counts, in rounds of [`EVERY`].
const ENTRIES: u64 = 2;
/// How often links are looked at whose cgroup may be gone.
const LINKS: u64 = 10;

/// Looks after what runs; see the module's comment.
pub(crate) struct Keeper {
    maps: Arc<RunningMaps>,
    inbox: Receiver<KeeperMessage>,
    /// Clusters that aren't in force, and may have an entry.
    gone: HashSet<u64>,
    /// The endpoints that were left out when it was looked last.
    left_out: LeftOut,
}

impl Keeper {
    /// Starts the thread, which ends when the owner's side is dropped. `tell` is told when other endpoints are left out.
    pub fn start(
        self,
        datapath: Arc<Datapath>,
        tell: impl Fn(LeftOut) + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("counts".to_owned()).spawn(move || self.keep(&datapath, &tell))
    }

    fn keep(mut self, datapath: &Datapath, tell: &dyn Fn(LeftOut)) {
        let mut said: HashSet<String> = HashSet::new();
        let mut check = |what: &'static str, outcome: Result<(), DatapathError>| {
            // Once each: it would be the same every second.
            if let Err(error) = outcome
                && said.insert(error.to_string())
            {
                tracing::warn!(%error, "{what}");
            }
        };
        let mut next = Instant::now();
        for round in 0_u64.. {
            next = (next + EVERY).max(Instant::now());
            loop {
                match self.inbox.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok(told) => self.told(told),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            check("sockets whose connection is over go on counting", datapath.release_closed());
            check("endpoints that were left out can't be taken back", self.settle_outliers(datapath, tell));
            if round.is_multiple_of(ENTRIES) {
                check("what runs of clusters that are gone can't be removed", self.remove_clusters(datapath));
                check("what ran at endpoints can't be removed", self.remove_endpoints(datapath));
                check("buckets that are full can't be removed", self.remove_buckets(datapath));
            }
            if round.is_multiple_of(LINKS) {
                check("links of cgroups that are gone can't be removed", datapath.collect_releases());
            }
        }
    }

    fn told(&mut self, told: KeeperMessage) {
        match told {
            KeeperMessage::Removed(cluster) => drop(self.gone.insert(cluster)),
            KeeperMessage::Back(cluster) => drop(self.gone.remove(&cluster)),
            KeeperMessage::All(exist) => match self.maps.counts() {
                Ok(counts) => self.gone.extend(counts.into_keys().filter(|key| !exist.contains(key))),
                Err(error) => tracing::warn!(%error, "what runs of clusters that are gone can't be removed"),
            },
        }
    }

    /// Should a cluster be back, and nobody have told yet, it loses its numbers of connections in the past.
    fn remove_clusters(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let mut failed = None;
        self.gone.retain(|&cluster| {
            !datapath.remove_cluster(cluster).unwrap_or_else(|error| {
                failed = Some(error);
                false
            })
        });
        failed.map_or(Ok(()), Err)
    }

    /// Endpoints whose time is over count as in, also where nobody chooses them; what has been quiet for long goes.
    fn settle_outliers(&mut self, datapath: &Datapath, tell: &dyn Fn(LeftOut)) -> Result<(), DatapathError> {
        let now = now();
        let all = self.maps.outliers.entries().map_err(DatapathError::running)?;
        let left_out = left_out(&all, now);
        if left_out != self.left_out {
            tell(left_out.clone());
            self.left_out = left_out;
        }
        let is_due = |state: &OutlierState| {
            let is_over = state.until != 0 && state.until <= now;
            let is_quiet = state.until <= now && now.saturating_sub(state.failed) > OutlierState::IDLE;
            state.of.at.port != 0 && (is_over || is_quiet)
        };
        let mut due = all.into_iter().map(|(_, state)| state).filter(is_due);
        due.try_for_each(|state| datapath.settle_outlier(&state.of).map(drop))
    }

    /// Those of callers that are full are as if they weren't there. That of a cluster goes with it.
    fn remove_buckets(&self, datapath: &Datapath) -> Result<(), DatapathError> {
        let now = now();
        let all = self.maps.buckets.entries().map_err(DatapathError::running)?;
        let full = all.into_iter().filter(|(key, state)| key.caller != 0 && state.full <= now);
        full.map(|(key, _)| key).try_for_each(|key| datapath.remove_bucket(&key).map(drop))
    }

    fn remove_endpoints(&self, datapath: &Datapath) -> Result<(), DatapathError> {
        let second = monotonic().as_secs() as u32;
        let all = self.maps.endpoints.entries().map_err(DatapathError::running)?;
        let idle =
            all.into_iter().filter(|(_, state)| state.active.get() == 0 && state.failed.at(second) == 0);
        idle.map(|(key, _)| key).try_for_each(|key| datapath.remove_endpoint(&key).map(drop))
    }
}
