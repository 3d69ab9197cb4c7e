//! The engine: workers, and the resources that are spread to them.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use prometheus_client::{encoding::text::encode, registry::Registry};
use slotmesh_routing::{InvalidField, RouteTable};
use socket2::{Domain, Socket, Type};
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

use crate::{
    assignment::EndpointSet,
    counts::{Stats, WorkerStats},
    dial::{Dial, DialOrigin, OwnSockets},
    downstream::ListenerConfig,
    hashing::hash_of_source,
    limits::{Http1Path, ProxyLimits},
    resource::{ProxyResource, ProxyResourceKind},
    series::SeriesRoom,
    upstream::{ClusterConfig, EndpointSource, wrong},
    worker::{Update, Worker},
};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;

/// Settings of an engine.
#[derive(Clone)]
pub struct EngineOptions {
    /// Number of workers, each a thread; one for each processor is best.
    pub workers: usize,
    /// Bounds on what clients can make it hold.
    pub limits: ProxyLimits,
    /// Where connections to endpoints come from.
    pub dial: Arc<dyn Dial>,
    /// Who serves connections of HTTP/1.
    pub http1: Http1Path,
    /// Make the sockets of listeners, at their addresses. Else they are handed over, by [`ProxyEngine::listen`].
    pub bind: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            workers: thread::available_parallelism().map_or(1, std::num::NonZero::get),
            limits: ProxyLimits::default(),
            dial: Arc::new(OwnSockets),
            http1: Http1Path::default(),
            bind: true,
        }
    }
}

/// A resource that isn't in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A field that isn't supported, or has a value that it can't have.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// The listener's address can't be used.
    #[error("{address} can't be listened on: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        error: io::Error,
    },
}

/// Serves HTTP by resources, on threads of its own.
pub struct ProxyEngine {
    options: EngineOptions,
    workers: Vec<WorkerThread>,
    stats: Stats,
    applied: Mutex<Applied>,
}

struct WorkerThread {
    updates: mpsc::UnboundedSender<Update>,
    thread: Option<JoinHandle<()>>,
}

/// The resources in force.
#[derive(Default)]
struct Applied {
    clusters: HashMap<Arc<str>, Arc<ClusterConfig>>,
    assignments: HashMap<Arc<str>, Arc<EndpointSet>>,
    /// The clusters that have each load assignment.
    users: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    listeners: HashMap<Arc<str>, Whereabouts>,
    /// Listeners to which others' connections come, by address.
    at: HashMap<IpAddr, Arc<str>>,
}

impl Applied {
    fn insert(&mut self, config: Arc<ClusterConfig>) {
        self.remove(&config.name);
        if let EndpointSource::Named(assignment) = &config.source {
            self.users.entry(assignment.clone()).or_default().insert(config.name.clone());
        }
        self.clusters.insert(config.name.clone(), config);
    }

    fn remove(&mut self, cluster: &str) {
        let Some(config) = self.clusters.remove(cluster) else { return };
        if let EndpointSource::Named(assignment) = &config.source
            && let Some(users) = self.users.get_mut(assignment)
        {
            users.remove(cluster);
            if users.is_empty() {
                self.users.remove(assignment);
            }
        }
    }
}

/// Where connections come to a listener.
#[derive(Clone, Copy, Default)]
struct Whereabouts {
    /// On a socket that the engine has made.
    bound: Option<Bound>,
    /// On sockets of others, at this address.
    virtual_at: Option<IpAddr>,
}

/// Where a listener was told to listen, and where it does: the port may have been left to the kernel.
#[derive(Clone, Copy)]
struct Bound {
    told: SocketAddr,
    actual: SocketAddr,
}

/// The counts of an engine, as Prometheus reads them.
pub struct ProxyMetrics(Registry);

impl ProxyMetrics {
    /// The counts as they are now, in the text format of OpenMetrics.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.0) {
            tracing::error!(%error, "metrics can't be written");
        }
        text
    }
}

