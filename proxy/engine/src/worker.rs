//! A worker: one thread with a runtime of its own, its copy of the resources, its connections and pools.
//!
//! ```text
//!  ProxyEngine --Update--> worker: listeners, routes, clusters          (each worker has a queue)
//!  client --accept--> connection --> request --> route --> cluster --> pool --> endpoint     (all on this thread)
//! ```
//!
//! Nothing of a request crosses to another thread. Sockets are shared by all workers, which accept from the same queue.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use slotmesh_routing::RouteTable;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::spawn_local,
    time::{Instant, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    accept::OriginState,
    admission::Admission,
    assignment::EndpointSet,
    balance::Balance,
    counts::{ClusterStats, NO_CLUSTER, WorkerStats},
    dial::{Dial, DialOrigin},
    downstream::ListenerConfig,
    hashing::hash_of_source,
    limits::{Http1Path, ProxyLimits},
    plain::{date::DateLine, wire::ReadBuffers},
    pool::Pool,
    resting::Resting,
    series::{RequestSeries, SeriesRoom, SourceSeries, service_of_cluster},
    turns::Turns,
    upstream::ClusterConfig,
};

/// How often slow connections and idle ones are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// A change of what a worker serves.
pub(crate) enum Update {
    Listener(Arc<ListenerConfig>),
    RemoveListener(Arc<str>),
    /// A socket on which connections come in for a listener, else for those of the addresses that they come to.
    Socket {
        listener: Option<Arc<str>>,
        origin: DialOrigin,
        socket: std::net::TcpListener,
    },
    Route(Arc<str>, Option<Arc<RouteTable>>),
    Cluster(Arc<ClusterConfig>, Arc<EndpointSet>),
    RemoveCluster(Arc<str>),
    /// The workload that an origin belongs to.
    Source(DialOrigin, Arc<str>),
    /// The hash of an origin, where a cluster chooses by the source.
    SourceHash(DialOrigin, u64),
    /// Connections of an origin end, and its sockets are closed.
    RemoveOrigin(DialOrigin),
    /// Answers when everything before it is in force.
    Barrier(oneshot::Sender<()>),
    /// No connection is accepted any more, those that exist are finished; ends when there are none, or at the deadline.
    Drain {
        deadline: std::time::Instant,
    },
}

/// A worker's state.
pub(crate) struct Worker {
    pub limits: ProxyLimits,
    pub dial: Arc<dyn Dial>,
    pub stats: Arc<WorkerStats>,
    /// Counts of requests that no cluster answered.
    pub local_stats: Arc<ClusterStats>,
    pub admission: Rc<Admission>,
    pub mirrors: Cell<usize>,
    pub series: RequestSeries,
    pub turns: Rc<Turns>,
    pub http1: Http1Path,
    pub buffers: Rc<ReadBuffers>,
    pub date: DateLine,
    pub resting: Resting,
    sources: RefCell<HashMap<DialOrigin, Arc<str>>>,
    source_hashes: RefCell<HashMap<DialOrigin, u64>>,
    random: RefCell<SmallRng>,
    listeners: RefCell<HashMap<Arc<str>, Rc<ListenerState>>>,
    routes: RefCell<HashMap<Arc<str>, Arc<RouteTable>>>,
    clusters: RefCell<HashMap<Arc<str>, Rc<ClusterState>>>,
    /// Listeners to which others' connections come, by their address.
    at: RefCell<HashMap<IpAddr, Rc<ListenerState>>>,
    pub listeners_changed: Notify,
    origins: RefCell<HashMap<DialOrigin, Rc<OriginState>>>,
    /// No connection is accepted any more.
    pub drain: CancellationToken,
    open: Cell<usize>,
}

/// A listener on a worker.
pub(crate) struct ListenerState {
    config: RefCell<Arc<ListenerConfig>>,
    /// Connections finish what they do, then end.
    pub drain: CancellationToken,
}

impl ListenerState {
    pub(crate) fn config(&self) -> Arc<ListenerConfig> {
        self.config.borrow().clone()
    }
}

/// A cluster on a worker.
pub(crate) struct ClusterState {
    pub config: Arc<ClusterConfig>,
    pub stats: Arc<ClusterStats>,
    /// The service that it is of.
    pub service: Arc<str>,
    endpoints: Arc<EndpointSet>,
    balance: RefCell<Balance>,
    /// Kept when a cluster changes, so that its connections are.
    shared: Rc<ClusterShared>,
}

/// Part of a cluster that stays when its resources change.
#[derive(Default)]
pub(crate) struct ClusterShared {
    pools: RefCell<HashMap<(DialOrigin, SocketAddr), Rc<Pool>>>,
}

impl ClusterState {
    /// The endpoint for a request; `None` where there is none.
    pub(crate) fn pick(
        &self,
        worker: &Worker,
        origin: DialOrigin,
        hash: Option<u64>,
        tried: &[SocketAddr],
    ) -> Option<SocketAddr> {
        let busy = |address| {
            self.shared.pools.borrow().get(&(origin, address)).map_or(0, |pool| pool.requests.get())
        };
        let mut random = worker.random.borrow_mut();
        let mut balance = self.balance.borrow_mut();
        balance.pick(&self.endpoints, self.config.choice, hash, tried, busy, &mut *random)
    }

