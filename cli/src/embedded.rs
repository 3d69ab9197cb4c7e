//! Operator pipeline and agent in one process, joined by the delta ADS gRPC stream that a cluster
//! uses, over an in-memory pipe.

use std::io;

use slotmesh_ads::{Client, Config, FromStreams, Sink, Subscription};
use slotmesh_serve::Store;
use slotmesh_xds::ResourceType;
use tokio::{io::DuplexStream, sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

/// Bytes that each direction of the pipe holds.
const PIPE: usize = 1 << 20;

/// The two ends of the stream.
pub struct Stream {
    server: JoinHandle<Result<(), Box<dyn std::error::Error + Send + Sync>>>,
    client: JoinHandle<()>,
}

impl Stream {
    /// Serves `store` to `sink` until `stop`.
    pub fn start(store: Store, sink: impl Sink, node: &str, stop: &CancellationToken) -> Self {
        let (pipes, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
        let incoming = UnboundedReceiverStream::new(incoming);
        let serving = slotmesh_serve::serve(store, slotmesh_serve::Config::default(), incoming, stop.clone());
        let connector = FromStreams::new(move || {
            let (near, far) = tokio::io::duplex(PIPE);
            let connected = pipes.send(Ok(far)).map(|()| near);
            std::future::ready(connected.map_err(|_| io::ErrorKind::ConnectionRefused.into()))
        });
        let (client, subscriptions) = Client::new(Config::new(node), connector, sink);
        for ty in ResourceType::ALL {
            let wanted = match ty {
                // Of those of all nodes, its own.
                ResourceType::Settings => [node].into_iter().collect(),
                // Named by flags.
                ResourceType::Workload => continue,
                _ => Subscription::Wildcard,
            };
            subscriptions.set(ty, wanted);
        }
        Self {
            server: tokio::spawn(async move { serving.await.map_err(Into::into) }),
            client: tokio::spawn(client.run(stop.clone())),
        }
    }

    /// Waits until both ends have stopped.
    ///
    /// # Errors
    /// Where the server failed.
    pub async fn stopped(self) -> anyhow::Result<()> {
        self.client.await?;
        self.server.await?.map_err(|error| anyhow::anyhow!("delta ADS server: {error}"))
    }
}
