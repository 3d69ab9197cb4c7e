//! The version strings of a foreign control plane.
//!
//! Inside the agent a version is always the hash of the content. slotmesh's own server writes that
//! hash, so nothing has to be remembered for it. Another control plane (istiod) writes what it
//! likes, and has to be told the same on a reconnect to recognise what the agent holds.

use std::collections::HashMap;

use slotmesh_xds::{PerType, ResourceName, ResourceType, Version};

/// Foreign version strings by resource, each with the content hash it stands for.
#[derive(Debug, Default)]
pub(crate) struct Foreign(PerType<HashMap<ResourceName, (Version, Box<str>)>>);

impl Foreign {
    /// Remembers what the control plane calls this version.
    pub(crate) fn learn(&mut self, ty: ResourceType, name: &ResourceName, version: Version, raw: &str) {
        if raw.parse() == Ok(version) {
            self.0[ty].remove(name);
        } else {
            self.0[ty].insert(name.clone(), (version, raw.into()));
        }
    }

    /// Forgets a resource that is gone.
    pub(crate) fn forget(&mut self, ty: ResourceType, name: &ResourceName) {
        self.0[ty].remove(name);
    }

    /// What to call this version to the control plane.
    pub(crate) fn name(&self, ty: ResourceType, name: &ResourceName, version: Version) -> String {
        match self.0[ty].get(name) {
            Some((known, raw)) if *known == version => raw.to_string(),
            _ => version.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_versions_are_remembered_and_only_for_the_content_they_stand_for() {
        let (ty, name) = (ResourceType::Cluster, ResourceName::from("a"));
        let (one, two) = (Version::of(b"1"), Version::of(b"2"));
        let mut foreign = Foreign::default();
        foreign.learn(ty, &name, one, &one.to_string());
        assert!(foreign.0[ty].is_empty());
        foreign.learn(ty, &name, one, "2026-01-01/7");
        assert_eq!(foreign.name(ty, &name, one), "2026-01-01/7");
        assert_eq!(foreign.name(ty, &name, two), two.to_string());
        // Hex digits that are not the hash of this content are an opaque string too.
        foreign.learn(ty, &name, one, &two.to_string());
        assert_eq!(foreign.name(ty, &name, one), two.to_string());
        foreign.forget(ty, &name);
        assert_eq!(foreign.name(ty, &name, one), one.to_string());
    }
}
