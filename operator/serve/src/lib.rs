//! Delta ADS server: hands the compiled resources to the agents.
//!
//! ```text
//! compile --apply(changes)--> Store --wake--> stream task --> Stream (state machine) --> agent
//!                               |                  ^                                      |
//!                               +-- look-up <------+------------- requests, ACK, NACK ----+
//! ```
//!
//! - [`Store`] holds what is to be served. A batch of changes is applied as a whole to the `resources` and marks, in
//!   each stream's `inbox`, only the names that it touched. The `registry` has the streams and what happens on them; a
//!   `registration` is a stream's place in both.
//! - `stream` is a state machine without sockets, clock or tasks: requests and dirty names in,
//!   responses out. It decides what an agent lacks and in which order it is sent.
//! - `source_versions` says how far the source is known, and keeps an agent from being taken back in time.
//! - `access` and `scope` ask whoever wires this who may open a stream, and what a node may see.
//! - `gate` bounds the connections of which nobody knows yet whose they are, and those of each node.
//! - `delays` tells how long a change takes until it is served, and until agents have answered.
//! - `service` opens streams, and `driver` moves messages between tonic and the state machine; `listen` serves
//!   connections, `unix` yields those on a Unix socket.
//!
//! Files use each other in one direction: `service`, `driver`, `registration`, `store`, `registry`, `stream`, `round`,
//! `tracker`, `acked`, `resources`, `table`.
//!
//! Resources that all agents hold alike are kept once: an agent in sync costs a bit a resource (see `acked` and `table`).
//!
//! Invariant: between two rounds of a stream, what the agent has acknowledged is the content of the
//! store at one generation (minus what it refused), and on the way from one generation to the next
//! nothing that it holds refers to what it has not got.

mod access;
mod acked;
mod bits;
mod delays;
mod driver;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod held_back;
mod inbox;
mod listen;
mod pending_events;
mod quiet;
mod registration;
mod registry;
mod resources;
mod round;
mod scope;
mod service;
mod source_versions;
mod status;
mod store;
mod stream;
mod stream_events;
mod subscription;
mod table;
mod tls;
mod tracker;
mod unix;

pub use access::{AuthError, AuthResult, Authenticated, Authenticator, RefusalReason, RefusedStreams, Token};
pub use delays::Delays;
pub use gate::{Gate, Origin, Peer, Shed};
pub use held_back::HeldBack;
pub use listen::serve;
pub use scope::{Rescoped, Scope, Visibility};
pub use service::{AdsServerConfig, DeltaAds, server};
pub use source_versions::SourceVersions;
pub use status::{AgentStatus, Ending, NodeName, Rejected, StreamEvent, StreamId, TypeStatus};
pub use store::Store;
pub use stream_events::StreamEvents;
pub use tls::{Gated, tls_connections};
pub use unix::{UnixConnection, UnixSocket};
