//! Clusters, load assignments, route configurations and listeners: the owner of the maps makes records of them.

use slotmesh_ads::Update;
use slotmesh_xds::{Rejection, ResourceName, ResourceType};

use super::{Handler, Handling, HeldResources};
use crate::{Handle, RecordType};

/// Hands resources to the owner of the maps.
pub(crate) struct RecordHandler(pub Handle);

impl Handler for RecordHandler {
    fn types(&self) -> &'static [ResourceType] {
        &RecordType::RESOURCES
    }

    fn held(&self) -> Handling<'_, HeldResources> {
        Box::pin(async {
            let held = self.0.held_records().await;
            held.into_iter().map(|(ty, name, version)| (ty.resource(), name, version)).collect()
        })
    }

    fn apply(&self, update: Update) -> Handling<'_, Vec<Rejection>> {
        Box::pin(async {
            let Some(ty) = RecordType::of(update.ty) else { return Vec::new() };
            let names: Vec<ResourceName> =
                update.upserts.iter().map(|resource| resource.name.clone()).collect();
            let stopped = |name| Rejection { name, reason: "the agent is stopping".to_owned() };
            let applied = self.0.apply_records(ty, update).await;
            applied.unwrap_or_else(|| names.into_iter().map(stopped).collect())
        })
    }

    fn synced(&self) {
        self.0.tell_synced();
    }
}
