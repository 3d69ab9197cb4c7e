//! Where resources are read that connections follow: of a node, of who serves nodes, or of manifests that are compiled here.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::Value;
use slotmesh_agent::{RecordType, in_force_as_compiled};
use slotmesh_xds::{Change, Resource, ResourceType};

use crate::ask::AdminSite;

/// Resources by type and name.
pub trait InForceSource {
    /// One of them; `None` where there is none of this name.
    ///
    /// # Errors
    /// Where it can't be read.
    fn shown(&self, ty: &str, name: &str) -> anyhow::Result<Option<Value>>;

    /// All of a type.
    ///
    /// # Errors
    /// Where they can't be read.
    fn all(&self, ty: &str) -> anyhow::Result<Vec<Value>>;
}

/// One of them, read.
///
/// # Errors
/// Where it can't be read.
pub fn record<T: DeserializeOwned>(
    of: &dyn InForceSource,
    ty: &str,
    name: &str,
) -> anyhow::Result<Option<T>> {
    Ok(of.shown(ty, name)?.map(serde_json::from_value).transpose()?)
}

impl InForceSource for AdminSite {
    fn shown(&self, ty: &str, name: &str) -> anyhow::Result<Option<Value>> {
        self.record(ty, name)
    }

    fn all(&self, ty: &str) -> anyhow::Result<Vec<Value>> {
        self.records(ty)
    }
}

/// Resources that were compiled here.
#[derive(Debug, Default)]
pub struct CompiledResources(HashMap<(ResourceType, String), Resource>);

impl CompiledResources {
    /// Takes over changes.
    pub fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Upsert(resource) => {
                    self.0.insert((resource.ty, resource.name.to_string()), resource);
                }
                Change::Remove(ty, name) => _ = self.0.remove(&(ty, name.to_string())),
            }
        }
    }

    /// Content of a resource.
    pub fn content(&self, ty: ResourceType, name: &str) -> Option<&[u8]> {
        Some(&self.0.get(&(ty, name.to_owned()))?.content)
    }

    /// Resources of a type.
    pub fn of_type(&self, ty: ResourceType) -> impl Iterator<Item = &Resource> {
        self.0.values().filter(move |resource| resource.ty == ty)
    }
}

fn known(ty: &str) -> Option<ResourceType> {
    RecordType::RESOURCES.into_iter().find(|known| known.as_str() == ty)
}

impl InForceSource for CompiledResources {
    fn shown(&self, ty: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let found = known(ty).and_then(|ty| self.0.get(&(ty, name.to_owned())));
        Ok(found.map(|resource| in_force_as_compiled(resource, None)).transpose()?)
    }

    fn all(&self, ty: &str) -> anyhow::Result<Vec<Value>> {
        let Some(ty) = known(ty) else { return Ok(Vec::new()) };
        // One that an agent refuses isn't in force.
        Ok(self.of_type(ty).filter_map(|resource| in_force_as_compiled(resource, None).ok()).collect())
    }
}
