//! The agent: one thread owns the maps; everything else asks it through a channel.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_kernel::{Host, HostError, Lock, Outer, OuterError, ensure_bpffs, netns_cookie};
use slotmesh_records::{VipKey, name_hash};
use slotmesh_slots::{Config, Contradiction, Stats};
use slotmesh_xds::{Rejection, ResourceName, ResourceType, Version};
use tokio::{
    sync::{oneshot, watch},
    task::spawn_blocking,
};
use tokio_util::sync::CancellationToken;

use crate::{
    datapath::{Datapath, DatapathError, MapSizes, Workload},
    held::Held,
    memory,
    metrics::Metrics,
    pins::{Found, Pins},
    prepare::{Hashed, Prepared},
    room::Room,
    running::{RunningNow, RunningReader},
    show::Shown,
    view::View,
    writer::{OpenError, Writer},
};

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin root, a directory on bpffs.
    pub pin_root: PathBuf,
    /// The slots.
    pub slots: Config,
    /// How many sockets may be recorded.
    pub sockets: u32,
    /// The maps beside them.
    pub maps: MapSizes,
    /// The workloads whose connections are routed.
    pub workloads: Vec<Workload>,
    /// The name of this node, as Kubernetes knows it: some endpoints are for its callers only. Empty where nobody says.
    pub node: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pin_root: PathBuf::default(),
            slots: Config::default(),
            sockets: memory::SOCKETS,
            maps: MapSizes::default(),
            workloads: Vec::new(),
            node: String::new(),
        }
    }
}