    /// The connections to an endpoint.
    pub(crate) fn pool(&self, origin: DialOrigin, endpoint: SocketAddr) -> Rc<Pool> {
        self.shared.pools.borrow_mut().entry((origin, endpoint)).or_default().clone()
    }
}

impl Worker {
    pub(crate) fn new(
        limits: ProxyLimits,
        dial: Arc<dyn Dial>,
        stats: Arc<WorkerStats>,
        room: Arc<SeriesRoom>,
        http1: Http1Path,
    ) -> Rc<Self> {
        let local_stats = stats.cluster(&NO_CLUSTER.into());
        let series = RequestSeries::new(room, stats.series.clone());
        Rc::new(Self {
            limits,
            dial,
            stats,
            local_stats,
            admission: Admission::new(limits),
            mirrors: Cell::new(0),
            series,
            turns: Rc::default(),
            http1,
            buffers: Rc::default(),
            date: DateLine::default(),
            resting: Resting::default(),
            sources: RefCell::default(),
            source_hashes: RefCell::default(),
            random: RefCell::new(SmallRng::from_os_rng()),
            listeners: RefCell::default(),
            routes: RefCell::default(),
            clusters: RefCell::default(),
            at: RefCell::default(),
            listeners_changed: Notify::new(),
            origins: RefCell::default(),
            drain: CancellationToken::new(),
            open: Cell::new(0),
        })
    }

    /// A random number.
    pub(crate) fn draw(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }

    pub(crate) fn routes(&self, name: &str) -> Option<Arc<RouteTable>> {
        self.routes.borrow().get(name).cloned()
    }

    pub(crate) fn cluster(&self, name: &str) -> Option<Rc<ClusterState>> {
        self.clusters.borrow().get(name).cloned()
    }

    /// The metrics of the requests of an origin.
    pub(crate) fn source(&self, origin: DialOrigin) -> Rc<SourceSeries> {
        self.series.source(self.sources.borrow().get(&origin))
    }

    /// The hash of a source: of its origin, where that was told, else of the client's address.
    pub(crate) fn source_hash(&self, origin: DialOrigin, client: IpAddr) -> u64 {
        let of_origin = self.source_hashes.borrow().get(&origin).copied();
        of_origin.unwrap_or_else(|| hash_of_source(&client.to_canonical().to_string()))
    }

    pub(crate) fn listener(&self, name: &str) -> Option<Rc<ListenerState>> {
        self.listeners.borrow().get(name).cloned()
    }

    /// The listener to which connections to this address come.
    pub(crate) fn listener_at(&self, address: IpAddr) -> Option<Rc<ListenerState>> {
        self.at.borrow().get(&address).cloned()
    }

    /// The state of an origin, which is known from now on.
    pub(crate) fn origin(&self, id: DialOrigin) -> Rc<OriginState> {
        self.origins.borrow_mut().entry(id).or_insert_with(|| OriginState::new(id)).clone()
    }

    /// The state of an origin that isn't known any more.
    pub(crate) fn take_origin(&self, id: DialOrigin) -> Option<Rc<OriginState>> {
        self.origins.borrow_mut().remove(&id)
    }

    /// Closes connections to endpoints that are idle, of an origin, and uses none again that isn't.
    pub(crate) fn close_pools(&self, of: DialOrigin) {
        for cluster in self.clusters.borrow().values() {
            cluster.shared.close(|(origin, _)| *origin == of);
        }
    }

    /// True where no further connection may be open.
    pub(crate) fn is_full(&self) -> bool {
        self.open.get() >= self.limits.connections
    }

    /// Counts as an open connection, for as long as it is kept.
    pub(crate) fn hold_open(self: &Rc<Self>) -> Open {
        Open::new(self)
    }

    /// Serves until it is told to drain.
    pub(crate) async fn run(self: Rc<Self>, mut updates: mpsc::UnboundedReceiver<Update>) {
        let sweeper = spawn_local(self.clone().sweep());
        let watcher = spawn_local(self.clone().watch_resting());
        let deadline = loop {
            match updates.recv().await {
                Some(Update::Drain { deadline }) => break Instant::from_std(deadline),
                Some(update) => self.apply(update),
                // The engine is gone.
                None => break Instant::now(),
            }
        };
        self.drain.cancel();
        for listener in self.listeners.borrow().values() {
            listener.drain.cancel();
        }
        self.sweep_resting();
        let drained = async {
            while self.open.get() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = drained => {}
            () = sleep_until(deadline) => tracing::info!(left = self.open.get(), "connections are cut off"),
        }
        sweeper.abort();
        watcher.abort();
        // They know the worker, which knows them.
        drop(self.resting.take_all(|_| true));
    }

