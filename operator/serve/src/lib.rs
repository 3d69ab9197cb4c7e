//! Delta ADS server: hands the compiled resources to the agents.
//!
//! ```text
//! compile --apply(changes)--> Store --wake--> stream task --> Stream (state machine) --> agent
//!                               |                  ^                                      |
//!                               +-- look-up <------+------------- requests, ACK, NACK ----+
//! ```
//!
//! - [`Store`] holds what is to be served. A batch of changes is applied as a whole and marks, in
//!   each stream's inbox, only the names that it touched.
//! - `stream` is a state machine without sockets, clock or tasks: requests and dirty names in,
//!   responses out. It decides what an agent lacks and in which order it is sent.
//! - `reached` says how far the source is known, and keeps an agent from being taken back in time.
//! - `access` and `scope` ask whoever wires this who may open a stream, and what a node may see.
//! - `gate` bounds the connections of which nobody knows yet whose they are, and those of each node.
//! - `delays` tells how long a change takes until it is served, and until agents have answered.
//! - `service` moves messages between tonic and the state machine; `listen` serves connections, `unix` yields those on a
//!   Unix socket.
//!
//! What all agents hold alike is kept once: an agent in sync costs a bit a resource (see `peers` and `table`).
//!
//! Invariant: between two rounds of a stream, what the agent has acknowledged is the content of the
//! store at one generation (minus what it refused), and on the way from one generation to the next
//! nothing that it holds refers to what it has not got.

mod access;
mod bits;
mod delays;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gate;
mod listen;
mod news;
mod peers;
mod quiet;
mod reached;
mod round;
mod scope;
mod service;
mod status;
mod store;
mod stream;
mod subscription;
mod table;
mod tls;
mod tracker;
mod unix;

pub use access::{Admission, Admitted, Answer, Denied, Reason, Refusals, Token};
pub use delays::Delays;
pub use gate::{Gate, Origin, Peer, Shed};
pub use listen::serve;
pub use news::Feed;
pub use reached::Reached;
pub use scope::{Rescoped, Scope, Visibility};
pub use service::{Config, DeltaAds, Holds, server};
pub use status::{
    Acknowledgement, AgentStatus, Ending, NodeName, Rejected, StreamId, StreamNews, TypeStatus,
};
pub use store::Store;
pub use tls::{Gated, tls_connections};
pub use unix::{UnixConnection, UnixSocket};
