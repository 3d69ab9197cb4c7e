//! The engine as its clients and endpoints meet it: real sockets on loopback, bytes as they are on the wire.

mod abuse;
mod alike;
mod dynamic;
mod filters;
mod http1;
mod http2;
mod metrics;
mod support;
mod tcp;
mod upstream;

/// Who serves HTTP/1 in these tests.
const HTTP1: slotmesh_proxy::Http1Path = slotmesh_proxy::Http1Path::Own;
