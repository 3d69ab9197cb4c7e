//! The operator's own certificate authority, and the certificate that it serves with.
//!
//! ```text
//!  Secret (authority) --watch, step--> authority --issue--> certificate in memory --> TLS handshakes
//!                     <--write if mine is the newest--      bundle --> ConfigMap --> agents
//! ```
//!
//! Invariants:
//! - All replicas sign with the same authority: whoever is first writes it, with the precondition that
//!   nobody wrote in between, and the others read it.
//! - Agents know a new authority before anything is signed with it, and know the old one until nothing
//!   that it signed is used any more.
//! - A new certificate changes the next handshakes; it ends no stream.

mod authority;
mod keeper;
mod resolver;

pub use authority::{Authority, CertError, Lifetimes};
pub use keeper::{Keeper, Names, tls_config};
pub use resolver::Certificates;
