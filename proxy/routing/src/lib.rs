//! Decides HTTP requests: Envoy's `RouteConfiguration` goes in, a decision per request comes out.
//!
//! ```text
//!  RouteConfiguration -- RouteTable::new --> RouteTable, and the fields that are refused
//!  RequestHead, Draws -- RouteTable::decide --> forward | redirect | respond
//! ```
//!
//! Pure: no I/O, no clock, no socket, and chance only from whoever asks. What Envoy would do with the same resource is
//! done, or the field is refused by name; a rule with such a field answers its requests 500 (`docs/http.md`).

mod affinity;
mod conditions;
mod cors;
mod decision;
mod domains;
mod draws;
mod edits;
mod fault;
mod field;
mod filters;
mod forward;
mod head;
mod mirror;
mod normalize;
mod paths;
mod read;
mod respond;
mod retry;
mod rewrite;
mod routes;
#[cfg(test)]
mod tests;
mod text;

pub use decision::{LocalResponse, RequestAction, RequestDecision};
pub use draws::Draws;
pub use edits::HeaderEdits;
pub use field::InvalidField;
pub use forward::{ForwardRule, Forwarding, WeightedBackend};
pub use head::{HeaderChanges, HeaderLookup, RequestHead};
pub use mirror::MirrorTarget;
pub use normalize::{EscapedSlashes, NormalizedPath, PathNormalization};
pub use retry::{AttemptOutcome, RetryPolicy, RetryState};
pub use rewrite::HostRewrite;
pub use routes::RouteTable;
