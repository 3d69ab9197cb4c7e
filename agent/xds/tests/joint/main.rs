//! The client against the operator's real server.

mod duplex;
mod moves;
mod outage;
mod random;
mod silent;
mod sockets;
mod support;
mod tls;
