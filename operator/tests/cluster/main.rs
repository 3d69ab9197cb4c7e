//! The operator on a real API server: what it sees, what it makes of it, whom it
//! lets in, what it tells, that nobody is taken back in time, what it does when the way is cut, and its chart.

mod access;
mod chart;
mod fleet;
mod half_open;
mod moves;
mod render;
mod replica;
mod status;
mod support;
mod watch;
mod writes;
