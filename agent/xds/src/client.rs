//! The client's life: connect, follow the stream, wait, connect again.
//!
//! One future, no tasks of its own. It waits for the shutdown wherever it waits for the outside, but
//! an update that has been handed to the sink is always finished.
//!
//! Wherever the control plane owes something, there is a deadline: for the connection, the opening of the stream, each
//! part of the first answers, the room for a request. And when it has been silent for long, it is asked for something
//! that it has to answer. Whoever misses one is left, for another replica if there is one.

mod stream;

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use envoy_types::pb::envoy::{
    config::core::v3::{ControlPlane, Node},
    service::discovery::v3::{
        DeltaDiscoveryResponse, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use rand::{Rng as _, SeedableRng, rngs::StdRng};
use slotmesh_xds::{
    AgentReport, CONTROL_PLANE, Rejection, ResourceName, ResourceType, Version, give_source_back, source_of,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Request;

use self::stream::{Ended, Stream, changed, next, until};
use crate::{
    Backoff, Connector, Sink, Stats, Subscription, Update,
    backoff::Attempts,
    refusals::Refusals,
    session::{HeldVersions, Session},
    subscriptions::Subscriptions,
    versions::Foreign,
};

/// Requests that wait for the connection; each type's first request fits without waiting.
const REQUESTS: usize = 16;

/// Within this time it is asked again for what will probably be accepted: many nodes may have got room at one instant.
const SOON: Duration = Duration::from_millis(500);

/// Settings of the client.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the control plane is told of this node; its id must not be empty.
    pub node: Node,
    /// The delays between attempts to connect.
    pub backoff: Backoff,
    /// The delays before what was refused for want of room is asked for again.
    pub ask_again: Backoff,
    /// How long one attempt may take.
    pub connect_timeout: Duration,
    /// How long a control plane may be silent that owes an answer. It may keep an agent waiting for 30 s, until it knows
    /// as much as the replica before it.
    pub answer_timeout: Duration,
    /// After how long a silence a control plane that is slotmesh's own is asked whether it is still there.
    pub probe_after: Duration,
    /// A stream that was in sync for this long was a success: the backoff starts again.
    pub stable_after: Duration,
    /// Messages above this size are refused. slotmesh's server splits above 15 KiB, istiod sends anything.
    pub max_message: usize,
}

impl Config {
    /// The default settings for a node.
    pub fn new(node_id: impl Into<String>) -> Self {
        Self {
            node: Node { id: node_id.into(), ..Node::default() },
            backoff: Backoff::default(),
            ask_again: Backoff { initial: Duration::from_secs(2), max: Duration::from_secs(300) },
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(45),
            probe_after: Duration::from_secs(300),
            stable_after: Duration::from_secs(20),
            max_message: 64 << 20,
        }
    }
}

/// Changes the subscriptions of a running client and reads its counters. Clones are handles of the
/// same client.
#[derive(Clone, Debug)]
pub struct Handle {
    wanted: Arc<watch::Sender<Subscriptions>>,
    stats: Arc<Stats>,
}

impl Handle {
    /// Replaces the subscription of a type. What it no longer covers is removed from the sink.
    pub fn set(&self, ty: ResourceType, subscription: Subscription) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted[ty] != subscription;
            wanted[ty] = subscription;
            changed
        });
    }

    /// The client's counters.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }
}

/// A delta ADS client that feeds a sink.
#[derive(Debug)]
pub struct Client<C, S> {
    config: Config,
    connector: C,
    sink: S,
    wanted: watch::Receiver<Subscriptions>,
    /// The subscriptions that the sink's content agrees with.
    followed: Subscriptions,
    versions: Foreign,
    /// How far slotmesh's operator knew its source, as it said last: whoever is next is to know as much.
    source: Option<String>,
    /// What the agent has to tell of itself.
    reports: watch::Receiver<Option<AgentReport>>,
    stats: Arc<Stats>,
    ever_synced: bool,
    refusals: Refusals,
    /// The attempts to connect, and those to get what was refused for want of room.
    attempts: Attempts,
    asking: Attempts,
    rng: StdRng,
    /// What the attempts count time from.
    began: Instant,
}

impl<C: Connector, S: Sink> Client<C, S> {
    /// A client that is subscribed to nothing yet, and the handle to change that.
    ///
    /// Subscribe to all types before [`run`](Self::run): then the control plane hears of all of them
    /// at once, and knows what may refer to what it is about to remove.
    pub fn new(config: Config, connector: C, sink: S) -> (Self, Handle) {
        let (sender, wanted) = watch::channel(Subscriptions::default());
        let stats = Arc::new(Stats::default());
        let handle = Handle { wanted: Arc::new(sender), stats: Arc::clone(&stats) };
        let client = Self {
            attempts: Attempts::new(config.backoff, config.stable_after),
            asking: Attempts::new(config.ask_again, Duration::ZERO),
            config,
            connector,
            sink,
            wanted,
            followed: Subscriptions::default(),
            versions: Foreign::default(),
            source: None,
            reports: watch::channel(None).1,
            stats,
            ever_synced: false,
            refusals: Refusals::default(),
            rng: StdRng::from_os_rng(),
            began: Instant::now(),
        };
        (client, handle)
    }

