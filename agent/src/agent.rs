//! The agent: one thread owns the maps; everything else asks it through a channel.
//!
//! Here it starts and ends: what a start creates that fails half-way is removed again.

mod handle;
mod owner;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc::channel},
    thread::JoinHandle,
};

use slotmesh_kernel::{Host, HostError, Lock, Outer, OuterError, ensure_bpffs};
use slotmesh_slots::{Config, Contradiction};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use self::handle::Handle;
use self::owner::{Command, Tell, own, spawn_owner};
use crate::{
    datapath::{Datapath, DatapathError, MapSizes, Workload},
    handlers::{Handlers, RecordHandler, SettingsHandler},
    memory,
    metrics::Metrics,
    pending_retries::PendingRetries,
    pins::{FoundPins, Pins},
    running::RunningReader,
    traffic::TrafficReader,
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

/// A running agent. The data path goes on when it is dropped; see [`Agent::remove`].
pub struct Agent {
    handle: Handle,
    handlers: Handlers,
    owner: Option<JoinHandle<()>>,
    /// Ends with the owner.
    keeper: Option<JoinHandle<()>>,
    datapath: Arc<Datapath>,
    pins: Pins,
    took_over: bool,
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
struct RollbackGuard<'p> {
    pins: &'p Pins,
    found: Option<FoundPins>,
}

impl Drop for RollbackGuard<'_> {
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
        let mut rollback = RollbackGuard { pins: &pins, found: Some(found.clone()) };
        pins.create().map_err(pin_error)?;

        let (outer, arena) = Outer::open(&pins.records(), slots.threads)?;
        let vips = Datapath::open_vips(&pins, maps)?;
        let (commands, inbox) = channel();
        let wake = {
            let commands = Mutex::new(commands.clone());
            // The owner may be gone already; then there is nobody to wake.
            move || drop(commands.lock().map(|commands| commands.send(Command::Wake).is_ok()))
        };
        let mut writer = Writer::open(outer, arena, vips, slots, Arc::new(wake))?;
        writer.set_node(node);
        let running = Arc::new(Datapath::open_running(&pins, maps)?);
        let keeper = writer.keep_running_state(&running);
        let running = RunningReader::new(running);
        writer.set_left_out(running.all_left_out());
        let held = writer.held().len();
        let hashed = writer.hashed_names().clone();
        let (stats, _) = writer.stats();
        tracing::info!(
            resources = held,
            slabs = stats.slabs,
            remaining = stats.remaining(),
            "slots are ready"
        );
        let traffic = Datapath::open_traffic(&pins, maps)?;
        let datapath = Arc::new(Datapath::load_telling(pins.clone(), host, sockets, maps.ends)?);
        let traffic = Arc::new(TrafficReader::new(traffic, datapath.clone()));
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
        let retries = Arc::<PendingRetries>::default();
        let (changed, changes) = watch::channel(0);
        let owner = {
            let (metrics, retries) = (metrics.clone(), retries.clone());
            let tell = Tell { metrics, retries, changes: changed };
            spawn_owner(&ended, move || own(writer, &inbox, &tell, at_sync)).map_err(StartError::Thread)?
        };
        let tell = {
            let commands = commands.clone();
            // As above.
            move |left_out| drop(commands.send(Command::LeftOut(left_out)))
        };
        let keeper = keeper.start(datapath.clone(), tell).map_err(StartError::Thread)?;
        rollback.found = None;
        drop(rollback);
        let running = Arc::new(running);
        let handle = Handle {
            commands,
            metrics: metrics.clone(),
            synced,
            ended,
            retries: retries.clone(),
            hashed,
            changes,
            running: Some(running.clone()),
            traffic: Some(traffic),
            datapath: Some(datapath.clone()),
        };
        let handlers = Handlers::new(retries, metrics)
            .with(RecordHandler(handle.clone()))
            .with(SettingsHandler::new(handle.clone(), slots, sockets));
        Ok(Self {
            handle,
            handlers,
            owner: Some(owner),
            keeper: Some(keeper),
            datapath,
            pins,
            took_over,
            running,
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
        self.handle.synced.clone()
    }

    /// Cancelled when the thread that owns the maps ends: by itself only when something is wrong.
    pub fn ended(&self) -> &CancellationToken {
        &self.handle.ended
    }

    /// Whether an earlier agent had left something in the pin root.
    pub fn took_over(&self) -> bool {
        self.took_over
    }

    /// A way to ask the owner of the maps.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The sink that the ADS client hands resources to: with handlers of records and of the node's settings.
    pub fn handlers(&self) -> Handlers {
        self.handlers.clone()
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
        let _ = self.handle.commands.send(Command::Stop);
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
