//! What the agent refuses at present: what is said of it, and what is asked for again.

use std::collections::HashMap;

use slotmesh_xds::{PerType, ResourceName, ResourceType, Version};

/// The resources that are refused, each with the version that was refused last.
///
/// It outlives streams: a resource that is refused again in the same version, by whatever stream it comes, is no news.
#[derive(Debug, Default)]
pub(crate) struct Refusals(PerType<HashMap<ResourceName, Option<Version>>>);

impl Refusals {
    /// A resource is refused; whether that is news.
    pub(crate) fn refused(
        &mut self,
        ty: ResourceType,
        name: &ResourceName,
        version: Option<Version>,
    ) -> bool {
        self.0[ty].insert(name.clone(), version) != Some(version)
    }

    /// A resource is in force, or gone; whether it was refused before.
    pub(crate) fn settled(&mut self, ty: ResourceType, name: &ResourceName) -> bool {
        self.0[ty].remove(name).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_version_is_news_once() {
        let mut refusals = Refusals::default();
        let (ty, name) = (ResourceType::Cluster, ResourceName::from("a"));
        let version = |content: &[u8]| Some(Version::of(content));
        assert!(refusals.refused(ty, &name, version(b"1")));
        assert!(!refusals.refused(ty, &name, version(b"1")));
        assert!(refusals.refused(ty, &name, version(b"2")));
        assert!(!refusals.settled(ResourceType::Route, &name));
        assert!(refusals.settled(ty, &name) && !refusals.settled(ty, &name));
        assert!(refusals.refused(ty, &name, version(b"2")));
        // One that has no content has no version.
        assert!(refusals.refused(ty, &name, None) && !refusals.refused(ty, &name, None));
    }
}
