//! The HTTP engine of the proxy: connections of clients, requests by their routes, connections to endpoints.
//!
//! ```text
//!  bootstrap file, or resources of xDS -> ProxyEngine -> workers, one a core
//!  client -> connection -> exchange -> (slotmesh-routing decides) -> forward -> pool -> endpoint
//! ```
//!
//! | module | what it does |
//! | --- | --- |
//! | `engine`, `worker` | resources to workers; a worker's state |
//! | `downstream`, `upstream`, `assignment`, `hashing` | validated listeners; clusters; endpoints and their tables |
//! | `accept` | connections that come in, and whoever they are from |
//! | `connection`, `inbound`, `framing`, `resting` | a client's connection: protocol, slow clients, requests with two lengths; idle ones |
//! | `exchange`, `fields`, `reply` | a request and its response; header fields; answers made here |
//! | `forward`, `attempt`, `mirror`, `pool`, `balance`, `dial` | attempts, copies; connections; choice of an endpoint; where sockets come from |
//! | `plain` | HTTP/1.1 as it mostly is, without hyper |
//! | `body`, `tunnel` | bodies, kept for a retry; bytes passed through |
//! | `admission`, `turns`, `limits`, `counts`, `series` | turns of requests, of polls; bounds, counts, metrics of requests |
//! | `bootstrap` | Envoy's file |

mod accept;
mod admission;
mod assignment;
mod attempt;
mod balance;
mod body;
pub mod bootstrap;
mod choice;
mod connection;
mod counts;
mod dial;
mod downstream;
mod engine;
mod exchange;
mod fields;
mod forward;
mod framing;
mod hashing;
#[cfg(feature = "fuzz")]
pub mod http1_checks;
mod inbound;
mod limits;
mod mirror;
mod plain;
mod pool;
mod reply;
mod resource;
mod resting;
mod series;
mod tunnel;
mod turns;
mod upstream;
mod worker;

pub use dial::{Dial, DialOrigin, Dialing, OwnSockets};
pub use engine::{ApplyError, EngineOptions, ProxyEngine, ProxyMetrics};
pub use limits::{Http1Path, ProxyLimits};
pub use resource::{ProxyResource, ProxyResourceKind};
