//! The task of one stream: moves messages between tonic and the state machine.
//!
//! It never waits for the agent: requests and changes are taken in whether or not the agent reads, and a response is
//! built only when there is room to send it. So a slow agent costs its state and one message, and gets the latest
//! content when it is ready.

use std::{error::Error as _, future::pending, pin::pin, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use crate::{
    access::{RefusalReason, RefusedStreams},
    delays::until_passed,
    held_back::HeldBack,
    registration::Registration,
    status::Ending,
    stream::{Awaiting, StreamError},
};

/// How long a refused agent may take to read why.
const LAST_WORD: Duration = Duration::from_secs(5);

/// A response on its way. In a box, as a channel of one has room for 32.
pub(crate) type Outgoing = Result<Box<DeltaDiscoveryResponse>, Status>;

type Sender = mpsc::Sender<Outgoing>;

/// The task of one stream.
pub(crate) struct Driver {
    pub(crate) registration: Registration,
    pub(crate) requests: Streaming<DeltaDiscoveryRequest>,
    pub(crate) responses: Sender,
    pub(crate) ack_patience: Duration,
    pub(crate) stagger: Duration,
    /// When the permission of the agent ends.
    pub(crate) until: Option<Instant>,
    pub(crate) hold_back: Duration,
    pub(crate) held_back: Arc<HeldBack>,
    pub(crate) refusals: Arc<RefusedStreams>,
}

/// The events that wake the task.
enum Event<'a> {
    Request(Result<Option<Box<DeltaDiscoveryRequest>>, Status>),
    Changed,
    Room(mpsc::Permit<'a, Outgoing>),
    Gone,
    Unanswered,
    /// The source may be known further.
    SourceKnown,
    /// It isn't known as far as elsewhere, for too long.
    StillStale,
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
    /// Runs until the stream ends, or `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
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
                    Code::PermissionDenied => RefusalReason::OtherNode,
                    _ => RefusalReason::Protocol,
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
                () = further(&mut reached), if held.is_some() => Event::SourceKnown,
                () = until_passed(held), if held.is_some() => Event::StillStale,
            };
            match event {
                Event::Request(Ok(Some(request))) => {
                    let taken =
                        self.registration.step(|stream, resources| stream.on_request(*request, resources));
                    if let Err(error) = taken {
                        return End::Refused(error.into());
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
                Event::SourceKnown => output = Output::Maybe,
                Event::StillStale => {
                    tracing::warn!(
                        stream = %self.registration.id(), after = ?self.hold_back,
                        "this replica still doesn't know what another one did; the agent is answered all the same"
                    );
                    self.held_back.gives_up();
                    self.registration.stop_waiting();
                    output = Output::Maybe;
                }
            }
            patience = self.patience(patience);
            held = self.hold(held);
        }
    }

    /// Until when the agent is kept waiting for this replica to catch up.
    fn hold(&self, before: Option<Instant>) -> Option<Instant> {
        if !self.registration.is_stale() {
            return None;
        }
        before.or_else(|| {
            tracing::info!(stream = %self.registration.id(), "the agent waits until this replica has caught up");
            self.held_back.begins();
            Some(Instant::now() + self.hold_back)
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

/// The store, which has the sender, outlives its streams.
async fn further(reached: &mut watch::Receiver<()>) {
    if reached.changed().await.is_err() {
        pending().await
    }
}

impl From<StreamError> for Status {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::NoNode => {
                Status::invalid_argument("the first request of a stream has to name its node: set node.id")
            }
            StreamError::OtherNode { authenticated, claimed } => Status::permission_denied(format!(
                "the token is that of node {authenticated}'s agent, but the stream is for node {claimed}"
            )),
            StreamError::TooManyNames { ty, limit } => Status::resource_exhausted(format!(
                "more than {limit} {ty} names on one stream: subscribe to \"*\" instead"
            )),
        }
    }
}
