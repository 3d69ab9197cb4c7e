//! Ports that are free and stay so while their server is down.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};
use rand::Rng as _;

/// Below the ephemeral ports: a port whose server is stopped isn't given to somebody's connection.
const RANGE: std::ops::Range<u16> = 17_000..32_000;

/// A port of 127.0.0.1 that nobody listens on now.
///
/// # Errors
/// When none is found.
pub fn free() -> Result<u16> {
    let mut random = rand::rng();
    for _ in 0..100 {
        let port = random.random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}
