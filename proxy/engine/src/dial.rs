//! Connections to endpoints: where their sockets come from.

use std::{future::Future, io, net::SocketAddr, pin::Pin};

use tokio::net::{TcpSocket, TcpStream};

/// Whoever connections are made for: the pod that a listener's socket belongs to. Connections of different origins are
/// never shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DialOrigin(pub u64);

/// A connection that is being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + 'a>>;

/// Makes connections to endpoints.
pub trait Dial: Send + Sync {
    /// Connects to an endpoint for an origin. It may take as long as it likes: who waits has a timeout.
    fn dial(&self, origin: DialOrigin, endpoint: SocketAddr) -> Dialing<'_>;
}

/// Sockets of this process' own network namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnSockets;

impl Dial for OwnSockets {
    fn dial(&self, _origin: DialOrigin, endpoint: SocketAddr) -> Dialing<'_> {
        Box::pin(async move {
            let socket = if endpoint.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            let stream = socket.connect(endpoint).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        })
    }
}
