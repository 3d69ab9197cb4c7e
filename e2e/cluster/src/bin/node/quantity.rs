//! Amounts as Kubernetes writes them (`100m`, `128Mi`).

use anyhow::{Context as _, Result};

/// The value, and its suffix.
const SUFFIXES: [(&str, f64); 13] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("", 1.0),
];

/// An amount in its unit (bytes, cores).
pub fn value(text: &str) -> Result<f64> {
    let (digits, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)))
        .context("every text ends with nothing")?;
    let number: f64 = digits.parse().with_context(|| format!("{text:?} is no quantity"))?;
    Ok(number * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, expected) in [("100m", 0.1), ("2", 2.0), ("64Mi", 67_108_864.0), ("1k", 1e3), ("1e3", 1e3)]
        {
            assert!((value(text).unwrap() - expected).abs() < 1e-9, "{text}");
        }
        assert!(value("many").is_err());
    }
}