    /// Tells what is in `reports`, whenever it changes, to a control plane that is slotmesh's own.
    #[must_use]
    pub fn reporting(mut self, reports: watch::Receiver<Option<AgentReport>>) -> Self {
        self.reports = reports;
        self
    }

    /// Runs until `shutdown` is cancelled. Whatever happens to the connection, what is in force stays
    /// in force.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let ended = match self.connection(&shutdown).await {
                Ok(never) => match never {},
                Err(Ended::Shutdown) => break,
                Err(ended) => ended,
            };
            if !self.stats.connected() {
                self.stats.failed();
            }
            self.stats.closed();
            let delay = self.attempts.failed(self.began.elapsed(), &mut self.rng);
            tracing::warn!(error = %ended, ?delay, "no control plane; what is in force stays in force");
            if self.rest(delay, &shutdown).await.is_err() {
                break;
            }
        }
        self.stats.closed();
    }

    /// Waits, and meanwhile takes from the sink what is no longer wanted.
    async fn rest(&mut self, delay: Duration, shutdown: &CancellationToken) -> Result<(), Ended> {
        let mut over = pin!(sleep(delay));
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Ended::Shutdown),
                () = changed(&mut self.wanted) => self.follow().await,
                () = &mut over => return Ok(()),
            }
        }
    }

    /// One connection, from the attempt to its end.
    async fn connection(&mut self, shutdown: &CancellationToken) -> Result<std::convert::Infallible, Ended> {
        let timeout = self.config.connect_timeout;
        let channel = tokio::select! {
            biased;
            () = shutdown.cancelled() => return Err(Ended::Shutdown),
            channel = tokio::time::timeout(timeout, self.connector.connect()) => {
                channel.map_err(|_elapsed| Ended::Timeout(timeout))??
            }
        };
        let mut service =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(self.config.max_message);
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        let patience = self.config.answer_timeout;
        let mut stream = Stream { session: Session::new(self.node()), requests, ours: false, patience };
        self.resubscribe(&mut stream, shutdown).await?;
        let mut opening = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = self.connector.token()? {
            opening.metadata_mut().insert("authorization", token);
        }
        // A server may keep its headers back until the first response, so requests have to be on
        // their way before, and more of them may follow.
        let mut responses = {
            let mut opening = pin!(service.delta_aggregated_resources(opening));
            let mut too_late = pin!(sleep(patience));
            loop {
                // Until it is opened, nothing may take the requests out of the channel.
                let room = stream.requests.capacity() >= ResourceType::ALL.len();
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => return Err(Ended::Shutdown),
                    () = changed(&mut self.wanted), if room => self.resubscribe(&mut stream, shutdown).await?,
                    opened = &mut opening => break opened.map_err(Box::new)?.into_inner(),
                    () = &mut too_late => return Err(Ended::Silent { what: "the stream", after: patience }),
                }
            }
        };
        self.stats.opened();
        tracing::info!("connected to the control plane");
        let mut last = Instant::now();
        let mut probed = false;
        // What is to be asked for again, and when.
        let mut again: BTreeSet<(ResourceType, ResourceName)> = BTreeSet::new();
        let mut at = None;
        loop {
            let (limit, what) = if stream.awaits() {
                (Some(patience), "an answer")
            } else if probed {
                (Some(patience), "a sign of life")
            } else {
                (stream.ours.then_some(self.config.probe_after), "anything new")
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Err(Ended::Shutdown),
                () = changed(&mut self.wanted) => {
                    self.resubscribe(&mut stream, shutdown).await?;
                    // Only from now on it may owe an answer.
                    last = Instant::now();
                }
                response = next(&mut responses) => {
                    self.apply(&mut stream, response?, shutdown).await?;
                    (last, probed) = (Instant::now(), false);
                }
                () = changed(&mut self.reports), if stream.ours => self.report(&stream, shutdown).await?,
                wanted = self.sink.retries() => {
                    again.extend(wanted.names);
                    at = self.ask_at(at, wanted.soon);
                }
                () = until(at) => {
                    at = None;
                    let names = std::mem::take(&mut again);
                    self.ask_again(&mut stream, names, shutdown).await?;
                }
                () = until(limit.map(|limit| last + limit)) => {
                    if stream.awaits() || probed {
                        return Err(Ended::Silent { what, after: patience });
                    }
                    (last, probed) = (Instant::now(), true);
                    if let Some(request) = stream.session.probe() {
                        stream.send(request, shutdown).await?;
                    } else {
                        probed = false;
                    }
                }
            }
        }
    }

    /// When what the sink wants again is asked for; `at` is when other things are.
    fn ask_at(&mut self, at: Option<Instant>, soon: bool) -> Option<Instant> {
        if soon {
            let soon = Instant::now() + SOON.mul_f64(self.rng.random_range(0.0..=1.0));
            return Some(at.map_or(soon, |at| at.min(soon)));
        }
        at.or_else(|| Some(Instant::now() + self.asking.failed(self.began.elapsed(), &mut self.rng)))
    }

    /// Asks once more for what was refused for want of room, or is meant otherwise than it was taken.
    async fn ask_again(
        &mut self,
        stream: &mut Stream,
        names: BTreeSet<(ResourceType, ResourceName)>,
        shutdown: &CancellationToken,
    ) -> Result<(), Ended> {
        if !names.is_empty() {
            tracing::debug!(resources = names.len(), "asking once more for resources");
        }
        for request in stream.session.ask_again(names) {
            stream.send(request, shutdown).await?;
        }
        Ok(())
    }

    /// What the control plane is told of this node when it is connected to.
    fn node(&self) -> Node {
        let mut node = self.config.node.clone();
        if let Some(source) = &self.source {
            give_source_back(node.metadata.get_or_insert_default(), source);
        }
        node
    }

    /// Brings the stream's subscriptions and the sink to what is wanted now.
    async fn resubscribe(&mut self, stream: &mut Stream, shutdown: &CancellationToken) -> Result<(), Ended> {
        self.follow().await;
        let held = HeldVersions::new(self.sink.held().await, &self.versions);
        for request in stream.session.subscribe(&self.followed, &held) {
            stream.send(request, shutdown).await?;
        }
        self.stats.synced(stream.session.in_sync());
        Ok(())
    }

    /// Takes from the sink what is no longer wanted: the control plane says nothing more of it.
    async fn follow(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        for ty in ResourceType::ALL.into_iter().rev() {
            if !wanted[ty].narrower_than(&self.followed[ty]) {
                continue;
            }
            let before = &self.followed[ty];
            let unwanted = |name: &ResourceName| before.covers(name) && !wanted[ty].covers(name);
            let held = self.sink.held().await;
            let removed: Vec<_> = held
                .into_iter()
                .filter(|(held, name, _)| *held == ty && unwanted(name))
                .map(|(_, name, _)| name)
                .collect();
            for name in &removed {
                self.versions.forget(ty, name);
            }
            if !removed.is_empty() {
                for refused in self.sink.apply(Update { ty, upserts: Vec::new(), removed }).await {
                    tracing::warn!(%ty, resource = %refused.name, reason = refused.reason, "unwanted but kept");
                }
            }
        }
        self.followed = wanted;
    }

    /// Applies a response, then acknowledges it.
    async fn apply(
        &mut self,
        stream: &mut Stream,
        response: DeltaDiscoveryResponse,
        shutdown: &CancellationToken,
    ) -> Result<(), Ended> {
        let is_ours = |plane: &ControlPlane| plane.identifier == CONTROL_PLANE;
        if !stream.ours && response.control_plane.as_ref().is_some_and(is_ours) {
            stream.ours = true;
            self.reports.mark_changed();
        }
        // Before anything of it is in force.
        if let Some(source) = source_of(&response.system_version_info).filter(|_| stream.ours) {
            self.source = Some(source.to_owned());
        }
        let Some((update, unanswered)) = stream.session.on_response(response) else { return Ok(()) };
        let ty = update.ty;
        let (upserts, removed) = (update.upserts.len(), update.removed.len());
        let empty = upserts == 0 && removed == 0;
        let refused = if empty { Vec::new() } else { self.sink.apply(update).await };
        let known = unanswered.versions();
        let (request, rejections) = stream.session.answer(unanswered, refused, &mut self.versions);
        self.tell(ty, known, &rejections);
        tracing::debug!(%ty, upserts, removed, refused = rejections.len(), "response applied");
        self.stats.answered(ty, rejections.len());
        let in_sync = stream.session.in_sync();
        self.stats.synced(in_sync);
        if in_sync {
            self.attempts.goes_well(self.began.elapsed());
        }
        if in_sync && !self.ever_synced {
            self.ever_synced = true;
            tracing::info!("in sync with the control plane");
            self.sink.synced();
        }
        stream.send(request, shutdown).await
    }

    /// Says what is refused: once each version, however often it comes.
    fn tell(
        &mut self,
        ty: ResourceType,
        known: Vec<(ResourceName, Option<Version>)>,
        rejections: &[Rejection],
    ) {
        let mut known: HashMap<_, _> = known.into_iter().collect();
        for Rejection { name, reason } in rejections {
            let version = known.remove(name).flatten();
            if self.refusals.refused(ty, name, version) {
                tracing::warn!(%ty, resource = %name, reason, "resource refused");
            } else {
                tracing::debug!(%ty, resource = %name, reason, "resource refused again");
            }
        }
        for name in known.keys() {
            if self.refusals.settled(ty, name) {
                self.asking.goes_well(self.began.elapsed());
            }
        }
    }

    /// Tells the operator what there is to tell now.
    async fn report(&mut self, stream: &Stream, shutdown: &CancellationToken) -> Result<(), Ended> {
        let report = self.reports.borrow_and_update().clone();
        let request = report.and_then(|report| stream.session.report(&self.config.node, &report));
        match request {
            Some(request) => stream.send(request, shutdown).await,
            None => Ok(()),
        }
    }
}
