//! Resources at one generation, and as one node sees them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use slotmesh_xds::{Change, PerType, Resource, ResourceName, ResourceType};

use crate::{
    NodeName,
    scope::{Scope, Visibility},
    source_versions::SourceVersions,
    table::{Before, Place, Table},
};

/// Names of a type that changed, and what there was of each before.
pub(crate) type Changed = HashMap<ResourceName, Option<Before>>;

/// Names that may differ from what a stream's agent has.
pub(crate) type Dirty = PerType<Changed>;

/// The resources to be served, at one generation.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    by_type: PerType<Table>,
    generation: u64,
    reached: SourceVersions,
    /// The knowledge that an agent with all of them gives back, as it is written: the same for nearly all.
    source: Arc<str>,
    scope: Option<Arc<dyn Scope>>,
}

impl Resources {
    /// Applies a batch and returns the names whose content changed.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Dirty {
        let mut dirty = Dirty::default();
        for change in changes {
            match change {
                Change::Upsert(resource) => {
                    let (ty, name) = (resource.ty, resource.name.clone());
                    if let Some(before) = self.by_type[ty].upsert(resource) {
                        dirty[ty].entry(name).or_insert(before);
                    }
                }
                Change::Remove(ty, name) => {
                    if let Some(before) = self.by_type[ty].remove(&name) {
                        dirty[ty].entry(name).or_insert(Some(before));
                    }
                }
            }
        }
        self.generation += 1;
        dirty
    }

    /// Adds resources that are as they were, and are to be compared all the same.
    pub(crate) fn look_at(&self, names: &HashSet<(ResourceType, ResourceName)>, dirty: &mut Dirty) {
        for (ty, name) in names {
            if let Some((place, resource)) = self.find(*ty, name) {
                let before = Before { place, version: resource.version };
                dirty[*ty].entry(name.clone()).or_insert(Some(before));
            }
        }
    }

    /// The current content of a resource.
    pub(crate) fn get(&self, ty: ResourceType, name: &ResourceName) -> Option<&Resource> {
        self.by_type[ty].get(name)
    }

    /// A resource and its place.
    pub(crate) fn find(&self, ty: ResourceType, name: &ResourceName) -> Option<(Place, &Resource)> {
        let place = self.by_type[ty].place(name)?;
        Some((place, self.by_type[ty].at(place)?))
    }

    /// All resources of a type.
    pub(crate) fn table(&self, ty: ResourceType) -> &Table {
        &self.by_type[ty]
    }

    /// The rule by which a node sees what it may; `None` where all see all.
    pub(crate) fn scope(&self) -> Option<&dyn Scope> {
        self.scope.as_deref()
    }

    pub(crate) fn set_scope(&mut self, scope: Arc<dyn Scope>) {
        self.scope = Some(scope);
    }

    /// Knowledge of the source of which these resources are.
    pub(crate) fn reached(&self) -> &SourceVersions {
        &self.reached
    }

    /// From now on the source is known so far.
    pub(crate) fn reach(&mut self, reached: &SourceVersions) {
        self.reached.clone_from(reached);
        self.source = reached.needs().to_string().into();
    }

    /// The knowledge that an agent with all of these gives back.
    pub(crate) fn source(&self) -> &Arc<str> {
        &self.source
    }

    /// How many batches have been applied. Zero means that nothing is known yet, and an agent must
    /// not be told that what it holds is gone.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

/// The resources as one node sees them.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    resources: &'a Resources,
    node: Option<&'a NodeName>,
}

impl<'a> View<'a> {
    pub(crate) fn new(resources: &'a Resources, node: Option<&'a NodeName>) -> Self {
        Self { resources, node }
    }

    /// The relation of the node to the resource of this name, if there is one.
    pub(crate) fn visibility(&self, ty: ResourceType, name: &ResourceName) -> Visibility {
        match (self.resources.scope(), self.node) {
            (None, _) => Visibility::Seen,
            (Some(scope), Some(node)) => scope.visibility(node, ty, name),
            (Some(_), None) => Visibility::Foreign,
        }
    }

    /// A resource and its place, whether or not the node may see it.
    pub(crate) fn find(&self, ty: ResourceType, name: &ResourceName) -> Option<(Place, &'a Resource)> {
        self.resources.find(ty, name)
    }

    /// All resources of a type, whether or not the node may see them.
    pub(crate) fn table(&self, ty: ResourceType) -> &'a Table {
        self.resources.table(ty)
    }

    /// How many batches have been applied.
    pub(crate) fn generation(&self) -> u64 {
        self.resources.generation()
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::Version;

    use super::*;

    fn resource(name: &str, content: &'static str) -> Resource {
        let (ty, content) = (ResourceType::Cluster, content.as_bytes());
        Resource { ty, name: name.into(), version: Version::of(content), content: content.into() }
    }

    #[test]
    fn only_changed_content_is_dirty() {
        let mut resources = Resources::default();
        let dirty =
            resources.apply(vec![Change::Upsert(resource("a", "1")), Change::Upsert(resource("b", "1"))]);
        assert_eq!(dirty[ResourceType::Cluster].len(), 2);
        let dirty = resources.apply(vec![
            Change::Upsert(resource("a", "1")),
            Change::Upsert(resource("b", "2")),
            Change::Remove(ResourceType::Cluster, "unknown".into()),
        ]);
        assert!(dirty[ResourceType::Cluster].keys().eq([&ResourceName::from("b")]));
    }
}
