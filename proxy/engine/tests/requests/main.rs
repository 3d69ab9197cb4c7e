//! The engine as its clients and endpoints meet it: real sockets on loopback, bytes as they are on the wire.

mod abuse;
mod dynamic;
mod filters;
mod http1;
mod http2;
mod metrics;
mod support;
mod tcp;
mod upstream;
