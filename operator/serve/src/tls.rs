//! TLS connections for [`serve`](crate::serve).
//!
//! Every connection is accepted at once and enters the [`Gate`], which ends it where it doesn't say in time who it
//! is, or where there are too many. Handshakes run beside each other. Which certificate is shown is asked at each
//! handshake (rustls' resolver), so a new one needs no restart and ends no stream.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use crate::{
    gate::{Entry, Gate, Origin, Peer},
    quiet::Quiet,
};

/// How long to wait when no connection can be accepted (too many open files).
const BREATH: Duration = Duration::from_millis(10);

/// A TCP connection that the gate can end.
#[derive(Debug)]
pub struct Gated {
    tcp: TcpStream,
    entry: Entry,
}

impl Gated {
    fn check(&self, context: &Context<'_>) -> io::Result<()> {
        if self.entry.closer().is_closed(context.waker()) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Gated {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Connected for Gated {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.entry.peer()
    }
}

/// The connections of `listener` that have completed the TLS handshake. HTTP/2 is agreed on if
/// `config` doesn't say otherwise. Ends the listener when dropped.
pub fn tls_connections(
    listener: TcpListener,
    mut config: rustls::ServerConfig,
    gate: &Gate,
) -> impl Stream<Item = io::Result<TlsStream<Gated>>> + use<> {
    if config.alpn_protocols.is_empty() {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(accept(listener, acceptor, gate.clone(), sender));
    ReceiverStream::new(receiver)
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    gate: Gate,
    connections: mpsc::Sender<io::Result<TlsStream<Gated>>>,
) {
    let quiet = Arc::new(Quiet::default());
    loop {
        let deadline = gate.expire(Instant::now());
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = crate::delays::until_passed(deadline) => continue,
            () = gate.sooner() => continue,
            () = connections.closed() => return,
        };
        let (tcp, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if let Some(left_out) = quiet.line(std::time::Instant::now()) {
                    tracing::warn!(%error, left_out, "no connection can be accepted; an unknown one is given up");
                }
                gate.make_room();
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        // An answer of a few bytes shouldn't wait for more.
        if let Err(error) = tcp.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY can't be set");
        }
        let entry = gate.enter(Origin::from(peer.ip()), Instant::now());
        let (acceptor, connections, quiet) = (acceptor.clone(), connections.clone(), quiet.clone());
        tokio::spawn(async move {
            match acceptor.accept(Gated { tcp, entry }).await {
                // When nobody takes connections any more, this one ends.
                Ok(tls) => drop(connections.send(Ok(tls)).await),
                Err(error) => {
                    if let Some(left_out) = quiet.line(std::time::Instant::now()) {
                        tracing::info!(%peer, %error, left_out, "TLS handshake failed");
                    }
                }
            }
        });
    }
}
