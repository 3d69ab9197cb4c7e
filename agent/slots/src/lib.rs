//! The slot engine: which slots are idle, used and retired, and how a resource becomes current.
//!
//! ```text
//! Draft: take idle slots, write records (children first)      no system call
//!   `- publish: one release store into the resource's handle  no system call
//!        `- retire the old version's slots -> Quarantine
//!              `- a grace period that began afterwards -> idle again
//! ```
//!
//! Invariants:
//! - one [`Engine`] owns the arena and the table; growth and grace periods run on threads of their own
//!   and hand finished work over through one channel;
//! - a slot is written only while no program can reach it: between idle and published;
//! - a slot that was published is reused only after a grace period that began after its retirement;
//! - the kernel maps are the only state: what [`Engine::open`] finds there is all there is.
//!
//! Knows nothing of xDS: a resource is a kind number and a name.

mod background;
mod backing;
mod budget;
mod class;
mod compaction;
mod config;
mod directory;
mod draft;
mod engine;
mod growth;
mod handles;
#[cfg(loom)]
mod model;
mod quarantine;
mod recover;
mod slab_set;
mod snapshot;
mod sync;
mod table;
#[cfg(all(test, not(loom)))]
mod tests;

pub use backing::{Backing, BackingError};
pub use budget::{InvalidBudget, MemoryBudget, SLAB_COST};
pub use class::SlotClass;
pub use config::{Config, Contradiction, Growth};
pub use draft::{Draft, Records};
pub use engine::{Engine, Full, Stats};
pub use handles::{HandlePtr, ResourceKind};
pub use recover::{RecoverError, Recovered};
pub use snapshot::{Snapshot, Stored};
pub use table::ClassStats;
