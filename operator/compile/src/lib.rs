//! Index of the cluster and its compilation to Envoy resources.
//!
//! ```text
//!  Object / ObjectKey -> Index (models, reverse indexes) -> units to compile again -> Change, Report
//! ```
//!
//! Invariants:
//! - Pure: no I/O, no clock, no threads. The same objects give the same bytes in whatever order
//!   they came (as long as none of them is refused; see *last good version*).
//! - One event compiles only the units that depend on it, found through reverse indexes. Nothing is
//!   ever scanned as a whole.
//! - *Last good version*: an object that is refused leaves what was in force of it in force. A route
//!   with a destination that doesn't exist keeps its previous version as long as all that refers to
//!   exists; otherwise connections go to the Service's own endpoints. Both heal by themselves.
//! - No resource refers to a cluster that isn't there: a change and all that follows from it come
//!   out of one [`Compiler::flush`].
//! - Nothing is ignored in silence: what is refused, not supported or skipped is a [`Report`].

pub mod builder;
mod clusters;
mod compiler;
mod conditions;
mod domain;
mod endpoints;
mod envoy;
mod index;
mod links;
mod model;
mod names;
mod object;
mod quantity;
mod relation;
mod report;
mod routing;
mod settings;

pub use compiler::{Compiler, Output, Stats};
pub use conditions::{Ancestor, At, Condition, ConditionType, Conditions, ResourceVersion};
pub use domain::{ClusterDomain, InvalidDomain};
pub use index::{Index, Unit};
pub use object::{Kind, Object, ObjectKey, ObjectName, Source};
pub use report::{ObjectRef, Reason, Report, Severity};
