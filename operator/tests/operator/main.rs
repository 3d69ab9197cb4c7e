//! A running operator on a directory of manifests that changes under it.

mod bad_input;
mod directory;
mod load;
mod support;
