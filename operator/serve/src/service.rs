//! Moves messages between tonic and the state machine of each stream.
//!
//! One task a stream. It never waits for the agent: requests and changes are taken in whether or not
//! the agent reads, and a response is built only when there is room to send it. So a slow agent
//! costs its state and one message, and gets the latest content when it is ready.

use std::{
    error::Error as _,
    future::pending,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use futures::{Stream as FuturesStream, StreamExt as _, stream::Empty};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status, Streaming, transport::server::TlsConnectInfo};

use crate::{
    Store,
    access::{Admission, Admitted, Denied, Reason, Refusals, Token},
    gate::{Gate, Peer},
    quiet::Quiet,
    status::Ending,
    store::Registration,
    stream::{Awaiting, Refused},
};

/// A reconnecting agent lists what it holds in one request: 100,000 names of 60 bytes are 8 MiB.
const MAX_REQUEST: usize = 64 << 20;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Responses are split above this size. Each stream keeps a buffer of its largest message for good
    /// (tonic's encoder does, of the next power of two), so many agents cost this many times over.
    pub max_message: usize,
    /// After this time without acknowledgement the agent is reported in the log.
    pub ack_patience: Duration,
    /// How often an idle connection is probed, so that agents that vanished are noticed.
    pub keepalive: Duration,
    /// How long a graceful shutdown waits for connections to end, after the last stream was to end.
    pub drain: Duration,
    /// Over how long a graceful shutdown spreads the ends of the streams, so that their agents don't
    /// all come back at once. They are served until then.
    pub stagger: Duration,
    /// How long an agent that comes from a replica that knew more is kept waiting for this one to know as much.
    /// After a restore of etcd that never happens.
    pub catch_up: Duration,
    /// Counts those that are kept waiting.
    pub holds: Arc<Holds>,
    /// Who checks the tokens of agents; `None` lets everybody in, who must then be kept out otherwise.
    pub admission: Option<Arc<dyn Admission>>,
    /// Counts the streams that are refused.
    pub refusals: Arc<Refusals>,
    /// Bounds the connections that nobody knows; to be given to [`tls_connections`](crate::tls_connections).
    pub gate: Gate,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_message: 15 << 10,
            ack_patience: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            stagger: Duration::ZERO,
            catch_up: Duration::from_secs(30),
            holds: Arc::default(),
            admission: None,
            refusals: Arc::default(),
            gate: Gate::default(),
        }
    }
}

/// Streams that were kept waiting because the replica lagged behind.
#[derive(Debug, Default)]
pub struct Holds {
    begun: AtomicU64,
    given_up: AtomicU64,
}

impl Holds {
    /// How many were.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Of these, how many were answered at last though the replica hadn't caught up.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// The aggregated discovery service; only its incremental method is implemented.
#[derive(Debug)]
pub struct DeltaAds {
    store: Store,
    config: Config,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// Of what strangers can cause.
    quiet: Quiet,
}

/// The tonic service that serves `store`. Its streams end when `shutdown` is cancelled.
pub fn server(
    store: Store,
    config: Config,
    shutdown: CancellationToken,
) -> AggregatedDiscoveryServiceServer<DeltaAds> {
    tracked_server(store, config, shutdown, TaskTracker::new())
}

pub(crate) fn tracked_server(
    store: Store,
    config: Config,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) -> AggregatedDiscoveryServiceServer<DeltaAds> {
    AggregatedDiscoveryServiceServer::new(DeltaAds {
        store,
        config,
        shutdown,
        tasks,
        quiet: Quiet::default(),
    })
    .max_decoding_message_size(MAX_REQUEST)
}

/// How long a refused agent may take to read why.
const LAST_WORD: Duration = Duration::from_secs(5);

type Responses<T> = Pin<Box<dyn FuturesStream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DeltaAds {
    type StreamAggregatedResourcesStream = Empty<Result<DiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "slotmesh serves incremental xDS only: use DeltaAggregatedResources (api_type DELTA_GRPC)",
        ))
    }

    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let admitted = self.admit(&request).await?;
        let (sender, receiver) = mpsc::channel(1);
        let registration = self.store.register(self.config.max_message);
        let mut until = None;
        if let Some(Admitted { node, lasts }) = admitted {
            registration.restrict(node);
            until = lasts.map(|lasts| Instant::now() + lasts);
        }
        let driver = Driver {
            registration,
            requests: request.into_inner(),
            responses: sender,
            ack_patience: self.config.ack_patience,
            stagger: self.config.stagger,
            until,
            catch_up: self.config.catch_up,
            holds: Arc::clone(&self.config.holds),
            refusals: Arc::clone(&self.config.refusals),
        };
        self.tasks.spawn(driver.run(self.shutdown.clone()));
        Ok(Response::new(Box::pin(
            ReceiverStream::new(receiver).map(|response| response.map(|boxed| *boxed)),
        )))
    }
}

