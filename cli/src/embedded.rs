//! Operator pipeline and agent in one process, joined by the delta ADS gRPC stream that a cluster
//! uses, over an in-memory pipe.

use std::io;

use slotmesh_ads::{Client, Config, FromStreams, Sink, Subscription};
use slotmesh_serve::Store;
use slotmesh_xds::ResourceType;
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

use crate::process::Parts;

/// Bytes that each direction of the pipe holds.
const PIPE: usize = 1 << 20;

/// Serves what is wanted of `store` to the `sink` of a node until `stop`: the two ends of the stream are parts of the process.
pub fn stream(
    parts: &mut Parts,
    store: Store,
    sink: impl Sink,
    (node, wanted): (&str, Vec<(ResourceType, Subscription)>),
    stop: &CancellationToken,
) {
    let (pipes, incoming) = mpsc::unbounded_channel::<io::Result<DuplexStream>>();
    let incoming = UnboundedReceiverStream::new(incoming);
    let serving =
        slotmesh_serve::serve(store, slotmesh_serve::AdsServerConfig::default(), incoming, stop.clone());
    parts.add("the delta ADS server", async move { Ok(serving.await?) });
    let connector = FromStreams::new(move || {
        let (near, far) = tokio::io::duplex(PIPE);
        let connected = pipes.send(Ok(far)).map(|()| near);
        std::future::ready(connected.map_err(|_| io::ErrorKind::ConnectionRefused.into()))
    });
    let (client, subscriptions) = Client::new(Config::new(node), connector, sink);
    for (ty, wanted) in wanted {
        subscriptions.set(ty, wanted);
    }
    let stop = stop.clone();
    parts.add("the delta ADS client", async move {
        // It can be told otherwise as long as this runs.
        let _subscriptions = subscriptions;
        client.run(stop).await;
        Ok(())
    });
}
