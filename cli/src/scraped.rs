//! Metrics as agents and operators expose them, read for people.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricSample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl MetricSample {
    /// The value of a label; empty where there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// All samples of a text. Lines that are none are skipped.
pub fn samples(text: &str) -> Vec<MetricSample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// `name{label="value",…} 1`, and maybe more behind it.
fn sample(line: &str) -> Option<MetricSample> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(MetricSample { name: name.to_owned(), labels, value })
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    loop {
        text = text.trim_start_matches(',');
        if let Some(rest) = text.strip_prefix('}') {
            return Some((found, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        found.insert(name.to_owned(), value);
        text = &rest[end + 1..];
    }
}

/// The value below which this share of a histogram's observations lie, to the next bound; `None` without observations.
/// `buckets` are samples of its `_bucket`.
pub fn quantile<'s>(buckets: impl IntoIterator<Item = &'s MetricSample>, share: f64) -> Option<f64> {
    let bound = |sample: &MetricSample| match sample.label("le") {
        "+Inf" => Some(f64::INFINITY),
        text => text.parse().ok(),
    };
    let mut sums: Vec<(f64, f64)> = Vec::new();
    for (bound, count) in buckets.into_iter().filter_map(|sample| Some((bound(sample)?, sample.value))) {
        match sums.iter_mut().find(|(known, _)| *known == bound) {
            Some((_, sum)) => *sum += count,
            None => sums.push((bound, count)),
        }
    }
    sums.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = sums.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let (bound, _) = sums.iter().find(|(_, count)| *count >= all * share)?;
    Some(*bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text =
            "# HELP a_total x\na_total{b=\"c\\\"d\\\\\",e=\"f,}\"} 3\nplain 1.5 1700\nno number\n# EOF\n";
        let found = samples(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].label("b"), found[0].label("e"), found[0].value), ("c\"d\\", "f,}", 3.0));
        assert_eq!((found[1].name.as_str(), found[1].value), ("plain", 1.5));
        for broken in ["a{b=\"c", "a{b} 1", "a", "", "a{b=\"c\\"] {
            assert!(samples(broken).is_empty(), "{broken}");
        }
    }

    #[test]
    fn a_quantile_is_a_bound() {
        let found = samples("h_bucket{le=\"0.1\"} 5\nh_bucket{le=\"1\"} 99\nh_bucket{le=\"+Inf\"} 100\n");
        assert_eq!(quantile(&found, 0.05), Some(0.1));
        assert_eq!(quantile(&found, 0.99), Some(1.0));
        assert_eq!(quantile(&found, 1.0), Some(f64::INFINITY));
        assert_eq!(quantile(&samples("h_bucket{le=\"+Inf\"} 0\n"), 0.5), None);
    }
}
