//! Counts of the streams that were held back.

use std::sync::atomic::{AtomicU64, Ordering};

/// Streams that were kept waiting because the replica lagged behind.
#[derive(Debug, Default)]
pub struct HeldBack {
    begun: AtomicU64,
    given_up: AtomicU64,
}

impl HeldBack {
    /// How many were.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Of these, how many were answered at last though the replica hadn't caught up.
    pub fn given_up(&self) -> u64 {
        self.given_up.load(Ordering::Relaxed)
    }

    pub(crate) fn begins(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn gives_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }
}
