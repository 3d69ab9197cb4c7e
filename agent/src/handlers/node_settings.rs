//! Settings of the node: they act on the agent, and have no records.

use std::sync::{Mutex, MutexGuard, PoisonError};

use slotmesh_ads::{Subscription, Update};
use slotmesh_slots::Config;
use slotmesh_xds::{Rejection, Resource, ResourceName, ResourceType, Version};

use super::{Handler, Handling, HeldResources};
use crate::{
    Handle,
    config::{Invalid, Settings},
    memory,
};

/// Puts settings in force over those of the agent's flags.
pub(crate) struct SettingsHandler {
    agent: Handle,
    /// The settings of the slots that the agent was started with.
    flags: Config,
    /// How many sockets may be recorded: memory that slabs can't have.
    sockets: u32,
    /// The resource whose settings are in force.
    in_force: Mutex<Option<(ResourceName, Version)>>,
}

impl SettingsHandler {
    /// None are in force yet but those of the flags.
    pub fn new(agent: Handle, flags: Config, sockets: u32) -> Self {
        Self { agent, flags, sockets, in_force: Mutex::default() }
    }

    fn in_force(&self) -> MutexGuard<'_, Option<(ResourceName, Version)>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts settings in force.
    async fn configure(&self, resource: &Resource) -> Result<(), String> {
        let settings = self.decode(resource).map_err(|error| error.to_string())?;
        self.agent.configure(Some(settings)).await?;
        *self.in_force() = Some((resource.name.clone(), resource.version));
        Ok(())
    }

    fn decode(&self, resource: &Resource) -> Result<Settings, Invalid> {
        let settings = Settings::decode(resource, self.flags)?;
        // The flags' own cap was looked at when the agent started.
        if settings.slots.cap != self.flags.cap {
            memory::check(&settings.slots, self.sockets).map_err(|error| Invalid::Field {
                field: format!("SlotProfile {}", settings.profile),
                reason: error.to_string(),
            })?;
        }
        Ok(settings)
    }

    /// The settings are no more: those of the agent's flags are in force again.
    async fn unconfigure(&self, name: &ResourceName) {
        if self.in_force().as_ref().is_none_or(|(held, _)| held != name) {
            return;
        }
        match self.agent.configure(None).await {
            Ok(()) => *self.in_force() = None,
            Err(error) => tracing::error!(error, "the agent's own settings of the slots can't be put back"),
        }
    }
}

impl Handler for SettingsHandler {
    fn types(&self) -> &'static [ResourceType] {
        &[ResourceType::Settings]
    }

    /// Of those of all nodes, its own.
    fn subscription(&self, node: &str) -> Subscription {
        [node].into_iter().collect()
    }

    fn held(&self) -> Handling<'_, HeldResources> {
        let held = self.in_force().clone();
        Box::pin(async {
            held.into_iter().map(|(name, version)| (ResourceType::Settings, name, version)).collect()
        })
    }

    fn apply(&self, update: Update) -> Handling<'_, Vec<Rejection>> {
        Box::pin(async move {
            let mut rejected = Vec::new();
            for resource in update.upserts {
                if let Err(reason) = self.configure(&resource).await {
                    tracing::warn!(resource = %resource.name, reason, "refused settings of the slots");
                    rejected.push(Rejection { name: resource.name, reason });
                }
            }
            for name in &update.removed {
                self.unconfigure(name).await;
            }
            rejected
        })
    }
}
