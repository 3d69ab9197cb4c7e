//! The service: asks who opens a stream, and starts its task.

use std::{pin::Pin, sync::Arc, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
};
use futures::{Stream as FuturesStream, StreamExt as _, stream::Empty};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, transport::server::TlsConnectInfo};

use crate::{
    Store,
    access::{AuthError, Authenticated, Authenticator, RefusalReason, RefusedStreams, Token},
    driver::Driver,
    gate::{Gate, Peer},
    held_back::HeldBack,
    quiet::Quiet,
    registration::Registration,
};

/// A reconnecting agent lists what it holds in one request: 100,000 names of 60 bytes are 8 MiB.
const MAX_REQUEST: usize = 64 << 20;

/// Settings of the server.
#[derive(Clone, Debug)]
pub struct AdsServerConfig {
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
    pub hold_back: Duration,
    /// Counts those that are kept waiting.
    pub held_back: Arc<HeldBack>,
    /// Who checks the tokens of agents; `None` lets everybody in, who must then be kept out otherwise.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Counts the streams that are refused.
    pub refusals: Arc<RefusedStreams>,
    /// Bounds the connections that nobody knows; to be given to [`tls_connections`](crate::tls_connections).
    pub gate: Gate,
}

impl Default for AdsServerConfig {
    fn default() -> Self {
        Self {
            max_message: 15 << 10,
            ack_patience: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
            drain: Duration::from_secs(5),
            stagger: Duration::ZERO,
            hold_back: Duration::from_secs(30),
            held_back: Arc::default(),
            authenticator: None,
            refusals: Arc::default(),
            gate: Gate::default(),
        }
    }
}

/// The aggregated discovery service; only its incremental method is implemented.
#[derive(Debug)]
pub struct DeltaAds {
    store: Store,
    config: AdsServerConfig,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    /// Of what strangers can cause.
    quiet: Quiet,
}

/// The tonic service that serves `store`. Its streams end when `shutdown` is cancelled.
pub fn server(
    store: Store,
    config: AdsServerConfig,
    shutdown: CancellationToken,
) -> AggregatedDiscoveryServiceServer<DeltaAds> {
    tracked_server(store, config, shutdown, TaskTracker::new())
}

pub(crate) fn tracked_server(
    store: Store,
    config: AdsServerConfig,
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
        let authenticated = self.authenticate(&request).await?;
        let (sender, receiver) = mpsc::channel(1);
        let registration = Registration::new(&self.store, self.config.max_message);
        let mut until = None;
        if let Some(Authenticated { node, lasts }) = authenticated {
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
            hold_back: self.config.hold_back,
            held_back: Arc::clone(&self.config.held_back),
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
    async fn authenticate<T>(&self, request: &Request<T>) -> Result<Option<Authenticated>, Status> {
        let peer = request.extensions().get::<TlsConnectInfo<Peer>>().map(TlsConnectInfo::get_ref);
        let Some(authenticator) = &self.config.authenticator else {
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
                authenticator.authenticate(token, peer.map(Peer::origin)).await.map_err(|error| match error {
                    AuthError::Invalid(_) => {
                        (Some(RefusalReason::BadToken), Status::unauthenticated(error.to_string()))
                    }
                    AuthError::Unavailable(_) => (None, Status::unavailable(error.to_string())),
                })
            }
            None => {
                let why = "a stream needs the agent's token (authorization: Bearer …)";
                Err((Some(RefusalReason::NoToken), Status::unauthenticated(why)))
            }
        };
        match answer {
            Ok(authenticated) => {
                if let Some(peer) = peer {
                    peer.is_known(Some(authenticated.node.clone()));
                }
                Ok(Some(authenticated))
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
