//! The operator on a real API server: what it sees, what it makes of it, whom it lets in, and its chart.

mod access;
mod chart;
mod support;
mod watch;
