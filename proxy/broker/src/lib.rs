//! Makes sockets in the network namespaces of pods, and hands them over.
//!
//! ```text
//!  steward (the agent) --enrol KEY at PLACE, release KEY-->  broker  <--listener of KEY, sockets of KEY-- proxy
//!                                                              |  SCM_RIGHTS -->
//!                                              setns, one thread, CAP_SYS_ADMIN
//! ```
//!
//! Whoever parses what comes from pods has no right to enter them, and whoever may enter them sees none of it: no byte of
//! a connection ever comes here. The steward says which namespaces there are; the proxy only names them by their keys.
//!
//! Invariants: the listener of a namespace is made once and kept, so a proxy that comes after another one gets the
//! same, with the connections that wait in it; the steward keeps it, too, and gives it to the next broker; nothing is made in a namespace that isn't enrolled; when one is released,
//! nothing is left here that would keep it alive; a peer that sends something else than the protocol, or doesn't read
//! what it is sent, is left, and costs the others nothing.

mod namespaces;
mod protocol;
mod serve;
mod stock;
mod transfer;

pub use namespaces::{EnterError, NamespaceAt};
pub use protocol::{Answered, BadMessage, BrokerAsk, Key, SocketFamily};
pub use serve::{Broker, PeerRole};
pub use stock::{AskError, Counterpart, SocketStock};
