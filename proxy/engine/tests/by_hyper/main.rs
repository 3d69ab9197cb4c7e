//! The same as `requests`, with hyper alone for HTTP/1: the same bytes in, the same bytes out.

#[path = "../requests/abuse.rs"]
mod abuse;
#[path = "../requests/dynamic.rs"]
mod dynamic;
#[path = "../requests/filters.rs"]
mod filters;
#[path = "../requests/http1.rs"]
mod http1;
#[path = "../requests/http2.rs"]
mod http2;
#[path = "../requests/metrics.rs"]
mod metrics;
#[path = "../requests/support.rs"]
mod support;
#[path = "../requests/tcp.rs"]
mod tcp;
#[path = "../requests/upstream.rs"]
mod upstream;

/// Who serves HTTP/1 in these tests.
const HTTP1: slotmesh_proxy::Http1Path = slotmesh_proxy::Http1Path::Hyper;
