//! Changes of the last time, as operator and agents remember them: some hundred of them, and of each the first names.

use serde::{Deserialize, Serialize};

/// Changes that came at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeView {
    /// When, milliseconds since 1970 by the clock of whoever tells.
    pub at_ms: u64,
    /// Objects that were changed, where whoever tells knows objects.
    #[serde(default)]
    pub objects: Vec<ChangedObjectView>,
    /// Resources that are other ones since.
    #[serde(default)]
    pub resources: Vec<ChangedResourceView>,
    /// Number of objects and resources beyond those that are named.
    #[serde(default)]
    pub more: usize,
}

/// An object that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedObjectView {
    /// Kind, namespace and name in one.
    pub object: String,
    /// True where it has gone.
    pub deleted: bool,
    /// Its resource version, in a cluster.
    pub resource_version: Option<String>,
    /// File that it was read from.
    pub file: Option<String>,
    /// Line on which it begins.
    pub line: Option<usize>,
}

/// A resource that is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangedResourceView {
    /// Type: `cluster`, `endpoints`, `route`, `listener`, `workload`, `settings`.
    #[serde(rename = "type")]
    pub ty: String,
    /// Name.
    pub name: String,
    /// Content hash; `None` where it has gone.
    pub version: Option<String>,
    /// Reason for which a node refused it.
    #[serde(default)]
    pub refused: Option<String>,
}
