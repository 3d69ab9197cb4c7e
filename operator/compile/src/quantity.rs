//! Quantities of memory as Kubernetes writes them: `64Mi`, `1.5G`, `1e9`.

/// The bytes that a quantity means, rounded down; `None` where it is none, or below 0.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // The parser of numbers takes more than Kubernetes does; only digits and one dot come here.
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        other => {
            let exponent: i32 = other.strip_prefix(['e', 'E'])?.parse().ok()?;
            10_f64.powi(exponent)
        }
    };
    let bytes = number * factor;
    // A budget beyond this is beyond any machine; the conversion saturates.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be at least 0")]
    bytes.is_finite().then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn quantities_in_every_form() {
        for (text, expected) in [
            ("64Mi", 64 << 20),
            ("68Ki", 69_632),
            ("1.5G", 1_500_000_000),
            ("1e3", 1_000),
            ("2E2", 200),
            ("1500m", 1),
            ("0", 0),
            (".5Ki", 512),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Mi", "-1", "1.2.3", "1X", "inf", "1e", "1 Mi", "NaN"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
