//! Updates of the last time, remembered for people: what came into force on this node, what went, and what was refused.
//!
//! Invariant: bounded, whatever comes: [`UPDATES`] updates, and of each the first [`NAMES`] names. Remembering costs an
//! update the copies of these, and never makes it wait for whoever reads.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use slotmesh_admin::{ChangeView, ChangedResourceView};
use slotmesh_ads::{AskAgain, Sink, Update};
use slotmesh_xds::{Rejection, ResourceName, ResourceType, Version};

/// Number of updates that are remembered.
const UPDATES: usize = 512;
/// Number of resources of an update that are named.
const NAMES: usize = 32;

/// Updates that were remembered. Clones are handles of the same.
#[derive(Clone, Debug, Default)]
pub struct Remembered(Arc<Mutex<VecDeque<ChangeView>>>);

impl Remembered {
    /// All of them, oldest first.
    pub fn list(&self) -> Vec<ChangeView> {
        self.lock().iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<ChangeView>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, change: ChangeView) {
        let mut all = self.lock();
        if all.len() == UPDATES {
            all.pop_front();
        }
        all.push_back(change);
    }
}

/// A sink that hands everything on, and remembers it.
pub struct Recorder<S> {
    inner: S,
    remembered: Remembered,
}

impl<S> Recorder<S> {
    /// Remembers what `inner` takes.
    pub fn new(inner: S, remembered: Remembered) -> Self {
        Self { inner, remembered }
    }
}

/// Names of an update before it is applied: its content goes to whoever applies it.
fn named(update: &Update) -> ChangeView {
    let ty = update.ty;
    let view = |name: &ResourceName, version: Option<Version>| ChangedResourceView {
        ty: ty.to_string(),
        name: name.to_string(),
        version: version.map(|version| version.to_string()),
        refused: None,
    };
    let came = update.upserts.iter().map(|resource| view(&resource.name, Some(resource.version)));
    let went = update.removed.iter().map(|name| view(name, None));
    let all = update.upserts.len() + update.removed.len();
    ChangeView {
        resources: came.chain(went).take(NAMES).collect(),
        more: all.saturating_sub(NAMES),
        ..ChangeView::default()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl<S: Sink> Sink for Recorder<S> {
    async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
        self.inner.held().await
    }

    async fn apply(&self, update: Update) -> Vec<Rejection> {
        let mut change = named(&update);
        let rejected = self.inner.apply(update).await;
        change.at_ms = now_ms();
        for rejection in &rejected {
            let of = change.resources.iter_mut().find(|one| one.name == rejection.name.as_str());
            if let Some(resource) = of {
                resource.refused = Some(rejection.reason.clone());
            }
        }
        if !change.resources.is_empty() {
            self.remembered.add(change);
        }
        rejected
    }

    fn synced(&self) {
        self.inner.synced();
    }

    async fn retries(&self) -> AskAgain {
        self.inner.retries().await
    }
}

#[cfg(test)]
mod tests {
    use slotmesh_xds::Resource;

    use super::*;

    /// Refuses what is called so.
    struct Picky;

    impl Sink for Picky {
        async fn held(&self) -> Vec<(ResourceType, ResourceName, Version)> {
            Vec::new()
        }

        async fn apply(&self, update: Update) -> Vec<Rejection> {
            let bad = update.upserts.iter().filter(|resource| resource.name.as_str() == "bad");
            bad.map(|resource| Rejection { name: resource.name.clone(), reason: "no room".to_owned() })
                .collect()
        }

        fn synced(&self) {}
    }

    fn update(upserts: &[&str], removed: &[&str]) -> Update {
        let resource =
            |name: &&str| Resource::encoded(ResourceType::Cluster, ResourceName::from(*name), Vec::new());
        Update {
            ty: ResourceType::Cluster,
            upserts: upserts.iter().map(resource).collect(),
            removed: removed.iter().map(|name| ResourceName::from(*name)).collect(),
        }
    }

    #[tokio::test]
    async fn updates_are_remembered_with_what_was_refused_of_them() {
        let remembered = Remembered::default();
        let recorder = Recorder::new(Picky, remembered.clone());
        recorder.apply(update(&["good", "bad"], &["old"])).await;
        recorder.apply(update(&[], &[])).await;
        let all = remembered.list();
        assert_eq!(all.len(), 1, "nothing is no change");
        let said: Vec<_> = all[0]
            .resources
            .iter()
            .map(|one| (one.name.as_str(), one.version.is_some(), one.refused.as_deref()))
            .collect();
        assert_eq!(said, [("good", true, None), ("bad", true, Some("no room")), ("old", false, None)]);
        assert!(all[0].at_ms > 0 && all[0].resources[0].ty == "cluster");
    }

    #[tokio::test]
    async fn what_is_remembered_is_bounded() {
        let remembered = Remembered::default();
        let recorder = Recorder::new(Picky, remembered.clone());
        let names: Vec<String> = (0..NAMES + 3).map(|number| format!("c{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for _ in 0..UPDATES + 2 {
            recorder.apply(update(&names, &[])).await;
        }
        let all = remembered.list();
        assert_eq!((all.len(), all[0].resources.len(), all[0].more), (UPDATES, NAMES, 3));
    }
}
