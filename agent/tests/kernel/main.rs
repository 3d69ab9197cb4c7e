//! The agent on the real kernel: what the maps hold, asked through the programs' own look-up.
//!
//! Needs root and BPF; fails with the reason where they are missing.

mod admin;
mod affinity;
mod bench;
mod callers;
mod cgroup;
mod choice;
mod config;
mod counts;
mod enrol;
mod failover;
mod foreign;
mod lanes;
mod node_ports;
mod outliers;
mod proxied;
mod proxy_feed;
mod rates;
mod readback;
mod refused;
mod restart;
mod retry;
mod rich;
mod running;
mod sequences;
mod sizes;
mod start;
mod steward;
mod traffic;
mod udp;
mod view;

pub(crate) use bench::Bench;
