//! The operator on a real API server: what it sees, what it makes of it, and whom it lets in.

mod access;
mod support;
mod watch;
