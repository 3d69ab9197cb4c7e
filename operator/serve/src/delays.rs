//! How long a change takes, from the event that led to it: until it is served, and until an agent has
//! answered to all that came of it.
//!
//! Resources that are there when a replica or a stream begins are no change: they are in neither.

use std::time::Instant;

use prometheus_client::metrics::histogram::Histogram;

/// The least bound in seconds; each of the others is twice the one before.
const LEAST: f64 = 125e-6;
/// Up to 4 s.
const BOUNDS: i32 = 16;

/// See the module's comment. Clones are the same histograms, in seconds.
#[derive(Clone, Debug)]
pub struct Delays {
    /// Until it is compiled and served.
    pub published: Histogram,
    /// Until an agent has acknowledged or refused all of it, once for each agent that was sent any.
    pub answered: Histogram,
}

impl Default for Delays {
    fn default() -> Self {
        let histogram = || Histogram::new((0..BOUNDS).map(|i| LEAST * 2_f64.powi(i)));
        Self { published: histogram(), answered: histogram() }
    }
}

/// Adds what has passed since an event.
pub(crate) fn observe(histogram: &Histogram, seen: Instant) {
    histogram.observe(seen.elapsed().as_secs_f64());
}

/// Sleeps until then; for ever where there is no such time.
pub(crate) async fn until_passed(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
