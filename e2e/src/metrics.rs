//! The agent's metrics, as its admin interface shows them.

use std::collections::BTreeMap;

/// One scrape: the text before each value (name and labels) and the value.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

/// The types of resources, as the label `type` has them.
pub const TYPES: [&str; 4] = ["cluster", "endpoints", "route", "listener"];

impl Scrape {
    /// Reads an exposition.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| {
                    let (name, value) = line.rsplit_once(' ')?;
                    Some((name.to_owned(), value.parse().ok()?))
                })
                .collect(),
        )
    }

    /// The sample with this name and labels, as the exposition writes them; 0 when there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// How many flushes of this type were published.
    pub fn flushes(&self, of: &str) -> u64 {
        self.get(&format!("slotmesh_agent_flush_seconds_count{{type=\"{of}\"}}")) as u64
    }

    /// How long all flushes of this type took together, in seconds.
    pub fn flush_seconds(&self, of: &str) -> f64 {
        self.get(&format!("slotmesh_agent_flush_seconds_sum{{type=\"{of}\"}}"))
    }

    /// What is counted of a cluster's connections: `active`, `total` or `refused_total`.
    pub fn connections(&self, what: &str, cluster: &str) -> u64 {
        self.get(&format!("slotmesh_agent_cluster_connections_{what}{{cluster=\"{cluster}\"}}")) as u64
    }

    /// How many resources were refused.
    pub fn nacked(&self) -> u64 {
        let refused =
            self.0.iter().filter(|(name, _)| name.starts_with("slotmesh_agent_nacked_resources_total"));
        refused.map(|(_, value)| *value as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels() {
        let scrape = Scrape::parse(
            "# TYPE slotmesh_agent_flush_seconds histogram\n\
             slotmesh_agent_flush_seconds_count{type=\"route\"} 3\n\
             slotmesh_agent_flush_seconds_sum{type=\"route\"} 4.5e-6\n# EOF\n",
        );
        assert_eq!(scrape.flushes("route"), 3);
        assert_eq!(scrape.flushes("listener"), 0);
        assert!((scrape.flush_seconds("route") - 4.5e-6).abs() < 1e-12);
    }
}
