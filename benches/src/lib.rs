//! Measuring two or more sides in turn, so that a machine whose speed drifts slows all of them.

pub mod report;
mod run;

use std::time::{Duration, Instant};

pub use report::{row, section};
pub use run::{effort, introduce, is_quick, write_page};

/// Quantiles of a set of durations.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Takes the durations; at least one.
    pub fn new(mut durations: Vec<Duration>) -> Self {
        assert!(!durations.is_empty(), "nothing was measured");
        durations.sort_unstable();
        Self(durations)
    }

    /// The quantile `q` from 0 to 1.
    pub fn quantile(&self, q: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * q).round() as usize]
    }

    /// The median.
    pub fn p50(&self) -> Duration {
        self.quantile(0.5)
    }

    /// How many times the median of `other` this median is.
    pub fn ratio(&self, other: &Self) -> f64 {
        self.p50().as_secs_f64() / other.p50().as_secs_f64()
    }
}

/// Times one call.
pub fn time<T>(call: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let value = call();
    (value, started.elapsed())
}

/// A duration as people read it, with three digits.
pub fn show(duration: Duration) -> String {
    let ns = duration.as_nanos() as f64;
    match ns {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} us", ns / 1e3),
        ns if ns < 1e9 => format!("{:.2} ms", ns / 1e6),
        ns => format!("{:.2} s", ns / 1e9),
    }
}

/// Whether a target is met, in words.
pub fn verdict(met: bool, target: &str) -> String {
    format!("target {target}: {}", if met { "met" } else { "MISSED" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_from_sorted_samples() {
        let samples = Samples::new([3, 1, 2, 5, 4].map(Duration::from_nanos).to_vec());
        assert_eq!(samples.p50(), Duration::from_nanos(3));
        assert_eq!(samples.quantile(1.0), Duration::from_nanos(5));
        assert!((samples.ratio(&samples) - 1.0).abs() < f64::EPSILON);
        assert_eq!(show(Duration::from_nanos(1_500)), "1.50 us");
    }
}