impl ProxyEngine {
    /// Starts the workers. They serve nothing yet.
    ///
    /// # Errors
    /// Where a thread can't be started.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        let mut workers = Vec::new();
        let mut stats = Vec::new();
        let room = SeriesRoom::new(options.limits.request_series);
        for number in 0..options.workers.max(1) {
            let (updates, receiver) = mpsc::unbounded_channel();
            let (limits, dial, room) = (options.limits, options.dial.clone(), room.clone());
            let http1 = options.http1;
            let its: Arc<WorkerStats> = Arc::default();
            stats.push(its.clone());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let thread = thread::Builder::new().name(format!("proxy-{number}")).spawn(move || {
                LocalSet::new().block_on(&runtime, async {
                    Worker::new(limits, dial, its, room, http1).run(receiver).await;
                });
            })?;
            workers.push(WorkerThread { updates, thread: Some(thread) });
        }
        Ok(Self { options, workers, stats: Stats(stats), applied: Mutex::default() })
    }

    /// The counts of requests and connections, and what else is registered.
    pub fn metrics_with(&self, register: impl FnOnce(&mut Registry)) -> ProxyMetrics {
        let mut registry = Registry::with_prefix("slotmesh_proxy");
        self.stats.register(&mut registry);
        register(&mut registry);
        ProxyMetrics(registry)
    }

    /// The counts of requests and connections.
    pub fn metrics(&self) -> ProxyMetrics {
        self.metrics_with(|_| ())
    }

    /// Names of listeners, and where they listen on sockets that the engine has made.
    pub fn listening(&self) -> Vec<(String, SocketAddr)> {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = applied.listeners.iter().filter_map(|(name, at)| Some((name, at.bound?)));
        let mut all: Vec<_> = bound.map(|(name, bound)| (name.to_string(), bound.actual)).collect();
        all.sort();
        all
    }

    fn send(&self, update: impl Fn() -> Update) {
        for worker in &self.workers {
            // A worker that has ended serves nothing any more.
            drop(worker.updates.send(update()));
        }
    }

    /// Puts a resource in force, new or in place of the one of its name, and returns the fields that aren't in force
    /// while the rest is. Requests that are decided after [`ProxyEngine::settled`] follow it.
    ///
    /// # Errors
    /// Where all of it is refused; then the one before stays in force.
    pub fn apply(&self, resource: &ProxyResource) -> Result<Vec<InvalidField>, ApplyError> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        match resource {
            ProxyResource::Listener(listener) => {
                let (config, faults) = ListenerConfig::new(listener)?;
                self.apply_listener(&mut applied, config)?;
                Ok(faults)
            }
            ProxyResource::Route(route) => {
                let (table, faults) = RouteTable::new(route);
                let (name, table): (Arc<str>, _) = (route.name.as_str().into(), Arc::new(table));
                self.send(|| Update::Route(name.clone(), Some(table.clone())));
                Ok(faults)
            }
            ProxyResource::Cluster(cluster) => {
                let mut config = ClusterConfig::new(cluster)?;
                if let Some(before) = applied.clusters.get(&config.name) {
                    config.counters = before.counters.clone();
                }
                let config = Arc::new(config);
                applied.insert(config.clone());
                self.send_cluster(&applied, &config);
                Ok(Vec::new())
            }
            ProxyResource::Endpoints(assignment) => {
                let name: Arc<str> = assignment.cluster_name.as_str().into();
                let set = Arc::new(EndpointSet::new(assignment)?);
                applied.assignments.insert(name.clone(), set);
                self.send_users(&applied, &name);
                Ok(Vec::new())
            }
        }
    }

    /// Takes a resource away. One that isn't there is no fault.
    pub fn remove(&self, kind: ProxyResourceKind, name: &str) {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = name.into();
        match kind {
            ProxyResourceKind::Listener => {
                let left = applied.listeners.remove(&name).and_then(|left| left.virtual_at);
                if let Some(address) = left {
                    applied.at.remove(&address);
                }
                self.send(|| Update::RemoveListener(name.clone()));
            }
            ProxyResourceKind::Route => self.send(|| Update::Route(name.clone(), None)),
            ProxyResourceKind::Cluster => {
                applied.remove(&name);
                self.send(|| Update::RemoveCluster(name.clone()));
            }
            ProxyResourceKind::Endpoints => {
                applied.assignments.remove(&name);
                self.send_users(&applied, &name);
            }
        }
    }

    /// Sends the clusters that have this load assignment.
    fn send_users(&self, applied: &Applied, assignment: &Arc<str>) {
        for config in applied.users.get(assignment).into_iter().flatten() {
            if let Some(config) = applied.clusters.get(config) {
                self.send_cluster(applied, config);
            }
        }
    }

    fn send_cluster(&self, applied: &Applied, config: &Arc<ClusterConfig>) {
        let endpoints = match &config.source {
            EndpointSource::Inline(endpoints) => endpoints.clone(),
            EndpointSource::Named(name) => {
                let set =
                    applied.assignments.get(name).map(|set| EndpointSet::clone(set)).unwrap_or_default();
                Arc::new(set.with_tables(config.choice))
            }
        };
        self.send(|| Update::Cluster(config.clone(), endpoints.clone()));
    }

    fn apply_listener(&self, applied: &mut Applied, config: ListenerConfig) -> Result<(), ApplyError> {
        let told = config.address.filter(|_| self.options.bind);
        let name = config.name.clone();
        if let Some(address) = config.virtual_at
            && let Some(other) = applied.at.get(&address).filter(|other| **other != name)
        {
            return Err(wrong("address", format!("{address} is that of listener {other:?}")).into());
        }
        let Whereabouts { bound: before, virtual_at: left } =
            applied.listeners.get(&name).copied().unwrap_or_default();
        let config = Arc::new(config);
        let socket = match told {
            Some(address) if before.is_none_or(|before| before.told != address) => {
                let bound = bind(address).and_then(|socket| Ok((socket.local_addr()?, socket)));
                Some(bound.map_err(|error| ApplyError::Listen { address, error })?)
            }
            _ => None,
        };
        if before.is_some_and(|before| Some(before.told) != told) {
            self.send(|| Update::RemoveListener(name.clone()));
        }
        if let Some(address) = left {
            applied.at.remove(&address);
        }
        let virtual_at = config.virtual_at;
        applied.at.extend(virtual_at.map(|address| (address, name.clone())));
        self.send(|| Update::Listener(config.clone()));
        let Some(address) = told else {
            applied.listeners.insert(name, Whereabouts { bound: None, virtual_at });
            return Ok(());
        };
        let Some((actual, socket)) = socket else { return Ok(()) };
        let bound = Some(Bound { told: address, actual });
        applied.listeners.insert(name.clone(), Whereabouts { bound, virtual_at });
        self.spread(Some(&name), DialOrigin::default(), &socket)
            .map_err(|error| ApplyError::Listen { address, error })
    }

    /// Serves connections that come in on a socket by the listener of this name, which has been applied before.
    /// Connections to endpoints are made for `origin`.
    ///
    /// # Errors
    /// Where the socket can't be used.
    pub fn listen(
        &self,
        listener: &str,
        origin: DialOrigin,
        socket: &std::net::TcpListener,
    ) -> io::Result<()> {
        self.spread(Some(listener), origin, socket)
    }

    /// Serves connections that come in on a socket by the listeners of the addresses that they come to, which don't bind.
    /// A connection waits for a listener that isn't there, for some seconds. Another socket that the origin has had is
    /// accepted from for a while, and connections to endpoints are made for the origin.
    ///
    /// # Errors
    /// Where the socket can't be used.
    pub fn listen_for(&self, origin: DialOrigin, socket: &std::net::TcpListener) -> io::Result<()> {
        self.spread(None, origin, socket)
    }

    fn spread(
        &self,
        listener: Option<&str>,
        origin: DialOrigin,
        socket: &std::net::TcpListener,
    ) -> io::Result<()> {
        let listener: Option<Arc<str>> = listener.map(Into::into);
        socket.set_nonblocking(true)?;
        let copies: io::Result<Vec<_>> = self.workers.iter().map(|_| socket.try_clone()).collect();
        for (worker, socket) in self.workers.iter().zip(copies?) {
            drop(worker.updates.send(Update::Socket { listener: listener.clone(), origin, socket }));
        }
        Ok(())
    }

    /// Says which workload an origin belongs to: the source of its requests in metrics. It counts for connections that
    /// come in after that.
    pub fn set_workload(&self, origin: DialOrigin, workload: &str) {
        let workload: Arc<str> = workload.into();
        self.send(|| Update::Source(origin, workload.clone()));
    }

    /// Names an origin for clusters that choose endpoints by the source: all its clients are one, as their addresses are
    /// those of a pod's loopback interface.
    pub fn set_source(&self, origin: DialOrigin, name: &str) {
        let hash = hash_of_source(name);
        self.send(|| Update::SourceHash(origin, hash));
    }

    /// Closes the sockets of an origin and its idle connections to endpoints, lets its clients' connections finish what
    /// they do, and cuts off what is left after [`ProxyLimits::origin_grace`].
    pub fn remove_origin(&self, origin: DialOrigin) {
        self.send(|| Update::RemoveOrigin(origin));
    }

    /// Waits until all workers act on everything that was applied before.
    pub async fn settled(&self) {
        for worker in &self.workers {
            let (sender, receiver) = oneshot::channel();
            if worker.updates.send(Update::Barrier(sender)).is_ok() {
                drop(receiver.await);
            }
        }
    }

    /// Accepts no connection any more, finishes the requests in flight, and ends. Connections that are left after `grace`
    /// are cut off.
    pub fn drain(mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.send(|| Update::Drain { deadline });
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a worker has panicked");
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
