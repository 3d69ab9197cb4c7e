//! What a build with another record layout holds of a cluster besides.

use serde_json::{Value, json};
use slotmesh_records::{Added, Cluster, SlotPtr};
use slotmesh_slots::Stored as _;

use super::Records;
use crate::{held::text, packed::Unpacker};

impl Records<'_> {
    pub(super) fn added(&self, cluster: SlotPtr) -> Option<Value> {
        let (cluster, _) = self.0.record::<Cluster>(cluster)?;
        let (added, assignments) = self.0.record::<Added>(cluster.added.ptr())?;
        let text = text(self.0, added.source)?;
        let assignments: Vec<Option<&str>> = assignments.iter().map(|&handle| self.name(handle)).collect();
        Some(json!({ "source": Unpacker(&text).text()?, "assignments": assignments }))
    }
}
