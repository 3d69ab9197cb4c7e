//! Nodes: labels, by which SlotProfiles select them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;

/// What is needed of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) labels: BTreeMap<String, String>,
}

impl Node {
    pub(crate) fn read(object: &v1::Node) -> Self {
        Self { labels: object.metadata.labels.clone().unwrap_or_default() }
    }
}
