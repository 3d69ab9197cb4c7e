//! The agent: one thread owns the maps; everything else asks it through a channel.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
};

use slotmesh_ads::{Sink, Update};
use slotmesh_kernel::{Host, HostError, Lock, Outer, OuterError, ensure_bpffs};
use slotmesh_slots::{Config, Stats};
use slotmesh_xds::{Rejection, ResourceName, ResourceType, Version};
use tokio::sync::{Notify, oneshot, watch};

use crate::{
    datapath::{Datapath, DatapathError, Workload},
    metrics::Metrics,
    pins::Pins,
    writer::{OpenError, Writer},
};

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pin root, a directory on bpffs.
    pub pin_root: PathBuf,
    /// The slots.
    pub slots: Config,
    /// How many threads share the creation of outer records.
    pub growth_threads: NonZeroUsize,
    /// The workloads whose connections are routed.
    pub workloads: Vec<Workload>,
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
    /// The pin root can't be used.
    #[error("pin root {path}: {source}")]
    Pins {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

enum Command {
    Apply(Update, oneshot::Sender<Vec<Rejection>>),
    Held(oneshot::Sender<Vec<(ResourceType, ResourceName, Version)>>),
    Stats(oneshot::Sender<(Stats, usize)>),
    Wake,
    Stop,
}

/// A running agent. The data path goes on when it is dropped; see [`Agent::remove`].
pub struct Agent {
    commands: Sender<Command>,
    owner: Option<JoinHandle<()>>,
    datapath: Arc<Datapath>,
    pins: Pins,
    metrics: Arc<Metrics>,
    synced: watch::Sender<bool>,
    room: Arc<Notify>,
    _lock: Lock,
}

impl Agent {
    /// Checks the host, takes over what is pinned, and attaches the programs. Blocks for a few grace
    /// periods (about 8 ms each).
    ///
    /// # Errors
    /// Says what is missing and what to do.
    pub fn start(options: Options, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        let host = Host::probe()?;
        let Options { pin_root, slots, growth_threads, workloads } = options;
        ensure_bpffs(pin_root.parent().unwrap_or(&pin_root))?;
        let pin_error = |source| StartError::Pins { path: pin_root.clone(), source };
        std::fs::create_dir_all(&pin_root).map_err(pin_error)?;
        let lock = Lock::take(&pin_root)?;
        let pins = Pins::create(&pin_root).map_err(pin_error)?;

        let (outer, arena) = Outer::open(&pins.records(), growth_threads)?;
        let vips = Datapath::open_vips(&pins)?;
        let (commands, inbox) = channel();
        let wake = {
            let commands = Mutex::new(commands.clone());
            // The owner may be gone already; then there is nobody to wake.
            move || drop(commands.lock().map(|commands| commands.send(Command::Wake)))
        };
        let writer = Writer::open(outer, arena, vips, slots, Arc::new(wake))?;
        let held = writer.held().len();
        let (stats, _) = writer.stats();
        tracing::info!(
            resources = held,
            slabs = stats.slabs,
            remaining = stats.remaining(),
            "slots are ready"
        );
        let room = Arc::<Notify>::default();
        let owner = {
            let (metrics, room) = (metrics.clone(), room.clone());
            std::thread::Builder::new()
                .name("slots-owner".to_owned())
                .spawn(move || own(writer, &inbox, &metrics, &room))
                .map_err(pin_error)?
        };
        let datapath = Datapath::load(pins.clone(), host)?;
        datapath.attach(&workloads)?;
        tracing::info!(workloads = workloads.len(), "programs are attached");
        let (synced, _) = watch::channel(false);
        Ok(Self {
            commands,
            owner: Some(owner),
            datapath: Arc::new(datapath),
            pins,
            metrics,
            synced,
            room,
            _lock: lock,
        })
    }

    /// The programs, to be asked.
    pub fn datapath(&self) -> &Arc<Datapath> {
        &self.datapath
    }

    /// Whether the first sync is over: turns true once.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// What the ADS client hands resources to, and the admin server asks.
    pub fn handle(&self) -> Handle {
        Handle {
            commands: self.commands.clone(),
            metrics: self.metrics.clone(),
            synced: self.synced.clone(),
            room: self.room.clone(),
        }
    }

    /// Ends the agent and takes the data path away: programs detach, maps go.
    ///
    /// # Errors
    /// Where a pin can't be removed.
    pub fn remove(mut self) -> std::io::Result<()> {
        self.stop();
        self.pins.remove_all()
    }

    fn stop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        if let Some(owner) = self.owner.take() {
            // A thread that panicked has printed why.
            let _ = owner.join();
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
    synced: watch::Sender<bool>,
    room: Arc<Notify>,
}

impl Handle {
    /// The slot table as it is now and the number of virtual addresses; `None` once the agent has
    /// stopped.
    pub async fn stats(&self) -> Option<(Stats, usize)> {
        self.ask(Command::Stats).await
    }

    /// Whether the first sync is over.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
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
        self.ask(|reply| Command::Apply(update, reply)).await.unwrap_or_else(stopped)
    }

    async fn room(&self) {
        self.room.notified().await;
    }

    fn synced(&self) {
        if !self.synced.send_replace(true) {
            tracing::info!("first sync is over");
        }
    }
}

/// The owner's loop: ends with [`Command::Stop`].
fn own(mut writer: Writer, inbox: &Receiver<Command>, metrics: &Metrics, room: &Notify) {
    loop {
        let command = match writer.retry_in() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => inbox.recv_timeout(wait),
        };
        match command {
            Ok(Command::Apply(update, reply)) => {
                let ty = update.ty;
                let rejected = writer.apply(update, |flush| metrics.flushed(flush));
                metrics.rejected(ty, rejected.len());
                // A client that has gone away doesn't need the answer.
                let _ = reply.send(rejected);
            }
            Ok(Command::Held(reply)) => drop(reply.send(writer.held())),
            Ok(Command::Stats(reply)) => drop(reply.send(writer.stats())),
            Ok(Command::Wake) => writer.poll(),
            Err(RecvTimeoutError::Timeout) => {
                writer.retrying();
                room.notify_one();
            }
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