    async fn watch_resting(self: Rc<Self>) {
        let wake = |connection| self.wake(connection);
        if let Err(error) = self.resting.watch(wake).await {
            tracing::error!(%error, "idle connections can't be watched");
        }
    }

    fn apply(self: &Rc<Self>, update: Update) {
        match update {
            Update::Listener(config) => self.set_listener(config),
            Update::RemoveListener(name) => {
                if let Some(listener) = self.listeners.borrow_mut().remove(&name) {
                    self.leave_address(&listener);
                    listener.drain.cancel();
                    self.sweep_resting();
                }
            }
            Update::Socket { listener: Some(listener), origin, socket } => {
                self.accept_for_listener(&listener, origin, socket);
            }
            Update::Socket { listener: None, origin, socket } => self.accept_for_origin(origin, socket),
            Update::Route(name, Some(table)) => drop(self.routes.borrow_mut().insert(name, table)),
            Update::Route(name, None) => drop(self.routes.borrow_mut().remove(&name)),
            Update::Cluster(config, endpoints) => self.set_cluster(config, endpoints),
            Update::RemoveCluster(name) => {
                if let Some(cluster) = self.clusters.borrow_mut().remove(&name) {
                    cluster.shared.close(|_| true);
                    self.stats.forget(&name);
                }
            }
            Update::Source(origin, workload) => drop(self.sources.borrow_mut().insert(origin, workload)),
            Update::SourceHash(origin, hash) => _ = self.source_hashes.borrow_mut().insert(origin, hash),
            Update::RemoveOrigin(origin) => {
                self.sources.borrow_mut().remove(&origin);
                self.source_hashes.borrow_mut().remove(&origin);
                self.remove_origin(origin);
            }
            Update::Barrier(reached) => drop(reached.send(())),
            Update::Drain { .. } => {}
        }
    }

    fn set_listener(&self, config: Arc<ListenerConfig>) {
        let (name, virtual_at) = (config.name.clone(), config.virtual_at);
        let mut listeners = self.listeners.borrow_mut();
        let listener = match listeners.get(&name) {
            Some(listener) => {
                self.leave_address(listener);
                *listener.config.borrow_mut() = config;
                listener.clone()
            }
            None => {
                let listener =
                    ListenerState { config: RefCell::new(config), drain: CancellationToken::new() };
                let listener = Rc::new(listener);
                listeners.insert(name, listener.clone());
                listener
            }
        };
        if let Some(address) = virtual_at {
            self.at.borrow_mut().insert(address, listener);
            self.listeners_changed.notify_waiters();
        }
    }

    fn leave_address(&self, listener: &Rc<ListenerState>) {
        if let Some(address) = listener.config.borrow().virtual_at {
            self.at.borrow_mut().remove(&address);
        }
    }

    fn set_cluster(&self, config: Arc<ClusterConfig>, endpoints: Arc<EndpointSet>) {
        let mut clusters = self.clusters.borrow_mut();
        let shared = match clusters.get(&config.name) {
            // Connections speak one version.
            Some(before) if before.config.protocol == config.protocol => before.shared.clone(),
            Some(before) => {
                before.shared.close(|_| true);
                Rc::default()
            }
            None => Rc::default(),
        };
        shared.close(|(_, address)| !endpoints.contains(*address));
        let balance = Balance::new(&endpoints, config.choice, &mut *self.random.borrow_mut());
        let stats = self.stats.cluster(&config.name);
        let (name, service) = (config.name.clone(), service_of_cluster(&config.name));
        let balance = RefCell::new(balance);
        let state = ClusterState { config, stats, service, endpoints, balance, shared };
        clusters.insert(name, Rc::new(state));
    }

    /// Looks for slow clients and idle connections, all the time.
    async fn sweep(self: Rc<Self>) {
        let mut ticks = interval(SWEEP);
        loop {
            ticks.tick().await;
            self.series.tidy();
            self.buffers.tidy();
            for origin in self.origins.borrow().values() {
                origin.sweep(self.limits.head_time);
            }
            self.sweep_resting();
            for cluster in self.clusters.borrow().values() {
                let mut pools = cluster.shared.pools.borrow_mut();
                pools.retain(|(_, address), pool| {
                    pool.close_idle(cluster.config.idle_timeout);
                    pool.connections.get() > 0
                        || pool.requests.get() > 0
                        || Rc::strong_count(pool) > 1
                        || cluster.endpoints.contains(*address)
                });
            }
        }
    }
}

impl ClusterShared {
    /// Closes the pools that are meant: connections in use finish, and none is used again.
    fn close(&self, meant: impl Fn(&(DialOrigin, SocketAddr)) -> bool) {
        self.pools.borrow_mut().retain(|key, pool| {
            if meant(key) {
                pool.close();
            }
            !meant(key)
        });
    }
}

/// Counts an open connection.
pub(crate) struct Open(Rc<Worker>);

impl Open {
    fn new(worker: &Rc<Worker>) -> Self {
        worker.open.set(worker.open.get() + 1);
        worker.stats.connections_open.one_more();
        Self(worker.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.stats.connections_open.one_less();
    }
}
