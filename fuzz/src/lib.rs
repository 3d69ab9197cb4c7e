//! Entry points of the fuzzers: all that is decoded from outside. Each function takes one input and panics
//! where an invariant doesn't hold.
//!
//! ```text
//! fuzz_targets/<name>.rs  libFuzzer's entry, three lines
//! src/                    the function of the same name, without libFuzzer
//! src/seeds.rs            inputs to start from
//! found/<name>/           inputs that once failed
//! ```
//!
//! `cargo test -p slotmesh-fuzz` runs each function with its seeds and with what was found, without a
//! sanitizer.

mod frames;
mod http1;
mod memory;
mod resources;
mod routing;
mod seeds;
mod streams;

pub use frames::{Frames, frame};
pub use http1::http1;
pub use resources::{HASHED, REMOVE, config, manifests, recovery};
pub use routing::{TABLE, routing};
pub use seeds::{TARGETS, Target};
pub use streams::{NAMES, request_code, requests, responses};