impl DeltaAds {
    /// Asks who it is that opens a stream.
    async fn admit<T>(&self, request: &Request<T>) -> Result<Option<Admitted>, Status> {
        let peer = request.extensions().get::<TlsConnectInfo<Peer>>().map(TlsConnectInfo::get_ref);
        let Some(admission) = &self.config.admission else {
            if let Some(peer) = peer {
                peer.is_known(None);
            }
            return Ok(None);
        };
        let answer = match bearer(request) {
            Some(token) => {
                if let Some(peer) = peer {
                    peer.asks(Instant::now());
                }
                admission.admit(token, peer.map(Peer::origin)).await.map_err(|denied| match denied {
                    Denied::Refused(_) => {
                        (Some(Reason::BadToken), Status::unauthenticated(denied.to_string()))
                    }
                    Denied::Unavailable(_) => (None, Status::unavailable(denied.to_string())),
                })
            }
            None => {
                let why = "a stream needs the agent's token (authorization: Bearer …)";
                Err((Some(Reason::NoToken), Status::unauthenticated(why)))
            }
        };
        match answer {
            Ok(admitted) => {
                if let Some(peer) = peer {
                    peer.is_known(Some(admitted.node.clone()));
                }
                Ok(Some(admitted))
            }
            Err((reason, status)) => {
                if let Some(reason) = reason {
                    self.config.refusals.add(reason);
                }
                if let Some(peer) = peer {
                    peer.is_refused(Instant::now());
                }
                if let Some(left_out) = self.quiet.line(std::time::Instant::now()) {
                    let from = peer.map(|peer| peer.origin().to_string()).unwrap_or_default();
                    let what = if reason.is_some() { "stream refused" } else { "stream put off" };
                    tracing::warn!(from, error = status.message(), left_out, "{what}");
                }
                Err(status)
            }
        }
    }
}

fn bearer<T>(request: &Request<T>) -> Option<Token> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| Token::from(token))
}

/// A response on its way. In a box, as a channel of one has room for 32.
type Outgoing = Result<Box<DeltaDiscoveryResponse>, Status>;

type Sender = mpsc::Sender<Outgoing>;

/// The task of one stream.
struct Driver {
    registration: Registration,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: Sender,
    ack_patience: Duration,
    stagger: Duration,
    /// When the permission of the agent ends.
    until: Option<Instant>,
    catch_up: Duration,
    holds: Arc<Holds>,
    refusals: Arc<Refusals>,
}

/// The events that wake the task.
enum Event<'a> {
    Request(Result<Option<Box<DeltaDiscoveryRequest>>, Status>),
    Changed,
    Room(mpsc::Permit<'a, Outgoing>),
    Gone,
    Unanswered,
    /// The source may be known further.
    Reached,
    /// It isn't known as far as elsewhere, for too long.
    Lagging,
}

/// The next thing to send.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    /// Perhaps something: ask the state machine when there is room.
    Maybe,
    /// Nothing until something happens.
    Nothing,
}

/// Since when the agent has not answered, and whether that was reported.
#[derive(Clone, Copy)]
enum Patience {
    Idle,
    Waiting { stage: Awaiting, until: Instant },
    Reported { stage: Awaiting },
}

impl Driver {
    async fn run(mut self, shutdown: CancellationToken) {
        let stream = self.registration.id();
        let end = self.serve(&shutdown).await;
        let Self { mut registration, requests, responses, refusals, .. } = self;
        registration.ends(end.ending());
        drop((registration, requests));
        match end {
            End::Closed => tracing::info!(%stream, "agent disconnected"),
            End::Failed(error) => tracing::info!(%stream, %error, "stream failed"),
            End::Refused(status) => {
                refusals.add(match status.code() {
                    Code::PermissionDenied => Reason::OtherNode,
                    _ => Reason::Protocol,
                });
                tracing::warn!(%stream, error = %status, "stream refused");
                // An agent that doesn't read isn't told.
                tokio::select! {
                    biased;
                    () = shutdown.cancelled() => {}
                    _ = tokio::time::timeout(LAST_WORD, responses.send(Err(status))) => {}
                }
            }
            End::Expired => {
                tracing::info!(%stream, "the agent's token has expired");
                let last = Status::unauthenticated("the token has expired: connect again with a new one");
                _ = tokio::time::timeout(LAST_WORD, responses.send(Err(last))).await;
            }
            End::Shutdown => {
                _ = responses.try_send(Err(Status::unavailable("the server is shutting down")));
            }
        }
    }

