//! The sockets on which is listened.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::TcpListener;

/// The kernel has no such family (include/uapi/asm-generic/errno.h): IPv6 where it is booted with
/// `ipv6.disable=1`.
const EAFNOSUPPORT: i32 = 97;

/// Listens. All addresses (`[::]`) are IPv4's where there is no IPv6.
///
/// # Errors
/// When the address can't be used.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if error.raw_os_error() == Some(EAFNOSUPPORT)
                && address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
        {
            tracing::info!(%address, "there is no IPv6 here; listening on all IPv4 addresses");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        result => result,
    }
}
