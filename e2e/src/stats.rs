//! Whether counts fit the weights that were asked for.

use anyhow::{Result, ensure};
use statrs::distribution::{ChiSquared, ContinuousCDF as _};

/// A correct table fails a check once in a million runs.
pub const ALPHA: f64 = 1e-6;

/// The probability that counts at least this far from the weights come from them: Pearson's
/// chi-square test.
///
/// # Errors
/// Where there is nothing to compare.
pub fn p_value(counts: &[u64], weights: &[u32]) -> Result<f64> {
    ensure!(
        counts.len() == weights.len() && counts.len() > 1,
        "compare at least two counts with as many weights"
    );
    let total: u64 = counts.iter().sum();
    let sum: u32 = weights.iter().sum();
    let statistic: f64 = counts
        .iter()
        .zip(weights)
        .map(|(count, weight)| {
            let expected = total as f64 * f64::from(*weight) / f64::from(sum);
            (*count as f64 - expected).powi(2) / expected
        })
        .sum();
    Ok(ChiSquared::new((counts.len() - 1) as f64)?.sf(statistic))
}

/// Whether the counts fit the weights ([`p_value`] is at least [`ALPHA`]).
///
/// # Errors
/// As [`p_value`].
pub fn fits(counts: &[u64], weights: &[u32]) -> Result<bool> {
    Ok(p_value(counts, weights)? >= ALPHA)
}

/// Fails when the counts don't fit the weights.
///
/// # Errors
/// With counts, weights and p-value.
pub fn expect_fit(counts: &[u64], weights: &[u32]) -> Result<()> {
    let p = p_value(counts, weights)?;
    ensure!(p >= ALPHA, "{counts:?} connections don't fit the weights {weights:?}: p = {p:e} < {ALPHA:e}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // 10.83 is the 0.001 quantile for one degree of freedom: 52² / 500 * 2 = 10.816.
        let p = p_value(&[552, 448], &[50, 50]).unwrap();
        assert!((p - 0.001).abs() < 1e-4, "{p}");
        assert!(fits(&[16_100, 3_900], &[80, 20]).unwrap());
        assert!(!fits(&[15_600, 4_400], &[80, 20]).unwrap());
    }
}
