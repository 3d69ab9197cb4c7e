//! The thread that owns the slot table and the VIP map, and what others ask of it.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use slotmesh_ads::Update;
use slotmesh_records::VipKey;
use slotmesh_slots::{ClassStats, Contradiction, SlotClass, Stats};
use slotmesh_xds::{Rejection, ResourceName, Version};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    RecordType,
    config::Settings,
    datapath::DatapathError,
    held::Held,
    metrics::Metrics,
    pending_retries::PendingRetries,
    prepare::Prepared,
    running::LeftOut,
    show::Shown,
    writer::{RecordNames, Writer},
};

pub(super) enum Command {
    Apply(RecordType, Update, Box<Prepared>, oneshot::Sender<Vec<Rejection>>),
    Held(oneshot::Sender<Vec<(RecordType, ResourceName, Version)>>),
    Show(RecordType, ResourceName, oneshot::Sender<Option<Shown>>),
    ListenerAt(VipKey, oneshot::Sender<Option<String>>),
    ClusterNames(HashSet<u64>, oneshot::Sender<HashMap<u64, String>>),
    ProxyAddresses(Option<Vec<ResourceName>>, oneshot::Sender<HashMap<ResourceName, Ipv4Addr>>),
    Assignments(HashSet<String>, oneshot::Sender<HashMap<String, Held>>),
    Stats(oneshot::Sender<(Stats, usize)>),
    SlabsOf(SlotClass, oneshot::Sender<Vec<(u32, ClassStats)>>),
    Slots(oneshot::Sender<(Stats, Option<String>)>),
    Configure(Option<Settings>, oneshot::Sender<Result<(), Contradiction>>),
    LeftOut(LeftOut),
    Synced,
    Wake,
    Stop,
}

/// Starts the owner. However it ends, `ended` tells.
pub(super) fn spawn_owner(
    ended: &CancellationToken,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let ended = ended.clone().drop_guard();
    std::thread::Builder::new().name("slots-owner".to_owned()).spawn(move || {
        let _ended = ended;
        run();
    })
}

/// Whom the owner tells what happens.
pub(super) struct Tell {
    pub(super) metrics: Arc<Metrics>,
    pub(super) retries: Arc<PendingRetries>,
    pub(super) changes: watch::Sender<u64>,
}

impl Tell {
    /// The slot table may have changed.
    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Resources are to be asked for once more.
    fn ask_again(&self, names: RecordNames, soon: bool) {
        self.retries.put(names.into_iter().map(|(ty, name)| (ty.resource(), name)).collect(), soon);
    }
}

/// The owner's loop: ends with [`Command::Stop`], the last sender, or an `at_sync` that fails.
pub(super) fn own(
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
            Ok(Command::Apply(ty, update, prepared, reply)) => {
                let rejected = writer.apply(ty, update, *prepared, |flush| tell.metrics.flushed(flush));
                tell.metrics.made_tables(writer.take_own_tables());
                tell.changed();
                tell.ask_again(writer.take_stale(), true);
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
            Ok(Command::SlabsOf(class, reply)) => drop(reply.send(writer.slabs_of(class))),
            Ok(Command::Slots(reply)) => {
                drop(reply.send((writer.stats().0, writer.profile().map(str::to_owned))));
            }
            Ok(Command::Configure(settings, reply)) => {
                let configured = writer.configure(settings);
                tell.changed();
                tell.ask_again(writer.take_stale(), true);
                drop(reply.send(configured));
            }
            Ok(Command::LeftOut(left_out)) => {
                writer.set_left_out(left_out);
                tell.ask_again(writer.take_stale(), true);
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
                tell.ask_again(due, soon);
            }
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
