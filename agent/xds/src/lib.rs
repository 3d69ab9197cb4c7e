//! Delta ADS client: brings what a control plane serves into the agent's [`Sink`].
//!
//! ```text
//! control plane --response--> Session (state machine) --Update--> Sink
//!               <--ACK, NACK--                        <--refused--
//! ```
//!
//! - [`Client`] is one future: it connects, leaves whoever keeps silent, reconnects with backoff and full
//!   jitter, and runs until it is cancelled. It spawns no tasks.
//! - `session` is the state machine of one stream, without sockets, clock or tasks.
//! - The content of resources is opaque here; the sink decodes it.
//!
//! Invariant: nothing but a response of the control plane or an unsubscription of the agent ever
//! changes what is in force. A lost connection changes nothing, for any length of time.

mod backoff;
mod client;
mod connect;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod refusals;
mod session;
mod sink;
mod stats;
mod subscriptions;
mod tls;
mod versions;

pub use backoff::Backoff;
pub use client::{Client, Config, Handle};
pub use connect::{BearerToken, ConnectError, Connector, FromStreams, Tcp};
pub use sink::{AskAgain, Sink, Update};
pub use stats::Stats;
pub use subscriptions::Subscription;
pub use tls::Tls;
