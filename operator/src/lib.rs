//! The cluster operator: watch, index, compile, publish.
//!
//! ```text
//!  watch::manifests --Update--> pipeline: ListTracker -> SliceController -> Compiler --Vec<Change>--> Publish
//!  watch::cluster ----------+                                               +--> Status (reports, synced)
//!                                                                           +--> status: MeshNodes, conditions
//! ```
//!
//! Invariant: everything flows one way. A source never waits for the compiler, the compiler never
//! knows where an object came from (except for its name in a report), and whoever publishes gets
//! each change once, in make-before-break order.

mod access;
pub mod certs;
mod client;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod metrics;
mod pipeline;
mod pulse;
mod retry;
pub mod status;
pub mod uninstall;
mod visibility;
pub mod watch;

pub use access::Tokens;
pub use client::connect;
pub use error::Error;
pub use metrics::Metrics;
pub use pipeline::{
    ChangeRecord, ChangedObject, ChangedResource, History, Inquiry, Operator, OperatorOptions, Publish,
    Status,
};
pub use pulse::Pulse;
pub use slotmesh_compile::{Cidr, CompileOptions, LeftAlone, why_absent};
pub use status::Due;
pub use visibility::Scoped;
