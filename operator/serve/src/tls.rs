//! TLS connections for [`serve`](crate::serve).
//!
//! Handshakes run beside each other, each with a deadline and only so many at a time: a peer that
//! connects and says nothing holds up nobody. Which certificate is shown is asked at each handshake
//! (rustls' resolver), so a new one needs no restart and ends no stream.

use std::{io, sync::Arc, time::Duration};

use futures::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes are under way at most.
const HANDSHAKES: usize = 256;
/// How long to wait when no connection can be accepted (too many open files).
const BREATH: Duration = Duration::from_millis(100);

/// The connections of `listener` that have completed the TLS handshake. HTTP/2 is agreed on if
/// `config` doesn't say otherwise. Ends the listener when dropped.
pub fn tls_connections(
    listener: TcpListener,
    mut config: rustls::ServerConfig,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    if config.alpn_protocols.is_empty() {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, acceptor, sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: mpsc::Sender<io::Result<TlsStream<TcpStream>>>,
) {
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        // An answer of a few bytes shouldn't wait for more.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY can't be set");
        }
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                // When nobody takes connections any more, this one ends.
                Ok(Ok(tls)) => drop(connections.send(Ok(tls)).await),
                Ok(Err(error)) => tracing::info!(%peer, %error, "TLS handshake failed"),
                Err(_elapsed) => tracing::info!(%peer, "TLS handshake took too long"),
            }
            drop(permit);
        });
    }
}
