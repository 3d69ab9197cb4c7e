//! Index of the cluster and its compilation to Envoy resources.
//!
//! ```text
//!  Object / ObjectKey -> Index (models, reverse indexes) -> units to compile again -> Change, Report
//! ```
//!
//! Invariants:
//! - Pure: no I/O, no clock, no threads. The same objects give the same bytes, in whatever order they came and
//!   whatever there was before: an object that is refused is as if it weren't there.
//! - One event compiles only the units that depend on it, found through reverse indexes. Nothing is
//!   ever scanned as a whole.
//! - Nobody's connection goes where nobody sent it: what a route says and can't be resolved refuses its share of
//!   the connections.
//! - No resource refers to a cluster that isn't there: a change and all that follows from it come
//!   out of one [`Compiler::flush`].
//! - Nothing is ignored in silence: what is refused, not supported or skipped is a [`Report`].

mod absent;
mod audience;
mod backends;
mod budget;
mod cidr;
mod classes;
mod clusters;
mod compiler;
mod condition;
mod conditions;
mod domain;
mod endpoints;
mod enrolment;
mod envoy;
mod index;
mod kinds;
mod links;
mod model;
mod names;
mod object;
mod options;
mod origins;
mod patterns;
mod port;
mod quantity;
mod relation;
mod report;
mod reserved;
mod routing;
mod rules;
mod service_id;
mod settings;
mod unit;

pub use absent::why_absent;
pub use audience::Audience;
pub use cidr::{Cidr, NoCidr};
pub use compiler::{Compiler, Output, Stats};
pub use condition::{Condition, ConditionStatus, ConditionType};
pub use conditions::{Ancestor, At, Conditions, ResourceVersion};
pub use domain::{ClusterDomain, InvalidDomain};
pub use index::Index;
pub use kinds::{Kind, KindSpec, StatusForm};
pub use model::{ANNOTATIONS, LeftAlone, MESH, is_sidecar};
pub use object::{Object, ObjectKey, ObjectName, Source};
pub use options::{CompileOptions, EnrolmentMode};
pub use origins::{EndpointOrigin, OriginObject, Origins, Readiness};
pub use report::{ObjectRef, Reason, Report, Severity};
pub use service_id::ServiceId;
pub use unit::Unit;
