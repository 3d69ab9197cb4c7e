//! The client against the operator's real server.

mod duplex;
mod moves;
mod outage;
mod random;
mod sockets;
mod support;
mod tls;
