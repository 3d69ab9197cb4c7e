//! Bounds on what clients can make the proxy hold.

use std::time::Duration;

/// Who serves connections of HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Http1Path {
    /// The path of our own, and hyper from a request on that isn't ordinary.
    Own,
    /// hyper alone.
    #[default]
    Hyper,
}

/// Bounds of an engine; those of a worker where it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyLimits {
    /// Connections from clients that a worker has at a time; a further one is closed at once.
    pub connections: usize,
    /// Of these, those of one origin; a further one is closed at once.
    pub connections_per_origin: usize,
    /// Requests in flight that a worker has at a time. Further ones wait for their turn.
    pub requests: usize,
    /// Requests in flight that one client address has on a worker at a time.
    pub requests_per_client: usize,
    /// Requests of one client address that wait for their turn on a worker; a further one gets 503.
    pub waiting_per_client: usize,
    /// Streams that a client may have open on an HTTP/2 connection.
    pub streams: u32,
    /// Headers of a message; one with more gets 431.
    pub headers: usize,
    /// Bytes of a message's head; a larger one gets 431.
    pub head_bytes: usize,
    /// Bytes of a request's body that are kept for a retry or a mirror.
    pub buffered_bytes: usize,
    /// Mirrored requests in flight that a worker has at a time; further ones are left out.
    pub mirrors: usize,
    /// How long a connection waits for the listener of its address, where others accept for it.
    pub listener_wait: Duration,
    /// How long a connection of HTTP/1 without a request may bring one more when it is to end.
    pub last_chance: Duration,
    /// How long connections have for their end when their origin has gone.
    pub origin_grace: Duration,
    /// How long a head may take from its first byte to its last.
    pub head_time: Duration,
    /// Idle connections to an endpoint that a worker keeps for an origin.
    pub idle_upstream: usize,
    /// HTTP/2 connections to an endpoint that a worker makes for an origin.
    pub http2_connections: usize,
    /// Sets of source, service and route that metrics of requests tell apart, on all workers; requests of further ones
    /// count as `other`.
    pub request_series: usize,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_per_origin: 10_000,
            requests: 4_096,
            requests_per_client: 1_024,
            waiting_per_client: 1_024,
            streams: 100,
            headers: 100,
            head_bytes: 60 << 10,
            buffered_bytes: 1 << 20,
            mirrors: 128,
            listener_wait: Duration::from_secs(5),
            last_chance: Duration::from_secs(2),
            origin_grace: Duration::from_secs(5),
            head_time: Duration::from_secs(10),
            idle_upstream: 64,
            http2_connections: 8,
            request_series: 500,
        }
    }
}
