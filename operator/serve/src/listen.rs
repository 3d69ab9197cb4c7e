//! Serves a store on whatever yields connections: TCP, a Unix socket, an in-memory pipe.

use std::io;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Error, Server, server::Connected};

use crate::{AdsServerConfig, Store, service::tracked_server};

/// The bytes that are taken in of a connection ahead of being read. Small: it is taken in of strangers, too.
const WINDOW: u32 = (1 << 16) - 1;
/// Headers of a request: an agent's token takes about 2 kB.
const HEADERS: u32 = 16 << 10;
/// Streams of a connection: an agent has one.
const STREAMS: u32 = 4;

/// Serves `store` on the connections of `incoming` until `shutdown` is cancelled, then ends the
/// streams, spread over [`AdsServerConfig::stagger`], and waits for the connections, at most for
/// [`AdsServerConfig::drain`].
///
/// It also returns, once the connections have ended, when `incoming` ends.
pub async fn serve<C>(
    store: Store,
    config: AdsServerConfig,
    incoming: impl Stream<Item = io::Result<C>>,
    shutdown: CancellationToken,
) -> Result<(), Error>
where
    C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let tasks = TaskTracker::new();
    let drain = config.drain + config.stagger;
    // Streams also end when this future is dropped.
    let streams = shutdown.child_token();
    let end_streams = streams.clone().drop_guard();
    let serving = Server::builder()
        .http2_keepalive_interval(Some(config.keepalive))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(HEADERS)
        .max_concurrent_streams(STREAMS)
        .add_service(tracked_server(store, config, streams, tasks.clone()))
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled());
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(drain).await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = too_late => {
            tracing::warn!(?drain, "connections still open after the drain time are left behind");
            Ok(())
        }
    };
    tasks.close();
    drop(end_streams);
    tasks.wait().await;
    served
}
