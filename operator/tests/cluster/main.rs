//! The operator on a real API server: what it sees, what it makes of it, whom it
//! lets in, what it tells, and its chart.

mod access;
mod chart;
mod replica;
mod status;
mod support;
mod watch;
