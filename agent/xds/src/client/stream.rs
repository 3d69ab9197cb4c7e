//! The open stream, how it ends, and what it waits for.

use std::{error::Error, fmt, time::Duration};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{ConnectError, session::Session};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("cannot connect: {}", Chain(.0))]
    Connect(#[from] ConnectError),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{}: {}", .0.code(), .0.message())]
    Failed(#[from] Box<Status>),
    #[error("the control plane closed the stream")]
    Closed,
    #[error("the control plane keeps silent: {what} is missing for {after:?}")]
    Silent { what: &'static str, after: Duration },
    #[error("shutdown")]
    Shutdown,
}

/// An error with its causes in one line: a transport error alone says "transport error".
struct Chain<'a>(&'a ConnectError);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The open stream: its state and the way to the control plane.
pub(super) struct Stream {
    pub(super) session: Session,
    pub(super) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    /// The control plane is slotmesh's own.
    pub(super) ours: bool,
    /// How long the control plane may not read.
    pub(super) patience: Duration,
}

impl Stream {
    /// Whether the control plane owes an answer. One that isn't slotmesh's own may have nothing to say of some types.
    pub(super) fn awaits(&self) -> bool {
        if self.ours { self.session.awaits_some() } else { self.session.awaits_all() }
    }

    pub(super) async fn send(
        &self,
        request: DeltaDiscoveryRequest,
        shutdown: &CancellationToken,
    ) -> Result<(), Ended> {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Err(Ended::Shutdown),
            sent = self.requests.send(request) => sent.map_err(|_closed| Ended::Closed),
            () = sleep(self.patience) => Err(Ended::Silent { what: "room for a request", after: self.patience }),
        }
    }
}

/// Never, where there is no such time.
pub(super) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

pub(super) async fn next(
    responses: &mut Streaming<DeltaDiscoveryResponse>,
) -> Result<DeltaDiscoveryResponse, Ended> {
    responses.message().await.map_err(Box::new)?.ok_or(Ended::Closed)
}

/// Resolves when the value changed; never again when nobody is left to change it.
pub(super) async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