    async fn serve(&mut self, shutdown: &CancellationToken) -> End {
        let mut output = Output::Nothing;
        let mut patience = Patience::Idle;
        let mut reached = self.registration.reached();
        let mut held = None;
        let stagger = self.stagger.mul_f64(self.registration.id().spread());
        let mut over = pin!(async {
            shutdown.cancelled().await;
            tokio::time::sleep(stagger).await;
        });
        let expires = self.until;
        let mut expired = pin!(until_passed(expires));
        loop {
            let until = match patience {
                Patience::Waiting { until, .. } => Some(until),
                Patience::Idle | Patience::Reported { .. } => None,
            };
            let event = tokio::select! {
                biased;
                () = &mut over => return End::Shutdown,
                () = &mut expired => return End::Expired,
                event = next_event(
                    &mut self.requests, &self.registration, &self.responses, output, until,
                ) => event,
                () = further(&mut reached), if held.is_some() => Event::Reached,
                () = until_passed(held), if held.is_some() => Event::Lagging,
            };
            match event {
                Event::Request(Ok(Some(request))) => {
                    let taken =
                        self.registration.step(|stream, resources| stream.on_request(*request, resources));
                    if let Err(refused) = taken {
                        return End::Refused(refused.into());
                    }
                    self.registration.status_changed();
                    output = Output::Maybe;
                }
                Event::Request(Ok(None)) | Event::Gone => return End::Closed,
                Event::Request(Err(error)) if is_the_peers(&error) => return End::Refused(error),
                Event::Request(Err(error)) => return End::Failed(error),
                Event::Changed => {
                    // Drains the inbox even if the agent doesn't read.
                    self.registration.step(|_, _| ());
                    output = Output::Maybe;
                }
                Event::Room(permit) => match self.registration.next_response() {
                    Some(response) => permit.send(Ok(Box::new(response))),
                    None => {
                        output = Output::Nothing;
                        // A round may be over.
                        self.registration.status_changed();
                    }
                },
                Event::Unanswered => {
                    if let Patience::Waiting { stage, .. } = patience {
                        tracing::warn!(
                            stream = %self.registration.id(), stage = ?stage.stage, responses = stage.responses,
                            "the agent doesn't acknowledge; it gets nothing new until it does"
                        );
                        patience = Patience::Reported { stage };
                    }
                }
                Event::Reached => output = Output::Maybe,
                Event::Lagging => {
                    tracing::warn!(
                        stream = %self.registration.id(), after = ?self.catch_up,
                        "this replica still doesn't know what another one did; the agent is answered all the same"
                    );
                    self.holds.given_up.fetch_add(1, Ordering::Relaxed);
                    self.registration.go_on();
                    output = Output::Maybe;
                }
            }
            patience = self.patience(patience);
            held = self.hold(held);
        }
    }

    /// Until when the agent is kept waiting for this replica to catch up.
    fn hold(&self, before: Option<Instant>) -> Option<Instant> {
        if !self.registration.lags() {
            return None;
        }
        before.or_else(|| {
            tracing::info!(stream = %self.registration.id(), "the agent waits until this replica has caught up");
            self.holds.begun.fetch_add(1, Ordering::Relaxed);
            Some(Instant::now() + self.catch_up)
        })
    }

    /// Starts the clock anew whenever what the agent has to answer has changed.
    fn patience(&self, before: Patience) -> Patience {
        let Some(awaiting) = self.registration.awaiting() else {
            return Patience::Idle;
        };
        match before {
            Patience::Waiting { stage, .. } | Patience::Reported { stage } if stage == awaiting => before,
            _ => Patience::Waiting { stage: awaiting, until: Instant::now() + self.ack_patience },
        }
    }
}

/// How a stream ended.
enum End {
    Closed,
    Failed(Status),
    Refused(Status),
    Expired,
    Shutdown,
}

impl End {
    const fn ending(&self) -> Ending {
        match self {
            Self::Closed => Ending::Closed,
            Self::Failed(_) => Ending::Lost,
            Self::Refused(_) => Ending::Refused,
            Self::Expired => Ending::Expired,
            Self::Shutdown => Ending::Shutdown,
        }
    }
}

/// Tells whether a peer sent what is no request: bytes that are no protobuf, or more than is read. (What ends with the
/// connection has its error as its source.)
fn is_the_peers(error: &Status) -> bool {
    error.source().is_none() && matches!(error.code(), Code::Internal | Code::OutOfRange)
}

async fn next_event<'a>(
    requests: &mut Streaming<DeltaDiscoveryRequest>,
    registration: &Registration,
    responses: &'a Sender,
    output: Output,
    until: Option<Instant>,
) -> Event<'a> {
    // Unbiased: a peer that floods requests doesn't keep its responses back, nor the other way.
    tokio::select! {
        request = requests.message() => Event::Request(request.map(|request| request.map(Box::new))),
        () = registration.inbox().woken() => Event::Changed,
        permit = responses.reserve(), if output == Output::Maybe => permit.map_or(Event::Gone, Event::Room),
        () = responses.closed() => Event::Gone,
        () = until_passed(until) => Event::Unanswered,
    }
}

pub(crate) async fn until_passed(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => pending().await,
    }
}

/// The store, which has the sender, outlives its streams.
async fn further(reached: &mut watch::Receiver<()>) {
    if reached.changed().await.is_err() {
        pending().await
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoNode => {
                Status::invalid_argument("the first request of a stream has to name its node: set node.id")
            }
            Refused::OtherNode { admitted, claimed } => Status::permission_denied(format!(
                "the token is that of node {admitted}'s agent, but the stream is for node {claimed}"
            )),
            Refused::TooManyNames { ty, limit } => Status::resource_exhausted(format!(
                "more than {limit} {ty} names on one stream: subscribe to \"*\" instead"
            )),
        }
    }
}
