//! The model of the engine, its two threads and its readers, for loom (`cargo xtask loom`).
//!
//! ```text
//! owner: the engine itself --jobs--> growth thread    the real code of background.rs
//!        |                --barrier-> grace thread --> waits for each reader's run
//!        `- publishes --> readers: VIP -> handle (loaded once) -> root record -> child
//! ```
//!
//! Loom runs the same code again and again, each time with another order of what the threads do and of
//! what they see of each other's stores. Real is everything but the slabs ([`slabs`]), the channel
//! ([`channel`]: loom's own lacks what the engine needs of it) and what stands for the kernel
//! ([`World`]).

pub(crate) mod channel;
mod faults;
pub mod slabs;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub(crate) use faults::{Fault, is_faulty};

/// Time doesn't pass in a model: others run.
pub(crate) fn sleep(_: std::time::Duration) {
    loom::thread::yield_now();
}