/// Why an agent doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The outer map can't be had.
    #[error(transparent)]
    Outer(#[from] OuterError),
    /// The maps can't be taken over.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The programs can't be loaded or attached.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The settings of the slots contradict each other.
    #[error("the settings of outer records contradict each other: {0}")]
    Contradiction(#[from] Contradiction),
    /// A thread can't be started.
    #[error("the thread that owns the maps can't be started: {0}")]
    Thread(#[source] io::Error),
    /// The pin root can't be used.
    #[error("pin root {path}: {source}")]
    Pins {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why settings of the slots aren't taken.
#[derive(Debug, thiserror::Error)]
pub enum SetSlotsError {
    /// They contradict each other.
    #[error("the settings of outer records contradict each other: {0}")]
    Contradiction(#[from] Contradiction),
    /// The agent has stopped.
    #[error("the agent has stopped")]
    Stopped,
}

enum Command {
    Apply(Update, Box<Prepared>, oneshot::Sender<Vec<Rejection>>),
    Held(oneshot::Sender<Vec<(ResourceType, ResourceName, Version)>>),
    Show(ResourceType, ResourceName, oneshot::Sender<Option<Shown>>),
    ListenerAt(VipKey, oneshot::Sender<Option<String>>),
    ClusterNames(HashSet<u64>, oneshot::Sender<HashMap<u64, String>>),
    ProxyAddresses(Option<Vec<ResourceName>>, oneshot::Sender<HashMap<ResourceName, Ipv4Addr>>),
    Assignments(HashSet<String>, oneshot::Sender<HashMap<String, Held>>),
    Stats(oneshot::Sender<(Stats, usize)>),
    Slots(oneshot::Sender<(Stats, Option<String>)>),
    SetSlots(Config, oneshot::Sender<Result<(), Contradiction>>),
    Synced,
    Wake,
    Stop,
}

/// A running agent. The data path goes on when it is dropped; see [`Agent::remove`].
pub struct Agent {
    commands: Sender<Command>,
    owner: Option<JoinHandle<()>>,
    /// Ends with the owner.
    keeper: Option<JoinHandle<()>>,
    datapath: Arc<Datapath>,
    pins: Pins,
    metrics: Arc<Metrics>,
    synced: watch::Receiver<bool>,
    ended: CancellationToken,
    took_over: bool,
    room: Arc<Room>,
    hashed: Hashed,
    changes: watch::Receiver<u64>,
    running: Arc<RunningReader>,
    _lock: Lock,
}

/// Removes everything that an agent left at a pin root: programs detach, maps go. Connections go
/// unrouted from then on. Returns whether there was anything.
///
/// # Errors
/// While an agent runs there, or where a pin can't be removed.
pub fn cleanup(pin_root: &Path) -> Result<bool, StartError> {
    let error = |source| StartError::Pins { path: pin_root.to_owned(), source };
    if !pin_root.try_exists().map_err(error)? {
        return Ok(false);
    }
    let _lock = Lock::take(pin_root)?;
    let pins = Pins::new(pin_root);
    let found = !pins.found().map_err(error)?.is_nothing();
    pins.remove_all().map_err(error)?;
    Ok(found)
}

/// Who says which workloads are attached.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attachment {
    /// The options: these and no others.
    Exactly,
    /// An enrolment, while the agent runs.
    Later,
}

/// Removes what a start created that fails half-way; what an earlier agent left, it leaves.
struct Undo<'p> {
    pins: &'p Pins,
    found: Option<Found>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let Some(found) = self.found.take() else { return };
        if let Err(error) = self.pins.restore(&found) {
            tracing::error!(%error, "what this start created can't be removed");
        }
    }
}

impl Agent {
    /// Checks the host, takes over what is pinned, and attaches the programs. Blocks for a few grace
    /// periods (about 8 ms each).
    ///
    /// Where programs are attached that may use records of another layout, they stay in force until the
    /// first sync is over; then they are replaced, and the other records go.
    ///
    /// # Errors
    /// Says what is missing and what to do. What this call created is gone then, but for a BPF file
    /// system that it mounted; what an earlier agent left is as it was.
    pub fn start(options: Options, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        Self::begin(options, metrics, Attachment::Exactly)
    }

    /// As [`start`](Self::start), but the workloads are enrolled later, by an
    /// [`Enrolment`](crate::Enrolment). Those that an earlier agent enrolled stay so until that one
    /// knows better; `options.workloads` is left aside.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_enrolling(options: Options, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        Self::begin(options, metrics, Attachment::Later)
    }

    fn begin(options: Options, metrics: Arc<Metrics>, attachment: Attachment) -> Result<Self, StartError> {
        let Options { pin_root, slots, sockets, maps, workloads, node } = options;
        // All that can be checked, before anything is created.
        let host = Host::probe()?;
        if let Some(contradiction) = slots.contradiction() {
            return Err(contradiction.into());
        }
        Datapath::check_object()?;
        Workload::check(&workloads, &host)?;

        let pin_root = ensure_bpffs(&pin_root)?;
        let pin_error = |source| StartError::Pins { path: pin_root.clone(), source };
        let lock = Lock::take(&pin_root)?;
        let pins = Pins::new(&pin_root);
        let found = pins.found().map_err(|error| {
            // Taking the lock created it, where it was missing; else it isn't empty.
            let _ = std::fs::remove_dir(&pin_root);
            pin_error(error)
        })?;
        // Dropped after all that is opened below, and before the lock.
        let mut undo = Undo { pins: &pins, found: Some(found.clone()) };
        pins.create().map_err(pin_error)?;

        let (outer, arena) = Outer::open(&pins.records(), slots.threads)?;
        let vips = Datapath::open_vips(&pins, maps)?;
        let (commands, inbox) = channel();
        let wake = {
            let commands = Mutex::new(commands.clone());
            // The owner may be gone already; then there is nobody to wake.
            move || drop(commands.lock().map(|commands| commands.send(Command::Wake)))
        };
        let mut writer = Writer::open(outer, arena, vips, slots, Arc::new(wake))?;
        writer.set_node(node);
        let running = Arc::new(Datapath::open_running(&pins, maps)?);
        let keeper = writer.keep_running_state(&running, sockets);
        let running = RunningReader::new(running);
        let held = writer.held().len();
        let hashed = writer.hashed_names().clone();
        let (stats, _) = writer.stats();
        tracing::info!(
            resources = held,
            slabs = stats.slabs,
            remaining = stats.remaining(),
            "slots are ready"
        );
        let datapath = Arc::new(Datapath::load(pins.clone(), host, sockets)?);
        if attachment == Attachment::Later {
            tracing::info!("programs are attached to workloads as they are enrolled");
        } else if found.is_upgrade() {
            tracing::info!("programs with records of another layout stay in force until the first sync");
        } else {
            datapath.attach(&workloads)?;
            pins.remove_other_states().map_err(pin_error)?;
            tracing::info!(workloads = workloads.len(), "programs are attached");
        }
        let took_over = !found.is_nothing();
        let (synced_sender, synced) = watch::channel(false);
        let at_sync = {
            let (datapath, pins) = (datapath.clone(), pins.clone());
            move || {
                if found.is_upgrade() && attachment == Attachment::Exactly {
                    datapath.attach(&workloads)?;
                    tracing::info!(workloads = workloads.len(), "programs are replaced");
                }
                // What they count in goes with them; what is attached now counts in its own.
                if let Err(error) = pins.remove_other_states() {
                    tracing::warn!(%error, "links of another version can't be removed");
                }
                for path in found.other_records {
                    // Their maps go with the last program that uses them.
                    match std::fs::remove_dir_all(&path) {
                        Ok(()) => tracing::info!(path = %path.display(), "removed records of another layout"),
                        Err(error) => tracing::warn!(path = %path.display(), %error, "can't be removed"),
                    }
                }
                synced_sender.send_replace(true);
                tracing::info!("first sync is over");
                Ok(())
            }
        };
        let ended = CancellationToken::new();
        let room = Arc::<Room>::default();
        let (changed, changes) = watch::channel(0);
        let owner = {
            let (metrics, room) = (metrics.clone(), room.clone());
            let tell = Tell { metrics, room, changes: changed };
            spawn_owner(&ended, move || own(writer, &inbox, &tell, at_sync)).map_err(StartError::Thread)?
        };
        let keeper = keeper.start(datapath.clone()).map_err(StartError::Thread)?;
        undo.found = None;
        drop(undo);
        Ok(Self {
            commands,
            owner: Some(owner),
            keeper: Some(keeper),
            datapath,
            pins,
            metrics,
            synced,
            ended,
            took_over,
            room,
            hashed,
            changes,
            running: Arc::new(running),
            _lock: lock,
        })
    }

    /// The programs, to be asked.
    pub fn datapath(&self) -> &Arc<Datapath> {
        &self.datapath
    }

    /// A reader of all that runs.
    pub(crate) fn running_reader(&self) -> Arc<RunningReader> {
        self.running.clone()
    }

    /// Lets no connection go to a proxy, where there is none: an earlier agent may have had one.
    pub fn forget_proxies(&self) {
        self.running.retain_proxies(|_| false);
    }

    /// Whether the first sync is over: turns true once.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.clone()
    }

    /// Cancelled when the thread that owns the maps ends: by itself only when something is wrong.
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Whether an earlier agent had left something in the pin root.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// What the ADS client hands resources to, and the admin server asks.
    pub fn handle(&self) -> Handle {
        Handle {
            commands: self.commands.clone(),
            metrics: self.metrics.clone(),
            synced: self.synced.clone(),
            ended: self.ended.clone(),
            room: self.room.clone(),
            hashed: self.hashed.clone(),
            changes: self.changes.clone(),
            running: Some(self.running.clone()),
            datapath: Some(self.datapath.clone()),
        }
    }

    /// Ends the agent and takes the data path away: programs detach, maps go.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn remove(mut self) -> io::Result<()> {
        self.stop();
        self.pins.remove_all()
    }

    fn stop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        for thread in [self.owner.take(), self.keeper.take()].into_iter().flatten() {
            // A thread that panicked has printed why.
            let _ = thread.join();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A cheap way to ask the owner of the maps.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    metrics: Arc<Metrics>,
    synced: watch::Receiver<bool>,
    ended: CancellationToken,
    room: Arc<Room>,
    hashed: Hashed,
    changes: watch::Receiver<u64>,
    running: Option<Arc<RunningReader>>,
    datapath: Option<Arc<Datapath>>,
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

    /// What runs, of the `most` busiest clusters; nothing once the agent has stopped. Only the names of the
    /// clusters are asked of the owner of the maps.
    pub async fn running(&self, most: usize) -> RunningNow {
        let Some(reader) = self.running.clone() else { return RunningNow::default() };
        let read = spawn_blocking(move || {
            let of_sockets = (reader.sockets(), reader.flows());
            let of_proxies = (reader.proxied(), reader.proxies());
            let of_endpoints = (reader.endpoints(), reader.ejections());
            (reader.busiest(most), of_endpoints, of_sockets, reader.affinities(), of_proxies)
        });
        let Ok((busiest, (endpoints, ejections), (sockets, flows), affinities, (proxied, proxies))) =
            read.await
        else {
            return RunningNow::default();
        };
        let hashes = busiest.iter().map(|(hash, _)| *hash).collect();
        let names = self.cluster_names(hashes).await;
        let named = |(hash, state)| Some((names.get(&hash)?.clone(), state));
        let clusters = busiest.into_iter().filter_map(named).collect();
        RunningNow { clusters, endpoints, ejections, sockets, affinities, flows, proxied, proxies }
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

    /// Sends connections whose requests are looked at to the proxy at this port, in the network namespace of a socket; with
    /// `None` they go where the rule for every request says.
    ///
    /// # Errors
    /// Where the socket is none, or the kernel has no room for another proxy.
    pub fn set_proxy(&self, of: BorrowedFd<'_>, port: Option<u16>) -> io::Result<()> {
        let namespace = netns_cookie(of)?;
        let Some(reader) = &self.running else { return Ok(()) };
        reader.set_proxy(namespace, port).map_err(io::Error::other)
    }

    /// Changes the settings of the slots while running: growth goes on as the new ones say.
    ///
    /// # Errors
    /// Where they contradict each other, or the agent has stopped; then the old ones stay in force.
    pub async fn set_slots(&self, config: Config) -> Result<(), SetSlotsError> {
        Ok(self.ask(|reply| Command::SetSlots(config, reply)).await.ok_or(SetSlotsError::Stopped)??)
    }

    /// What the kernel's records hold of a resource, as JSON; `None` where it isn't in force, or the agent
    /// has stopped.
    pub async fn show(&self, ty: ResourceType, name: ResourceName) -> Option<serde_json::Value> {
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

impl Sink for Handle {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        self.ask(Command::Held).await.unwrap_or_default()
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let names: Vec<ResourceName> = update.upserts.iter().map(|resource| resource.name.clone()).collect();
        let stopped = || {
            names
                .into_iter()
                .map(|name| Rejection { name, reason: "the agent is stopping".to_owned() })
                .collect()
        };
        let held = |names| {
            let asked = self.ask(|reply| Command::Assignments(names, reply));
            async { asked.await.unwrap_or_default() }
        };
        let prepared = Box::new(Prepared::of(&update, &self.hashed, held).await);
        self.ask(|reply| Command::Apply(update, prepared, reply)).await.unwrap_or_else(stopped)
    }

    async fn room(&self) -> AskAgain {
        self.room.taken().await
    }

    fn synced(&self) {
        // An owner that is gone says so itself.
        let _ = self.commands.send(Command::Synced);
    }
}

/// Starts the owner. However it ends, `ended` tells.
fn spawn_owner(ended: &CancellationToken, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let ended = ended.clone().drop_guard();
    std::thread::Builder::new().name("slots-owner".to_owned()).spawn(move || {
        let _ended = ended;
        run();
    })
}

/// Whom the owner tells what happens.
struct Tell {
    metrics: Arc<Metrics>,
    room: Arc<Room>,
    changes: watch::Sender<u64>,
}

impl Tell {
    /// The slot table may have changed.
    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// The owner's loop: ends with [`Command::Stop`], the last sender, or an `at_sync` that fails.
fn own(
    mut writer: Writer,
    inbox: &Receiver<Command>,
    tell: &Tell,
    at_sync: impl FnOnce() -> Result<(), DatapathError>,
) {
    let mut at_sync = Some(at_sync);
    let mut compacting = false;
    loop {
        let command = match writer.due() {
            _ if compacting => inbox.recv_timeout(Duration::ZERO),
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(due) => inbox.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match command {
            Ok(Command::Apply(update, prepared, reply)) => {
                let ty = update.ty;
                let rejected = writer.apply(update, *prepared, |flush| tell.metrics.flushed(flush));
                tell.metrics.rejected(ty, rejected.len());
                tell.metrics.made_tables(writer.take_own_tables());
                tell.changed();
                tell.room.put(writer.take_stale(), true);
                // A client that has gone away doesn't need the answer.
                let _ = reply.send(rejected);
            }
            Ok(Command::Held(reply)) => drop(reply.send(writer.held())),
            Ok(Command::Show(ty, name, reply)) => drop(reply.send(writer.show(ty, name.as_str()))),
            Ok(Command::ListenerAt(key, reply)) => drop(reply.send(writer.listener_at(&key))),
            Ok(Command::ClusterNames(hashes, reply)) => drop(reply.send(writer.cluster_names(&hashes))),
            Ok(Command::Assignments(names, reply)) => drop(reply.send(writer.assignments(names))),
            Ok(Command::ProxyAddresses(names, reply)) => drop(reply.send(writer.proxy_addresses(names))),
            Ok(Command::Stats(reply)) => drop(reply.send(writer.stats())),
            Ok(Command::Slots(reply)) => {
                drop(reply.send((writer.stats().0, writer.profile().map(str::to_owned))));
            }
            Ok(Command::SetSlots(config, reply)) => {
                drop(reply.send(writer.set_slots(config)));
                tell.changed();
            }
            Ok(Command::Synced) => match at_sync.take().map(|run| run()) {
                Some(Ok(())) => writer.synced(),
                Some(Err(error)) => {
                    tracing::error!(%error, "the programs can't be replaced by this build's");
                    return;
                }
                None => {}
            },
            Ok(Command::Wake) => {
                writer.poll();
                tell.changed();
            }
            // Nobody asks for anything.
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                compacting = writer.compact(now);
                let (due, soon) = writer.retry(now);
                tell.room.put(due, soon);
            }
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_whose_owner_is_gone_is_not_ready() {
        let (commands, inbox) = channel();
        let (synced_sender, synced) = watch::channel(false);
        let ended = CancellationToken::new();
        let (_changed, changes) = watch::channel(0);
        let (metrics, room, hashed) = (Arc::default(), Arc::default(), Hashed::default());
        let ended_too = ended.clone();
        let handle = Handle {
            commands,
            metrics,
            synced,
            ended: ended_too,
            room,
            hashed,
            changes,
            running: None,
            datapath: None,
        };
        let owner = spawn_owner(&ended, move || {
            assert!(matches!(inbox.recv(), Ok(Command::Synced)));
            synced_sender.send_replace(true);
            assert!(matches!(inbox.recv(), Ok(Command::Wake)), "as a bug would");
        });
        Sink::synced(&handle);
        let mut synced = handle.synced.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(synced.wait_for(|synced| *synced)).unwrap();
        assert!(handle.is_synced() && !ended.is_cancelled());
        handle.commands.send(Command::Stop).unwrap();
        assert!(owner.unwrap().join().is_err(), "it panics");
        assert!(ended.is_cancelled() && !handle.is_synced());
    }
}
